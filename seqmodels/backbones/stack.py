"""A stack of pre-norm residual blocks: embedding, n_layers x (norm, mixer), final norm.

ids_BL -> hidden_BLD. Names are the published ones (`embedding`, `layers.i.norm`, `layers.i.mixer`, `norm_f`), so a
released state dict loads unchanged.

    Stack(vocab_size=12, d_model=128, layer=Mamba, n_layers=8)
    Stack(vocab_size=12, d_model=128, pattern="M-M*-", layers={"M": Mamba2, "*": Attention, "-": MLP})
    Stack(vocab_size=12, d_model=128, pattern="*-", n_layers=24, layers={"*": Attention, "-": MLP})  # 12 times "*-"
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from seqkernels.checks import accumulation_dtype
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seqmodels.backbones.base import Backbone, add_condition
from seqmodels.backbones.pattern import factories
from seqmodels.layers.base import LayerFactory, SequenceLayer, require_positive
from seqmodels.layers.norm import RMSNorm
from seqmodels.layers.state import State

EMBEDDING_STD = 0.02


class Block(nn.Module):
    """residual += x; y = mixer(norm(residual)). The addition of y waits for the next block's (fused) norm."""

    def __init__(self, mixer: SequenceLayer, d_model: int, norm_eps: float, residual_in_fp32: bool):
        super().__init__()
        self.norm = RMSNorm(d_model, norm_eps)
        self.mixer = mixer
        self.residual_in_fp32 = residual_in_fp32

    def forward(
        self,
        x_BLD: Float[Tensor, "B L D"],
        residual_BLD: Float[Tensor, "B L D"] | None,
        state: State,
        cu_seqlens: Int[Tensor, " nseq_plus_1"] | None,
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"], State]:
        may_fuse = self.residual_in_fp32 and state is not None and cu_seqlens is None
        if may_fuse and x_BLD.shape[1] == 1 and not torch.is_grad_enabled():
            made = self.mixer.step_behind_norm(self.norm, x_BLD, residual_BLD, state)
            if made is not None:
                return made
        if residual_BLD is None:
            dtype = accumulation_dtype(x_BLD.dtype) if self.residual_in_fp32 else x_BLD.dtype
            normed_BLD, residual_BLD = self.norm(x_BLD), x_BLD.to(dtype)
        else:
            normed_BLD, residual_BLD = self.norm.add(x_BLD, residual_BLD, residual_in_fp32=self.residual_in_fp32)
        y_BLD, state = self.mixer(normed_BLD, state, cu_seqlens=cu_seqlens)
        return y_BLD, residual_BLD, state


class Stack(Backbone):
    """Blocks around one kind of layer, or around several in the order of a pattern.

    Args:
        vocab_size: ids are 0..vocab_size-1.
        d_model: width D of the residual stream.
        layer: makes one layer from d_model, e.g. `functools.partial(Mamba, d_state=16)`; the same for every block.
        n_layers: number of blocks. With a pattern, a multiple of its length (it is repeated) or None (it stands once).
        pattern: instead of `layer`, one letter a block, as published: M Mamba-2, m Mamba, * attention, - MLP, s S4D
            and what else `seqmodels.backbones.pattern.LETTERS` or `layers` names.
        layers: with a pattern, letter or word ("M" or "mamba2") -> layer factory.
        norm_eps: epsilon of every RMSNorm.
        residual_in_fp32: keep the residual stream in fp32 under autocast.
        pad_vocab_to: the embedding's rows are rounded up to a multiple of this (released models: 8).
        checkpoint_blocks: recompute each block in backward: about 1/10 of the activation memory for a third more time.

    Raises:
        ValueError: vocab_size, d_model, n_layers or pad_vocab_to is below 1; not one of layer and pattern; a pattern
            with an unknown letter; n_layers that the pattern's length does not divide.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        layer: LayerFactory | None = None,
        n_layers: int | None = None,
        pattern: str | None = None,
        layers: Mapping[str, LayerFactory] | None = None,
        norm_eps: float = 1e-5,
        residual_in_fp32: bool = True,
        pad_vocab_to: int = 8,
        checkpoint_blocks: bool = False,
    ):
        super().__init__()
        require_positive(vocab_size=vocab_size, d_model=d_model, pad_vocab_to=pad_vocab_to)
        if n_layers is not None:
            require_positive(n_layers=n_layers)
        self.vocab_size, self.d_model = vocab_size, d_model
        self.checkpoint_blocks = checkpoint_blocks
        self.embedding = nn.Embedding(round_up(vocab_size, pad_vocab_to), d_model)
        self.layers = nn.ModuleList(
            Block(factory(d_model), d_model, norm_eps, residual_in_fp32)
            for factory in _factories(layer, n_layers, pattern, layers)
        )
        self.norm_f = RMSNorm(d_model, norm_eps)
        self.residual_in_fp32 = residual_in_fp32
        initialise(self.embedding.weight, self.mixers)

    @property
    def mixers(self) -> list[SequenceLayer]:
        """The layers proper, first to last."""
        return [block.mixer for block in self.layers]  # type: ignore[misc]

    @property
    def is_causal(self) -> bool:
        return all(mixer.is_causal for mixer in self.mixers)

    def forward(
        self,
        ids_BL: Int[Tensor, "B L"],
        state: State = None,
        *,
        cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None,
        condition_BD: Float[Tensor, "S D"] | None = None,
    ) -> tuple[Float[Tensor, "B L D"], tuple[State, ...]]:
        """See `Backbone.forward`; the state is one entry a layer, first to last.

        `condition_BD`, one row a sequence, is added to the embedding of every position.
        """
        x_BLD, residual_BLD = add_condition(self.embedding(ids_BL), condition_BD, cu_seqlens), None
        recompute = self.checkpoint_blocks and torch.is_grad_enabled()
        new_states = []
        for index, block in enumerate(self.layers):
            inputs = (x_BLD, residual_BLD, None if state is None else state[index], cu_seqlens)
            if recompute:
                x_BLD, residual_BLD, new_state = checkpoint(block, *inputs, use_reentrant=False)  # type: ignore[misc]
            else:
                x_BLD, residual_BLD, new_state = block(*inputs)
            new_states.append(new_state)
        assert residual_BLD is not None, "there is at least one block"
        hidden_BLD, _ = self.norm_f.add(x_BLD, residual_BLD, residual_in_fp32=self.residual_in_fp32)
        return hidden_BLD, tuple(new_states)


@torch.no_grad()
def initialise(table: Tensor, mixers: Sequence[SequenceLayer]) -> None:
    """Published: embedding N(0, 0.02); what writes into the residual stream is divided by sqrt(additions)."""
    nn.init.normal_(table, std=EMBEDDING_STD)
    for mixer in mixers:
        for name in mixer.residual_projections:
            mixer.get_submodule(name).weight.div_(math.sqrt(len(mixers)))  # type: ignore[operator]


def _factories(
    layer: LayerFactory | None,
    n_layers: int | None,
    pattern: str | None,
    layers: Mapping[str, LayerFactory] | None,
) -> list[LayerFactory]:
    """One factory a block, from either way of saying it."""
    if pattern is None:
        if layer is None or n_layers is None or layers is not None:
            raise ValueError("a stack needs layer and n_layers, or pattern and layers")
        return [layer] * n_layers
    if layer is not None or layers is None:
        raise ValueError(
            f"pattern={pattern!r} takes its layers from `layers` (letter or word -> layer), not from `layer`:"
            " give layers, and layer=null"
        )
    once = factories(pattern, layers)
    if n_layers is not None and n_layers % len(once):
        below = n_layers // len(once) * len(once)
        near = f"{below} or {below + len(once)}" if below else f"{len(once)}"
        raise ValueError(
            f"n_layers={n_layers} is no multiple of the {len(once)} blocks of pattern {pattern!r}; leave n_layers out,"
            f" or take {near}"
        )
    return once * (1 if n_layers is None else n_layers // len(once))


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `size`."""
    return -(-size // multiple) * multiple
