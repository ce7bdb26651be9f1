"""Layers of the package flash-linear-attention (`fla`) behind this project's contract: RetNet, GLA, RWKV and relatives.

The package is optional and its kernels are Triton: they need a CUDA GPU. What this file adds is the state: fla's
layers keep theirs in a mutable cache object, here it is a value that goes in and comes out.

| kind | layer | paper |
|---|---|---|
| retnet | MultiScaleRetention | Sun et al. 2023, arXiv:2307.08621 |
| gla | GatedLinearAttention | Yang et al. 2023, arXiv:2312.06635 |
| hgrn2 | HGRN2Attention | Qin et al. 2024, arXiv:2404.07904 |
| deltanet | DeltaNet | Yang et al. 2024, arXiv:2406.06484 |
| gated_deltanet | GatedDeltaNet | Yang et al. 2024, arXiv:2412.06464 |
| rwkv6, rwkv7 | RWKV6Attention, RWKV7Attention | Peng et al. 2024, arXiv:2404.05892; 2025, arXiv:2503.14456 |

Only what mixes positions: RWKV's channel mixing is a layer of its own (put an `mlp` after it), and RWKV-7's values that
later layers take from the first one are left out, for a layer here sees no other. Written for fla 0.6.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import warnings
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from seqkernels.checks import check_cu_seqlens
from torch import Tensor

from seqmodels.layers.base import SequenceLayer, require_positive
from seqmodels.layers.state import State, concat_states, select_state

KINDS = {
    "retnet": "MultiScaleRetention",
    "gla": "GatedLinearAttention",
    "hgrn2": "HGRN2Attention",
    "deltanet": "DeltaNet",
    "gated_deltanet": "GatedDeltaNet",
    "rwkv6": "RWKV6Attention",
    "rwkv7": "RWKV7Attention",
}
NOT_OPTIONS = ("self", "hidden_size", "d_model", "layer_idx", "num_hidden_layers", "kwargs")
RECURRENT_UP_TO = 64  # positions up to which fla steps instead of working in chunks
INSTALL = "pip install 'flash-linear-attention>=0.6,<0.7'"


class LastInputs(NamedTuple):
    """The last inputs of short convolutions or token shifts, as fla keeps them."""

    tensors: tuple[Tensor, ...]

    holds_activations = True  # type: ignore[misc] - a mark of the type (see state.py), not a field


class FlaState(NamedTuple):
    """What a layer of fla carries.

    Attributes:
        recurrent: (B, heads, ...) fp32, the matrix-valued state.
        inputs: of its short convolutions, one tensor each; none in layers without.
        seen_B: positions read so far, int64: where rotary positions go on.
    """

    recurrent: Float[Tensor, "B ..."]
    inputs: LastInputs
    seen_B: Int[Tensor, " B"]


class FlaLayer(SequenceLayer):
    """One layer of flash-linear-attention, O(L) time, O(1) state. Runs on a CUDA GPU only.

    Triton multiplies fp32 matrices in TF32 unless the environment says TRITON_F32_DEFAULT=ieee. Gradients flow through
    the state, except that rwkv6's has none behind a piece of up to 64 positions: backward raises there.

    Args:
        d_model: width D of input and output (fla's hidden_size).
        kind: which layer, a name of the table above.
        **options: the layer's own arguments by fla's names (num_heads, head_dim, expand_k, ...).

    Raises:
        ImportError: flash-linear-attention is not installed, or cannot be imported; how to mend it.
        ValueError: an unknown kind, an option that the layer does not have, or sizes that it refuses.
    """

    residual_projections = ("layer.o_proj",)
    needs_gpu = True

    def __init__(self, d_model: int, *, kind: str = "gla", **options: Any):
        super().__init__()
        require_positive(d_model=d_model)
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r}: must be one of {', '.join(KINDS)}")
        self.kind = kind
        layer_class = getattr(_import_fla("fla.layers"), KINDS[kind])
        _check_options(layer_class, options, kind)
        if kind == "rwkv7":
            options["num_hidden_layers"] = 2  # its initialisation divides by it; the first layer's is the same for all
        try:
            self.layer = layer_class(hidden_size=d_model, layer_idx=0, **options)
        except AssertionError as error:
            raise ValueError(f"kind={kind!r} with d_model={d_model} and {options}: {error}") from error

    def forward(
        self,
        x_BLD: Float[Tensor, "B L D"],
        state: FlaState | None = None,
        *,
        cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None,
    ) -> tuple[Float[Tensor, "B L D"], State]:
        """See `SequenceLayer.forward`. Packed sequences run one by one where the layer could not continue them.

        Raises:
            ValueError: x is not on a GPU, or bad cu_seqlens.
        """
        if not x_BLD.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(f"kind={self.kind!r} needs a CUDA GPU (fla's kernels are Triton); x is on {x_BLD.device}")
        if cu_seqlens is None:
            if self.kind == "retnet" and state is not None and bool((state.seen_B != state.seen_B[0]).any()):
                return self._one_by_one(list(x_BLD.split(1)), state, join_dim=0)  # one position for all rows a call
            return self._run(x_BLD, state, None)
        check_cu_seqlens("FlaLayer", cu_seqlens, x_BLD.shape[0], x_BLD.shape[1])
        if state is None and self.kind != "rwkv6":  # rwkv6 keeps the last input of the last sequence only
            return self._run(x_BLD, None, cu_seqlens)
        spans = pairwise(cu_seqlens.tolist())
        return self._one_by_one([x_BLD[:, first:last] for first, last in spans], state, join_dim=1)

    def _one_by_one(
        self, pieces: list[Tensor], state: FlaState | None, join_dim: int
    ) -> tuple[Float[Tensor, "B L D"], State]:
        pasts = [None if state is None else select_state(state, [row]) for row in range(len(pieces))]
        pairs = [self._run(piece, past, None) for piece, past in zip(pieces, pasts)]
        return torch.cat([y for y, _ in pairs], dim=join_dim), concat_states([new for _, new in pairs])

    def _run(
        self, x_BLD: Float[Tensor, "B L D"], state: FlaState | None, cu_seqlens: Tensor | None
    ) -> tuple[Float[Tensor, "B L D"], FlaState]:
        """One call of fla's layer with its cache made from the state, and the state made from what the cache became."""
        cache = self._cache(state)
        y_BLD, *_ = self.layer(x_BLD, past_key_values=cache, use_cache=True, cu_seqlens=cu_seqlens)
        recurrent, inputs = cache[0]["recurrent_state"], cache[0]["conv_state"]
        if self.kind == "rwkv6" and recurrent.requires_grad and x_BLD.shape[1] <= RECURRENT_UP_TO:
            recurrent.register_hook(_refuse_gradient)
        inputs = () if inputs is None else (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        if cu_seqlens is not None:
            seen_B = cu_seqlens.diff().to(torch.int64)
        else:
            seen_B = torch.full((len(x_BLD),), x_BLD.shape[1], device=x_BLD.device)
            seen_B = seen_B if state is None else seen_B + state.seen_B
        return y_BLD, FlaState(recurrent, LastInputs(inputs), seen_B)

    def _cache(self, state: FlaState | None) -> Any:
        """fla's cache object holding copies, which its layers may overwrite."""
        cache_class = _import_fla("fla.models.utils").Cache
        if state is None:
            return cache_class()
        inputs = tuple(tensor.clone() for tensor in state.inputs.tensors)
        parts = {
            "recurrent_state": state.recurrent.clone(),
            "attn_state": None,
            "conv_state": inputs[0] if self.kind.startswith("rwkv") else inputs or None,
            "ffn_state": None,
        }
        # The other kinds do not ask for the position; reading it waits for the GPU.
        seen = int(state.seen_B[0]) if self.kind == "retnet" else 0
        return cache_class.from_legacy_cache((parts,), seen_tokens=seen)

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}"


def _refuse_gradient(grad: Tensor) -> None:
    raise RuntimeError(
        "kind='rwkv6' has no gradient through the state behind a piece of up to 64 positions (fla's recurrent kernel "
        "leaves it out): carry the state over longer pieces, or detach it"
    )


def _import_fla(module: str) -> Any:
    """A module of fla.

    Raises:
        ImportError: it is not there, or what it needs is not.
    """
    try:
        with warnings.catch_warnings():  # what it says about a machine without a GPU, `forward` says when it matters
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        hint = f": {INSTALL}" if isinstance(error, ModuleNotFoundError) else ""
        message = f"FlaLayer needs the package flash-linear-attention, which cannot be imported here ({error}){hint}"
        raise ImportError(message, name="fla") from error


def _check_options(layer_class: Any, options: dict[str, Any], kind: str) -> None:
    """fla's constructors swallow what they do not know; here it is refused."""
    known = [name for name in inspect.signature(layer_class.__init__).parameters if name not in NOT_OPTIONS]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"kind={kind!r} has no option {name!r}{hint} It takes {', '.join(known)}")
