"""Early stopping: at the right step, the same step after a resume; and a frozen backbone that stays as it is."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from seqmodels.training import CheckpointError, ModelSpec, TrainerSettings, train
from seqmodels.training.checkpoint import find_checkpoint, read_meta, read_weights
from seqmodels.training.module import SequenceTask
from seqmodels.training.rhythm import Best
from seqmodels.training.tiny import TinyCorpus, tiny_model, tiny_recipe

# A rate so large that validation becomes worse now and then.
WILD = {"max_steps": 40, "val_every_steps": 2, "checkpoint_every_steps": 5, "lr": 0.1}


def valid_rows(run_dir) -> list[tuple[int, float]]:
    import csv

    with (run_dir / "metrics.csv").open() as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file) if row["split"] == "valid"]


def step_to_stop_at(rows: list[tuple[int, float]], patience: int) -> int:
    """The definition, on the rows of a run that never stops early."""
    for number in range(patience, len(rows)):
        best_before = min(loss for _, loss in rows[: number - patience + 1])
        if all(loss >= best_before for _, loss in rows[number - patience + 1 : number + 1]):
            return rows[number][0]
    raise AssertionError("the run never gives up: a test of nothing")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    train(TinyCorpus(), tiny_model(), tiny_recipe(**WILD), run_dir=run_dir)
    return run_dir


@pytest.mark.parametrize("patience", [1, 3])
def test_it_stops_at_the_right_step_with_the_best_checkpoint(whole, tmp_path, patience):
    step = step_to_stop_at(valid_rows(whole), patience)
    recipe = tiny_recipe(**WILD, patience=patience)
    result = train(TinyCorpus(), tiny_model(), recipe, run_dir=tmp_path / "run")
    assert (result.step, result.stopped_early, result.stopped_by) == (step, True, None)
    assert result.step < WILD["max_steps"]
    rows = valid_rows(tmp_path / "run")
    assert rows == [row for row in valid_rows(whole) if row[0] <= step]
    assert result.best_step == min(rows, key=lambda row: row[1])[0]
    assert read_meta(find_checkpoint(tmp_path / "run", "best"))["step"] == result.best_step
    assert read_meta(find_checkpoint(tmp_path / "run", "last"))["step"] == step
    assert read_meta(find_checkpoint(tmp_path / "run", "last"))["validations_since_best"] == patience


@pytest.mark.parametrize("waited", [1, 2])
def test_a_resumed_run_stops_at_the_same_step(whole, tmp_path, waited):
    """Cut in the middle of waiting: the count goes on, it does not begin again."""
    import lightning as L

    step = step_to_stop_at(valid_rows(whole), 3)
    assert step < WILD["max_steps"]
    last = step - 2 * (3 - waited) + 1  # a step after so many fruitless validations

    class Crash(L.Callback):
        def on_before_backward(self, trainer, pl_module, loss) -> None:
            if trainer.global_step == last:
                raise RuntimeError("crash")

    recipe = tiny_recipe(**{**WILD, "checkpoint_every_steps": 1}, patience=3)
    with pytest.raises(RuntimeError, match="crash"):
        train(TinyCorpus(), tiny_model(), recipe, run_dir=tmp_path / "run", callbacks=[Crash()])
    assert read_meta(find_checkpoint(tmp_path / "run"))["validations_since_best"] == waited
    result = train(TinyCorpus(), tiny_model(), recipe, run_dir=tmp_path / "run", resume=True)
    assert (result.step, result.stopped_early) == (step, True)
    assert valid_rows(tmp_path / "run") == [row for row in valid_rows(whole) if row[0] <= step]

    with pytest.raises(CheckpointError, match=r"finished early: 3 validations.*trainer.patience=null"):
        train(TinyCorpus(), tiny_model(), recipe, run_dir=tmp_path / "run", resume=True)
    patient = tiny_recipe(**WILD, patience=None)
    assert train(TinyCorpus(), tiny_model(), patient, run_dir=tmp_path / "run", resume=True).step == 40
    assert valid_rows(tmp_path / "run") == valid_rows(whole), "as if it had never stopped early"


def test_best_by_accuracy(tmp_path):
    recipe = tiny_recipe(max_steps=12, val_every_steps=2, best_by="accuracy")
    result = train(TinyCorpus(2), tiny_model("classification"), recipe, run_dir=tmp_path / "run")
    import csv

    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = [(float(r["accuracy"]), -int(r["step"])) for r in csv.DictReader(file) if r["split"] == "valid"]
    assert result.best_step == -max(rows)[1], "the first of those with the highest accuracy"


def test_nan_is_never_better():
    best = Best()
    best.see(1, float("nan"))
    best.see(2, 0.5)
    best.see(3, float("nan"))
    best.see(4, 0.5)
    assert dataclasses.astuple(best) == (2, 0.5, 2)


def test_settings_are_checked(tmp_path):
    for wrong, message in [
        ({"patience": 0}, "trainer.patience=0 must be a whole number of validations"),
        ({"patience": 2, "val_every_steps": 0}, "trainer.val_every_steps=0 makes none"),
        ({"best_by": "luck"}, "trainer.best_by='luck' must be one of loss, accuracy, macro_recall"),
        ({"freeze": "head"}, "trainer.freeze='head' must be backbone"),
    ]:
        with pytest.raises(ValueError, match=message):
            TrainerSettings(**wrong)
    with pytest.raises(ValueError, match="macro_recall is a metric of classes, and NextTokenHead has none"):
        train(TinyCorpus(), tiny_model(), tiny_recipe(best_by="macro_recall"), run_dir=tmp_path / "run")


def test_a_head_without_right_answers_is_not_judged_by_them(tmp_path):
    head = {"_target_": "seqmodels.heads.mixture_of_logistics.MixtureOfLogisticsHead", "components": 2}
    sound = ModelSpec(tiny_model().backbone, head)
    with pytest.raises(ValueError, match="best_by=accuracy: MixtureOfLogisticsHead counts no right answers; take loss"):
        train(TinyCorpus(), sound, tiny_recipe(best_by="accuracy"), run_dir=tmp_path / "run")
    result = train(TinyCorpus(), sound, tiny_recipe(max_steps=2, val_every_steps=2), run_dir=tmp_path / "run")
    heads_own = set(result.metrics["valid"]) - {"split", "loss", "bits_per_letter", "epoch"}
    assert heads_own == {"level_error"}, "what the head says that it sums up"


def test_patience_without_anything_to_validate_on_is_refused(tmp_path):
    class NoValidation(TinyCorpus):
        def split(self, name):
            if name == "valid":
                raise ValueError("too few bases for a validation split")
            return super().split(name)

    with pytest.raises(ValueError, match=r"patience=2 counts validations.*none: too few bases for a validation split"):
        train(NoValidation(), tiny_model(), tiny_recipe(patience=2), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_frozen_model_that_is_told_classes_learns_their_table(whole, tmp_path):
    head = {**tiny_model().head, "tied": False}
    told = ModelSpec(tiny_model().backbone, head, condition="class")
    recipe = tiny_recipe(max_steps=4, lr=0.1, freeze="backbone")
    one = tiny_recipe(max_steps=1, lr=1e-12, freeze="backbone")
    run, still = tmp_path / "told", tmp_path / "still"
    for folder, how in ((run, recipe), (still, one)):
        train(TinyCorpus(3), told, how, run_dir=folder, model_from=whole)
    after, first = (read_weights(find_checkpoint(folder, "last")) for folder in (run, still))
    before = read_weights(find_checkpoint(whole, "best"))
    inside = {name: name.replace("backbone.backbone.", "backbone.") for name in after if ".backbone." in name}
    assert len(inside) > 5
    assert all(torch.equal(after[name], before[plain]) for name, plain in inside.items())
    table = "backbone.class_embedding.weight"
    assert (after[table] - first[table]).abs().max() > 0.01, "a table drawn at random would tell nothing"


def test_a_frozen_backbone_does_not_change_by_a_bit(whole, tmp_path):
    recipe = tiny_recipe(max_steps=6, lr=0.1, freeze="backbone")
    classify = tiny_model("classification")
    result = train(TinyCorpus(3), classify, recipe, run_dir=tmp_path / "probe", model_from=whole)
    before, after = read_weights(find_checkpoint(whole, "best")), read_weights(find_checkpoint(result.run_dir))
    backbone = [name for name in after if name.startswith("backbone.")]
    assert len(backbone) > 5
    assert all(torch.equal(before[name], after[name]) for name in backbone)
    train(TinyCorpus(3), classify, tiny_recipe(max_steps=1, lr=0.1), run_dir=tmp_path / "free", model_from=whole)
    moved = read_weights(find_checkpoint(tmp_path / "free"))
    assert not any(torch.equal(before[name], moved[name]) for name in backbone), "else this would test nothing"
    first = read_weights(find_checkpoint(tmp_path / "free"))["head.classifier.weight"]
    assert not torch.equal(after["head.classifier.weight"], first)


def test_a_frozen_backbone_is_in_no_group_of_the_optimizer():
    from seqmodels.instantiate import build
    from seqmodels.model import model_spec
    from seqmodels.training.fit import _freeze_backbone

    def network(spec: ModelSpec):
        return build(model_spec(spec.backbone, spec.head, vocab_size=6, num_classes=3))

    model = network(tiny_model("classification"))
    _freeze_backbone(model)
    groups = SequenceTask(model, tiny_recipe(), unit="sequence").recipe.optimizer
    from seqmodels.training.param_groups import param_groups

    held = {id(p) for group in groups(param_groups(model)).param_groups for p in group["params"]}
    assert held == {id(p) for p in model.head.parameters()}
    with pytest.raises(ValueError, match=r"leaves nothing to train: NextTokenHead shares.*head.tied=false"):
        _freeze_backbone(network(tiny_model()))
