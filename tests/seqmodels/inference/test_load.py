"""A checkpoint folder to a model: what was saved comes back, and what does not fit is refused by name."""

from __future__ import annotations

import json

import pytest
import torch

import seqmodels
from domains.dna.tokenizer import DnaTokenizer
from seqmodels.inference import load
from seqmodels.instantiate import build
from seqmodels.model import model_spec
from seqmodels.training.checkpoint import META, WEIGHTS, point, step_folder, write_checkpoint

BACKBONE = {
    "_target_": "seqmodels.backbones.stack.Stack",
    "d_model": 8,
    "n_layers": 2,
    "layer": {"_target_": "seqmodels.layers.mamba.Mamba", "_partial_": True},
}
HEAD = {"_target_": "seqmodels.heads.next_token.NextTokenHead"}
TOKENIZER = DnaTokenizer().spec()


def write(run, *, step=10, seed=0, model_backbone=BACKBONE, meta_backbone=None, **meta):
    torch.manual_seed(seed)
    model = build(model_spec(model_backbone, HEAD, vocab_size=5))
    spec = model_spec(meta_backbone or model_backbone, HEAD, vocab_size=5)
    folder = step_folder(run / "checkpoints", step)
    fields = {"model": spec, "tokenizer": TOKENIZER, "class_names": ["a", "b"], "step": step, **meta}
    write_checkpoint(folder, weights=model.state_dict(), meta=fields, training_state={})
    return model, folder


def test_what_was_saved_comes_back(tmp_path):
    saved, folder = write(tmp_path / "run")
    for path in (tmp_path / "run", folder):
        loaded = load(path, "cpu")
        for name, tensor in saved.state_dict().items():
            assert torch.equal(loaded.model.state_dict()[name], tensor), name
        assert loaded.model.head.weight is loaded.model.backbone.embedding.weight
        assert not loaded.model.training
        assert loaded.tokenizer.spec() == TOKENIZER
        assert loaded.class_names == ("a", "b")
        assert (loaded.meta["step"], loaded.folder) == (10, folder)


def test_a_loaded_model_can_be_trained_on(tmp_path):
    write(tmp_path / "run")
    model = seqmodels.load(tmp_path / "run", "cpu").model
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(mixer.A_log._no_weight_decay for mixer in model.backbone.mixers)


def test_best_and_last(tmp_path):
    _, best = write(tmp_path / "run", step=10, seed=1)
    _, last = write(tmp_path / "run", step=20, seed=2)
    point(best.parent, "best", best)
    assert load(tmp_path / "run", "cpu").folder == best
    assert load(tmp_path / "run", "cpu", which="last").folder == last


def test_a_truncated_newest_is_passed_over(tmp_path, caplog):
    _, older = write(tmp_path / "run", step=10)
    _, newest = write(tmp_path / "run", step=20)
    weights = newest / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-7])
    assert load(tmp_path / "run", "cpu", which="last").folder == older
    assert "truncated" in caplog.text
    with pytest.raises(ValueError, match="truncated"):
        load(newest, "cpu")


def test_weights_of_another_model_are_named(tmp_path):
    write(tmp_path / "run", meta_backbone={**BACKBONE, "n_layers": 3, "d_model": 16})
    with pytest.raises(ValueError, match=r"backbone\.layers\.2\.norm\.weight: only in the model") as caught:
        load(tmp_path / "run", "cpu")
    assert "backbone.embedding.weight: 8x8 in the checkpoint, 8x16 in the model" in str(caught.value)


def test_foreign_code_is_not_run(tmp_path):
    write(tmp_path / "run", tokenizer={"_target_": "os.system", "command": "false"})
    with pytest.raises(ValueError, match=r"'os.system' is not allowed"):
        load(tmp_path / "run", "cpu")


def test_the_wrong_kind_of_model_is_said_in_words(tmp_path):
    write(tmp_path / "run")
    with pytest.raises(ValueError, match=r"trained to predict the next symbol; this needs one .* classify whole"):
        load(tmp_path / "run", "cpu", objective="classify")


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match="no run folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="no complete checkpoint"):
        load(tmp_path / "run")


def test_edited_description_is_noticed(tmp_path):
    _, folder = write(tmp_path / "run")
    text = json.loads((folder / META).read_text())
    (folder / META).write_text(json.dumps({**text, "step": 11}))
    with pytest.raises(ValueError, match=r"model\.json"):
        load(folder, "cpu")


def test_a_device_that_is_not_there_is_named(tmp_path):
    write(tmp_path / "run")
    with pytest.raises(ValueError, match="device='tpu' must be cpu or cuda"):
        load(tmp_path / "run", "tpu")
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ValueError, match=f"device='{absent}': torch finds"):
        load(tmp_path / "run", absent)
