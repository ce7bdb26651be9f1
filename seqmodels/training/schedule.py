"""Learning rates as a function of the optimizer step."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(
    optimizer: Optimizer, *, total_steps: int, warmup_fraction: float = 0.1, final_fraction: float = 0.1
) -> LambdaLR:
    """Linear warm-up to the optimizer's rate, then half a cosine down.

    Args:
        optimizer: its learning rates are the peaks.
        total_steps: optimizer steps of the whole run.
        warmup_fraction: share of the steps that warm up, 0..1 (0.1 in the Mamba papers).
        final_fraction: the last step's rate as a share of the peak, 0..1.

    Raises:
        ValueError: a fraction is outside 0..1.
    """
    for name, value in (("warmup_fraction", warmup_fraction), ("final_fraction", final_fraction)):
        if not 0 <= value <= 1:
            raise ValueError(f"scheduler.{name}={value} must lie in 0..1")
    warmup_steps = round(warmup_fraction * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
        return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor)


def constant(optimizer: Optimizer, *, total_steps: int, warmup_fraction: float = 0.0) -> LambdaLR:
    """The optimizer's rate throughout, after an optional linear warm-up.

    Raises:
        ValueError: warmup_fraction is outside 0..1.
    """
    if not 0 <= warmup_fraction <= 1:
        raise ValueError(f"scheduler.warmup_fraction={warmup_fraction} must lie in 0..1")
    warmup_steps = round(warmup_fraction * total_steps)
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, warmup_steps)))
