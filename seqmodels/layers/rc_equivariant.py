"""Reverse-complement equivariance by parameter sharing (RCPS): both strands of DNA through the same weights.

A sequence and its reverse complement are one molecule read from its two ends. A layer f is RC-equivariant when
f(RC(x)) = RC(f(x)), where RC of activations reverses positions and channels (Zhou et al. 2022, section 3; Schiff et
al. 2024, arXiv:2403.03234, "Caduceus", section 4.1). Here the 2D channels of a position hold two strands: the first
D channels are the strand as given, the last D the other one, reversed in both directions so that they stand beside
the bases they pair with:

    x_BLC, C = 2D    =    [ fwd_BLD | reverse(other_BLD) ]         RC(x) reverses positions and all C channels

`split_strands` lays both strands as two sequences, each in its own reading direction, so that any layer serves both
in one call and equivariance holds by construction. What pairs with what is domain knowledge: `complement_ids[i]` is
the id across the helix from id i, and comes in as an argument.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqmodels.layers.base import LayerFactory, SequenceLayer
from seqmodels.layers.state import State


class RCPS(SequenceLayer):
    """Makes any layer RC-equivariant: its weights read both strands, half of the channels each.

    For equivariant parts of models of your own. A plain stack of these is not equivariant, because its norms weigh
    the channels of the strands differently; `RCPSStack` is.

    Args:
        d_model: width C = 2D of input and output, an even number.
        layer: makes the layer that is shared, from D.

    Raises:
        ValueError: d_model is odd.
    """

    is_causal = False

    def __init__(self, d_model: int, *, layer: LayerFactory):
        super().__init__()
        if d_model % 2:
            raise ValueError(f"d_model={d_model}: two strands share the channels, so it must be even")
        self.layer = layer(d_model // 2)
        self.residual_projections = tuple(f"layer.{name}" for name in self.layer.residual_projections)
        self.needs_gpu = self.layer.needs_gpu

    def forward(
        self,
        x_BLD: Float[Tensor, "B L D"],
        state: State = None,
        *,
        cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None,
    ) -> tuple[Float[Tensor, "B L D"], State]:
        """See `SequenceLayer.forward`; the other strand begins at the end, so there is no state."""
        refuse_state(state)
        y_XYD, _ = self.layer(split_strands(x_BLD, cu_seqlens), cu_seqlens=both_strands(cu_seqlens))
        return join_strands(y_XYD, cu_seqlens), ()


class RCPSEmbedding(nn.Embedding):
    """ids to both strands: the id's own row, and beside it the reversed row of its complement.

    Args:
        num_embeddings: rows of the table.
        d_model: width D of one strand.
        complement_ids: the id across the helix from each id, at most num_embeddings of them; rows beyond pair with
            themselves.

    Raises:
        ValueError: complement_ids is longer than the table, or not its own inverse.
    """

    complement_ids: Int[Tensor, " V"]

    def __init__(self, num_embeddings: int, d_model: int, complement_ids: Sequence[int]):
        super().__init__(num_embeddings, d_model)
        self.register_buffer("complement_ids", involution(complement_ids, num_embeddings), persistent=False)

    def strands(
        self, ids_BL: Int[Tensor, "B L"], cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None
    ) -> Float[Tensor, "X Y D"]:
        """Both strands as `split_strands` lays them: the table read along ids, and along their reverse complement."""
        rc_ids_BL = reverse_complement_ids(ids_BL, self.complement_ids, cu_seqlens)
        return super().forward(torch.cat([ids_BL, rc_ids_BL], dim=0 if cu_seqlens is None else 1))

    def forward(self, input: Int[Tensor, "B L"]) -> Float[Tensor, "B L C"]:
        return join_strands(self.strands(input))


def split_strands(
    x_BLC: Float[Tensor, "B L C"], cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None
) -> Float[Tensor, "X Y D"]:
    """Two strands beside each other (C = 2D) to two sets of sequences, each in its own reading direction.

    Returns:
        (2B, L, D), the other strands behind the given ones; with cu_seqlens (1, 2L, D), packed as
        `both_strands(cu_seqlens)` says.
    """
    fwd_BLD, other_BLD = x_BLC.chunk(2, dim=-1)
    return torch.cat([fwd_BLD, reverse_complement(other_BLD, cu_seqlens)], dim=0 if cu_seqlens is None else 1)


def join_strands(
    x_XYD: Float[Tensor, "X Y D"], cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None
) -> Float[Tensor, "B L C"]:
    """The inverse of `split_strands`."""
    fwd_BLD, other_BLD = x_XYD.chunk(2, dim=0 if cu_seqlens is None else 1)
    return torch.cat([fwd_BLD, reverse_complement(other_BLD, cu_seqlens)], dim=-1)


def swap_strands(
    x_XYD: Float[Tensor, "X Y D"], cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None
) -> Float[Tensor, "X Y D"]:
    """Exchanges the two strands of `split_strands`' layout without moving a base: each is read from its other end."""
    if cu_seqlens is None:
        return x_XYD.unflatten(0, (2, -1)).flip(0, 2, 3).flatten(0, 1)
    first_1LD, second_1LD = x_XYD.chunk(2, dim=1)
    return torch.cat([reverse_complement(second_1LD, cu_seqlens), reverse_complement(first_1LD, cu_seqlens)], dim=1)


def both_strands(cu_seqlens: Int[Tensor, " nseq_plus_1"] | None) -> Int[Tensor, " twice_nseq_plus_1"] | None:
    """Offsets of packed sequences followed by the same sequences' other strands."""
    return None if cu_seqlens is None else torch.cat([cu_seqlens, cu_seqlens[-1] + cu_seqlens[1:]])


def reverse_complement(
    x_BLC: Float[Tensor, "B L C"], cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None
) -> Float[Tensor, "B L C"]:
    """RC of activations: positions of each sequence reversed, and all channels."""
    return x_BLC.flip(1, 2) if cu_seqlens is None else reverse_positions(x_BLC, cu_seqlens).flip(2)


def reverse_complement_ids(
    ids_BL: Int[Tensor, "B L"],
    complement_V: Int[Tensor, " V"],
    cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None,
    lengths_B: Int[Tensor, " B"] | None = None,
) -> Int[Tensor, "B L"]:
    """The other strand's ids; what lies beyond a row's length (None: L) is padding and stays as it is.

    Args:
        ids_BL: ids in 0..V-1.
        complement_V: the id across the helix from each id.
        cu_seqlens: offsets of sequences packed into one row; each is reversed in its own place.
        lengths_B: real positions of each row, padding on the right; not together with cu_seqlens.
    """
    assert cu_seqlens is None or lengths_B is None, "a packed row has no padding"
    if lengths_B is None:
        return complement_V[reverse_positions(ids_BL, cu_seqlens)]
    is_real_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device) < lengths_B[:, None]
    reversed_BL = reverse_rows(ids_BL, lengths_B)
    return torch.where(is_real_BL, complement_V[reversed_BL], reversed_BL)


def reverse_rows(x_BL: Tensor, lengths_B: Int[Tensor, " B"]) -> Tensor:
    """Dimension 1 of each row back to front up to its length; padding on the right stays where it is."""
    position_L = torch.arange(x_BL.shape[1], device=x_BL.device)
    from_end_BL = lengths_B[:, None] - 1 - position_L
    source_BL = torch.where(from_end_BL >= 0, from_end_BL, position_L)
    return x_BL.gather(1, source_BL.reshape(*source_BL.shape, *[1] * (x_BL.dim() - 2)).expand_as(x_BL))


def reverse_positions(x_BL: Tensor, cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None) -> Tensor:
    """Dimension 1 back to front; with cu_seqlens, each packed sequence in its own place."""
    if cu_seqlens is None:
        return x_BL.flip(1)
    position_L = torch.arange(x_BL.shape[1], device=x_BL.device)
    ends = cu_seqlens[1:].to(torch.int64)
    sequence_L = torch.searchsorted(ends, position_L, right=True)
    first_L, end_L = cu_seqlens[:-1].to(torch.int64)[sequence_L], ends[sequence_L]
    return x_BL.index_select(1, first_L + end_L - 1 - position_L)


def involution(complement_ids: Sequence[int], size: int) -> Int[Tensor, " V"]:
    """complement_ids as a tensor of `size` ids, those beyond its end paired with themselves.

    Raises:
        ValueError: there are more than `size`, or pairing twice does not give every id back.
    """
    if len(complement_ids) > size:
        raise ValueError(f"complement_ids pairs {len(complement_ids)} ids, and the table has {size} rows")
    partners = [*map(int, complement_ids), *range(len(complement_ids), size)]
    for token, partner in enumerate(partners):
        if not 0 <= partner < size or partners[partner] != token:
            raise ValueError(
                f"complement_ids[{token}] is {partner}, but complement_ids[{partner}] is not {token}: "
                "the complement of a complement must be the id itself"
            )
    return torch.tensor(partners)


def refuse_state(state: State) -> None:
    """Layers that read from both ends cannot continue a piece, with their own `()` for a state neither.

    Raises:
        ValueError: there is a state.
    """
    if state is not None:
        raise ValueError("a layer that reads from both ends has no state to continue from: give it whole sequences")
