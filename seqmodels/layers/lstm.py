"""Long short-term memory (Hochreiter and Schmidhuber 1997; torch's `nn.LSTM`): the recurrent baseline.

    i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of (W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)
    c_t = f c_{t-1} + i g        h_t = o tanh(c_t)        y = out_proj h

Time is sequential: a sequence of L costs L dependent steps, which is why the field left it for long contexts.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from seqkernels.checks import accumulation_dtype, check_cu_seqlens
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from seqmodels.layers.base import SequenceLayer, require_positive
from seqmodels.layers.state import concat_states, select_state

MOST_POSITIONS = 32_768  # of one call: cuDNN refuses sequences of 65,536


class LSTMState(NamedTuple):
    """What an LSTM carries.

    Attributes:
        h: (B, E) fp32, the last output of the cell.
        c: (B, E) fp32, the cell.
    """

    h: Float[Tensor, "B E"]
    c: Float[Tensor, "B E"]


class LSTM(SequenceLayer):
    """torch's LSTM, one layer of it, and a projection back to the model's width; O(L) sequential steps, O(1) state.

    The recurrence runs in fp32 under autocast too: its state would be rounded at every step. On a GPU it is cuDNN's,
    whose products are TF32 unless `torch.backends.cudnn.allow_tf32` is False.

    Args:
        d_model: width D of input and output.
        expand: width of the cell, E = expand * d_model.
        bias: whether the cell's gates have biases (the forget gate's starts at 1) and out_proj has one.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, d_model: int, *, expand: int = 1, bias: bool = True):
        super().__init__()
        require_positive(d_model=d_model, expand=expand)
        self.lstm = nn.LSTM(d_model, expand * d_model, bias=bias, batch_first=True)
        self.out_proj = nn.Linear(expand * d_model, d_model, bias=bias)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """torch's initialisation, but a forget gate that starts open (Jozefowicz et al. 2015), other biases at zero."""
        self.lstm.reset_parameters()
        self.out_proj.reset_parameters()
        if self.out_proj.bias is not None:
            nn.init.zeros_(self.out_proj.bias)
            inner, recurrent = self.lstm.get_parameter("bias_ih_l0"), self.lstm.get_parameter("bias_hh_l0")
            nn.init.zeros_(inner)
            nn.init.zeros_(recurrent)
            inner.chunk(4)[1].fill_(1.0)  # torch's order of gates is i, f, g, o

    def forward(
        self,
        x_BLD: Float[Tensor, "B L D"],
        state: LSTMState | None = None,
        *,
        cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None,
    ) -> tuple[Float[Tensor, "B L D"], LSTMState]:
        """See `SequenceLayer.forward`."""
        with torch.autocast(x_BLD.device.type, enabled=False):
            h_BLE, new_state = self._recur(x_BLD.to(accumulation_dtype(x_BLD.dtype)), state, cu_seqlens)
        return self.out_proj(h_BLE.to(x_BLD.dtype)), new_state

    def _recur(
        self, x_BLD: Float[Tensor, "B L D"], state: LSTMState | None, cu_seqlens: Tensor | None
    ) -> tuple[Float[Tensor, "B L E"], LSTMState]:
        """The cell over all positions, packed sequences side by side."""
        if cu_seqlens is None:
            return self._run(x_BLD, state)
        check_cu_seqlens("LSTM", cu_seqlens, x_BLD.shape[0], x_BLD.shape[1])
        spans = list(pairwise(cu_seqlens.tolist()))
        if max(last - first for first, last in spans) > MOST_POSITIONS:
            alone = [
                self._run(x_BLD[:, first:last], None if state is None else select_state(state, [row]))
                for row, (first, last) in enumerate(spans)
            ]
            return torch.cat([h for h, _ in alone], dim=1), concat_states([end for _, end in alone])
        rows = [x_BLD[0, first:last] for first, last in spans]
        packed, end = self.lstm(pack_sequence(rows, enforce_sorted=False), _as_torch_has_it(state))
        return torch.cat(unpack_sequence(packed)).unsqueeze(0), LSTMState(*(part.squeeze(0) for part in end))

    def _run(
        self, x_BLD: Float[Tensor, "B L D"], state: LSTMState | None
    ) -> tuple[Float[Tensor, "B L E"], LSTMState]:
        """The cell over whole rows, piece by piece."""
        outputs, carried = [], _as_torch_has_it(state)
        for piece_BLD in x_BLD.split(MOST_POSITIONS, dim=1):
            h_BLE, carried = self.lstm(piece_BLD, carried)
            outputs.append(h_BLE)
        assert carried is not None
        h_BLE = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        return h_BLE, LSTMState(*(part.squeeze(0) for part in carried))


def _as_torch_has_it(state: LSTMState | None) -> tuple[Tensor, Tensor] | None:
    """cuDNN refuses strided states, which taking every second row of one would be."""
    return None if state is None else (state.h.unsqueeze(0).contiguous(), state.c.unsqueeze(0).contiguous())
