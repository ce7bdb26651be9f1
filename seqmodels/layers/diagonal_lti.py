"""Diagonal linear time-invariant systems: the core of S4D, one system of N modes a channel, run in two modes.

    h_t = abar h_{t-1} + bbar u_t
    y_t = gain Re(sum_n c_n h_t,n)          gain 2 for complex modes, which stand for a conjugate pair each; else 1

`step` is the recurrence. `run` is the same for any L by convolution: with h_{-1} the incoming state,

    y_t = sum_k K_k u_{t-k} + gain Re(c abar^{t+1} h_{-1}),        K_k = gain Re(sum_n c_n abar_n^k bbar_n)
    h_{L-1} = abar^L h_{-1} + sum_k abar^k bbar u_{L-1-k}

(S4D: Gu et al. 2022, arXiv:2206.11893, section 2; the convolution is S4's, Gu et al. 2021, arXiv:2111.00396, eq. 4
and 5). The convolution is an FFT in fp32, also under autocast. Everything that is a power of abar is computed in
float64 from the logarithm of abar: at L = 2^20 the phase of abar^k is millions of radians, of which fp32 keeps none.

Memory: the (E, N, L) Vandermonde matrix is never made. Powers up to L are products of about sqrt(L) large and sqrt(L)
small ones, so a kernel of length L takes a matrix product of (sqrt(L), N) by (N, sqrt(L)) a channel. The convolution
(`seqkernels.long_conv`) makes kernels and transforms of a block of channels at a time, again in backward, and keeps
its input alone. At B = 1, E = 64, N = 64, L = 2^20 on a CPU: input and output 256 MiB each, forward without gradients
peaks below 2 GiB, where the Vandermonde matrix alone would be 16 GiB.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Complex, Float, Int
from seqkernels.checks import accumulation_dtype, check_cu_seqlens, complex_of
from seqkernels.long_conv.op import implicit_long_conv
from seqkernels.long_conv.sizes import channel_blocks
from torch import Tensor
from torch.utils.checkpoint import checkpoint

DISCRETISATIONS = ("zoh", "bilinear")


class DiagonalSystem(NamedTuple):
    """E independent discrete systems of N modes.

    Attributes:
        log_abar_EN: complex128, a logarithm of abar (of real modes too: bilinear real ones may be negative).
        bbar_EN: complex128.
        c_EN: complex128.
        is_complex: False when all modes are real; imaginary parts above are then zero (or i pi in the logarithm).
    """

    log_abar_EN: Complex[Tensor, "E N"]
    bbar_EN: Complex[Tensor, "E N"]
    c_EN: Complex[Tensor, "E N"]
    is_complex: bool


def discretise(
    a_EN: Complex[Tensor, "E N"], dt_E1: Float[Tensor, "E 1"], method: str
) -> tuple[Complex[Tensor, "E N"], Complex[Tensor, "E N"]]:
    """A continuous system h' = a h + u (b = 1) with step dt as (log abar, bbar); complex128 and float64 in.

    "zoh", exact for an input that is constant over each step: abar = exp(dt a), bbar = (dt a)^-1 (exp(dt a) - 1) dt
    (Mamba, arXiv:2312.00752, eq. 4). "bilinear": abar = (1 + dt a / 2) / (1 - dt a / 2), bbar = dt / (1 - dt a / 2)
    (S4, arXiv:2111.00396, eq. 3).
    """
    z_EN = dt_E1 * a_EN
    if method == "zoh":
        return z_EN, (torch.exp(z_EN) - 1) / a_EN
    assert method == "bilinear", method
    return torch.log((1 + z_EN / 2) / (1 - z_EN / 2)), dt_E1 / (1 - z_EN / 2)


class StepFactors(NamedTuple):
    """What `step` reads, in the arithmetic's dtype: complex for complex modes, else real."""

    abar_EN: Float[Tensor, "E N"] | Complex[Tensor, "E N"]
    bbar_EN: Float[Tensor, "E N"] | Complex[Tensor, "E N"]
    c_EN: Float[Tensor, "E N"] | Complex[Tensor, "E N"]


def step_factors(system: DiagonalSystem, real: torch.dtype) -> StepFactors:
    """A system rounded for the recurrence in fp32 or float64."""
    values = (torch.exp(system.log_abar_EN), system.bbar_EN, system.c_EN)
    if system.is_complex:
        return StepFactors(*(value.to(complex_of(real)) for value in values))
    return StepFactors(*(value.real.to(real) for value in values))


def step(
    u_BE: Float[Tensor, "B E"], factors: StepFactors, state_BEN: Float[Tensor, "B E N *re_im"] | None
) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B E N *re_im"]]:
    """The recurrence for one position: (y_BE, new state), both in the accumulation dtype of u."""
    real = accumulation_dtype(u_BE.dtype)
    is_complex = factors.bbar_EN.is_complex()
    h_BEN = factors.bbar_EN * u_BE.to(real)[..., None]
    if state_BEN is not None:
        state_BEN = state_BEN.to(real).contiguous()
        h_BEN = h_BEN + factors.abar_EN * (torch.view_as_complex(state_BEN) if is_complex else state_BEN)
    y_BE = (factors.c_EN * h_BEN).sum(dim=-1)
    return (2 * y_BE.real, torch.view_as_real(h_BEN)) if is_complex else (y_BE, h_BEN)


def run(
    u_BLE: Float[Tensor, "B L E"],
    system: DiagonalSystem,
    state_SEN: Float[Tensor, "S E N *re_im"] | None,
    cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None,
) -> tuple[Float[Tensor, "B L E"], Float[Tensor, "S E N *re_im"]]:
    """The convolution mode, any L: (y_BLE, state after the last position), in the accumulation dtype of u.

    Args:
        u_BLE: input.
        system: E systems.
        state_SEN: the state before the first position (S is B, or nseq with cu_seqlens); complex modes have a last
            dimension of real and imaginary part. None starts from zero.
        cu_seqlens: offsets of packed sequences. Their values are read on the host: sequences of like length run as
            one batch, at most twice as long as they are.
    """
    if cu_seqlens is not None:
        return _run_packed(u_BLE, system, state_SEN, cu_seqlens)
    return _run_batch(u_BLE, system, state_SEN, None)


def _run_packed(
    u_1LE: Tensor, system: DiagonalSystem, state_SEN: Tensor | None, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor]:
    """Sequences whose lengths have the same number of binary digits are padded into one batch."""
    check_cu_seqlens("S4D", cu_seqlens, u_1LE.shape[0], u_1LE.shape[1])
    groups: dict[int, list[tuple[int, int, int]]] = {}
    for row, (first, last) in enumerate(pairwise(cu_seqlens.tolist())):
        groups.setdefault((last - first - 1).bit_length(), []).append((row, first, last - first))
    outputs, positions, states, rows = [], [], [], []
    for members in groups.values():
        rows_S, firsts_S, lengths_S = torch.tensor(members, device=u_1LE.device).unbind(dim=1)
        offsets_L = torch.arange(max(length for _, _, length in members), device=u_1LE.device)
        is_real_SL = offsets_L < lengths_S[:, None]
        at_SL = firsts_S[:, None] + torch.minimum(offsets_L, lengths_S[:, None] - 1)
        u_SLE = u_1LE[0, at_SL].masked_fill(~is_real_SL[..., None], 0.0)
        state = None if state_SEN is None else state_SEN.index_select(0, rows_S)
        y_SLE, final = _run_batch(u_SLE, system, state, lengths_S)
        outputs.append(y_SLE[is_real_SL])
        positions.append(at_SL[is_real_SL])
        states.append(final)
        rows.append(rows_S)
    y_LE, final_SEN = torch.cat(outputs), torch.cat(states)
    y_LE = torch.zeros_like(y_LE).index_copy(0, torch.cat(positions), y_LE)
    return y_LE[None], torch.zeros_like(final_SEN).index_copy(0, torch.cat(rows), final_SEN)


def _run_batch(
    u_BLE: Tensor, system: DiagonalSystem, state_BEN: Tensor | None, lengths_B: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The equations of the module's head; rows longer than their length hold zeros behind it."""
    make_kernel = partial(_kernel, u_BLE.shape[1], system.is_complex, accumulation_dtype(u_BLE.dtype))
    y_BLE = implicit_long_conv(u_BLE, make_kernel, tuple(system[:3]))
    states = []
    for e in channel_blocks(u_BLE):
        part = DiagonalSystem(system.log_abar_EN[e], system.bbar_EN[e], system.c_EN[e], system.is_complex)
        states.append(_again_in_backward(_final_state, u_BLE[..., e], part, _channels(state_BEN, e), lengths_B))
    if state_BEN is not None:
        y_BLE = y_BLE + _again_in_backward(_state_response, state_BEN, system, u_BLE.shape[1]).to(y_BLE.dtype)
    return y_BLE, states[0] if len(states) == 1 else torch.cat(states, dim=1)


def _channels(state_BEN: Tensor | None, e: slice) -> Tensor | None:
    return None if state_BEN is None else state_BEN[:, e]


def _again_in_backward(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)  # type: ignore[return-value]


def _kernel(
    length: int, is_complex: bool, real: torch.dtype, log_abar_EN: Tensor, bbar_EN: Tensor, c_EN: Tensor
) -> Float[Tensor, "E L"]:
    system = DiagonalSystem(log_abar_EN, bbar_EN, c_EN, is_complex)
    return _responses(system, _powers_below(length, system), bbar_EN[:, None])[:, 0, :length].to(real)


def _state_response(state_BEN: Tensor, system: DiagonalSystem, length: int) -> Float[Tensor, "B L E"]:
    """What the incoming state alone puts out."""
    start_EBN = torch.exp(system.log_abar_EN[:, None]) * _modes(state_BEN, system.is_complex).transpose(0, 1)
    return _responses(system, _powers_below(length, system), start_EBN)[..., :length].permute(1, 2, 0)


def _final_state(
    u_BLE: Tensor, system: DiagonalSystem, state_BEN: Tensor | None, lengths_B: Tensor | None
) -> Float[Tensor, "B E N *re_im"]:
    """The state behind the last position, in the accumulation dtype of u."""
    L, real = u_BLE.shape[1], accumulation_dtype(u_BLE.dtype)
    u_EBL = _right_aligned(u_BLE.permute(2, 0, 1), lengths_B)
    final_EBN = _driven_state(u_EBL, system, _powers_below(L, system))
    if state_BEN is not None:
        steps = L if lengths_B is None else lengths_B[:, None]
        decay_EBN = torch.exp(steps * system.log_abar_EN[:, None])
        final_EBN = final_EBN + (decay_EBN * _modes(state_BEN, system.is_complex).transpose(0, 1)).to(final_EBN.dtype)
    final_BEN = final_EBN.transpose(0, 1)
    return (torch.view_as_real(final_BEN) if system.is_complex else final_BEN.real).to(real)


def _power_chunk(length: int) -> int:
    """Q, the number of small powers of abar: about sqrt(length)."""
    return 1 << math.ceil(math.log2(length) / 2)


class _Powers(NamedTuple):
    """abar^(m Q + q) = large[m] * small[q], for all exponents below M Q, at least L.

    Attributes:
        large_EMN: abar^0, abar^Q, abar^2Q, ...
        small_EQn: abar^0 ... abar^(Q-1) in real numbers: real and imaginary parts side by side.
    """

    large_EMN: Complex[Tensor, "E M N"]
    small_EQn: Float[Tensor, "E Q modes"]


def _powers_below(length: int, system: DiagonalSystem) -> _Powers:
    chunk = _power_chunk(length)
    exponents_Q = torch.arange(chunk, device=system.bbar_EN.device, dtype=torch.float64)
    exponents_M = chunk * exponents_Q[: -(-length // chunk)]
    large_EMN, small_EQN = (torch.exp(k[:, None] * system.log_abar_EN[:, None]) for k in (exponents_M, exponents_Q))
    return _Powers(large_EMN, _in_real_numbers(small_EQN, system.is_complex))


def _in_real_numbers(values_N: Complex[Tensor, "*dims N"], is_complex: bool) -> Float[Tensor, "*dims modes"]:
    return torch.view_as_real(values_N).flatten(-2) if is_complex else values_N.real


def _modes(state_BEN: Tensor, is_complex: bool) -> Complex[Tensor, "B E N"]:
    """A carried state as complex128."""
    state_BEN = state_BEN.double()
    return torch.view_as_complex(state_BEN.contiguous()) if is_complex else torch.complex(state_BEN, 0 * state_BEN)


def _responses(
    system: DiagonalSystem, powers: _Powers, start_EBN: Complex[Tensor, "E B N"]
) -> Float[Tensor, "E B K"]:
    """gain Re(sum_n c_n abar_n^k start_n) for k = 0, 1, ..., float64."""
    rows_EBMN = (system.c_EN[:, None] * start_EBN)[:, :, None] * powers.large_EMN[:, None]
    # Re(w v) = Re(w) Re(v) - Im(w) Im(v): a real matrix product, with w conjugated
    rows_EBMn = _in_real_numbers((2 if system.is_complex else 1) * rows_EBMN.conj().resolve_conj(), system.is_complex)
    responses_ERQ = torch.bmm(rows_EBMn.flatten(1, 2), powers.small_EQn.transpose(1, 2))
    return responses_ERQ.view(*start_EBN.shape[:2], -1)


def _driven_state(
    u_EBL: Float[Tensor, "E B L"], system: DiagonalSystem, powers: _Powers
) -> Complex[Tensor, "E B N"]:
    """sum_k abar^k bbar u_{L-1-k}: what the input alone leaves in the state, in the accumulation dtype of u.

    The powers are rounded from float64; the sums of products need no more digits than the state will have.
    """
    E, B, L = u_EBL.shape
    real = accumulation_dtype(u_EBL.dtype)
    chunks, chunk = powers.large_EMN.shape[1], powers.small_EQn.shape[1]
    padded_EBL = u_EBL.new_zeros(E, B, chunks * chunk, dtype=real)
    padded_EBL[..., chunks * chunk - L :] = u_EBL
    small_EQn = powers.small_EQn.flip(1).to(real)
    with nullcontext() if u_EBL.is_meta else torch.autocast(u_EBL.device.type, enabled=False):
        sums_EBMn = torch.bmm(padded_EBL.view(E, B * chunks, chunk), small_EQn).view(E, B, chunks, -1)
    if system.is_complex:
        sums_EBMN = torch.view_as_complex(sums_EBMn.unflatten(-1, (-1, 2)))
    else:
        sums_EBMN = torch.complex(sums_EBMn, torch.zeros_like(sums_EBMn))
    scaled_EMN = (system.bbar_EN[:, None] * powers.large_EMN.flip(1)).to(sums_EBMN.dtype)
    return (sums_EBMN * scaled_EMN[:, None]).sum(dim=2)


def _right_aligned(u_EBL: Tensor, lengths_B: Tensor | None) -> Tensor:
    """Every row with its own last position at the end and zeros in front, which leave a state of zero alone."""
    if lengths_B is None:
        return u_EBL
    L = u_EBL.shape[-1]
    at_BL = torch.arange(L, device=u_EBL.device) - (L - lengths_B)[:, None]
    return u_EBL.gather(-1, at_BL.clamp(min=0).expand_as(u_EBL)).masked_fill(at_BL < 0, 0.0)
