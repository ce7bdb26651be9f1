"""The memory-lean Mamba block: what is cheap to compute again is not kept for backward.

In: xz_BLE2 (the output of in_proj) and the block's weights; or, for `mamba_block`, the input x_BLD of in_proj.
Out: out_BLD (after out_proj) and the states to carry on from. Gradients reach every tensor, with and without biases.

    from seqkernels.mamba_inner import InnerWeights, mamba_inner
    out_BLD, state = mamba_inner(xz_BLE2, InnerWeights(...), recompute="inputs")

Composed of the public ops `causal_conv1d` and `selective_scan`, so it runs wherever they run; training on a GPU takes
`fused.py`, the same kernels as one autograd node. README.md says what is kept at each level.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from seqkernels.causal_conv1d.op import causal_conv1d
from seqkernels.checks import check_all, check_cu_seqlens
from seqkernels.selective_scan.op import selective_scan

OP = "mamba_inner"
LEVELS = ("nothing", "inputs", "all")


class InnerWeights(NamedTuple):
    """The weights of a Mamba block behind in_proj; shapes as published, except that the filter has no middle 1.

    Attributes:
        conv_weight_EW: filters of the causal convolution.
        conv_bias_E: their bias, or None.
        x_proj_weight: rows for dt (R), then B (N), then C (N).
        dt_proj_weight_ER: from rank R to a step size per channel.
        dt_bias_E: bias of dt_proj, added in fp32 before the softplus; or None.
        a_EN: state matrix, real fp32, negative.
        d_E: skip weights, or None.
        out_proj_weight_DE: from E back to the model width.
        out_proj_bias_D: its bias, or None.
    """

    conv_weight_EW: Float[Tensor, "E W"]
    conv_bias_E: Float[Tensor, " E"] | None
    x_proj_weight: Float[Tensor, "R+2*N E"]
    dt_proj_weight_ER: Float[Tensor, "E R"]
    dt_bias_E: Float[Tensor, " E"] | None
    a_EN: Float[Tensor, "E N"]
    d_E: Float[Tensor, " E"] | None
    out_proj_weight_DE: Float[Tensor, "D E"]
    out_proj_bias_D: Float[Tensor, " D"] | None = None


class InnerState(NamedTuple):
    """What the block carries from piece to piece, per sequence; None starts from zeros.

    Attributes:
        conv: (B or nseq, W-1, E) the convolution's last inputs, fp32.
        ssm: (B or nseq, E, N) the scan's state, fp32.
    """

    conv: Float[Tensor, "B W-1 E"] | None = None
    ssm: Float[Tensor, "B E N"] | None = None


def mamba_inner(
    xz_BLE2: Float[Tensor, "B L 2*E"],
    weights: InnerWeights,
    *,
    state: InnerState | None = None,
    cu_seqlens: Int[Tensor, " nseq+1"] | None = None,
    recompute: str = "inputs",
    implementation: str = "auto",
) -> tuple[Float[Tensor, "B L D"], InnerState]:
    """Everything of a Mamba block behind in_proj: conv, SiLU, x_proj, dt_proj, scan, gate, out_proj.

    Runs in the dtype of xz (bf16 under autocast, where in_proj made it so): projection weights are cast to it, the
    convolution and the scan compute in fp32.

    Args:
        xz_BLE2: output of in_proj: the signal x, then the gate z.
        weights: the block's weights.
        state: states to start from; gradients flow into them and through the returned ones.
        cu_seqlens: boundaries of sequences packed end to end in a batch of 1.
        recompute: what backward computes again instead of keeping it: "nothing"; "inputs", the convolution's output
            and the step sizes; "all", the scan and its output as well. Inside torch.compile "inputs" means "all".
        implementation: of the scan, by name; "reference" takes the reference of the convolution too.

    Returns:
        out_BLD in the dtype of xz, and the final states.

    Raises:
        ValueError: an unknown level, a width that does not fit the weights, or what the ops inside refuse.
    """
    state = state or InnerState()
    if recompute not in LEVELS:
        raise ValueError(f"{OP}: recompute={recompute!r} is unknown; accepted: {', '.join(LEVELS)}")
    E = weights.a_EN.shape[0]
    if xz_BLE2.dim() != 3 or xz_BLE2.shape[-1] != 2 * E:
        raise ValueError(
            f"{OP}: xz_BLE2 has shape {tuple(xz_BLE2.shape)}; a_EN with E={E} channels asks for (B, L, {2 * E})"
        )
    if torch.is_grad_enabled() and xz_BLE2.is_cuda:
        from seqkernels.mamba_inner import fused

        if fused.fits(xz_BLE2, weights.conv_weight_EW, weights.a_EN, cu_seqlens is not None, implementation):
            _check_inputs(xz_BLE2, weights, state, cu_seqlens)
            state = InnerState(*(None if part is None else part.float() for part in state))  # as the kernels read it
            weights = weights._replace(a_EN=weights.a_EN.float())
            with torch.autocast(xz_BLE2.device.type, enabled=False):
                out_BLD, *final = fused.MambaInner.apply(recompute, xz_BLE2, *state, cu_seqlens, *weights)  # type: ignore[misc]
            return out_BLD, InnerState(*final)
    if recompute == "nothing" or not torch.is_grad_enabled():
        return _block_behind_in_proj(xz_BLE2, weights, state, cu_seqlens, implementation)
    if recompute == "all" or torch.compiler.is_compiling():
        # Tensor hooks do not trace; the checkpoint does, and the compiler decides what to keep anyway.
        return _again_in_backward(_block_behind_in_proj, xz_BLE2, weights, state, cu_seqlens, implementation)
    return _without_inputs_of_the_scan(xz_BLE2, weights, state, cu_seqlens, implementation)


def _check_inputs(xz_BLE2: Tensor, weights: InnerWeights, state: InnerState, cu_seqlens: Tensor | None) -> None:
    """What the ops inside would check; a kernel reads where it is told."""
    B, L, _ = xz_BLE2.shape
    (E, N), R = weights.a_EN.shape, weights.dt_proj_weight_ER.shape[-1]
    sequences = B if cu_seqlens is None else check_cu_seqlens(OP, cu_seqlens, B, L)
    W, D = weights.conv_weight_EW.shape[-1], weights.out_proj_weight_DE.shape[0]
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "conv_weight_EW": ("E W", (E, W)),
        "conv_bias_E": ("E", (E,)),
        "x_proj_weight": ("R+2*N E", (R + 2 * N, E)),
        "dt_proj_weight_ER": ("E R", (E, R)),
        "dt_bias_E": ("E", (E,)),
        "d_E": ("E", (E,)),
        "out_proj_weight_DE": ("D E", (D, E)),
        "out_proj_bias_D": ("D", (D,)),
    }
    tensors = [(name, getattr(weights, name), *shape) for name, shape in shapes.items()]
    tensors.append(("state.conv", state.conv, "B W-1 E", (sequences, W - 1, E)))
    tensors.append(("state.ssm", state.ssm, "B E N", (sequences, E, N)))
    check_all(OP, "xz_BLE2", xz_BLE2, tensors)


def mamba_block(
    x_BLD: Float[Tensor, "B L D"],
    in_proj_weight: Float[Tensor, "2*E D"],
    in_proj_bias: Float[Tensor, " 2*E"] | None,
    weights: InnerWeights,
    *,
    state: InnerState | None = None,
    cu_seqlens: Int[Tensor, " nseq+1"] | None = None,
    implementation: str = "auto",
) -> tuple[Float[Tensor, "B L D"], InnerState]:
    """The whole block, keeping x_BLD alone: in_proj and everything of `mamba_inner` run again in backward.

    The leanest level, at 2*D bytes a position in bf16 (`mamba_inner` keeps 4*E or more), for one more in_proj.

    Args:
        x_BLD: input of the block, in the dtype to compute in.
        in_proj_weight: to signal and gate.
        in_proj_bias: its bias, or None.
        weights: the other weights of the block.
        state: as in `mamba_inner`.
        cu_seqlens: as in `mamba_inner`.
        implementation: as in `mamba_inner`.

    Returns:
        out_BLD in the dtype of x, and the final states.
    """

    def block(x_BLD: Tensor, weights: InnerWeights, *rest: object) -> tuple[Tensor, InnerState]:
        bias = None if in_proj_bias is None else in_proj_bias.to(x_BLD.dtype)
        xz_BLE2 = F.linear(x_BLD, in_proj_weight.to(x_BLD.dtype), bias)
        return _block_behind_in_proj(xz_BLE2, weights, *rest)  # type: ignore[arg-type]

    with torch.autocast(x_BLD.device.type, enabled=False):
        return _again_in_backward(block, x_BLD, weights, state or InnerState(), cu_seqlens, implementation)


def _convolve(
    x_BLE: Tensor, weights: InnerWeights, state: Tensor | None, cu_seqlens: Tensor | None, implementation: str
) -> tuple[Tensor, Tensor]:
    """The convolution with its SiLU, and its final state."""
    return causal_conv1d(  # type: ignore[return-value]
        x_BLE,
        weights.conv_weight_EW,
        weights.conv_bias_E,
        activation="silu",
        initial_state=state,
        cu_seqlens=cu_seqlens,
        return_final_state=True,
        implementation=implementation if implementation == "reference" else "auto",
    )


def _step_sizes(dt_b_c: Tensor, dt_proj_weight_ER: Tensor) -> Tensor:
    """dt_proj without its bias, which the scan adds in fp32."""
    rank = dt_proj_weight_ER.shape[1]
    return F.linear(dt_b_c[..., :rank], dt_proj_weight_ER.to(dt_b_c.dtype))


def _scan(
    u_BLE: Tensor, dt_BLE: Tensor, dt_b_c: Tensor, z_BLE: Tensor, weights: InnerWeights, state: Tensor | None, *rest
) -> tuple[Tensor, Tensor]:
    """The scan with skip and gate, and its final state."""
    cu_seqlens, implementation = rest
    N, R = weights.a_EN.shape[1], weights.dt_proj_weight_ER.shape[1]
    _, b_BLN, c_BLN = dt_b_c.split([R, N, N], dim=-1)
    return selective_scan(  # type: ignore[return-value]
        u_BLE,
        dt_BLE,
        weights.a_EN,
        b_BLN,
        c_BLN,
        d_E=weights.d_E,
        z_BLE=z_BLE,
        dt_bias_E=weights.dt_bias_E,
        dt_softplus=True,
        initial_state_BEN=state,
        cu_seqlens=cu_seqlens,
        return_final_state=True,
        implementation=implementation,
    )


def _project_out(y_BLE: Tensor, weights: InnerWeights) -> Tensor:
    bias = None if weights.out_proj_bias_D is None else weights.out_proj_bias_D.to(y_BLE.dtype)
    return F.linear(y_BLE, weights.out_proj_weight_DE.to(y_BLE.dtype), bias)


def _block_behind_in_proj(
    xz_BLE2: Tensor, weights: InnerWeights, state: InnerState, cu_seqlens: Tensor | None, implementation: str
) -> tuple[Tensor, InnerState]:
    """The composition itself, keeping what autograd keeps."""
    with torch.autocast(xz_BLE2.device.type, enabled=False):
        x_BLE, z_BLE = xz_BLE2.chunk(2, dim=-1)
        u_BLE, conv_state = _convolve(x_BLE, weights, state.conv, cu_seqlens, implementation)
        dt_b_c = F.linear(u_BLE, weights.x_proj_weight.to(u_BLE.dtype))
        dt_BLE = _step_sizes(dt_b_c, weights.dt_proj_weight_ER)
        y_BLE, ssm_state = _scan(u_BLE, dt_BLE, dt_b_c, z_BLE, weights, state.ssm, cu_seqlens, implementation)
        return _project_out(y_BLE, weights), InnerState(conv_state, ssm_state)


def _again_in_backward(function, *arguments):
    """Keep the arguments only; backward runs the function again. No dropout inside: the RNG needs no care."""
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


class _Again:
    """Makes the scan's inputs, the convolution's output u and the step sizes dt, a second time when backward asks.

    As a pair of saved-tensor hooks: what autograd would keep of u and dt (by whatever op, in whatever view) is replaced
    by a note which of them it is and how it was strided. Everything else is kept as it is. Both are made once per
    backward, and dropped when the gradient of u is complete, that is when every reader is done.
    """

    def __init__(
        self,
        x_BLE: Tensor,
        weights: InnerWeights,
        state: Tensor | None,
        cu_seqlens: Tensor | None,
        implementation: str,
    ):
        # Detached: the graph holds this object, so it must not hold the graph.
        state = None if state is None else state.detach()
        self._arguments = (x_BLE.detach(), _detached(weights), state, cu_seqlens, implementation)
        self._dt_b_c: Tensor | None = None
        self._watched: dict[int, str] = {}
        self._made: dict[str, Tensor] = {}

    def watch(self, name: str, tensor: Tensor) -> None:
        """From now on do not keep this tensor."""
        self._watched[tensor.untyped_storage()._cdata] = name

    def remember(self, dt_b_c: Tensor) -> None:
        """The small output of x_proj, from which dt is made again."""
        self._dt_b_c = dt_b_c.detach()

    def forget(self) -> None:
        """The storages watched may be freed and reused from here on."""
        self._watched.clear()

    def pack(self, tensor: Tensor):
        name = self._watched.get(tensor.untyped_storage()._cdata)
        if name is None:
            return tensor.detach()  # autograd puts the history back; kept here, an output would hold its own node
        return name, tuple(tensor.shape), tensor.stride(), tensor.storage_offset()

    def unpack(self, packed) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        name, shape, stride, offset = packed
        return self._make(name).as_strided(shape, stride, offset)

    def release(self, _gradient: Tensor) -> None:
        """Hook of u: its gradient is complete."""
        self._made.clear()

    def _make(self, name: str) -> Tensor:
        if name not in self._made:
            x_BLE, weights, conv_state, cu_seqlens, implementation = self._arguments
            with torch.no_grad(), torch.autocast(x_BLE.device.type, enabled=False):
                if name == "u":
                    self._made[name] = _convolve(x_BLE, weights, conv_state, cu_seqlens, implementation)[0]
                else:
                    assert self._dt_b_c is not None
                    self._made[name] = _step_sizes(self._dt_b_c, weights.dt_proj_weight_ER)
        return self._made[name]


def _detached(weights: InnerWeights) -> InnerWeights:
    return InnerWeights(*(None if w is None else w.detach() for w in weights))  # type: ignore[arg-type]


def _without_inputs_of_the_scan(
    xz_BLE2: Tensor, weights: InnerWeights, state: InnerState, cu_seqlens: Tensor | None, implementation: str
) -> tuple[Tensor, InnerState]:
    """`_block_behind_in_proj`, with u and dt made again in backward (one convolution and one thin GEMM)."""
    with torch.autocast(xz_BLE2.device.type, enabled=False):
        x_BLE, z_BLE = xz_BLE2.chunk(2, dim=-1)
        again = _Again(x_BLE, weights, state.conv, cu_seqlens, implementation)
        u_BLE, conv_state = _convolve(x_BLE, weights, state.conv, cu_seqlens, implementation)
        again.watch("u", u_BLE)
        with torch.autograd.graph.saved_tensors_hooks(again.pack, again.unpack):
            dt_b_c = F.linear(u_BLE, weights.x_proj_weight.to(u_BLE.dtype))
            again.remember(dt_b_c)
            dt_BLE = _step_sizes(dt_b_c, weights.dt_proj_weight_ER)
            again.watch("dt", dt_BLE)
            y_BLE, ssm_state = _scan(u_BLE, dt_BLE, dt_b_c, z_BLE, weights, state.ssm, cu_seqlens, implementation)
        if u_BLE.requires_grad:
            u_BLE.register_hook(again.release)
        again.forget()
        return _project_out(y_BLE, weights), InnerState(conv_state, ssm_state)
