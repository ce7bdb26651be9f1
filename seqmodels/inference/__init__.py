"""Use a trained model: load it, continue sequences, score them."""

from seqmodels.inference.generate import Generated, Sampling, generate
from seqmodels.inference.likelihood import token_log_likelihood

__all__ = ["Generated", "Sampling", "generate", "token_log_likelihood"]
