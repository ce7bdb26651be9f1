"""Run folders with random weights, and folders of published weights, small."""

from __future__ import annotations

import json

import pytest
import torch

from seqmodels.instantiate import build
from seqmodels.model import model_spec
from seqmodels.training.checkpoint import step_folder, write_checkpoint

DNA = {"_target_": "domains.dna.tokenizer.DnaTokenizer", "iupac": "n"}
BACKBONE = {
    "_target_": "seqmodels.backbones.stack.Stack",
    "d_model": 16,
    "n_layers": 2,
    "layer": {"_target_": "seqmodels.layers.mamba.Mamba", "_partial_": True},
}
HEAD = {"_target_": "seqmodels.heads.next_token.NextTokenHead"}


@pytest.fixture
def write_run(tmp_path):
    """write_run("dna", backbone={...}) -> a run folder of a random DNA model."""

    def write(name, *, backbone=None, head=None, vocab_size=12, num_classes=None):
        torch.manual_seed(0)
        spec = model_spec(backbone or BACKBONE, head or HEAD, vocab_size=vocab_size, num_classes=num_classes)
        model = build(spec)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        meta = {"model": spec, "tokenizer": DNA, "class_names": [], "step": 10}
        run = tmp_path / name
        write_checkpoint(
            step_folder(run / "checkpoints", 10), weights=model.state_dict(), meta=meta, training_state={}
        )
        return run

    return write


@pytest.fixture
def write_published(tmp_path):
    """write_published("name", config, weights) -> a folder with config.json and pytorch_model.bin."""

    def write(name, config, weights):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        torch.save(weights, folder / "pytorch_model.bin")
        return folder

    return write


@pytest.fixture
def random_tensors():
    """random_tensors({"name": shape}) -> tensors with values of a trained size."""

    def make(shapes, seed=0):
        generator = torch.Generator().manual_seed(seed)
        tensors = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        return {name: tensor + 1.0 if "norm" in name else tensor for name, tensor in tensors.items()}

    return make
