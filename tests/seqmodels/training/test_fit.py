"""`train` as a function: a run folder, fine-tuning, refusals, and a loss that becomes NaN."""

from __future__ import annotations

import csv
import dataclasses
import math
import multiprocessing
import warnings

import numpy as np
import pytest
import torch

from seqmodels.inference import load
from seqmodels.training import CheckpointError, ModelSpec, TrainerSettings, train
from seqmodels.training.checkpoint import find_checkpoint, read_meta
from seqmodels.training.module import FiniteWatch, NonFiniteLossError
from seqmodels.training.schedule import constant
from seqmodels.training.tiny import TinyCorpus, tiny_model, tiny_recipe
from seqmodels.training.transfer import load_backbone


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "pretrained"
    return train(TinyCorpus(), tiny_model(), tiny_recipe(), run_dir=run_dir)


def test_a_run_folder_holds_everything(pretrained):
    run_dir = pretrained.run_dir
    assert {path.name for path in run_dir.iterdir()} == {"config.yaml", "metrics.csv", "checkpoints", "tensorboard"}
    with (run_dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["split"] == "train"] == [2, 4, 6, 8, 10, 12]
    assert [int(row["step"]) for row in rows if row["split"] == "valid"] == [4, 8, 12]
    for row in rows:
        assert float(row["bits_per_letter"]) == pytest.approx(float(row["loss"]) / math.log(2))
        assert 0 <= float(row["accuracy"]) <= 1
    assert float(rows[0]["learning_rate"]) == 0.01  # after a warm-up of a tenth of 12 steps
    assert pretrained.step == 12
    assert pretrained.metrics["valid"]["loss"] == float(rows[-1]["loss"])
    meta = read_meta(find_checkpoint(run_dir, "last"))
    assert meta["step"] == 12
    assert meta["tokenizer"] == {"_target_": "seqmodels.training.tiny.TinyTokenizer"}
    assert meta["data"] == {"sequences": 50}


def test_the_saved_model_is_the_trained_one(pretrained):
    from seqmodels.data.collate import collate_for
    from seqmodels.data.loader import DataSettings, evaluation_batches
    from seqmodels.training.evaluate import evaluate

    loaded = load(pretrained.run_dir, "cpu", which="last")
    corpus = TinyCorpus()
    for batch_size in (1, 3, 10):
        batches = evaluation_batches(
            corpus.split("valid"), collate_for("next_token", corpus.tokenizer), DataSettings(batch_size)
        )
        metrics = evaluate(loaded.model, batches).metrics("letter")
        assert metrics["loss"] == pytest.approx(pretrained.metrics["valid"]["loss"], rel=1e-6)
        assert metrics["accuracy"] == pytest.approx(pretrained.metrics["valid"]["accuracy"])


def test_it_learns(tmp_path):
    result = train(TinyCorpus(), tiny_model(), tiny_recipe(max_steps=40), run_dir=tmp_path / "run", loggers=[])
    # Each letter is the one before it or the next one: 1 bit a letter is the best there is, log2(6) the start.
    assert 1.0 <= result.metrics["valid"]["bits_per_letter"] < 1.4


def test_fine_tuning_takes_the_backbone_and_nothing_else(pretrained, tmp_path, caplog):
    caplog.set_level("INFO", "seqmodels")
    model = tiny_model("classification")
    recipe = tiny_recipe(max_steps=4, lr=1e-9)  # all but standing still: the backbone stays recognisable
    result = train(TinyCorpus(3), model, recipe, run_dir=tmp_path / "tuned", model_from=pretrained.run_dir)
    assert "12 tensors of the backbone from" in caplog.text
    assert "new: head.classifier.weight, head.classifier.bias, left behind: lm_head.weight" in caplog.text
    tuned, before = (load(run, "cpu").model.backbone.state_dict() for run in (result.run_dir, pretrained.run_dir))
    assert all(torch.allclose(tuned[name], before[name], atol=1e-6) for name in before)
    assert set(result.metrics["valid"]) >= {"loss", "accuracy", "macro_recall", "bits_per_sequence"}
    assert load(result.run_dir, "cpu").class_names == ("steps_of_1", "steps_of_2", "steps_of_3")


def test_another_architecture_is_refused_with_names(pretrained, tmp_path):
    with pytest.raises(CheckpointError) as refusal:
        train(
            TinyCorpus(),
            tiny_model(d_model=8, n_layers=2),
            tiny_recipe(),
            run_dir=tmp_path / "x",
            model_from=pretrained.run_dir,
        )
    message = str(refusal.value)
    assert "backbone.embedding.weight: 8x16 in the checkpoint, 8x8 in the model" in message
    assert "backbone.layers.1.norm.weight: only in the model" in message
    assert not (tmp_path / "x").exists()


def test_a_refused_transfer_changes_nothing(pretrained):
    from seqmodels.instantiate import build
    from seqmodels.model import model_spec

    spec = tiny_model(n_layers=2)
    model = build(model_spec(spec.backbone, spec.head, vocab_size=6))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_backbone(model, pretrained.run_dir)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_resume_refuses_a_finished_run_and_another_model(pretrained, tmp_path):
    arguments = {"run_dir": pretrained.run_dir, "resume": True}
    with pytest.raises(CheckpointError, match=r"has finished: step 12 of 12.*trainer.max_steps=24"):
        train(TinyCorpus(), tiny_model(), tiny_recipe(), **arguments)
    with pytest.raises(CheckpointError, match=r"backbone.d_model: 16 in the checkpoint, 8 now"):
        train(TinyCorpus(), tiny_model(d_model=8), tiny_recipe(max_steps=20), **arguments)
    with pytest.raises(ValueError, match="cannot continue with equal batches: batch_size was 4 and is 5"):
        train(TinyCorpus(), tiny_model(), tiny_recipe(max_steps=20, batch_size=5), **arguments)


def test_an_existing_folder_is_not_touched(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("mine")
    with pytest.raises(FileExistsError, match=r"run exists.\nTo continue that run: seqmodels train resume="):
        train(TinyCorpus(), tiny_model(), tiny_recipe(), run_dir=tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["precious"]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "runs").write_text("a file, not a folder")
    with pytest.raises(OSError, match=r"runs/x cannot be written: Not a directory. .*paths.runs="):
        train(TinyCorpus(), tiny_model(), tiny_recipe(), run_dir=tmp_path / "runs" / "x")


def test_a_corpus_without_validation_is_trained_on_all_the_same(tmp_path, caplog):
    class NoValidation(TinyCorpus):
        def split(self, name):
            if name == "valid":
                raise ValueError("no window fits into the validation regions")
            return super().split(name)

    result = train(NoValidation(), tiny_model(), tiny_recipe(max_steps=3), run_dir=tmp_path / "run")
    assert "training without validation: no window fits" in caplog.text
    assert "valid" not in result.metrics
    assert find_checkpoint(tmp_path / "run", "best").name == "step-00000003"


def test_skipped_records_are_reported(tmp_path):
    recipe = tiny_recipe(max_steps=8)
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, on_bad_record="skip"))
    result = train(TinyCorpus(bad=[3, 4]), tiny_model(), recipe, run_dir=tmp_path / "run")
    # 8 batches of 4 are one epoch of 30 and two more: each bad one is met once, and 4 once more in place of 3
    assert set(result.skipped) == {f"tiny.txt:{n}: cannot be read" for n in (3, 4)}
    assert len(result.skipped) >= 3


def test_reading_processes_end_with_the_run(tmp_path):
    before = set(multiprocessing.active_children())
    train(TinyCorpus(), tiny_model(), tiny_recipe(max_steps=2, num_workers=1), run_dir=tmp_path / "run")
    assert set(multiprocessing.active_children()) <= before  # else each takes five seconds of the command's end


def test_a_bad_record_stops_the_run(tmp_path):
    with pytest.raises(ValueError, match=r"tiny.txt:3: cannot be read"):
        train(TinyCorpus(bad=[3]), tiny_model(), tiny_recipe(), run_dir=tmp_path / "run")


class NaNCorpus(TinyCorpus):
    """From sample 20 on, a weight that makes the loss infinite."""

    def split(self, name):
        inner = super().split(name)

        class Split:
            def __len__(self):
                return len(inner)

            def __getitem__(self, key):
                record = inner[key]
                weight = np.inf if name == "train" and record.id == "tiny.txt:20" else 1.0
                return dataclasses.replace(record, weights=np.full(len(record.ids), weight))

        return Split()


def test_a_loss_that_is_not_finite_stops_with_step_records_and_hint(tmp_path):
    recipe = tiny_recipe(checkpoint_every_steps=1)
    with pytest.raises(NonFiniteLossError) as stop:
        train(NaNCorpus(), tiny_model(), recipe, run_dir=tmp_path / "run")
    message = str(stop.value)
    assert "the loss of step" in message
    assert "tiny.txt:20" in message
    assert "optimizer.lr" in message
    step = int(message.split("step ")[1].split()[0])
    last = find_checkpoint(tmp_path / "run")
    assert read_meta(last)["step"] == step - 1, "nothing was saved after the bad step"
    assert all(torch.isfinite(tensor).all() for tensor in load(last, "cpu").model.state_dict().values())


def test_the_watch_waits_for_values_that_have_not_arrived():
    class Later:
        def __init__(self):
            self.waited = False

        def query(self):
            return False

        def synchronize(self):
            self.waited = True

    watch, event = FiniteWatch(hint="do this"), Later()
    watch._pending.append((7, "loss", torch.tensor(math.nan), event, ("a", "b")))
    watch._check(wait=False)
    assert not event.waited
    with pytest.raises(NonFiniteLossError, match=r"the loss of step 7 is nan; the batch held a, b.\ndo this"):
        watch.settle()


def test_nothing_but_our_own_words(tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(TinyCorpus(), tiny_model(), tiny_recipe(max_steps=2), run_dir=tmp_path / "run")
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""


def test_a_model_that_needs_classes_and_gets_none(tmp_path):
    with pytest.raises(ValueError, match="needs labeled classes"):
        train(TinyCorpus(), tiny_model("classification"), tiny_recipe(), run_dir=tmp_path / "run")
    spec = tiny_model()
    wrong = ModelSpec({**spec.backbone, "d_modle": 3}, spec.head)
    with pytest.raises(ValueError, match=r"no argument 'd_modle'; did you mean 'd_model'"):
        train(TinyCorpus(), wrong, tiny_recipe(), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_best_step_survives_a_resume_after_which_all_is_worse(tmp_path):
    from torch.optim.lr_scheduler import LambdaLR

    def good_then_ruinous(optimizer, total_steps):
        return LambdaLR(optimizer, lambda step: 1.0 if step < 8 else 300.0)

    def recipe(max_steps):
        return dataclasses.replace(tiny_recipe(max_steps=max_steps), scheduler=good_then_ruinous)

    run_dir = tmp_path / "run"
    first = train(TinyCorpus(), tiny_model(), recipe(8), run_dir=run_dir)
    result = train(TinyCorpus(), tiny_model(), recipe(16), run_dir=run_dir, resume=True)
    assert result.metrics["valid"]["loss"] > first.metrics["valid"]["loss"]
    assert result.best_step == first.best_step == 8
    assert find_checkpoint(run_dir, "best").name == "step-00000008"
    assert find_checkpoint(run_dir, "last").name == "step-00000016"


@pytest.mark.gpu
def test_on_a_gpu_in_bf16_and_resumed(tmp_path):
    """Pinned memory, workers, the delayed look at losses; resuming in the middle equals not stopping."""
    model = tiny_model(d_model=32, n_layers=2, implementation="auto")

    def recipe(max_steps, **more):
        recipe = tiny_recipe(max_steps=max_steps, accelerator="cuda", num_workers=2, **more)
        return dataclasses.replace(recipe, scheduler=constant)

    whole = train(TinyCorpus(ragged=True), model, recipe(12), run_dir=tmp_path / "whole")
    train(TinyCorpus(ragged=True), model, recipe(6), run_dir=tmp_path / "resumed")
    resumed = train(TinyCorpus(ragged=True), model, recipe(12), run_dir=tmp_path / "resumed", resume=True)
    assert resumed.metrics["valid"]["loss"] == pytest.approx(whole.metrics["valid"]["loss"], rel=1e-6)
    assert whole.metrics["valid"]["loss"] < whole.metrics["train"]["loss"] + 0.5


@pytest.mark.gpu
def test_a_loss_that_is_not_finite_is_found_on_a_gpu_before_anything_is_saved(tmp_path):
    recipe = tiny_recipe(checkpoint_every_steps=1, accelerator="cuda")
    with pytest.raises(NonFiniteLossError, match=r"tiny.txt:20"):
        train(NaNCorpus(), tiny_model(implementation="auto"), recipe, run_dir=tmp_path / "run")
    last = find_checkpoint(tmp_path / "run")
    assert all(torch.isfinite(tensor).all() for tensor in load(last, "cpu").model.state_dict().values())


@pytest.mark.gpu
def test_steps_as_cuda_graphs_train_as_launched_ones_do(tmp_path):
    """The same losses step by step; validation in between and another batch shape do not disturb it."""
    model = tiny_model(d_model=64, n_layers=2, implementation="auto")

    def losses(name: str, **more):
        recipe = tiny_recipe(max_steps=12, accelerator="cuda", **more)
        result = train(TinyCorpus(), model, recipe, run_dir=tmp_path / name)
        with (result.run_dir / "metrics.csv").open() as file:
            return [float(row["loss"]) for row in csv.DictReader(file) if row["split"] == "train"]

    launched, graphed = losses("launched"), losses("graphed", cuda_graph=True)
    assert graphed == pytest.approx(launched, rel=2e-3)
    assert graphed[-1] < graphed[0]


@pytest.mark.parametrize(
    "clash", [{"accumulate": 2}, {"compile": True}, {"devices": 2}, {"strategy": "ddp"}, {"accelerator": "cpu"}]
)
def test_cuda_graphs_refuse_what_they_cannot_do(clash):
    with pytest.raises(ValueError, match=f"does not go with {next(iter(clash))}="):
        TrainerSettings(cuda_graph=True, **clash)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_graphs_without_a_gpu_are_refused(tmp_path):
    recipe = tiny_recipe(max_steps=1, cuda_graph=True, accelerator="auto")
    with pytest.raises(ValueError, match="cuda_graph=true needs a GPU"):
        train(TinyCorpus(), tiny_model(), recipe, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
