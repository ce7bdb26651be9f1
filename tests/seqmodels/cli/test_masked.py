"""Masked models from the command line: one strand or two, and what they learnt under a head for labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from seqmodels.training.checkpoint import find_checkpoint, read_weights

BACKBONES = {
    "ph": ["backbone=caduceus_ph_470k", "head=masked_token"],
    "ps": ["backbone=caduceus_ps_470k", "head=rc_masked_token"],
}
SMALL = [
    "backbone.d_model=8",
    "backbone.n_layers=1",
    "backbone.layer.layer.d_state=4",
    "backbone.layer.layer.implementation=reference",  # nothing is compiled
]


def small(tiny: list[str]) -> list[str]:
    return [*SMALL, *(word for word in tiny if not word.startswith("backbone"))]


@pytest.mark.parametrize("kind", BACKBONES)
def test_pretrain_evaluate_and_probe(trained, run, tiny, kind):
    """Train with both strands as augmentation, evaluate by class, then labels on the frozen backbone by one word."""
    words = ["experiment=masked_dna", *BACKBONES[kind], *small(tiny), "domain.dataset.fasta=my.fa", "name=masked"]
    code, out, err = run("train", *words)
    assert (code, err) == (0, ""), err
    assert "bits per masked base" in out
    assert "seqmodels generate" not in out, "it cannot"
    code, out, err = run("evaluate", "run=runs/masked", "split=valid", "checkpoint=last", "data.batch_size=3")
    assert (code, err) == (0, ""), err
    report = json.loads(Path("runs/masked/results/evaluate-valid.json").read_text())
    last = [line for line in Path("runs/masked/metrics.csv").read_text().splitlines() if ",valid," in line][-1]
    assert any(float(cell) == pytest.approx(report["metrics"]["loss"], rel=1e-5) for cell in last.split(",") if
               cell.replace(".", "").isdigit()), "validation masks are those of evaluate"  # fmt: skip
    assert set(report["by_class"]) == {"all", "unique", "behind_mask"}
    assert report["by_class"]["all"]["targets"] < 0.3 * 8 * 64
    assert [row["order"] for row in report["markov"]["orders"]] == list(range(9))
    assert "order 0" in out

    head = "classification" if kind == "ph" else "rc_classification"
    not_of_this = ("backbone", "domain.dataset.windows", "domain.dataset.eval")
    other = [word for word in tiny if not word.startswith(not_of_this)]
    probe = ["experiment=species_vertebrates", f"head={head}", *other, "trainer.freeze=backbone", "name=probe"]
    code, out, err = run("train", *probe, "model_from=runs/masked", "domain.dataset.eval_windows_per_species=2")
    assert (code, err) == (0, ""), err
    assert "frozen: " in out
    before = read_weights(find_checkpoint("runs/masked", "best"))
    after = read_weights(find_checkpoint("runs/probe", "last"))
    shared = [name for name in after if name.startswith("backbone.")]
    assert shared
    assert all(torch.equal(before[name], after[name]) for name in shared)


def test_wrong_heads_say_which_is_right(run, tiny):
    words = [word for word in tiny if not word.startswith("backbone")]
    code, _, err = run("train", "backbone=caduceus_ps_470k", "head=masked_token", *words)
    assert code == 1
    assert "head=rc_masked_token" in err
    code, _, err = run("train", "backbone=caduceus_ph_470k", *words)
    assert code == 1
    assert "head=masked_token" in err
    code, _, err = run("train", "experiment=quickstart_audio", "head=masked_token", "trainer.max_steps=1")
    assert code == 1
    assert "MuLawTokenizer has no mask_id" in err


def test_rates_are_set_in_one_place(trained, run, tiny):
    words = ["experiment=masked_dna", *small(tiny), "domain.dataset.fasta=my.fa", "head.masking.rate=1.5"]
    code, _, err = run("train", *words)
    assert code == 1
    assert "head.masking.rate=1.5 must lie above 0" in err


def test_fine_tuning_of_a_table_with_several_seeds(trained, run, tiny):
    """From a run or from scratch by one word, early stop on accuracy, another validation set for each seed."""
    rows = [f"{'ACGT' * 8},even\n{'AACC' * 8},odd\n" for _ in range(20)]
    Path("table").mkdir()
    halves = {"train": rows[:15], "test": rows[15:]}
    for split, part in halves.items():
        Path(f"table/{split}.csv").write_text("sequence,label\n" + "".join(part))
    words = ["experiment=fine_tune_dna", "domain.dataset.path=table", "name=tuned", "trainer.val_every_steps=2"]
    words += ["trainer.accelerator=cpu", "trainer.max_steps=40", "trainer.patience=2", "optimizer.lr=0.01"]
    words += ["domain.dataset.on_leak=ignore"]
    code, out, err = run("train", "--multirun", *words, f"model_from={trained}", "seed=1,2")
    assert (code, err) == (0, ""), err
    assert "of 2 seeds: " in out
    configs = [yaml.safe_load(Path(f"runs/tuned-{number}/config.yaml").read_text()) for number in range(2)]
    assert [config["domain"]["dataset"]["seed"] for config in configs] == [1, 2]
    code, out, err = run("evaluate", "runs=runs/tuned-0,runs/tuned-1")
    assert (code, err) == (0, ""), err
    assert "accuracy             1.0000 ± 0.0000" in out
    scratch = [word for word in words if not word.startswith("name=")]
    small_words = [word for word in tiny if word.startswith(("backbone", "kernels"))]
    code, out, err = run("train", *scratch, *small_words, "name=scratch")
    assert (code, err) == (0, ""), err
    assert "stopped     early after step" in out
    assert "trainer.patience=null" in out
