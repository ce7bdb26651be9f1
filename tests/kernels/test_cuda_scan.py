"""The CUDA scan where the generic tests of ops do not reach: sizes beyond 32 bits, a million tokens, graphs, repeats.

Needs a GPU: `pytest -m gpu tests/kernels/test_cuda_scan.py`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from seqkernels import selective_scan
from seqkernels.selective_scan.cuda import launch, ops
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]

PER_POSITION = ("x_BLE", "dt_BLE", "b_BLGN", "c_BLGN", "z_BLE")


def draw(B: int, L: int, E: int, N: int = 16, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Inputs of one call, drawn on the GPU; every one a leaf that wants a gradient."""
    generator = torch.Generator("cuda").manual_seed(B * L + E + N)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, device="cuda", generator=generator, dtype=dtype)

    f32 = torch.float32
    tensors = {
        "x_BLE": normal(B, L, E), "dt_BLE": normal(B, L, E).sub_(2), "a_EN": -1 - 3 * normal(E, N, dtype=f32).abs(),
        "b_BLGN": normal(B, L, 1, N), "c_BLGN": normal(B, L, 1, N), "d_E": normal(E, dtype=f32),
        "z_BLE": normal(B, L, E), "dt_bias_E": 0.2 * normal(E, dtype=f32),
        "initial_state_BEN": normal(B, E, N, dtype=f32),
    }  # fmt: skip
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def run(tensors: dict[str, Tensor], **options) -> tuple[Tensor, Tensor]:
    return selective_scan(**tensors, dt_softplus=True, return_final_state=True, implementation="cuda", **options)


def gradients(outputs: tuple[Tensor, ...], tensors: dict[str, Tensor], above: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return dict(zip(tensors, torch.autograd.grad(outputs, list(tensors.values()), above)))


def relative(ours: Tensor, other: Tensor) -> float:
    return ((ours.double() - other.double()).norm() / other.double().norm()).item()


@pytest.fixture(autouse=True)
def _free_memory() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


@pytest.mark.parametrize("shape", [(2, 700, 128), (1, 33000, 64), (3, 100, 192)], ids=str)
def test_outputs_and_gradients_repeat_bit_for_bit(shape: tuple[int, int, int]):
    tensors = draw(*shape)
    outputs = run(tensors)
    above = tuple(torch.randn_like(out) for out in outputs)
    first = [*outputs, *gradients(outputs, tensors, above).values()]
    for _ in range(3):
        outputs = run(tensors)
        again = [*outputs, *gradients(outputs, tensors, above).values()]
        assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_a_million_tokens_in_seven_pieces_equal_the_whole():
    tensors = draw(1, 1048576, 64)
    outputs = run(tensors)
    above = (torch.randn_like(outputs[0]), torch.randn_like(outputs[1]))
    whole = gradients(outputs, tensors, above)
    bounds = [0, 1, 1000, 123_457, 400_000, 400_017, 999_999, 1048576]
    state, pieces = tensors["initial_state_BEN"], []
    for start, end in pairwise(bounds):
        piece = {n: t[:, start:end] if n in PER_POSITION else t for n, t in tensors.items()}
        y, state = run(piece | {"initial_state_BEN": state})
        pieces.append(y)
    y = torch.cat(pieces, dim=1)
    assert relative(y, outputs[0]) < 2e-4  # a bf16 rounding that falls the other way, now and then
    assert relative(state, outputs[1]) < 1e-5
    cut = gradients((y, state), tensors, above)
    for name, value in cut.items():
        assert relative(value, whole[name]) < (3e-4 if value.dtype == torch.bfloat16 else 1e-5), name


def test_offsets_beyond_32_bits():
    """More than 2^31 elements: the last positions equal a short scan that starts from the state before them."""
    length, channels, tail = 4_194_304 + 1000, 512, 1000
    tensors = draw(1, length, channels)
    assert tensors["x_BLE"].numel() > 2**31
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


def test_packed_sequences_of_very_different_lengths_equal_separate_ones():
    bounds = [0, 3, 20_000, 20_016, 20_017, 29_999]  # the long one is cut into chunks, the others are not
    tensors = draw(1, bounds[-1], 64, dtype=torch.float32)
    tensors["initial_state_BEN"] = torch.randn(len(bounds) - 1, 64, 16, device="cuda", requires_grad=True)
    outputs = run(tensors, cu_seqlens=torch.tensor(bounds, device="cuda"))
    above = tuple(torch.randn_like(out) for out in outputs)
    packed = gradients(outputs, tensors, above)
    sums = {name: torch.zeros_like(grad) for name, grad in packed.items()}
    for i, (start, end) in enumerate(pairwise(bounds)):
        alone = {n: t[:, start:end] if n in PER_POSITION else t for n, t in tensors.items()}
        alone["initial_state_BEN"] = tensors["initial_state_BEN"][i : i + 1]
        alone = {name: tensor.detach().requires_grad_() for name, tensor in alone.items()}
        got = run(alone)
        assert relative(outputs[0][:, start:end], got[0]) < 1e-5
        assert relative(outputs[1][i : i + 1], got[1]) < 1e-5
        for name, grad in gradients(got, alone, (above[0][:, start:end], above[1][i : i + 1])).items():
            if name == "initial_state_BEN":
                sums[name][i : i + 1] = grad
            elif name in PER_POSITION:
                sums[name][:, start:end] = grad
            else:
                sums[name] += grad
    for name, grad in packed.items():
        assert relative(grad, sums[name]) < 2e-5, name


@pytest.mark.parametrize("every", [0, 8])
def test_fewer_saved_states_give_the_same_gradients(every: int, monkeypatch: pytest.MonkeyPatch):
    """Towards the memory limit the backward pass repeats half of the forward pass, above it the whole."""
    from seqkernels.selective_scan.cuda import plan

    tensors = draw(2, 600, 128)
    outputs = run(tensors)
    above = tuple(torch.randn_like(out) for out in outputs)
    saved = gradients(outputs, tensors, above)
    monkeypatch.setattr(plan, "save_every", lambda *sizes: every)
    outputs = run(tensors)
    recomputed = gradients(outputs, tensors, above)
    assert all(torch.equal(saved[name], recomputed[name]) for name in saved)


@pytest.mark.parametrize("shape", [(2, 530, 128), (1, 9000, 64)], ids=str)
def test_forward_and_backward_replay_in_a_cuda_graph(shape: tuple[int, int, int]):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # leaves live on the stream of the capture; compile and warm up before it
        tensors = draw(*shape)
        above = (torch.randn(shape, device="cuda").bfloat16(), torch.randn(shape[0], shape[2], 16, device="cuda"))
        gradients(run(tensors), tensors, above)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        outputs = run(tensors)
        grads = gradients(outputs, tensors, above)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.no_grad():
        tensors["x_BLE"].normal_()
        tensors["dt_BLE"].normal_()
    graph.replay()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        expected = run(tensors)
        expected_grads = gradients(expected, tensors, above)
    torch.cuda.synchronize()
    assert torch.equal(outputs[0], expected[0])
    assert torch.equal(outputs[1], expected[1])
    for name, grad in expected_grads.items():
        assert torch.equal(grads[name], grad), name


def test_opcheck_of_the_backward_op():
    tensors = {name: tensor.detach() for name, tensor in draw(1, 40, 64).items()}
    p = launch.Problem.of(*list(tensors.values())[:8], True, tensors["initial_state_BEN"], None)  # type: ignore[arg-type]
    result = launch.run_forward(p, 4)
    final = torch.randn_like(result.final)
    arguments = (
        torch.randn_like(result.out), final, *list(tensors.values())[:8], True, tensors["initial_state_BEN"], None,
        result.y, result.states,
    )  # fmt: skip
    torch.library.opcheck(ops.backward_op.registered, arguments)


def test_halves_of_a_projection_are_read_in_place():
    xz = torch.randn(2, 300, 256, device="cuda").bfloat16()
    x, z = xz.chunk(2, dim=-1)
    assert launch._rows_in_place(x).data_ptr() == x.data_ptr()
    tensors = draw(2, 300, 128)
    strided = run(tensors | {"x_BLE": x, "z_BLE": z})
    dense = run(tensors | {"x_BLE": x.contiguous(), "z_BLE": z.contiguous()})
    assert all(torch.equal(a, b) for a, b in zip(strided, dense))


PROGRAM = """
import torch
from seqkernels import selective_scan
t = lambda *s: torch.ones(*s, device="cuda")
y = selective_scan(t(1, 40, 64), t(1, 40, 64), -t(64, 16), t(1, 40, 16), t(1, 40, 16), implementation="cuda")
print(y.sum().item())
"""


def test_two_processes_compile_and_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SEQKERNELS_CACHE", str(tmp_path))
    processes = [
        subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    answers = [process.communicate(timeout=120)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert answers[0] == answers[1] != ""
