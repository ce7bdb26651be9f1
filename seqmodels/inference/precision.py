"""How exactly a trained model computes: fp32, fp32 with TF32 products, or matrices in bf16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from seqmodels.inference.graph import decoding_copy
from seqmodels.model import SequenceModel

PRECISIONS = ("fp32", "tf32", "bf16")


def check_precision(precision: str) -> None:
    """Raises ValueError for a name that is none of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} must be one of {', '.join(PRECISIONS)}")


@contextmanager
def in_precision(model: SequenceModel, precision: str) -> Iterator[SequenceModel]:
    """The model to use inside: states, norms and sums are fp32 in any case.

    Args:
        model: stays as it is.
        precision: "fp32" multiplies matrices in fp32; "tf32" rounds their factors to 10 bits, on a GPU alone; "bf16"
            takes a copy with matrices and activations in bf16 (7 bits).

    Raises:
        ValueError: another name, or tf32 without a GPU.
    """
    check_precision(precision)
    if precision == "bf16":
        yield decoding_copy(model, torch.bfloat16)
        return
    if precision == "tf32" and model.backbone.embedding.weight.device.type != "cuda":
        raise ValueError("precision='tf32' is an arithmetic of GPUs; on a CPU take fp32")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield model
    finally:
        torch.set_float32_matmul_precision(before)
