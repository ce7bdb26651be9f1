"""Cutting sequences into groups of p positions and laying groups out again, from any phase and for rows of any length.

Two layouts, as everywhere: a batch (B, L, D) whose rows stand at the same position, which is all slices; and sequences
packed end to end (1, L, D), whose rows differ in length and position, which is one gather a direction by indices made
on the host. M is the number of groups that a piece fills.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from seqkernels.checks import accumulation_dtype
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """How many positions each row has in this piece, and how many it had read before.

    Attributes:
        lengths: new positions of each row, on the host.
        positions: positions before them (only their remainders matter).
        cu_seqlens: offsets of packed rows, on the device; None for a batch in step.
        pool: factor by which the tier around pooled what these rows read; 1 outermost.
    """

    lengths: tuple[int, ...]
    positions: tuple[int, ...]
    cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None

    @classmethod
    def in_step(cls, length: int, positions: list[int]) -> Rows:
        """A batch whose rows are all at the same position."""
        return cls((length,) * len(positions), tuple(positions))

    @classmethod
    def side_by_side(cls, length: int, positions: list[int], device: torch.device) -> Rows:
        """A batch whose rows are not at the same position, flattened end to end."""
        offsets = torch.arange(len(positions) + 1, dtype=torch.int32, device=device) * length
        return cls((length,) * len(positions), tuple(positions), offsets)

    @classmethod
    def packed(cls, cu_seqlens: Int[Tensor, " nseq_plus_1"], positions: list[int]) -> Rows:
        """Rows as the caller packed them."""
        return cls(tuple(np.diff(cu_seqlens.tolist()).tolist()), tuple(positions), cu_seqlens)

    def phases(self, p: int) -> list[int]:
        """How many positions of a group of p each row has already seen."""
        return [position % p for position in self.positions]

    def pooled(self, p: int) -> Rows:
        """The rows of the tier inside: one position for every group of p that this piece completes."""
        counts = tuple((phase + length) // p for phase, length in zip(self.phases(p), self.lengths))
        before = tuple(position // p for position in self.positions)
        if self.cu_seqlens is None:
            return Rows(counts, before)
        offsets = np.concatenate([[0], np.cumsum([count for count in counts if count])])
        return Rows(counts, before, torch.tensor(offsets, dtype=torch.int32, device=self.cu_seqlens.device))

    @property
    def running(self) -> list[int]:
        """Rows with at least one position."""
        return [row for row, length in enumerate(self.lengths) if length]

    @property
    def resting(self) -> list[int]:
        """Rows without a position."""
        return [row for row, length in enumerate(self.lengths) if not length]

    def only_running(self) -> Rows:
        """Without the resting rows; `cu_seqlens` counts the others only anyway."""
        pick = self.running
        lengths, positions = tuple(self.lengths[row] for row in pick), tuple(self.positions[row] for row in pick)
        return Rows(lengths, positions, self.cu_seqlens)


def gather_groups(
    x_BLD: Float[Tensor, "B L D"], waiting: Float[Tensor, "R pm1 D"] | None, p: int, rows: Rows
) -> tuple[Float[Tensor, "B M p D"], Float[Tensor, "R pm1 D"]]:
    """Groups of p successive positions of each row, those that wait from the piece before in front.

    Args:
        x_BLD: new positions, in the layout of `rows`.
        waiting: (rows, p-1, D) what the piece before left over; None at the start.
        p: positions of a group.
        rows: of x_BLD.

    Returns:
        The groups that are full, and what waits now (fp32, zeros behind it).
    """
    D, R = x_BLD.shape[-1], len(rows.lengths)
    if waiting is None:
        waiting = x_BLD.new_zeros(R, p - 1, D)
    waiting = waiting.to(x_BLD.dtype)
    keep = accumulation_dtype(x_BLD.dtype)
    if rows.cu_seqlens is None:
        all_BLD = torch.cat([waiting[:, : rows.phases(p)[0]], x_BLD], dim=1)
        full = all_BLD.shape[1] // p * p
        groups_BMpD = all_BLD[:, :full].reshape(R, full // p, p, D)
        rest_BLD = all_BLD[:, full:]
        return groups_BMpD, F.pad(rest_BLD, (0, 0, 0, p - 1 - rest_BLD.shape[1])).to(keep)
    source = torch.cat([waiting.flatten(0, 1), x_BLD[0], x_BLD.new_zeros(1, D)])
    taken, left = [], []
    start = R * (p - 1)
    nothing = len(source) - 1
    for row, (length, phase) in enumerate(zip(rows.lengths, rows.phases(p))):
        places = np.concatenate([row * (p - 1) + np.arange(phase), start + np.arange(length)])
        full = len(places) // p * p
        taken.append(places[:full])
        left.append(np.concatenate([places[full:], np.full(p - 1 - len(places) + full, nothing)]))
        start += length
    groups = source.index_select(0, _index(taken, source)).view(1, -1, p, D)
    return groups, source.index_select(0, _index(left, source)).view(R, p - 1, D).to(keep)


def spread_groups(
    late_BMpD: Float[Tensor, "B M p D"], due: Float[Tensor, "R p D"] | None, rows: Rows
) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "R p D"]]:
    """Groups laid out over positions, one group late: the M-th group waits for the piece behind.

    Args:
        late_BMpD: a group of p for every group of positions that this piece completed.
        due: (rows, p, D) the group for the positions under way when the piece began; None is zeros, at the start.
        rows: of the positions to fill.

    Returns:
        What each position gets, and the group for the positions under way now (fp32).
    """
    p, D = late_BMpD.shape[2:]
    R = len(rows.lengths)
    if due is None:
        due = late_BMpD.new_zeros(R, p, D)
    due = due.to(late_BMpD.dtype)
    keep = accumulation_dtype(late_BMpD.dtype)
    phases = rows.phases(p)
    if rows.cu_seqlens is None:
        all_BLD = torch.cat([due, late_BMpD.flatten(1, 2)], dim=1)
        return all_BLD[:, phases[0] : phases[0] + rows.lengths[0]], all_BLD[:, -p:].to(keep)
    source = torch.cat([due.flatten(0, 1), late_BMpD.reshape(-1, D)])
    filled, last = [], []
    start = R * p
    for row, (length, phase) in enumerate(zip(rows.lengths, phases)):
        count = (phase + length) // p * p
        places = np.concatenate([row * p + np.arange(p), start + np.arange(count)])
        filled.append(places[phase : phase + length])
        last.append(places[-p:])
        start += count
    spread_BLD = source.index_select(0, _index(filled, source)).unsqueeze(0)
    return spread_BLD, source.index_select(0, _index(last, source)).view(R, p, D).to(keep)


def _index(places: list[np.ndarray], like: Tensor) -> Int[Tensor, " K"]:
    return torch.from_numpy(np.concatenate(places).astype(np.int64)).to(like.device)
