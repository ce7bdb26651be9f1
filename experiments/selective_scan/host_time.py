"""What one call costs on the host: a scan too small to keep the GPU busy, and a profile of the Python part."""

from __future__ import annotations

import cProfile
import pstats
import time

import torch
from seqkernels import selective_scan
from seqkernels.selective_scan.spec import SPEC

sample = SPEC.bench_sample({"B": 1, "E": 512, "L": 64, "N": 16}, torch.device("cuda"), torch.bfloat16)
leaves = {name: tensor.detach().requires_grad_() for name, tensor in sample.tensors.items()}
grad = torch.randn_like(leaves["x_BLE"].detach())


def forward() -> None:
    with torch.no_grad():
        selective_scan(**leaves, **sample.options, implementation="cuda")


def both() -> None:
    y = selective_scan(**leaves, **sample.options, implementation="cuda")
    assert isinstance(y, torch.Tensor)
    torch.autograd.grad(y, list(leaves.values()), grad)


for function in (forward, both):
    for _ in range(20):
        function()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(200):
        function()
    torch.cuda.synchronize()
    print(f"{function.__name__}: {(time.perf_counter() - start) / 200 * 1e3:.3f} ms per call")
torch.autograd.set_multithreading_enabled(False)
with cProfile.Profile() as profile:
    for _ in range(200):
        both()
pstats.Stats(profile).sort_stats("tottime").print_stats(30)
