"""The CUDA scan with complex states where the generic tests of ops do not reach: the usual N, cuts, repeats, 64 bits.

Needs a GPU: `pytest -m gpu tests/kernels/test_cuda_complex.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from seqkernels import selective_scan
from seqkernels.selective_scan.cuda import complex_launch, plan
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]

PER_POSITION = ("x_BLE", "dt_BLE", "b_BLGN", "c_BLGN", "z_BLE")


def draw(
    B: int, L: int, E: int, N: int = 16, dtype: torch.dtype = torch.bfloat16, groups: int = 1
) -> dict[str, Tensor]:
    """Inputs of one call, drawn on the GPU; every one a leaf that wants a gradient."""
    generator = torch.Generator("cuda").manual_seed(B * L + E + N)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, device="cuda", generator=generator, dtype=dtype)

    c64 = torch.complex64
    tensors = {
        "x_BLE": normal(B, L, E, dtype=dtype), "dt_BLE": normal(B, L, E, dtype=dtype).sub_(2),
        "a_EN": torch.complex(-0.3 - normal(E, N).abs(), 4 * normal(E, N)),
        "b_BLGN": normal(B, L, groups, N, dtype=c64), "c_BLGN": normal(B, L, groups, N, dtype=c64), "d_E": normal(E),
        "z_BLE": normal(B, L, E, dtype=dtype), "dt_bias_E": 0.2 * normal(E),
        "initial_state_BEN": normal(B, E, N, dtype=c64),
    }  # fmt: skip
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def run(tensors: dict[str, Tensor], implementation: str = "cuda", **options) -> tuple[Tensor, Tensor]:
    settings = {"dt_softplus": True, "return_final_state": True}
    return selective_scan(**tensors, **settings, implementation=implementation, **options)  # type: ignore[return-value]


def gradients(outputs: tuple[Tensor, ...], tensors: dict[str, Tensor], above: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return dict(zip(tensors, torch.autograd.grad(outputs, list(tensors.values()), above)))


def relative(ours: Tensor, other: Tensor) -> float:
    return torch.linalg.vector_norm((ours - other).abs().float()).item() / torch.linalg.vector_norm(
        other.abs().float()
    ).item()


@pytest.fixture(autouse=True)
def _free_memory() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


@pytest.mark.parametrize("N", [3, 16, 32, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_every_layout_equals_the_reference(N: int, dtype: torch.dtype):
    tensors = draw(2, 150, 128, N, dtype, groups=2)
    outputs, expected = run(tensors), run(tensors, "reference")
    above = tuple(torch.randn_like(out) for out in outputs)
    assert relative(outputs[0], expected[0]) < (1e-6 if dtype == torch.float32 else 1e-3)
    assert relative(outputs[1], expected[1]) < 1e-6
    expected_grads = gradients(expected, tensors, above)
    for name, grad in gradients(outputs, tensors, above).items():
        assert relative(grad, expected_grads[name]) < (2e-3 if grad.dtype == torch.float16 else 3e-6), name


@pytest.mark.parametrize("shape", [(2, 700, 128), (1, 33000, 64), (3, 100, 96)], ids=str)
def test_outputs_and_gradients_repeat_bit_for_bit(shape: tuple[int, int, int]):
    tensors = draw(*shape)
    outputs = run(tensors)
    above = tuple(torch.randn_like(out) for out in outputs)
    first = [*outputs, *gradients(outputs, tensors, above).values()]
    for _ in range(3):
        outputs = run(tensors)
        again = [*outputs, *gradients(outputs, tensors, above).values()]
        assert all(torch.equal(a, b) for a, b in zip(first, again))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("chunks", [2, 7, 63])
def test_a_cut_scan_equals_a_whole_one(chunks: int, dtype: torch.dtype):
    t = {name: tensor.detach() for name, tensor in draw(2, 20000, 64, dtype=dtype).items()}
    p = complex_launch.problem(*list(t.values())[:8], True, t["initial_state_BEN"], None)  # type: ignore[call-arg]
    above = torch.randn_like(t["x_BLE"]), torch.randn_like(t["initial_state_BEN"])
    results = []
    for count in (1, chunks):
        cut = plan.cut_into(p.size, count)
        assert cut.chunks == count
        forward = plan.complex_forward(p.size, 16)._replace(cut=cut)
        out, final, states = complex_launch.run_forward(p, True, forward)
        backward = plan.complex_backward(p.size, 16)._replace(cut=cut)
        results.append({"out": out, "final": final, **vars(complex_launch.run_backward(p, *above, states, backward))})
    for name, whole in results[0].items():
        assert relative(results[1][name], whole) < (3e-4 if whole.dtype == torch.bfloat16 else 2e-6), name


def test_a_long_sequence_in_pieces_equals_the_whole():
    tensors = draw(1, 300_000, 64)
    outputs = run(tensors)
    above = (torch.randn_like(outputs[0]), torch.randn_like(outputs[1]))
    whole = gradients(outputs, tensors, above)
    state, pieces = tensors["initial_state_BEN"], []
    for start, end in pairwise([0, 1, 1000, 123_457, 123_474, 299_999, 300_000]):
        piece = {n: t[:, start:end] if n in PER_POSITION else t for n, t in tensors.items()}
        y, state = run(piece | {"initial_state_BEN": state})
        pieces.append(y)
    y = torch.cat(pieces, dim=1)
    assert relative(y, outputs[0]) < 2e-4
    assert relative(state, outputs[1]) < 1e-5
    for name, value in gradients((y, state), tensors, above).items():
        assert relative(value, whole[name]) < (3e-4 if value.dtype == torch.bfloat16 else 1e-5), name


def test_packed_sequences_equal_separate_ones():
    bounds = [0, 3, 20_000, 20_016, 20_017, 29_999]
    tensors = draw(1, bounds[-1], 64, dtype=torch.float32)
    states = torch.randn(len(bounds) - 1, 64, 16, dtype=torch.complex64, device="cuda", requires_grad=True)
    tensors["initial_state_BEN"] = states
    outputs = run(tensors, cu_seqlens=torch.tensor(bounds, device="cuda"))
    above = tuple(torch.randn_like(out) for out in outputs)
    packed = gradients(outputs, tensors, above)
    summed = torch.zeros_like(packed["a_EN"])
    for i, (start, end) in enumerate(pairwise(bounds)):
        alone = {n: t[:, start:end] if n in PER_POSITION else t for n, t in tensors.items()}
        alone["initial_state_BEN"] = states[i : i + 1]
        alone = {name: tensor.detach().requires_grad_() for name, tensor in alone.items()}
        got = run(alone)
        assert relative(outputs[0][:, start:end], got[0]) < 1e-5
        grads = gradients(got, alone, (above[0][:, start:end], above[1][i : i + 1]))
        summed += grads["a_EN"]
        for name in PER_POSITION:
            assert relative(packed[name][:, start:end], grads[name]) < 1e-5, name
    assert relative(packed["a_EN"], summed) < 2e-5


def test_offsets_beyond_32_bits():
    """More than 2^31 elements: the last positions equal a short scan that starts from the state before them."""
    length, channels, tail = 4_194_304 + 1000, 512, 1000
    tensors = draw(1, length, channels)
    y, final = run(tensors)
    above = torch.zeros_like(y)
    above[:, -tail:].normal_()
    grads = gradients((y,), tensors, (above,))
    with torch.no_grad():
        _, middle = run({n: t[:, :-tail] if n in PER_POSITION else t for n, t in tensors.items()})
    end = {n: t[:, -tail:].detach().requires_grad_() if n in PER_POSITION else t for n, t in tensors.items()}
    end["initial_state_BEN"] = middle.requires_grad_()
    y_end, final_end = run(end)
    assert relative(y[:, -tail:], y_end) < 2e-4
    assert relative(final, final_end) < 1e-5
    for name, value in gradients((y_end,), end, (above[:, -tail:].contiguous(),)).items():
        if name in PER_POSITION:
            assert relative(grads[name][:, -tail:], value) < 3e-4, name
    assert grads["x_BLE"][:, 0].isfinite().all()
