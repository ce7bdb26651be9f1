"""Hyena: a long convolution between two gates (Poli et al. 2023, arXiv:2302.10866), of order 2; the layer of HyenaDNA.

    x0, x1, v = short convolution of in_proj x          three branches of width D   (definition 3.1)
    u_t       = x1_t v_t
    y_t       = x0_t (sum_{k < K} h_k u_{t-k} + bias u_t)                           (eq. 6, order 2)
    h_k       = exp(-decay k / (K-1)) MLP(features of k)                            (section 3.3)

The filter h (one a channel, K = max_len taps) is not stored but made by a small network with sines as its
non-linearity from k/(K-1) and a few sines and cosines of it. The sum is an FFT in fp32: O(L log L) time.

Causal, but no recurrence: what a step needs of the past is the past, the last K-1 values of u. Names are HyenaDNA's
where the parts are the same; its learned table of positional features is fixed here, so its weights do not load.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from seqkernels import causal_conv1d, long_conv
from seqkernels.checks import accumulation_dtype, check_cu_seqlens
from seqkernels.long_conv.sizes import fft_size
from torch import Tensor, nn

from seqmodels.layers.base import SequenceLayer, require_positive
from seqmodels.layers.state import State, concat_states, select_state

FASTEST_DECAY, SLOWEST_DECAY = 0.3, 1.5  # where, as parts of max_len, the channels' windows have fallen to 1 %
DECAYED_TO = 1e-2


class HyenaState(NamedTuple):
    """What a Hyena layer carries: its past inputs. T grows to max_len - 1 and stays there.

    Attributes:
        u_BTD: (B, T, D) fp32, the last gated inputs, oldest first. Zeros in front mean the same as nothing there.
        conv: (B, W-1, 3D) fp32, last inputs of the short convolution.
        room: (B, max_len - 1, 0), no values: its shape says how long u may get.
    """

    u_BTD: Float[Tensor, "B T D"]
    conv: Float[Tensor, "B Wm1 D3"]
    room: Float[Tensor, "B K 0"]

    def select_rows(self, rows_K: Sequence[int] | Int[Tensor, " K"]) -> HyenaState:
        """Rows as long as the longest of them: zeros that stand in front of all are dropped."""
        rows_K = torch.as_tensor(rows_K, device=self.u_BTD.device, dtype=torch.int64)
        u, conv, room = (tensor.index_select(0, rows_K) for tensor in self)
        is_used_T = (u != 0).any(dim=2).any(dim=0)
        first = int(is_used_T.int().argmax()) if bool(is_used_T.any()) else u.shape[1]
        return HyenaState(u[:, first:], conv, room)

    def concat_rows(self, states: Sequence[HyenaState]) -> HyenaState:
        """Joins states along the batch, the shorter ones behind zeros."""
        longest = max(state.u_BTD.shape[1] for state in states)
        u = torch.cat([_behind_zeros(state.u_BTD, longest) for state in states])
        return HyenaState(u, torch.cat([s.conv for s in states]), torch.cat([s.room for s in states]))

    def reserve(self, positions: int) -> HyenaState:
        """The same past at its final length, so that no step makes it longer."""
        return self._replace(u_BTD=_behind_zeros(self.u_BTD, self.room.shape[1]))


class Sine(nn.Module):
    """sin(freq x) with a learned frequency a feature."""

    def __init__(self, width: int, freq: float):
        super().__init__()
        self.freq = nn.Parameter(torch.full((1, width), freq))

    def forward(self, x: Float[Tensor, "K width"]) -> Float[Tensor, "K width"]:
        return torch.sin(self.freq * x)


class ImplicitFilter(nn.Module):
    """The network that makes the taps: positions k -> h_KD, and the weight `bias` of the present input.

    Args:
        d_model: number of filters D.
        max_len: number of taps K of each.
        width: of the network's hidden layers.
        features: inputs of the network, odd: k/(K-1) and (features - 1) / 2 sines and cosines.
        freq: initial frequency of the network's sines: how rough a filter may be.
    """

    def __init__(self, d_model: int, max_len: int, width: int, features: int, freq: float):
        super().__init__()
        self.d_model, self.max_len, self.features = d_model, max_len, features
        self.bias = nn.Parameter(torch.empty(d_model))
        self.implicit_filter = nn.Sequential(
            nn.Linear(features, width), Sine(width, freq),
            nn.Linear(width, width), Sine(width, freq),
            nn.Linear(width, width), Sine(width, freq),
            nn.Linear(width, d_model, bias=False),
        )  # fmt: skip
        for parameter in self.parameters():
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
            parameter._keep_fp32 = True  # type: ignore[attr-defined] - the taps are made and used in fp32
        self._kept: tuple[tuple[tuple[int, int], ...], Tensor] | None = None
        nn.init.normal_(self.bias)

    def forward(self, taps: int) -> Float[Tensor, "taps D"]:
        """The first `taps` taps, in the parameters' dtype. Without gradients all are made once and kept."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._make(taps)
        made_from = tuple((p.data_ptr(), p._version) for p in self.parameters())
        if self._kept is None or self._kept[0] != made_from:
            self._kept = (made_from, self._make(self.max_len))
        return self._kept[1][:taps]

    def _make(self, taps: int) -> Float[Tensor, "taps D"]:
        like = {"device": self.bias.device, "dtype": self.bias.dtype}
        k_K = torch.arange(taps, **like)
        bands = (self.features - 1) // 2
        angle = torch.linspace(1e-4, bands - 1, bands, **like) * (2 * math.pi / self.max_len * k_K[:, None])
        time_K1 = k_K[:, None] / (self.max_len - 1)
        h_KD = self.implicit_filter(torch.cat([time_K1, angle.cos(), -angle.sin()], dim=-1))
        rate = -math.log(DECAYED_TO)
        decay_D = torch.linspace(rate / SLOWEST_DECAY, rate / FASTEST_DECAY, self.d_model, **like)
        return h_KD * torch.exp(-time_K1 * decay_D)


class Hyena(SequenceLayer):
    """Order-2 Hyena operator: O(L log L) time, parallel in time.

    The state is the past itself, up to max_len - 1 positions of d_model fp32 values a row (128 MiB at 131,072 and
    width 256), and a step reads all of it: this is a layer for training and for reading long pieces.

    Args:
        d_model: width D of input and output.
        max_len: taps K of the long filters: a position sees the last K, and nothing before.
        short_conv: width of the convolution over the three branches, 2 to 8.
        filter_width: hidden width of the network that makes the filters.
        filter_features: its inputs, odd and at least 3.
        filter_freq: initial frequency of its sines; 10 in HyenaDNA.

    Raises:
        ValueError: a size below 1, max_len below 2, short_conv not in 2..8, filter_features even or below 3.
    """

    def __init__(
        self,
        d_model: int,
        *,
        max_len: int = 1024,
        short_conv: int = 3,
        filter_width: int = 64,
        filter_features: int = 5,
        filter_freq: float = 10.0,
    ):
        super().__init__()
        require_positive(d_model=d_model, filter_width=filter_width)
        if max_len < 2:
            raise ValueError(f"max_len={max_len}: must be at least 2")
        if not 2 <= short_conv <= 8:
            raise ValueError(f"short_conv={short_conv}: must be from 2 to 8")
        if filter_features < 3 or filter_features % 2 == 0:
            raise ValueError(f"filter_features={filter_features}: must be odd and at least 3")
        self.max_len = max_len
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=False)
        # Holds the weight (3D, 1, W) and its initialisation; the op in seqkernels does the work.
        self.short_filter = nn.Conv1d(3 * d_model, 3 * d_model, short_conv, groups=3 * d_model)
        self.filter_fn = ImplicitFilter(d_model, max_len, filter_width, filter_features, filter_freq)
        self.out_proj = nn.Linear(d_model, d_model)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        x_BLD: Float[Tensor, "B L D"],
        state: HyenaState | None = None,
        *,
        cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None,
    ) -> tuple[Float[Tensor, "B L D"], State]:
        """See `SequenceLayer.forward`. Of packed sequences each has an FFT of its own."""
        branches_BLD3, conv = causal_conv1d(
            self.in_proj(x_BLD),
            self.short_filter.weight.squeeze(1),
            self.short_filter.bias,
            initial_state=None if state is None else state.conv,
            cu_seqlens=cu_seqlens,
            return_final_state=True,
        )
        gate_BLD, other_BLD, v_BLD = branches_BLD3.chunk(3, dim=-1)
        real = accumulation_dtype(x_BLD.dtype)
        with torch.autocast(x_BLD.device.type, enabled=False):
            u_BLD = other_BLD.to(real) * v_BLD.to(real)
            y_BLD, new_state = self._convolve(u_BLD, conv, state, cu_seqlens)
        return self.out_proj(gate_BLD * y_BLD.to(gate_BLD.dtype)), new_state

    def _convolve(
        self, u_BLD: Float[Tensor, "B L D"], conv: Tensor, state: HyenaState | None, cu_seqlens: Tensor | None
    ) -> tuple[Float[Tensor, "B L D"], HyenaState]:
        """The long convolution of every row or packed sequence, and the state behind it."""
        if cu_seqlens is None:
            y_BLD, past_BTD = self._convolve_rows(u_BLD, None if state is None else state.u_BTD)
            return y_BLD, HyenaState(past_BTD, conv, u_BLD.new_zeros(len(u_BLD), self.max_len - 1, 0))
        nseq = check_cu_seqlens("Hyena", cu_seqlens, u_BLD.shape[0], u_BLD.shape[1])
        pasts = [None if state is None else select_state(state, [row]).u_BTD for row in range(nseq)]
        spans = pairwise(cu_seqlens.tolist())
        pairs = [self._convolve_rows(u_BLD[:, a:b], past) for (a, b), past in zip(spans, pasts, strict=True)]
        room = u_BLD.new_zeros(1, self.max_len - 1, 0)
        new_state = concat_states([HyenaState(past, conv[[row]], room) for row, (_, past) in enumerate(pairs)])
        return torch.cat([y for y, _ in pairs], dim=1), new_state

    def _convolve_rows(
        self, u_BLD: Float[Tensor, "B L D"], past_BTD: Float[Tensor, "B T D"] | None
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B kept D"]]:
        L = u_BLD.shape[1]
        all_BTD = u_BLD if past_BTD is None else torch.cat([past_BTD, u_BLD], dim=1)
        h_KD = self.filter_fn(min(all_BTD.shape[1], self.max_len))
        if L == 1:
            y_BLD = torch.einsum("bkd,kd->bd", all_BTD[:, -len(h_KD) :], h_KD.flip(0)).unsqueeze(1)
        elif past_BTD is None:
            y_BLD = long_conv(u_BLD, h_KD.to(u_BLD.dtype).T)
        else:
            y_BLD = _fft_tail(all_BTD, h_KD, L)
        drop = max(all_BTD.shape[1] - (self.max_len - 1), 0)
        kept_BTD = all_BTD[:, drop:]
        if drop > kept_BTD.shape[1]:  # a view would keep what is dropped
            kept_BTD = kept_BTD.clone()
        return y_BLD + self.filter_fn.bias * u_BLD, kept_BTD

    def extra_repr(self) -> str:
        return f"max_len={self.max_len}"


def _fft_tail(
    u_BTD: Float[Tensor, "B T D"], h_KD: Float[Tensor, "K D"], last: int
) -> Float[Tensor, "B last D"]:
    """The causal convolution's last values: a circle just long enough that nothing wraps around into them."""
    T, K = u_BTD.shape[1], h_KD.shape[0]
    size = fft_size(max(T, last + K - 1))
    spectrum = torch.fft.rfft(u_BTD, n=size, dim=1) * torch.fft.rfft(h_KD, n=size, dim=0)
    return torch.fft.irfft(spectrum, n=size, dim=1)[:, T - last : T]


def _behind_zeros(u_BTD: Float[Tensor, "B T D"], length: int) -> Float[Tensor, "B length D"]:
    return F.pad(u_BTD, (0, 0, length - u_BTD.shape[1], 0))
