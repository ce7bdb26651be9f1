"""How a GPU implementation of the step becomes two torch ops: one returns new states, one writes over the old ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from seqkernels.dispatch import watched

Weights = tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor, Tensor]

#: (xz, conv_state, state, new_conv_state, new_state, weights) -> y_BE. States are dense; new ones may be the old ones.
Run = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Weights], Tensor]

#: The entry of an implementation; see `seqkernels.mamba_step.op`.
Step = Callable[..., tuple[Tensor, Tensor, Tensor]]


def implementation(name: str, run: Run) -> Step:
    """Register `seqkernels::mamba_step_<name>` and `..._` and return the function that takes one of the two.

    Nobody who compiles, traces or records: the registered ops are passed by, which saves the host more than a launch.
    """

    def functional(
        xz: Tensor,
        conv_state: Tensor,
        state: Tensor,
        conv_weight: Tensor,
        conv_bias: Tensor | None,
        x_proj: Tensor,
        dt_proj: Tensor,
        dt_bias: Tensor,
        a: Tensor,
        d: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        conv_state, state = conv_state.contiguous(), state.contiguous()
        new_conv_state, new_state = torch.empty_like(conv_state), torch.empty_like(state)
        weights = (conv_weight, conv_bias, x_proj, dt_proj, dt_bias, a, d)
        return run(xz, conv_state, state, new_conv_state, new_state, weights), new_conv_state, new_state

    def inplace(
        xz: Tensor,
        conv_state: Tensor,
        state: Tensor,
        conv_weight: Tensor,
        conv_bias: Tensor | None,
        x_proj: Tensor,
        dt_proj: Tensor,
        dt_bias: Tensor,
        a: Tensor,
        d: Tensor,
    ) -> Tensor:
        dense_conv_state, dense_state = conv_state.contiguous(), state.contiguous()
        weights = (conv_weight, conv_bias, x_proj, dt_proj, dt_bias, a, d)
        y = run(xz, dense_conv_state, dense_state, dense_conv_state, dense_state, weights)
        for given, dense in ((conv_state, dense_conv_state), (state, dense_state)):
            if dense is not given:
                given.copy_(dense)
        return y

    # Schemas by hand: annotations of a nested function are strings that torch cannot look up.
    inputs = "Tensor x_proj, Tensor dt_proj, Tensor dt_bias, Tensor a, Tensor d"
    functional_op = torch.library.custom_op(
        f"seqkernels::mamba_step_{name}",
        functional,
        mutates_args=(),
        schema=f"(Tensor xz, Tensor conv_state, Tensor state, Tensor conv_weight, Tensor? conv_bias, {inputs})"
        " -> (Tensor, Tensor, Tensor)",
    )
    inplace_op = torch.library.custom_op(
        f"seqkernels::mamba_step_{name}_",
        inplace,
        mutates_args=("conv_state", "state"),
        schema=f"(Tensor xz, Tensor(a!) conv_state, Tensor(b!) state, Tensor conv_weight, Tensor? conv_bias, {inputs})"
        " -> Tensor",
    )
    functional_op.register_fake(
        lambda xz, conv_state, state, *weights: (
            _empty_y(xz, state), conv_state.new_empty(conv_state.shape), state.new_empty(state.shape),
        )
    )  # fmt: skip
    inplace_op.register_fake(lambda xz, conv_state, state, *weights: _empty_y(xz, state))

    def step(
        xz_B2E: Tensor, conv_state: Tensor, state_BEN: Tensor, *rest: Tensor | bool | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        *weights, in_place = rest
        traced = watched()
        if not in_place:
            return (functional_op if traced else functional)(xz_B2E, conv_state, state_BEN, *weights)  # type: ignore
        y_BE = (inplace_op if traced else inplace)(xz_B2E, conv_state, state_BEN, *weights)  # type: ignore[arg-type]
        if not traced:  # autograd cannot see it otherwise, where a graph has saved the states
            increment_version((conv_state, state_BEN))
        return y_BE, conv_state, state_BEN

    return step


def _empty_y(xz: Tensor, state: Tensor) -> Tensor:
    return torch.empty(state.shape[:2], dtype=xz.dtype, device=xz.device)
