"""Fast ops for sequence models, each with a plain PyTorch reference that defines it.

    from seqkernels import selective_scan, ssd, causal_conv1d, long_conv, rms_norm, gated_rms_norm, mamba_step

Importing this package brings the checks and the choice of implementations only: numba, triton and the CUDA bindings
are imported when an op first takes an implementation that needs them. Each name is the function; its folder
(`seqkernels/selective_scan/`, ...) is reached with `from seqkernels.selective_scan import reference`.
"""

from seqkernels.causal_conv1d.op import causal_conv1d
from seqkernels.gated_rms_norm.op import gated_rms_norm
from seqkernels.long_conv.op import long_conv
from seqkernels.mamba_block_step.op import mamba_block_step
from seqkernels.mamba_step.op import mamba_step
from seqkernels.rms_norm.op import rms_norm
from seqkernels.selective_scan.op import selective_scan
from seqkernels.ssd.op import ssd

__all__ = [
    "causal_conv1d", "gated_rms_norm", "long_conv", "mamba_block_step", "mamba_step", "rms_norm", "selective_scan",
    "ssd",
]  # fmt: skip
