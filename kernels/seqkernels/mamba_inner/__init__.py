"""The Mamba block around its scan, with activations recomputed in backward; see README.md."""

from seqkernels.mamba_inner.op import InnerState, InnerWeights, mamba_block, mamba_inner

__all__ = ["InnerState", "InnerWeights", "mamba_block", "mamba_inner"]
