"""One forward and one backward pass at (B, E, L) = (32, 2048, 2048) for the profiler (ncu)."""

from __future__ import annotations

import torch
from seqkernels.selective_scan.cuda import launch
from sweep import problem

p, grad = problem(32, 2048, 2048)
launch.run_forward(p, 0)
result = launch.run_forward(p, 4)
launch.run_backward(p, grad, None, result.y, result.states)
p, grad = problem(8, 2048, 2048)
result = launch.run_forward(p, 4)
launch.run_backward(p, grad, None, result.y, result.states)
torch.cuda.synchronize()
