"""SaShiMi's pooling backbone (Goel et al. 2022, arXiv:2202.09729), causal at every rate, with any layers in it.

ids_BL -> hidden_BLD. A tier works on its stream, hands every p-th position's worth of it (p positions side by side,
projected to a wider D) to the tier inside, and works on the sum of what comes back:

    tier 0   D    --outer blocks--+---------------------------(+)--outer blocks--> norm
                                  | p0 positions -> 1           | 1 -> p0 positions, one pooled position late
    tier 1   2D                   +--outer blocks--+--(+)--outer blocks--+
                                                   |    |
    centre   4D                                    +--centre blocks--+

What tier k+1 makes of positions jp .. (j+1)p-1 reaches tier k at (j+1)p .. (j+2)p-1, so no position sees its future
(section 3.2 of the paper). Every block of the way up also gets the input of its mirror image on the way down, as the
authors' U-Net does, and every block is a pre-norm residual one.

Lengths need not be multiples of the pooling: the state keeps what a pooled position still waits for, a step of one
position runs the inner tiers only when they are due, and rows may stand at different phases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seqmodels.backbones.base import Backbone, add_condition
from seqmodels.backbones.pattern import factories
from seqmodels.backbones.pooling import Rows, gather_groups, spread_groups
from seqmodels.backbones.stack import EMBEDDING_STD, Block, round_up
from seqmodels.layers.base import LayerFactory, SequenceLayer, require_positive
from seqmodels.layers.norm import RMSNorm
from seqmodels.layers.state import State, concat_states, empty_rows, select_state


class TierState(NamedTuple):
    """What a tier carries between pieces.

    Attributes:
        down: states of its blocks in front of the pooling.
        waiting: (B, p-1, D) the stream at the positions since the last full group, then zeros.
        inner: state of the tier inside (of the centre: one entry a block).
        due: (B, p, D) what the last pooled position adds to the p positions of the group that is under way.
        up: states of its blocks behind the pooling.
    """

    down: tuple[State, ...]
    waiting: Float[Tensor, "B pm1 D"]
    inner: State
    due: Float[Tensor, "B p D"]
    up: tuple[State, ...]


class UNetState(NamedTuple):
    """What a U-Net carries between pieces.

    Attributes:
        position_B: positions read so far, modulo the whole pooling. int64 and always on the CPU: it decides which
            tiers run, and on a GPU it would have to be waited for at every step.
        tier: state of the outermost tier.
    """

    position_B: Int[Tensor, " B"]
    tier: State


class UNet(Backbone):
    """Tiers of blocks at falling rates and growing widths, and back.

    Args:
        vocab_size: ids are 0..vocab_size-1.
        d_model: width D of the outermost stream.
        pool: pooling factor of each tier, outermost first, each at least 2. Together with `expand` they say how many
            tiers there are.
        n_layers: how often a pattern stands in a stage. There are 2 * len(pool) outer stages and the centre.
        outer: pattern of the outer stages, one letter a block as in `Stack`: "s-" is S4D then MLP.
        centre: pattern of the centre.
        layers: letter or word ("M" or "mamba2") -> layer factory, for both patterns.
        expand: each tier is this many times as wide as the one around it; one number, or one a tier.
        norm_eps: epsilon of every RMSNorm.
        residual_in_fp32: keep the residual streams in fp32 under autocast.
        pad_vocab_to: the embedding's rows are rounded up to a multiple of this.
        checkpoint_blocks: recompute each block in backward, to save memory.

    Raises:
        ValueError: a size below 1, a pooling factor below 2, no pooling factor, a number of expansions that is not
            that of the pooling factors, or a pattern with an unknown letter.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        pool: Sequence[int],
        n_layers: int,
        outer: str,
        centre: str,
        layers: Mapping[str, LayerFactory],
        expand: int | Sequence[int] = 2,
        norm_eps: float = 1e-5,
        residual_in_fp32: bool = True,
        pad_vocab_to: int = 8,
        checkpoint_blocks: bool = False,
    ):
        super().__init__()
        require_positive(vocab_size=vocab_size, d_model=d_model, n_layers=n_layers, pad_vocab_to=pad_vocab_to)
        self.vocab_size, self.d_model, self.pool = vocab_size, d_model, _pool_factors(pool)
        self.checkpoint_blocks, self.residual_in_fp32 = checkpoint_blocks, residual_in_fp32
        self.widths = _widths(d_model, expand, len(self.pool))

        def stage(pattern: str, width: int) -> nn.ModuleList:
            made = (factory(width) for factory in factories(pattern, layers) * n_layers)
            return nn.ModuleList(Block(layer, width, norm_eps, residual_in_fp32) for layer in made)

        *outer_widths, centre_width = self.widths
        self.embedding = nn.Embedding(round_up(vocab_size, pad_vocab_to), d_model)
        self.down = nn.ModuleList(stage(outer, width) for width in outer_widths)
        self.pooling = nn.ModuleList(
            nn.Linear(p * width, inner) for p, width, inner in zip(self.pool, outer_widths, self.widths[1:])
        )
        self.centre = stage(centre, centre_width)
        self.unpooling = nn.ModuleList(
            nn.Linear(inner, p * width) for p, width, inner in zip(self.pool, outer_widths, self.widths[1:])
        )
        self.up = nn.ModuleList(stage(outer, width) for width in outer_widths)
        self.norm_f = RMSNorm(d_model, norm_eps)
        # Layers keep their own initialisation: the authors' code divides nothing by the depth here.
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)

    @property
    def mixers(self) -> list[SequenceLayer]:
        """The layers proper: each tier's way down, the centre, each tier's way up."""
        return [module.mixer for module in self.modules() if isinstance(module, Block)]

    @property
    def is_causal(self) -> bool:
        return all(mixer.is_causal for mixer in self.mixers)

    @property
    def steps_per_cycle(self) -> int:
        """The product of the pooling factors: so many steps pass until the same tiers run again."""
        return math.prod(self.pool)

    def forward(
        self,
        ids_BL: Int[Tensor, "B L"],
        state: UNetState | None = None,
        *,
        cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None,
        condition_BD: Float[Tensor, "S D"] | None = None,
    ) -> tuple[Float[Tensor, "B L D"], UNetState]:
        """See `Backbone.forward`. `condition_BD`, one row a sequence, is added to the embedding of every position."""
        x_BLD = add_condition(self.embedding(ids_BL), condition_BD, cu_seqlens)
        count = ids_BL.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
        positions = [0] * count if state is None else state.position_B.tolist()
        if cu_seqlens is None and len(set(positions)) > 1:  # rows out of step with each other: as if packed
            rows = Rows.side_by_side(ids_BL.shape[1], positions, x_BLD.device)
            x_BLD = x_BLD.flatten(0, 1).unsqueeze(0)
        elif cu_seqlens is None:
            rows = Rows.in_step(ids_BL.shape[1], positions)
        else:
            rows = Rows.packed(cu_seqlens, positions)
        x_BLD, residual_BLD, tier = self._tier(0, x_BLD, None if state is None else state.tier, rows)
        hidden_BLD, _ = self.norm_f.add(x_BLD, residual_BLD, residual_in_fp32=self.residual_in_fp32)
        read = (position + length for position, length in zip(positions, rows.lengths))
        position_B = torch.tensor([number % self.steps_per_cycle for number in read], dtype=torch.int64, device="cpu")
        return hidden_BLD.view(*ids_BL.shape, -1), UNetState(position_B, tier)

    def _tier(
        self, level: int, x_BLD: Float[Tensor, "B L D"], state: State, rows: Rows
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"], State]:
        """Tier `level` and all inside it; the stream it leaves is the sum of the first two results."""
        if level == len(self.pool):
            before: list[Tensor] = []
            x_BLD, residual_BLD, centre = self._blocks(self.centre, x_BLD, None, state, rows, keep=before)
            return x_BLD, residual_BLD + before[0], centre
        down, waiting, inner, due, up = state or (None, None, None, None, None)
        kept: list[Tensor] = []
        x_BLD, residual_BLD, down = self._blocks(self.down[level], x_BLD, None, down, rows, keep=kept)
        stream_BLD = residual_BLD + x_BLD
        groups_BMpD, waiting = gather_groups(stream_BLD, waiting, self.pool[level], rows)
        late_BMpD, inner = self._inner(level, groups_BMpD.to(x_BLD.dtype), inner, rows.pooled(self.pool[level]))
        added_BLD, due = spread_groups(late_BMpD, due, rows)
        x_BLD, residual_BLD, up = self._blocks(self.up[level], added_BLD, stream_BLD, up, rows, add=kept)
        return x_BLD, residual_BLD, TierState(down, waiting, inner, due, up)

    def _inner(
        self, level: int, groups_BMpD: Float[Tensor, "B M p D"], state: State, rows: Rows
    ) -> tuple[Float[Tensor, "B M p D"], State]:
        """Through the tier inside: M positions (perhaps none, or none for some rows) and their rows' states."""
        running, resting = rows.running, rows.resting
        if not running:
            return groups_BMpD, self._start(level, rows, groups_BMpD) if state is None else state
        pooled_BMD = self.pooling[level](groups_BMpD.flatten(2))
        before = select_state(state, running) if resting and state is not None else state
        x_BMD, residual_BMD, after = self._tier(level + 1, pooled_BMD, before, rows.only_running())
        late_BMpD = self.unpooling[level]((residual_BMD + x_BMD).to(x_BMD.dtype)).view(groups_BMpD.shape)
        if resting:
            rest = empty_rows(after, len(resting)) if state is None else select_state(state, resting)
            order = sorted(range(len(rows.lengths)), key=(running + resting).__getitem__)
            after = select_state(concat_states([after, rest]), order)
        return late_BMpD, after

    @torch.no_grad()
    def _start(self, level: int, rows: Rows, like: Tensor) -> State:
        """The state of the tier inside before its first position; what it is made of shows when it runs once."""
        pooled_BLD = self.pooling[level](like.new_zeros(1, 1, math.prod(like.shape[2:])))
        _, _, state = self._tier(level + 1, pooled_BLD, None, Rows.in_step(1, [0]))
        return empty_rows(state, len(rows.lengths))

    def _blocks(
        self,
        blocks: nn.Module,
        x_BLD: Tensor,
        residual_BLD: Tensor | None,
        states: tuple[State, ...] | None,
        rows: Rows,
        keep: list[Tensor] | None = None,
        add: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, tuple[State, ...]]:
        """One stage. `keep` collects the stream in front of each block; `add` gives it back behind each, last first."""
        after = []
        for index, block in enumerate(blocks.children()):
            inputs = (x_BLD, residual_BLD, None if states is None else states[index], rows.cu_seqlens)
            if self.checkpoint_blocks and torch.is_grad_enabled():
                x_BLD, residual_BLD, state = checkpoint(block, *inputs, use_reentrant=False)  # type: ignore[misc]
            else:
                x_BLD, residual_BLD, state = block(*inputs)
            assert residual_BLD is not None
            if keep is not None:
                keep.append(residual_BLD)
            if add is not None:
                residual_BLD = residual_BLD + add.pop()
            after.append(state)
        assert residual_BLD is not None, "a stage has at least one block"
        return x_BLD, residual_BLD, tuple(after)


def _pool_factors(pool: Sequence[int]) -> tuple[int, ...]:
    if not pool or min(pool) < 2:
        raise ValueError(f"pool={list(pool)}: must be one or more pooling factors of at least 2, outermost first")
    return tuple(pool)


def _widths(d_model: int, expand: int | Sequence[int], tiers: int) -> tuple[int, ...]:
    """The width of each tier, the centre last."""
    factors = [expand] * tiers if isinstance(expand, int) else list(expand)
    if len(factors) != tiers:
        raise ValueError(f"expand={factors}: must be one number, or one for each of the {tiers} pooling factors")
    for factor in factors:
        require_positive(expand=factor)
    return tuple(d_model * math.prod(factors[:level]) for level in range(tiers + 1))
