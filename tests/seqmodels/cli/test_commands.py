"""The commands from end to end, as a user types them: file in, file out, and what is printed on the way."""

from __future__ import annotations

import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from seqmodels.training.checkpoint import META, read_training_state, read_weights, write_checkpoint


def rows(run_dir: Path) -> list[dict]:
    with (run_dir / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in csv.DictReader(file)]


def test_from_a_fasta_to_a_model_to_a_fasta(trained, trained_once, run, tmp_path):
    """Train, resume, evaluate, generate, score: one model, the commands of the README."""
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["domain"]["dataset"]["fasta"] == str(trained_once / "my.fa"), "absolute: usable from any folder"
    assert config["seed"] == 0
    assert [row["step"] for row in rows(trained) if row["split"] == "valid"] == ["2", "4"]

    code, out, err = run("train", f"resume={trained}", "trainer.max_steps=6")
    assert (code, err) == (0, "")
    assert "resuming    from step 4" in out
    assert "tokens/s" in out
    assert [row["step"] for row in rows(trained) if row["split"] == "valid"] == ["2", "4", "6"]

    code, out, err = run("train", f"resume={trained}")
    assert code == 1
    assert "has finished: step 6 of 6" in err, "the new number of steps was kept"

    code, out, err = run("evaluate", f"run={trained}", "split=test", "data.batch_size=3")
    assert (code, err) == (0, "")
    report = json.loads((trained / "results" / "evaluate-test.json").read_text())
    assert f"{report['metrics']['bits_per_base']:.5f}" in out
    assert 1.5 < report["metrics"]["bits_per_base"] < 4
    assert report["sequences"] == 8

    code, out, err = run("generate", f"run={trained}", "num_samples=2", "length=70", "prompt=ACGT", "output=new.fa")
    assert code == 0
    assert "written     new.fa" in out
    sequences = Path("new.fa").read_text().split(">")[1:]
    assert [len("".join(text.split("\n")[1:])) for text in sequences] == [70, 70]

    ref = base(tmp_path / "my.fa", 500)
    alts = ",".join(sorted(set("ACGT") - {ref}))
    header = "##fileformat=VCFv4.2\n##contig=<ID=chr1>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    Path("my.vcf").write_text(f"{header}chr1\t500\t.\t{ref}\t{alts}\t.\t.\t.\n")
    words = ["vcf=my.vcf", "fasta=my.fa", "output=scored.vcf", "scorer.window_bases=64"]
    code, out, err = run("score", f"run={trained}", *words)
    assert (code, err) == (0, "")
    assert "ok 3" in out
    assert "SM_LLR=" in Path("scored.vcf").read_text()


def base(fasta: Path, position: int) -> str:
    """The base at a 1-based position of the first record."""
    return "".join(fasta.read_text().split(">")[1].split("\n")[1:])[position - 1]


def test_train_prints_where_what_and_how_to_go_on(trained, run, tiny):
    code, out, err = run("train", *tiny, "domain.dataset.fasta=my.fa", "name=second", "seed=1")
    assert (code, err) == (0, "")
    for text in (
        "run folder  runs/second",
        "bases 6,000",
        "parameters",
        "device      CPU",
        "step 4/4",
        "seqmodels evaluate run=runs/second",
        "seqmodels generate run=runs/second",
        "seqmodels train resume=runs/second trainer.max_steps=8",
    ):
        assert text in out, text
    assert rows(Path("runs/second")) != rows(trained)


def test_the_same_command_gives_the_same_numbers(trained, run, tiny):
    code, _, _ = run("train", *tiny, "domain.dataset.fasta=my.fa", "name=again", "data.num_workers=0")
    assert code == 0
    assert rows(Path("runs/again")) == rows(trained)


def test_fine_tuning_takes_the_backbone_of_the_checkpoint(trained, run, tiny):
    """The sizes come from the checkpoint; nobody has to repeat them."""
    words = [word for word in tiny if not word.startswith(("backbone", "kernels", "domain.dataset.eval"))]
    species = "domain.dataset.species={one: my.fa, two: my.fa}"
    code, out, err = run(
        "train", "experiment=species_vertebrates", *words, species, f"model_from={trained}", "name=tuned",
        "domain.dataset.on_leak=ignore",
    )  # fmt: skip
    assert code == 0, out + err
    assert "12 tensors of the backbone from" in out
    assert yaml.safe_load(Path("runs/tuned/config.yaml").read_text())["backbone"]["d_model"] == 8
    code, out, err = run("evaluate", "run=runs/tuned", "split=valid", "max_batches=1")
    assert code == 0, out + err
    assert "macro_recall" in out
    assert "true / predicted" in out
    code, out, err = run("generate", "run=runs/tuned")
    assert code == 1
    assert "trained to classify" in err


# Keys that runs of earlier versions lack, in config.yaml and in the specs of model.json.
LATER_KEYS = {
    "": ["condition", "resume", "kernels"],
    "trainer": ["best_by", "patience", "freeze", "truncate", "cuda_graph", "strategy", "num_nodes"],
    "data": ["length_warmup", "eval_batch_size"],
    "backbone": ["checkpoint_blocks"],
    "backbone.layer": ["complex", "selection_norm", "recompute"],
}


def without_later_keys(spec: dict) -> dict:
    for path, names in LATER_KEYS.items():
        place = spec
        for part in filter(None, path.split(".")):
            place = place.get(part, {})
        for name in names:
            place.pop(name, None)
    return spec


def test_a_run_of_an_earlier_version_goes_on(trained, run):
    """As if today's later options had never been written down; they can be given all the same."""
    shutil.copytree(trained, "runs/early")
    config = Path("runs/early/config.yaml")
    config.write_text(yaml.safe_dump(without_later_keys(yaml.safe_load(config.read_text()))))
    for folder in Path("runs/early/checkpoints").glob("step-*"):
        meta = json.loads((folder / META).read_text())
        without_later_keys(meta["model"])
        del meta["validations_since_best"], meta["longest_sample"]
        state = read_training_state(folder)
        del state["rhythm"]["waited"], state["rhythm"]["longest_sample"]
        state["rhythm"]["best_loss"] = state["rhythm"].pop("best_value")
        for key in ("format", "shared_weights"):
            del meta[key]
        write_checkpoint(folder, weights=read_weights(folder), meta=meta, training_state=state)
    assert "patience" not in config.read_text()
    for name in ("first", "early"):
        code, out, err = run("train", f"resume=runs/{name}", "trainer.max_steps=6", "trainer.patience=9")
        assert (code, err) == (0, ""), out + err
    assert rows(Path("runs/early")) == rows(trained)
    assert yaml.safe_load(config.read_text())["trainer"]["patience"] == 9
    code, out, err = run("generate", "run=runs/early", "length=20", "output=new.fa")
    assert (code, err) == (0, ""), out + err


def test_multirun_trains_every_combination(trained, run, tiny):
    words = [word for word in tiny if not word.startswith("trainer.max_steps")]
    code, out, err = run("train", "--multirun", *words, "domain.dataset.fasta=my.fa", "trainer.max_steps=1,2")
    assert (code, err) == (0, "")
    table = [line for line in out.splitlines() if " nats  runs/" in line]
    assert len(table) == 2
    assert len({line.split()[2] for line in table}) == 2


@pytest.mark.slow
def test_two_processes_train_as_one(trained, tiny):
    """DDP on two CPU processes: the same samples, and so the same rows up to rounding. A process of its own."""
    words = [*tiny, "domain.dataset.fasta=my.fa", "name=two", "trainer.devices=2", "data.eval_batch_size=2"]
    # a file, because Lightning starts the second process with the same command line
    Path("command.py").write_text("import sys\nfrom seqmodels.cli import main\nsys.exit(main())\n")
    command = [sys.executable, "command.py", "train", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder  runs/two\n") == 2, "one process speaks: at the start and at the end"
    two, one = rows(Path("runs/two")), rows(trained)
    assert [(row["step"], row["split"]) for row in two] == [(row["step"], row["split"]) for row in one]
    for mine, other in zip(two, one):
        assert float(mine["loss"]) == pytest.approx(float(other["loss"]), rel=1e-5)
        assert float(mine["accuracy"]) == pytest.approx(float(other["accuracy"]), abs=0.01)


def test_doctor(run):
    code, out, err = run("doctor")
    assert (code, err) == (0, "")
    for text in ("CPU:", "torch ", "selective_scan", "taken", "torchaudio", "can be written"):
        assert text in out, text


def test_a_run_can_be_used_from_another_folder(trained, run, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, out, err = run("evaluate", f"run={tmp_path / trained}", "max_batches=1")
    assert code == 0, out + err


def test_bench_prints_and_appends_rows(run):
    words = ["op=rms_norm", "implementation=reference", "mode=fwd", "device=cpu", "seconds=0.01", "output=ops.csv"]
    code, out, err = run("bench", *words)
    assert (code, err) == (0, "")
    with Path("ops.csv").open() as file:
        found = list(csv.DictReader(file))
    assert found
    assert all(row["op"] == "rms_norm" and float(row["ms_p50"]) > 0 for row in found)
    assert found[0]["ms_p50"] in out


def test_several_seeds_give_mean_and_sd(trained, run, tiny):
    """Train with three seeds, then evaluate all of them on the test split: what is printed is what the rows say."""
    words = [*tiny, "domain.dataset.fasta=my.fa", "name=seeded"]
    code, out, err = run("train", "--multirun", *words, "seed=0,1,2")
    assert (code, err) == (0, "")
    losses = [min(float(row["loss"]) for row in rows(Path(f"runs/seeded-{number}")) if row["split"] == "valid")
              for number in range(3)]  # fmt: skip
    assert len(set(losses)) == 3
    mean, sd = sum(losses) / 3, statistics.stdev(losses)
    assert f"of 3 seeds: loss {mean:.4f} ± {sd:.4f}" in out
    (summary,) = json.loads(next(Path("runs/multirun").glob("*/summary.json")).read_text())
    assert summary["validation"]["loss"] == {"mean": pytest.approx(mean), "sd": pytest.approx(sd), "runs": 3}
    assert "seed=" not in summary["overrides"]

    code, out, err = run("evaluate", "runs=runs/seeded-*", "split=test")
    assert (code, err) == (0, "")
    reports = [json.loads(Path(f"runs/seeded-{number}/results/evaluate-test.json").read_text()) for number in range(3)]
    bits = [report["metrics"]["bits_per_base"] for report in reports]
    assert f"bits_per_base        {sum(bits) / 3:.4f} ± {statistics.stdev(bits):.4f}" in out
    summary = json.loads(Path("runs/evaluate-test-3-runs.json").read_text())
    assert summary["metrics"]["bits_per_base"]["mean"] == pytest.approx(sum(bits) / 3)
    code, out, err = run("evaluate", "runs=runs/none-*")
    assert (code, err.splitlines()[0]) == (1, "seqmodels evaluate: runs=runs/none-*: no folder is named 'runs/none-*'")
    assert "not both" in run("evaluate", "runs=runs/seeded-*", "run=runs/first")[2]
