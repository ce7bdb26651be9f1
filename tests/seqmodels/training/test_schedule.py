"""Learning rates at the steps that matter."""

from __future__ import annotations

import pytest
import torch

from seqmodels.training.schedule import constant, warmup_cosine


def rates(make, total_steps: int, **options) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = make(optimizer, total_steps=total_steps, **options)
    found = []
    for _ in range(total_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_warmup_cosine():
    found = rates(warmup_cosine, 101, warmup_fraction=0.1, final_fraction=0.25)
    assert found[0] == pytest.approx(0.2)
    assert found[9] == pytest.approx(2.0)
    assert found[10] == pytest.approx(2.0)
    assert found[55] == pytest.approx(2.0 * (0.25 + 0.75 / 2))  # half way down the cosine
    assert found[100] == pytest.approx(0.5)
    assert found[10:] == sorted(found[10:], reverse=True)


def test_without_warmup_and_to_zero():
    found = rates(warmup_cosine, 11, warmup_fraction=0.0, final_fraction=0.0)
    assert found[0] == 2.0
    assert found[10] == pytest.approx(0.0, abs=1e-12)


def test_one_step_runs():
    assert rates(warmup_cosine, 1) == [2.0]


def test_constant():
    assert rates(constant, 5) == [2.0] * 5
    assert rates(constant, 4, warmup_fraction=0.5) == pytest.approx([1.0, 2.0, 2.0, 2.0])


@pytest.mark.parametrize("options", [{"warmup_fraction": 1.5}, {"final_fraction": -0.1}])
def test_fractions_are_checked(options):
    with pytest.raises(ValueError, match=r"scheduler\..*must lie in 0..1"):
        rates(warmup_cosine, 10, **options)
