"""The contract that every sequence layer signs: (B, L, D) in, (B, L, D) out, and a state that carries the past."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from jaxtyping import Float, Int
from torch import Tensor, nn

from seqmodels.layers.state import State

if TYPE_CHECKING:
    from seqmodels.layers.norm import RMSNorm


class SequenceLayer(nn.Module, ABC):
    """Maps x_BLD to y_BLD. One method serves training, chunked prefill and stepping (L = 1).

    Laws, which tests/seqmodels/layers/test_laws.py holds against every file in conf/layer/:

    - the future never changes the past, unless `is_causal` is False;
    - cutting a sequence anywhere and carrying the state gives what the whole gives, gradients included;
    - what else is in the batch, and padding on the right, change nothing;
    - sequences packed end to end with `cu_seqlens` give what they give alone;
    - recurrent state is fp32, under autocast too.

    Attributes, of the class or, where an argument decides, of the instance:
        is_causal: whether y[:, t] depends on x[:, :t+1] alone.
        residual_projections: names of the linear sub-modules whose output is added to the residual stream; a stack
            divides their initial weights by sqrt(number of residual additions).
        needs_gpu: whether the layer runs on a CUDA GPU only (kernels of an optional package).

    A layer without memory returns `()` as its state. Where a state keeps activations instead of recurrent values (a
    cache of keys and values), its type says so: `holds_activations` (see state.py).

    Parameters that must not be decayed although they are matrices carry the attribute `_no_weight_decay = True`
    (the published mark; biases and vectors are never decayed anyway).
    """

    is_causal: bool = True
    residual_projections: tuple[str, ...] = ("out_proj",)
    needs_gpu: bool = False

    @abstractmethod
    def forward(
        self,
        x_BLD: Float[Tensor, "B L D"],
        state: State = None,
        *,
        cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None,
    ) -> tuple[Float[Tensor, "B L D"], State]:
        """Runs the layer over L positions.

        Args:
            x_BLD: input; L >= 1.
            state: what the previous piece returned; None starts from zero.
            cu_seqlens: offsets of packed sequences, 0 first and L last, for B == 1; the state then has one row a
                sequence.

        Returns:
            y_BLD in x's dtype (autocast's dtype under autocast), and the state after the last position.
        """


    def step_behind_norm(
        self, norm: RMSNorm, x_B1D: Float[Tensor, "B 1 D"], residual_B1D: Tensor | None, state: State
    ) -> tuple[Float[Tensor, "B 1 D"], Float[Tensor, "B 1 D"], State] | None:
        """One step of decoding together with the residual addition and the norm in front of it.

        For layers with an op that does all of this at once. The caller has no gradients and a residual stream in fp32.

        Args:
            norm: the block's norm.
            x_B1D: what is yet to be added to the residual stream.
            residual_B1D: the residual stream; None: x begins it.
            state: what the previous step returned, not None.

        Returns:
            y, x + residual, and the new state; or None, the default: there is no such op for these tensors, and the
            block calls norm and layer one after the other.
        """
        return None


LayerFactory: TypeAlias = Callable[[int], SequenceLayer]  # d_model -> layer; a functools.partial in practice


def require_positive(**sizes: int) -> None:
    """Refuses a size below 1, by its name.

    Raises:
        ValueError: naming the size and its value.
    """
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
