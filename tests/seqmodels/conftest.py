"""Shared by tests of the library: YAML of conf/ as plain data, and a small model on real-sized vocabularies."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def compose() -> Callable[..., dict[str, Any]]:
    """compose("layer", "mamba", *overrides) -> that YAML with its defaults, as a plain dict."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    @functools.cache
    def once(group: str, name: str, *overrides: str) -> dict[str, Any]:
        with initialize_config_module("seqmodels.conf", version_base="1.3"):
            config = compose(overrides=[f"+{group}={name}", *overrides])
        plain = OmegaConf.to_container(config[group], resolve=True)
        assert isinstance(plain, dict)
        return plain  # type: ignore[return-value]

    return lambda *words: copy.deepcopy(once(*words))


@pytest.fixture
def small_model():
    """Builds a 2 x 16 Mamba language model with perturbed weights: `small_model(vocab_size=7)`."""
    from seqmodels.backbones.stack import Stack
    from seqmodels.heads.next_token import NextTokenHead
    from seqmodels.layers.mamba import Mamba
    from seqmodels.model import SequenceModel

    def build(vocab_size: int = 7, **layer: Any) -> SequenceModel:
        torch.manual_seed(0)
        backbone = Stack(vocab_size=vocab_size, d_model=16, n_layers=2, layer=lambda d_model: Mamba(d_model, **layer))
        model = SequenceModel(backbone, NextTokenHead(d_model=16, vocab_size=vocab_size))
        with torch.no_grad():  # away from the published initialisation, whose predictions are nearly uniform
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return model

    return build
