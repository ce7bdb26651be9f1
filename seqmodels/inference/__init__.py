"""Use a trained model: load it, continue sequences, score them."""

from seqmodels.inference.generate import Generated, Sampling, generate
from seqmodels.inference.likelihood import token_log_likelihood
from seqmodels.inference.load import LoadedModel, load

__all__ = ["Generated", "LoadedModel", "Sampling", "generate", "load", "token_log_likelihood"]
