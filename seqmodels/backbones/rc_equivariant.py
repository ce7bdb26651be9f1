"""A stack whose every part serves both strands of DNA with the same weights: Caduceus-PS (arXiv:2403.03234).

ids_BL -> hidden_BLC with C = 2D: beside each base, the hidden state of the strand as given and, channels reversed,
that of the other strand; hidden(RC(ids)) is RC(hidden(ids)). Parameter names are a plain stack's, whose weights fit.

The released Caduceus-PS and PlantCaduceus weights were trained with `fused_add_norm: true`, and that path of the
authors' code hands each strand's stream to the other strand in front of every norm (`modeling_rcps.py`: the second
half of the channels is normalised as it lies and becomes the first half; the first half is normalised in reverse and
becomes the second). Both readings are equivariant, both have the same parameters, and they are different functions:
no test of shapes or of equivariance tells them apart. `swap_strands` says which one is meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seqmodels.backbones.base import Backbone
from seqmodels.backbones.stack import Block, initialise, round_up
from seqmodels.layers.base import LayerFactory, SequenceLayer, require_positive
from seqmodels.layers.norm import RMSNorm
from seqmodels.layers.rc_equivariant import RCPSEmbedding, both_strands, join_strands, refuse_state, swap_strands
from seqmodels.layers.state import State


class RCPSStack(Backbone):
    """n_layers pre-norm residual blocks on both strands, weights shared between them.

    Args:
        vocab_size: ids are 0..vocab_size-1.
        d_model: width D of one strand; the hidden states are 2D wide.
        n_layers: number of blocks.
        layer: makes one layer from d_model; a `Bidirectional` one in Caduceus.
        complement_ids: the id across the helix from each id (its own inverse); ids beyond its end pair with
            themselves.
        swap_strands: each block first hands the streams of the strands to each other, as the authors' code does with
            `fused_add_norm: true`, and so as released weights expect.
        norm_eps: epsilon of every RMSNorm.
        residual_in_fp32: keep the residual stream in fp32 under autocast.
        pad_vocab_to: the embedding's rows are rounded up to a multiple of this (released models: 8).
        checkpoint_blocks: recompute each block in backward, to save memory.

    Raises:
        ValueError: vocab_size, d_model, n_layers or pad_vocab_to is below 1, or complement_ids does not pair the ids.
    """

    strands: ClassVar[int] = 2
    embedding: RCPSEmbedding

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        n_layers: int,
        layer: LayerFactory,
        complement_ids: Sequence[int],
        swap_strands: bool = True,
        norm_eps: float = 1e-5,
        residual_in_fp32: bool = True,
        pad_vocab_to: int = 8,
        checkpoint_blocks: bool = False,
    ):
        super().__init__()
        require_positive(vocab_size=vocab_size, d_model=d_model, n_layers=n_layers, pad_vocab_to=pad_vocab_to)
        self.vocab_size, self.d_model = vocab_size, d_model
        self.swap_strands, self.checkpoint_blocks = swap_strands, checkpoint_blocks
        self.residual_in_fp32 = residual_in_fp32
        self.embedding = RCPSEmbedding(round_up(vocab_size, pad_vocab_to), d_model, complement_ids)
        self.layers = nn.ModuleList(
            Block(layer(d_model), d_model, norm_eps, residual_in_fp32) for _ in range(n_layers)
        )
        self.norm_f = RMSNorm(d_model, norm_eps)
        initialise(self.embedding.weight, self.mixers)

    @property
    def mixers(self) -> list[SequenceLayer]:
        """The layers proper, first to last."""
        return [block.mixer for block in self.layers]  # type: ignore[misc]

    @property
    def is_causal(self) -> bool:
        return False  # the other strand begins at the end

    def forward(
        self, ids_BL: Int[Tensor, "B L"], state: State = None, *, cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None
    ) -> tuple[Float[Tensor, "B L C"], tuple[()]]:
        """See `Backbone.forward`; there is no state, whole sequences only.

        Raises:
            ValueError: a state is given.
        """
        refuse_state(state)
        x_XYD, residual_XYD = self.embedding.strands(ids_BL, cu_seqlens), None
        recompute = self.checkpoint_blocks and torch.is_grad_enabled()
        for block in self.layers:
            inputs = (block, x_XYD, residual_XYD, cu_seqlens)
            if recompute:
                x_XYD, residual_XYD = checkpoint(self._run, *inputs, use_reentrant=False)  # type: ignore[misc]
            else:
                x_XYD, residual_XYD = self._run(*inputs)  # type: ignore[arg-type]
        assert residual_XYD is not None, "there is at least one block"
        hidden_XYD, _ = self.norm_f.add(x_XYD, residual_XYD, residual_in_fp32=self.residual_in_fp32)
        return join_strands(hidden_XYD, cu_seqlens), ()

    def _run(
        self, block: Block, x_XYD: Tensor, residual_XYD: Tensor | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One block on both strands."""
        if self.swap_strands:
            x_XYD = swap_strands(x_XYD, cu_seqlens)
            residual_XYD = None if residual_XYD is None else swap_strands(residual_XYD, cu_seqlens)
        y_XYD, residual_XYD, _ = block(x_XYD, residual_XYD, None, both_strands(cu_seqlens))
        return y_XYD, residual_XYD  # type: ignore[return-value]
