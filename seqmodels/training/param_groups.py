"""Which parameters weight decay acts on: matrices do, `A_log`, `D`, biases, norms and step-size biases do not."""

from __future__ import annotations

from typing import Any

from torch import nn


def param_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups for an optimizer, in the order of `named_parameters`: with and without weight decay.

    A parameter is without decay if it has fewer than two dimensions (biases, norms, D) or carries the published mark
    `_no_weight_decay` (A_log, which is a matrix). The first group takes the optimizer's own `weight_decay`.
    """
    groups: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": []}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim < 2 or getattr(parameter, "_no_weight_decay", False)
        groups["no_decay" if plain else "decay"].append(parameter)
    named = [{"params": groups["decay"]}, {"params": groups["no_decay"], "weight_decay": 0.0}]
    return [group for group in named if group["params"]]
