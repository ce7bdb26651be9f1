"""A block's decode step: states in place, what is refused; on a GPU, kernels that begin early against a slow run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from seqkernels import mamba_step
from seqkernels.mamba_block_step import gpu
from seqkernels.mamba_block_step.op import REGISTRY, mamba_block_step
from seqkernels.mamba_block_step.spec import sample
from seqkernels.mamba_step.spec import sample as between_sample

CPU = torch.device("cpu")
SMALL = {"B": 2, "D": 16, "E": 32, "N": 16, "R": 3, "W": 4}


def tensors(sizes: dict[str, int] = SMALL, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {name: t.detach() for name, t in sample("block", sizes, CPU, dtype).tensors.items()}


def test_inplace_writes_into_the_given_states() -> None:
    t = tensors()
    expected = mamba_block_step(**t)
    before = t["conv_state"].clone()
    got = mamba_block_step(**t, inplace=True)
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert got[2] is t["conv_state"]
    assert got[3] is t["state_BEN"]
    assert torch.equal(got[2][:, :-1], before[:, 1:])


def test_the_residual_is_the_sum_in_fp32() -> None:
    t = tensors(dtype=torch.bfloat16)
    out, total, *_ = mamba_block_step(**t)
    assert out.dtype is torch.bfloat16
    assert torch.equal(total, t["x_BD"].float() + t["residual_BD"])
    del t["residual_BD"]
    assert torch.equal(mamba_block_step(**t)[1], t["x_BD"].float())


@pytest.mark.parametrize(
    ("reason", "sizes", "details"),
    [
        ("has no gradients", {}, {"needs_grad": True}),
        ("5 rows: from 5 on", {"B": 5}, {}),
        ("weights are not all torch.bfloat16", {}, {"weight_dtype": torch.float32}),
        ("D=12, E=32, N=16, R=3 cannot be dealt out", {"D": 12}, {"rank": 3}),
    ],
)
def test_what_the_kernels_refuse_is_said_in_words(monkeypatch, reason, sizes, details) -> None:
    monkeypatch.setattr(gpu, "gpu_unavailable", lambda device_type, index: None)
    monkeypatch.setattr(gpu.launch, "processors", lambda index: 132)
    t = tensors({**SMALL, **sizes}, dtype=torch.bfloat16)
    refusal = REGISTRY.unavailable("cuda", t["x_BD"], t["a_EN"], **details)
    assert refusal is not None
    assert reason in refusal
    plain = tensors(dtype=torch.bfloat16)
    assert REGISTRY.unavailable("cuda", plain["x_BD"], plain["a_EN"], rank=3) is None


def replayed(step: Callable[[], None], times: int) -> None:
    """`step` as a CUDA graph, so often."""
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(times - 1):
        graph.replay()


@pytest.mark.gpu
@pytest.mark.parametrize("B", [1, 3, 4])
def test_layers_in_a_graph_equal_layers_with_the_gpu_idle_in_between(B: int) -> None:
    """Kernels that begin before the one in front has ended: what they read too early would show in some bit."""
    sizes = {"B": B, "D": 768, "E": 1536, "N": 16, "R": 48, "W": 4}
    device = torch.device("cuda")
    layers = [
        {n: t.detach() for n, t in sample(f"layer {i}", sizes, device, torch.bfloat16).tensors.items()}
        for i in range(6)
    ]
    first = layers[0]["x_BD"]
    for layer in layers:
        del layer["x_BD"], layer["residual_BD"]
    results = []
    for slow in (True, False):
        own = [{**layer, **{n: layer[n].clone() for n in ("conv_state", "state_BEN")}} for layer in layers]
        x, out = first.clone(), torch.empty_like(first)

        def step(own=own, x=x, out=out, slow=slow) -> None:
            y, residual = x, None
            for layer in own:
                y, residual, *_ = mamba_block_step(
                    y, residual_BD=residual, **layer, inplace=True, implementation="cuda"
                )
                if slow:
                    torch.cuda.synchronize()
            out.copy_(y)
            x.copy_((first + 0.1 * y).to(x.dtype))

        with torch.no_grad():
            if slow:
                for _ in range(40):
                    step()
            else:
                # warming up and capturing count as one step: capturing does not run
                replayed(step, 40)
        torch.cuda.synchronize()
        results.append([out, *(layer[n] for layer in own for n in ("conv_state", "state_BEN"))])
    assert all(torch.isfinite(t).all() for t in results[0])
    for index, (slow, fast) in enumerate(zip(*results, strict=True)):
        assert torch.equal(slow, fast), f"tensor {index} of {len(results[0])}"


@pytest.mark.gpu
@pytest.mark.parametrize("B", [2, 16, 128])
def test_steps_behind_one_another_equal_steps_with_the_gpu_idle_in_between(B: int) -> None:
    """The same for `mamba_step`, whose scan reads its states while the convolution runs."""
    sizes = {"B": B, "E": 1536, "N": 16, "R": 48, "W": 4}
    drawn = between_sample("steps", sizes, torch.device("cuda"), torch.bfloat16).tensors
    weights = {name: t.detach() for name, t in drawn.items()}
    results = []
    for slow in (True, False):
        t = {**weights, **{n: weights[n].clone() for n in ("conv_state", "state_BEN")}}
        with torch.no_grad():
            for _ in range(30):
                y, *_ = mamba_step(**t, inplace=True, implementation="cuda")
                if slow:
                    torch.cuda.synchronize()
        torch.cuda.synchronize()
        results.append((y, t["conv_state"], t["state_BEN"]))
    for slow, fast in zip(*results, strict=True):
        assert torch.equal(slow, fast)

