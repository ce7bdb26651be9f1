"""The laws of sequence layers as functions: hand one a module, it raises AssertionError where a law is broken.

The project's tests run them on every YAML in conf/layer/ and conf/backbone/; run them on your own layer before you
trust it:

    from seqmodels.testing import check_laws
    check_laws(MyLayer(64), torch.randn(2, 37, 64))

"module" is anything with `module(x, state=None, *, cu_seqlens=None) -> (y, state)`: a layer (x is x_BLD), a backbone
or a whole model (x is ids_BL).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seqmodels.layers.state import State, recurrent_tensors, select_state, state_tensors

Module = Callable[..., tuple[Tensor, State]]
TOLERANCE = 2e-5  # of the largest value: fp32 sums in another order


def assert_same(actual: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Equal up to `tolerance` times the largest expected magnitude (at least 1e-3, so that zeros compare)."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert torch.isfinite(actual).all(), f"{what}: not finite"
    actual, expected = actual.detach(), expected.detach()
    scale = max(float(expected.abs().max()) if expected.numel() else 0.0, 1e-3)
    error = float((actual - expected).abs().max()) if expected.numel() else 0.0
    assert error <= tolerance * scale, f"{what}: off by {error:.3g} where values reach {scale:.3g}"


def assert_same_state(actual: State, expected: State, what: str, tolerance: float = TOLERANCE) -> None:
    """Every tensor of two states is the same."""
    for index, (mine, other) in enumerate(zip(state_tensors(actual), state_tensors(expected), strict=True)):
        assert_same(mine, other, f"{what}, state tensor {index}", tolerance)


def check_laws(module: nn.Module, x: Tensor) -> None:
    """Every law below on one module; x is (B, L, D) activations or (B, L) ids with B >= 2 and L >= 16.

    Raises:
        AssertionError: naming the law and by how much it is broken.
    """
    if getattr(module, "is_causal", True):
        check_causality(module, x)
        check_any_cut(module, x)
        check_gradients_through_state(module, x)
    check_batch_and_padding(module, x)
    check_packing(module, x)
    check_state_dtype(module, x)


def check_causality(module: Module, x: Tensor, at: int | None = None) -> None:
    """What comes at and after position `at` (default: the middle) leaves every earlier output as it was."""
    at = x.shape[1] // 2 if at is None else at
    changed = torch.cat([x[:, :at], _different(x[:, at:])], dim=1)
    with torch.no_grad():
        before, after = module(x)[0], module(changed)[0]
    reach = float((after[:, at:] - before[:, at:]).abs().max())
    leak = float((after[:, :at] - before[:, :at]).abs().max())
    assert reach > 1e-6, "changing the input changes nothing: a dead module"
    # not bit-equal: a layer that convolves by FFT spreads rounding over all positions
    assert leak <= 1e-5 * reach, f"the future changes the past: by {leak:.3g} where it changes itself by {reach:.3g}"


def check_any_cut(module: Module, x: Tensor, cuts: Iterable[Sequence[int]] | None = None) -> None:
    """Pieces with the state carried along give what the whole gives: some cuts, and steps of one position."""
    length = x.shape[1]
    cuts = [[1], [length - 1], [2, 3, length // 2], range(1, length)] if cuts is None else cuts
    with torch.no_grad():
        whole, final = module(x)
        for cut in cuts:
            bounds = [0, *cut, length]
            pieces, state = [], None
            for first, last in itertools.pairwise(bounds):
                piece, state = module(x[:, first:last], state)
                pieces.append(piece)
            what = f"cut at {list(cut)[:4]}{'...' if len(cut) > 4 else ''}"
            assert_same(torch.cat(pieces, dim=1), whole, what)
            assert_same_state(state, final, what)


def check_gradients_through_state(module: nn.Module, x: Tensor, at: int | None = None) -> None:
    """Two pieces joined by their state give the whole's gradients, for the parameters and (if real) the input."""
    at = x.shape[1] // 3 if at is None else at

    def gradients(run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaf = x.detach().clone().requires_grad_(x.is_floating_point())
        y = run(leaf)
        wave = torch.sin(torch.arange(y.numel(), device=y.device, dtype=torch.float32)).view_as(y).to(y.dtype)
        wanted = [p for p in module.parameters() if p.requires_grad] + ([leaf] if leaf.requires_grad else [])
        grads = torch.autograd.grad((y * wave).sum(), wanted, allow_unused=True)
        return [torch.zeros_like(of) if grad is None else grad for of, grad in zip(wanted, grads, strict=True)]

    def in_two(leaf: Tensor) -> Tensor:
        first, state = module(leaf[:, :at])
        return torch.cat([first, module(leaf[:, at:], state)[0]], dim=1)

    names = [name for name, p in module.named_parameters() if p.requires_grad] + ["x"]
    for name, actual, expected in zip(names, gradients(in_two), gradients(lambda leaf: module(leaf)[0])):
        assert_same(actual, expected, f"gradient of {name} through the carried state", tolerance=1e-4)


def check_batch_and_padding(module: Module, x: Tensor) -> None:
    """A row gives the same alone as among others, and its start the same with anything (finite) padded behind it."""
    with torch.no_grad():
        together, states = module(x)
        for row in range(x.shape[0]):
            alone, state = module(x[row : row + 1])
            assert_same(together[row : row + 1], alone, f"row {row} among others")
            assert_same_state(select_state(states, [row]), state, f"row {row} among others")
        if getattr(module, "is_causal", True):
            length = x.shape[1] - 5
            padded = torch.cat([x[:, :length], _different(x[:, length:])], dim=1)
            assert_same(module(padded)[0][:, :length], module(x[:, :length])[0], "padding on the right")


def check_packing(module: Module, x: Tensor) -> None:
    """Sequences packed end to end equal separate ones: outputs, final states, and with initial states too."""
    length = x.shape[1]
    bounds = [0, 1, length // 3, length]
    cu_seqlens = torch.tensor(bounds, device=x.device, dtype=torch.int32)
    spans = list(itertools.pairwise(bounds))
    row = x[:1]
    with torch.no_grad():
        state: State = None
        for what in ("packed", "packed with initial states"):
            y, final = module(row, state, cu_seqlens=cu_seqlens)
            for index, (first, last) in enumerate(spans):
                initial = None if state is None else select_state(state, [index])
                alone, alone_final = module(row[:, first:last], initial)
                assert_same(y[:, first:last], alone, f"{what}, sequence {index}")
                assert_same_state(select_state(final, [index]), alone_final, f"{what}, sequence {index}")
            if not getattr(module, "is_causal", True):
                break  # such layers take whole sequences and refuse a state
            state = final


def check_state_dtype(module: Module, x: Tensor) -> None:
    """Recurrent floating-point state is fp32 (or wider), with fp32 activations and under bf16 autocast."""
    with torch.no_grad():
        states = {"fp32": module(x)[1]}
        with torch.autocast(x.device.type, torch.bfloat16):
            y, states["bf16 autocast"] = module(x)
    assert torch.isfinite(y).all(), "not finite under bf16 autocast"
    for mode, state in states.items():
        for tensor in recurrent_tensors(state):
            is_narrow = tensor.is_floating_point() and tensor.element_size() < 4
            assert not is_narrow, f"a state tensor is {tensor.dtype} with {mode}"


def parameter_names(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name to shape of everything in the state dict: what has to agree with published weights."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _different(x: Tensor) -> Tensor:
    """Other values of the same kind, deterministic: large activations, or the next ids."""
    if x.is_floating_point():
        return 3.0 + 2.0 * torch.flip(x, dims=[1])
    top: Any = x.max()
    return torch.where(x == top, x.min(), top)
