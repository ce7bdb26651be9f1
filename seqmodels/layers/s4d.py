"""S4D: a linear time-invariant diagonal state-space layer (Gu et al. 2022, arXiv:2206.11893; "the paper").

    u_BLD -> y = K * u + D u (every channel on its own)  -> GELU -> linear to 2D -> GLU

as used in SaShiMi (Goel et al. 2022), with the names and initialisation of the authors' `s4d.py`: `kernel.log_dt`,
`kernel.log_A_real`, `kernel.A_imag`, `kernel.C`, `D`, `output_linear.0`. The system x' = A x + u, y = Re(C x) has
step size dt = exp(log_dt) a channel and modes A = -exp(log_A_real) + i A_imag; B is 1 (C learns both).
`diagonal_lti.py` runs it: by convolution for any L, as a recurrence for one position.

The full S4 (a diagonal plus a low-rank part) is left out on purpose: its kernel is made for a length fixed
beforehand and its state moves by dense N x N products; where a state is carried, its authors recommend S4D
(`models/s4/README.md` of state-spaces/s4), and pieces that continue each other are a law here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from seqkernels.checks import accumulation_dtype
from torch import Tensor, nn

from seqmodels.layers import diagonal_lti
from seqmodels.layers.base import SequenceLayer, require_positive
from seqmodels.layers.diagonal_lti import DISCRETISATIONS, DiagonalSystem

INITIALISATIONS = ("lin", "inv", "real")

Made = TypeVar("Made")


class S4DState(NamedTuple):
    """What S4D carries between pieces.

    Attributes:
        ssm: h of the last position in fp32: (B, E, N/2, 2), real and imaginary part of one of each conjugate pair;
            (B, E, N) when the modes are real.
    """

    ssm: Float[Tensor, "B E N *re_im"]


class S4DKernel(nn.Module):
    """E diagonal systems of state size N: their parameters, and running them over a sequence.

    Args:
        width: number E of channels.
        d_state: real state size N of each: N/2 conjugate pairs, or N real modes.
        init: of A: "lin" -1/2 + i pi n (S4D-Lin), "inv" -1/2 + i N/pi (N/(2n+1) - 1) (S4D-Inv), both for
            n = 0 .. N/2-1; "real" -(n+1) for n = 0 .. N-1, without imaginary part (S4D-Real).
        discretisation: "zoh" or "bilinear".
        dt_min: smallest step size at initialisation (log-uniform).
        dt_max: largest step size at initialisation.
        rate: multiplies every step size: 2.0 runs a model on data of half the sampling rate it was trained on.

    Raises:
        ValueError: a size below 1, an odd d_state with complex modes, an unknown name, not 0 < dt_min <= dt_max, or
            a rate that is not positive.
    """

    def __init__(
        self,
        width: int,
        *,
        d_state: int = 64,
        init: str = "lin",
        discretisation: str = "zoh",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        rate: float = 1.0,
    ):
        super().__init__()
        require_positive(width=width, d_state=d_state)
        _check_options(d_state, init, discretisation, rate)
        if not 0 < dt_min <= dt_max:
            raise ValueError(f"dt_min={dt_min} and dt_max={dt_max}: step sizes need 0 < dt_min <= dt_max")
        self.d_state, self.init, self.discretisation, self.rate = d_state, init, discretisation, rate
        self.dt_min, self.dt_max = dt_min, dt_max
        self.is_complex = init != "real"
        modes = d_state // 2 if self.is_complex else d_state
        self.log_dt = nn.Parameter(torch.empty(width))
        self.log_A_real = nn.Parameter(torch.empty(width, modes))
        self.C = nn.Parameter(torch.empty(width, modes, 2) if self.is_complex else torch.empty(width, modes))
        if self.is_complex:
            self.A_imag = nn.Parameter(torch.empty(width, modes))
        for name in ("log_dt", "log_A_real", "A_imag"):
            if name in self._parameters:
                getattr(self, name)._no_weight_decay = True
        self._kept: tuple[list[Tensor], tuple[Any, ...], dict[Any, Any]] = ([], (), {})
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The published initialisation: log-uniform dt, A by `init`, C complex standard normal."""
        self.log_dt.uniform_(math.log(self.dt_min), math.log(self.dt_max))
        n_N = torch.arange(self.log_A_real.shape[1], dtype=torch.float32, device=self.log_A_real.device)
        real_N = n_N + 1 if self.init == "real" else torch.full_like(n_N, 0.5)
        self.log_A_real.copy_(torch.log(real_N).expand_as(self.log_A_real))
        if self.is_complex:
            N = self.d_state
            imag_N = math.pi * n_N if self.init == "lin" else N / math.pi * (N / (2 * n_N + 1) - 1)
            self.A_imag.copy_(imag_N.expand_as(self.A_imag))
        # a complex standard normal has variance 1/2 in each part
        nn.init.normal_(self.C, std=math.sqrt(0.5) if self.is_complex else 1.0)

    def forward(
        self,
        u_BLE: Float[Tensor, "B L E"],
        state: S4DState | None = None,
        *,
        cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None,
    ) -> tuple[Float[Tensor, "B L E"], S4DState]:
        """The systems' outputs in the accumulation dtype of u (fp32, also under autocast), and the new state."""
        state_BEN = None if state is None else state.ssm
        if u_BLE.shape[1] == 1 and cu_seqlens is None:
            real = accumulation_dtype(u_BLE.dtype)
            factors = self._keep(real, lambda: diagonal_lti.step_factors(self._discretised(), real))
            y_BE, final = diagonal_lti.step(u_BLE[:, 0], factors, state_BEN)
            return y_BE[:, None], S4DState(final)
        system = self._keep("system", self._discretised)
        y_BLE, final = diagonal_lti.run(u_BLE, system, state_BEN, cu_seqlens)
        return y_BLE, S4DState(final)

    def _keep(self, name: Any, make: Callable[[], Made]) -> Made:
        """`make()`, kept between calls without gradients while the parameters stay the same.

        A step of decoding would otherwise spend most of its time on discretising the systems again.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return make()
        parameters = [p for p in self._parameters.values() if p is not None]
        aliases, made_from, kept = self._kept
        now = (self.rate, *((p._version, p.dtype) for p in parameters))
        # An alias keeps its memory alive, so the same address is the same memory.
        if made_from != now or any(p.data_ptr() != a.data_ptr() for p, a in zip(parameters, aliases, strict=True)):
            kept = {}
            self._kept = ([p.detach() for p in parameters], now, kept)
        if name not in kept:
            kept[name] = make()
        return kept[name]

    def _discretised(self) -> DiagonalSystem:
        """float64 whatever the parameters are."""
        real_EN = -torch.exp(self.log_A_real.double())
        imag_EN = self.A_imag.double() if self.is_complex else torch.zeros_like(real_EN)
        dt_E1 = self.rate * torch.exp(self.log_dt.double())[:, None]
        log_abar_EN, bbar_EN = diagonal_lti.discretise(torch.complex(real_EN, imag_EN), dt_E1, self.discretisation)
        c = self.C.double()
        c_EN = torch.view_as_complex(c.contiguous()) if self.is_complex else torch.complex(c, torch.zeros_like(c))
        return DiagonalSystem(log_abar_EN, bbar_EN, c_EN, self.is_complex)

    def extra_repr(self) -> str:
        return f"d_state={self.d_state}, init={self.init!r}, discretisation={self.discretisation!r}, rate={self.rate}"


def _check_options(d_state: int, init: str, discretisation: str, rate: float) -> None:
    if init not in INITIALISATIONS:
        raise ValueError(f"init={init!r}: must be one of {', '.join(INITIALISATIONS)}")
    if discretisation not in DISCRETISATIONS:
        raise ValueError(f"discretisation={discretisation!r}: must be one of {', '.join(DISCRETISATIONS)}")
    if init != "real" and d_state % 2:
        raise ValueError(f"d_state={d_state}: complex modes come in conjugate pairs; give an even number")
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"rate={rate}: must be positive and finite; it multiplies the step sizes")


class S4D(SequenceLayer):
    """The S4D layer of SaShiMi: systems with a skip, GELU, a position-wise linear map, GLU. See `S4DKernel`.

    Memory, also at L = 2^20: see `diagonal_lti`.

    Args:
        d_model: width D of input and output, and number of systems.
        d_state: real state size N of each channel.
        init: "lin", "inv" or "real": where the modes A start.
        discretisation: "zoh" or "bilinear".
        dt_min: smallest step size at initialisation (time constants are about 2/dt positions).
        dt_max: largest step size at initialisation.
        rate: multiplies the step sizes: the sampling rate of training over that of the data.

    Raises:
        ValueError: as `S4DKernel`.
    """

    residual_projections = ()  # a gated output: scaling its weights does not scale what it adds

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        init: str = "lin",
        discretisation: str = "zoh",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        rate: float = 1.0,
    ):
        super().__init__()
        require_positive(d_model=d_model)
        self.d_model = d_model
        self.kernel = S4DKernel(
            d_model,
            d_state=d_state,
            init=init,
            discretisation=discretisation,
            dt_min=dt_min,
            dt_max=dt_max,
            rate=rate,
        )
        self.D = nn.Parameter(torch.empty(d_model))
        self.output_linear = nn.Sequential(nn.Linear(d_model, 2 * d_model), nn.GLU(dim=-1))
        self.register_load_state_dict_pre_hook(_accept_convolution_weight)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The published initialisation: D standard normal, the output map as torch draws it."""
        self.kernel.reset_parameters()
        nn.init.normal_(self.D)
        self.output_linear[0].reset_parameters()  # type: ignore[operator]

    def forward(
        self,
        x_BLD: Float[Tensor, "B L D"],
        state: S4DState | None = None,
        *,
        cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None,
    ) -> tuple[Float[Tensor, "B L D"], S4DState]:
        """See `SequenceLayer.forward`. Backward reaches x, every parameter and the incoming state."""
        y_BLD, new_state = self.kernel(x_BLD, state, cu_seqlens=cu_seqlens)
        skip_D = self.D.to(accumulation_dtype(x_BLD.dtype))
        activated_BLD = F.gelu(torch.addcmul(y_BLD, x_BLD.to(y_BLD.dtype), skip_D))
        return self.output_linear(activated_BLD.to(x_BLD.dtype)), new_state


def _accept_convolution_weight(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """The authors' output map is a convolution of width 1, whose weight has one more dimension."""
    name = f"{prefix}output_linear.0.weight"
    if name in state_dict and state_dict[name].dim() == 3:
        state_dict[name] = state_dict[name].squeeze(-1)
