"""Mamba-1: a gated block around a selective state-space scan (Gu and Dao 2023, arXiv:2312.00752; "the paper").

| name | paper | meaning |
|---|---|---|
| D | D | model width |
| E | ED | inner width, expand * D |
| N | N | state size per channel |
| R | R | rank of the projection that makes the step size dt (section 3.6) |
| W | | width of the causal convolution |

Shapes of what the block makes on its way, for x_BLD:

    xz    = in_proj x                     (B, L, 2E)   two branches: signal and gate
    x     = silu(conv1d(x))               (B, L, E)    causal, one filter a channel
    dt,b,c = x_proj x                     R | N | N    the selection: functions of the input (alg. 2)
    dt    = softplus(dt_proj dt)          (B, L, E)
    h_t   = exp(dt_t A) h_{t-1} + dt_t b_t x_t         (eq. 2a with the ZOH/Euler rule of section 3.6)
    y_t   = c_t h_t + D x_t                            (eq. 2b)
    out   = out_proj(y * silu(z))         (B, L, D)

Parameter names and shapes are the published ones, so released weights load unchanged.

Two options leave the fused path and run the same ops one by one: the complex form (A, B, C and the state complex,
y_t = 2 Re(c_t h_t)), which the paper needs on raw audio (section E.4.1), and norms on dt, b and c in front of the
scan, as Jamba (arXiv:2403.19887, with weights) and Falcon Mamba (arXiv:2410.05355, without) have them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float, Int
from seqkernels import causal_conv1d, mamba_step, selective_scan
from seqkernels.checks import accumulation_dtype
from seqkernels.mamba_block_step.op import fits as block_step_fits
from seqkernels.mamba_block_step.op import mamba_block_step
from seqkernels.mamba_inner import InnerState, InnerWeights, mamba_inner
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seqmodels.layers.base import SequenceLayer, require_positive
from seqmodels.layers.norm import RMSNorm
from seqmodels.layers.state import may_update_in_place

RECOMPUTE_LEVELS = ("nothing", "inputs", "all")
SELECTION_NORMS = ("none", "weighted", "fixed")
SELECTION_NORM_EPS = 1e-6  # Jamba's and Falcon Mamba's


class MambaState(NamedTuple):
    """What Mamba carries between pieces.

    Attributes:
        conv: (B, W-1, E) the convolution's last inputs, oldest first.
        ssm: (B, E, N) fp32, h of the last position; in the complex form (B, E, N, 2), real and imaginary part.
    """

    conv: Float[Tensor, "B Wm1 E"]
    ssm: Float[Tensor, "B E N *re_im"]


class Mamba(SequenceLayer):
    """Selective state-space layer, O(L) time, O(1) state.

    Args:
        d_model: width D of input and output.
        d_state: state size N per channel.
        d_conv: width W of the causal convolution, 2 to 8.
        expand: inner width E = expand * d_model.
        dt_rank: R, or "auto" for ceil(d_model / 16).
        dt_min: smallest step size at initialisation (time constants are about 1/dt positions).
        dt_max: largest step size at initialisation.
        dt_init_floor: initial step sizes are clamped from below to this.
        conv_bias: whether the convolution has a bias.
        bias: whether in_proj and out_proj have biases.
        complex: whether A, B, C and the state are complex; N then counts complex numbers.
        selection_norm: an RMS norm on dt (rank R), b and c each: "none", "weighted" (Jamba: parameters
            dt_layernorm, b_layernorm, c_layernorm), or "fixed" (Falcon Mamba: no parameters).
        recompute: what backward computes again instead of keeping it from forward: "nothing"; "inputs", the
            convolution's output and the step sizes (about a quarter of the block's activations, for little time);
            "all", the scan too. A stack's checkpoint_blocks keeps less still. With complex or selection_norm,
            "nothing" or "all".
        implementation: which implementation of the scan runs ("auto" chooses); with "reference", the convolution
            and the decode step take their references too.

    Raises:
        ValueError: a size is below 1, d_conv is not in 2..8, dt_rank is neither "auto" nor positive, not
            0 < dt_min <= dt_max, or recompute or selection_norm is unknown or does not fit.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        complex: bool = False,
        selection_norm: str = "none",
        recompute: str = "nothing",
        implementation: str = "auto",
    ):
        super().__init__()
        require_positive(d_model=d_model, d_state=d_state, expand=expand)
        if not 2 <= d_conv <= 8:
            raise ValueError(f"d_conv={d_conv}: must be from 2 to 8")
        if not 0 < dt_min <= dt_max:
            raise ValueError(f"dt_min={dt_min} and dt_max={dt_max}: step sizes need 0 < dt_min <= dt_max")
        if recompute not in RECOMPUTE_LEVELS:
            raise ValueError(f"recompute={recompute!r}: must be one of {', '.join(RECOMPUTE_LEVELS)}")
        if selection_norm not in SELECTION_NORMS:
            raise ValueError(f"selection_norm={selection_norm!r}: must be one of {', '.join(SELECTION_NORMS)}")
        self.complex, self.selection_norm = complex, selection_norm
        self._is_fused = not complex and selection_norm == "none"
        if recompute == "inputs" and not self._is_fused:
            raise ValueError("recompute='inputs' is for the real form without selection_norm: give 'all' or 'nothing'")
        self.d_model, self.d_state, self.d_inner = d_model, d_state, expand * d_model
        self.dt_rank = _resolve_dt_rank(dt_rank, d_model)
        self.dt_min, self.dt_max, self.dt_init_floor = dt_min, dt_max, dt_init_floor
        self.recompute, self.implementation = recompute, implementation

        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias)
        # Holds the published (E, 1, W) weight and its initialisation; the op in seqkernels does the work.
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, bias=conv_bias)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * self._reals, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner, bias=True)
        if selection_norm == "weighted":
            options = {"eps": SELECTION_NORM_EPS, "implementation": self._around_the_scan}
            self.dt_layernorm = RMSNorm(self.dt_rank, **options)
            self.b_layernorm, self.c_layernorm = RMSNorm(self._reals, **options), RMSNorm(self._reals, **options)
        self.A_log = nn.Parameter(torch.empty(self.d_inner, d_state))
        if complex:
            self.A_imag = nn.Parameter(torch.empty(self.d_inner, d_state))
            self.A_imag._no_weight_decay = True  # type: ignore[attr-defined]
        self.D = nn.Parameter(torch.empty(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)
        self._kept_a: tuple[tuple[int, int], Tensor] | None = None
        self._kept_conv_weight: Tensor | None = None
        self.A_log._no_weight_decay = True  # type: ignore[attr-defined]
        self.D._no_weight_decay = True  # type: ignore[attr-defined]
        self.dt_proj.bias._keep_fp32 = True  # type: ignore[attr-defined] - the scan adds it in fp32
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The published initialisation (the authors' `mamba_simple.py`).

        dt's bias is softplus^-1 of a log-uniform draw (the paper's section 3.6 says uniform; the released code, and
        so the released models, are log-uniform). A = -(1..N), S4D-Real (section 3.6), or in the complex form
        -1/2 + i n for n = 0..N-1 (table 8). Linear biases start at zero.
        """
        for linear in (self.in_proj, self.x_proj, self.out_proj):
            linear.reset_parameters()
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        self.conv1d.reset_parameters()
        for norm in self.children():
            if isinstance(norm, RMSNorm):
                norm.reset_parameters()
        bound = self.dt_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        low, high = math.log(self.dt_min), math.log(self.dt_max)
        dt_E = torch.exp(torch.empty_like(self.dt_proj.bias).uniform_(low, high)).clamp(min=self.dt_init_floor)
        self.dt_proj.bias.copy_(dt_E + torch.log(-torch.expm1(-dt_E)))  # softplus^-1(y) = y + log(1 - e^-y)
        n_N = torch.arange(1, self.d_state + 1, dtype=torch.float32, device=self.A_log.device)
        self.A_log.copy_(torch.log(torch.full_like(n_N, 0.5) if self.complex else n_N).expand_as(self.A_log))
        if self.complex:
            self.A_imag.copy_((n_N - 1).expand_as(self.A_imag))
        nn.init.ones_(self.D)

    def forward(
        self,
        x_BLD: Float[Tensor, "B L D"],
        state: MambaState | None = None,
        *,
        cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None,
    ) -> tuple[Float[Tensor, "B L D"], MambaState]:
        """See `SequenceLayer.forward`. Backward reaches x, every parameter and the incoming state."""
        xz_BLE2 = self.in_proj(x_BLD)
        if not self._is_fused:
            arguments = (xz_BLE2, state, cu_seqlens)
            if self.recompute == "all" and torch.is_grad_enabled():
                return checkpoint(self._op_by_op, *arguments, use_reentrant=False)  # type: ignore[return-value]
            return self._op_by_op(*arguments)
        if not torch.is_grad_enabled() and x_BLD.shape[1] == 1 and state is not None and cu_seqlens is None:
            y_BLE, new_state = self._step(xz_BLE2, state)
            return self.out_proj(y_BLE), new_state
        out_BLD, new_state = mamba_inner(
            xz_BLE2,
            self._inner_weights(),
            state=None if state is None else InnerState(*state),
            cu_seqlens=cu_seqlens,
            recompute=self.recompute,
            implementation=self.implementation,
        )
        return out_BLD, MambaState(*new_state)  # type: ignore[arg-type] - None on the way in only

    def _inner_weights(self) -> InnerWeights:
        return InnerWeights(
            conv_weight_EW=self.conv1d.weight.squeeze(1),
            conv_bias_E=self.conv1d.bias,
            x_proj_weight=self.x_proj.weight,
            dt_proj_weight_ER=self.dt_proj.weight,
            dt_bias_E=self.dt_proj.bias,
            a_EN=self._a_EN(),
            d_E=self.D,
            out_proj_weight_DE=self.out_proj.weight,
            out_proj_bias_D=self.out_proj.bias,
        )

    def _op_by_op(
        self, xz_BLE2: Float[Tensor, "B L E2"], state: MambaState | None, cu_seqlens: Tensor | None
    ) -> tuple[Float[Tensor, "B L D"], MambaState]:
        """What `mamba_inner` does, for the complex form and with norms; for any L, a step of decoding included."""
        x_BLE, z_BLE = xz_BLE2.chunk(2, dim=-1)
        x_BLE, conv_state = causal_conv1d(
            x_BLE,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            activation="silu",
            initial_state=None if state is None else state.conv,
            cu_seqlens=cu_seqlens,
            return_final_state=True,
            implementation=self._around_the_scan,
        )
        dt_BLR, b_BLN, c_BLN = self._selection(x_BLE)
        initial_BEN, a_EN = None if state is None else state.ssm, self._a_EN()
        y_BLE, final_BEN = selective_scan(
            x_BLE,
            F.linear(dt_BLR, self.dt_proj.weight),  # dt_proj without its bias, which the scan adds in fp32
            torch.complex(a_EN, self.A_imag.to(a_EN.dtype)) if self.complex else a_EN,
            b_BLN,
            c_BLN,
            d_E=self.D,
            z_BLE=z_BLE,
            dt_bias_E=self.dt_proj.bias,
            dt_softplus=True,
            initial_state_BEN=as_complex(initial_BEN) if self.complex and initial_BEN is not None else initial_BEN,
            cu_seqlens=cu_seqlens,
            return_final_state=True,
            implementation=self.implementation,
        )
        final = torch.view_as_real(final_BEN.resolve_conj()) if self.complex else final_BEN
        return self.out_proj(y_BLE), MambaState(conv_state, final)

    def _selection(self, x_BLE: Float[Tensor, "B L E"]) -> tuple[Tensor, Tensor, Tensor]:
        """dt of rank R, b and c: what x_proj makes, normalised if asked for, b and c as complex numbers if they are."""
        parts = self.x_proj(x_BLE).split([self.dt_rank, self._reals, self._reals], dim=-1)
        if self.selection_norm == "weighted":
            norms = (self.dt_layernorm, self.b_layernorm, self.c_layernorm)
            parts = [norm(part) for norm, part in zip(norms, parts, strict=True)]
        elif self.selection_norm == "fixed":
            parts = [rms_norm_without_weight(part) for part in parts]
        dt_BLR, b_BLN, c_BLN = parts
        if self.complex:
            b_BLN, c_BLN = (as_complex(part.unflatten(-1, (-1, 2))) for part in (b_BLN, c_BLN))
        return dt_BLR, b_BLN, c_BLN

    def _step(
        self, xz_B1E2: Float[Tensor, "B 1 E2"], state: MambaState
    ) -> tuple[Float[Tensor, "B 1 E"], MambaState]:
        """The same for one position without gradients, fused into one op."""
        modules = self._modules
        conv1d, x_proj, dt_proj = modules["conv1d"], modules["x_proj"], modules["dt_proj"]
        y_BE, conv_state, ssm_state = mamba_step(
            xz_B1E2.squeeze(1),
            state.conv,
            state.ssm,
            conv_weight_EW=self._conv_weight_EW(_parameter(conv1d, "weight")),
            conv_bias_E=_parameter(conv1d, "bias"),
            x_proj_weight=_parameter(x_proj, "weight"),
            dt_proj_weight_ER=_parameter(dt_proj, "weight"),
            dt_bias_E=_parameter(dt_proj, "bias"),
            a_EN=self._a_EN(),
            d_E=_parameter(self, "D"),
            inplace=may_update_in_place(),
            implementation=self._around_the_scan,
        )
        return y_BE.unsqueeze(1), MambaState(conv_state, ssm_state)

    def step_behind_norm(
        self, norm: RMSNorm, x_B1D: Float[Tensor, "B 1 D"], residual_B1D: Tensor | None, state: MambaState
    ) -> tuple[Float[Tensor, "B 1 D"], Float[Tensor, "B 1 D"], MambaState] | None:
        """See `SequenceLayer.step_behind_norm`: on a GPU, for a few rows."""
        unfused = not self._is_fused or "reference" in (self.implementation, norm.implementation)
        if not _on_gpu(x_B1D) or unfused or torch.is_autocast_enabled("cuda") or torch.compiler.is_compiling():
            return None
        modules = self._modules
        in_proj, out_proj = modules["in_proj"], modules["out_proj"]
        if not (_is_plain(in_proj, nn.Linear) and _is_plain(out_proj, nn.Linear) and _is_plain(norm, RMSNorm)):
            return None
        x_BD, a_EN = x_B1D.squeeze(1), self._a_EN()
        conv1d, dt_proj = modules["conv1d"], modules["dt_proj"]
        projections = [_parameter(module, "weight") for module in (in_proj, modules["x_proj"], dt_proj, out_proj)]
        if not block_step_fits(x_BD, a_EN, self.dt_rank, projections):
            return None
        y_BD, total_BD, conv_state, ssm_state = mamba_block_step(
            x_BD,
            state.conv,
            state.ssm,
            residual_BD=None if residual_B1D is None else residual_B1D.squeeze(1),
            norm_weight_D=norm.weight,
            in_proj_weight=projections[0],
            in_proj_bias_2E=_parameter(in_proj, "bias"),
            conv_weight_EW=self._conv_weight_EW(_parameter(conv1d, "weight")),
            conv_bias_E=_parameter(conv1d, "bias"),
            x_proj_weight=projections[1],
            dt_proj_weight_ER=projections[2],
            dt_bias_E=_parameter(dt_proj, "bias"),
            a_EN=a_EN,
            d_E=_parameter(self, "D"),
            out_proj_weight_DE=projections[3],
            out_proj_bias_D=_parameter(out_proj, "bias"),
            eps=norm.eps,
            inplace=may_update_in_place(),
        )
        return y_BD.unsqueeze(1), total_BD.unsqueeze(1), MambaState(conv_state, ssm_state)

    def _a_EN(self) -> Float[Tensor, "E N"]:
        """A = -exp(A_log), in fp32 also when the whole model was cast to bf16 by hand.

        Kept between steps of decoding, where three small kernels a layer would cost as much as the scan.
        """
        a_log = _parameter(self, "A_log")
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return -torch.exp(a_log.to(accumulation_dtype(a_log.dtype)))
        made_from = (a_log.data_ptr(), a_log._version)
        if self._kept_a is None or self._kept_a[0] != made_from:
            self._kept_a = (made_from, -torch.exp(a_log.to(accumulation_dtype(a_log.dtype))))
        return self._kept_a[1]

    def _conv_weight_EW(self, weight: Float[Tensor, "E 1 W"]) -> Float[Tensor, "E W"]:
        """The filter without its middle dimension; the view is kept between steps: making one takes microseconds."""
        kept = self._kept_conv_weight
        if torch.compiler.is_compiling():
            return weight.squeeze(1)
        # A view keeps its memory alive, so the same address is the same memory.
        if kept is None or kept.data_ptr() != weight.data_ptr() or kept.dtype != weight.dtype:
            kept = self._kept_conv_weight = weight.detach().squeeze(1)
        return kept

    @property
    def _reals(self) -> int:
        """Real numbers in b, and in c."""
        return self.d_state * (2 if self.complex else 1)

    @property
    def _around_the_scan(self) -> str:
        """The other ops have no implementation of the scan's names, but all have a reference."""
        return "reference" if self.implementation == "reference" else "auto"

    def extra_repr(self) -> str:
        options = f", complex={self.complex}, selection_norm={self.selection_norm!r}" if not self._is_fused else ""
        return f"d_state={self.d_state}, dt_rank={self.dt_rank}{options}, implementation={self.implementation!r}"


def _parameter(module: Any, name: str) -> Any:
    """`getattr` for parameters at a tenth of nn.Module's time: in decoding, all of them take as long as the kernel."""
    found = module._parameters.get(name)
    return getattr(module, name) if found is None else found  # parametrised ones, and the None of no bias


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _is_plain(module: Any, kind: type[nn.Module]) -> bool:
    """Whether calling the module is no more than its class says: no other class, no hooks."""
    return type(module) is kind and not module._forward_hooks and not module._forward_pre_hooks


def as_complex(values: Float[Tensor, "*dims 2"]) -> Complex[Tensor, "*dims"]:
    """(..., 2), real and imaginary part, to complex64 (complex128 of float64)."""
    values = values.to(accumulation_dtype(values.dtype))
    return torch.complex(values[..., 0], values[..., 1])  # a view would need memory aligned to pairs


def rms_norm_without_weight(x: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch N"]:
    """x / sqrt(mean(x^2) + eps), statistics in fp32."""
    x_wide = x.to(accumulation_dtype(x.dtype))
    return (x_wide * torch.rsqrt(x_wide.square().mean(dim=-1, keepdim=True) + SELECTION_NORM_EPS)).to(x.dtype)


def _resolve_dt_rank(dt_rank: int | str, d_model: int) -> int:
    if dt_rank == "auto":
        return math.ceil(d_model / 16)
    if isinstance(dt_rank, int) and dt_rank >= 1:
        return dt_rank
    raise ValueError(f'dt_rank={dt_rank!r}: must be "auto" or a whole number of at least 1')

