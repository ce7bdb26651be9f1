"""Long-context sequence models for DNA and raw audio: layers, backbones, heads, training, inference.

Importing this package costs nothing: every public name is loaded at first use.

    import seqmodels
    loaded = seqmodels.load("runs/demo")
    out = seqmodels.generate(loaded.model, 1000, start_id=loaded.tokenizer.start_id)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqmodels.backbones.stack import Stack
    from seqmodels.backbones.unet import UNet
    from seqmodels.data.record import Batch, Record, SampleKey
    from seqmodels.heads.classification import ClassificationHead
    from seqmodels.heads.next_token import NextTokenHead
    from seqmodels.inference.generate import Generated, Sampling, generate
    from seqmodels.inference.likelihood import token_log_likelihood
    from seqmodels.inference.load import LoadedModel, load
    from seqmodels.instantiate import build
    from seqmodels.layers.base import SequenceLayer
    from seqmodels.layers.mamba import Mamba
    from seqmodels.layers.norm import RMSNorm
    from seqmodels.model import SequenceModel

_HOME = {
    "Batch": "seqmodels.data.record",
    "ClassificationHead": "seqmodels.heads.classification",
    "Generated": "seqmodels.inference.generate",
    "LoadedModel": "seqmodels.inference.load",
    "Mamba": "seqmodels.layers.mamba",
    "NextTokenHead": "seqmodels.heads.next_token",
    "RMSNorm": "seqmodels.layers.norm",
    "Record": "seqmodels.data.record",
    "SampleKey": "seqmodels.data.record",
    "Sampling": "seqmodels.inference.generate",
    "SequenceLayer": "seqmodels.layers.base",
    "SequenceModel": "seqmodels.model",
    "Stack": "seqmodels.backbones.stack",
    "UNet": "seqmodels.backbones.unet",
    "build": "seqmodels.instantiate",
    "generate": "seqmodels.inference.generate",
    "load": "seqmodels.inference.load",
    "token_log_likelihood": "seqmodels.inference.likelihood",
}
__version__ = "0.1.0"
__all__ = [
    "Batch",
    "ClassificationHead",
    "Generated",
    "LoadedModel",
    "Mamba",
    "NextTokenHead",
    "RMSNorm",
    "Record",
    "SampleKey",
    "Sampling",
    "SequenceLayer",
    "SequenceModel",
    "Stack",
    "UNet",
    "build",
    "generate",
    "load",
    "token_log_likelihood",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'seqmodels' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
