"""The study of inference at real size: its data, every part of it in tiny sizes, what happens when a part fails."""

from __future__ import annotations

import csv
import gzip
import re
from pathlib import Path

import numpy as np
import pytest

RUN_ALL = Path(__file__).resolve().parents[2] / "experiments" / "gpu" / "run_all.sh"


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "dna_inference.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQMODELS_CACHE", str(tmp_path / "cache"))


def test_every_base_tells_nothing_of_the_observed_one(experiment, tmp_path):
    data = experiment("dna.inference.data")
    observed, every_base = data.collect(data.EXAMPLE_VCF, tmp_path)
    real = [line.split("\t") for line in data.lines_of(observed) if not line.startswith("#")]
    made = [line.split("\t") for line in data.lines_of(every_base) if not line.startswith("#")]
    assert sorted(cells[1] for cells in made) == sorted(cells[1] for cells in real if len(cells[3] + cells[4]) == 2)
    assert [cells[1] for cells in made] != sorted((cells[1] for cells in made), key=int), "in random order"
    for cells in made:
        assert cells[4] == ",".join(base for base in "ACGT" if base != cells[3])
    again = data.collect(data.EXAMPLE_VCF, tmp_path / "again")
    assert [path.read_bytes() for path in again] == [observed.read_bytes(), every_base.read_bytes()]
    assert data.head_of(observed, tmp_path / "head.vcf", 5) == 5
    assert (tmp_path / "head.vcf").read_text().count("\nchr16\t") == 5


def test_all_parts_run_and_their_numbers_are_sound(experiment, tmp_path):
    script = experiment("dna.inference.run")
    assert script.main(["--smoke", "--out", str(tmp_path), "--commit", "abc"]) == 0
    rows = rows_of(tmp_path)
    assert [row["part"] for row in rows if row["note"].startswith("failed")] == []
    assert list(dict.fromkeys(row["part"] for row in rows)) == list(script.PARTS)
    of = {part: [row for row in rows if row["part"] == part] for part in script.PARTS}
    assert of["score"][1]["variants"] == "286"
    assert float(of["precision"][0]["value"]) == 0.0
    assert 0 < float(of["precision"][1]["value"]) < 0.5, "bf16 changes scores, a little"
    assert of["kill"][0]["value"] == "1"
    assert [row["bases"] for row in of["length"]] == ["3000", "9000"]
    assert all(float(row["value"]) < 1e-4 for row in of["one_pass"])
    assert all(float(row["value"]) <= 3 for row in of["mutagenesis"] if row["value"])
    assert all(row["commit"] == "abc" and row["gpu"] for row in rows)
    for name in ("observed", "every_base", "every_base_128"):
        table = list(csv.DictReader(gzip.decompress((tmp_path / f"{name}.tsv.gz").read_bytes()).decode().splitlines(),
                                    delimiter="\t"))  # fmt: skip
        assert {row["status"] for row in table} == {"ok"}
    assert (tmp_path / "mutagenesis_logo.png").read_bytes()[:4] == b"\x89PNG"


def test_mutated_windows_read_as_a_whole_give_the_scores_of_the_library(experiment, tmp_path):
    """The baseline of the speed-up is no straw man that computes something else."""
    from domains.dna.mutagenesis import Mutagenesis
    from seqmodels.inference import load

    script = experiment("dna.inference.run")
    loaded = load(script.fresh_run(tmp_path / "run"), "cpu")
    ids = loaded.tokenizer.encode("ACGTTGCAACGGTTNACCTGACGTACGATTAGCCATGA")
    np.testing.assert_allclose(
        script.whole_windows(loaded, ids, 9, 20), Mutagenesis().scores(loaded.model, ids, 9, 20), atol=2e-5
    )


def test_n_does_not_count_in_the_bits_of_a_bin(experiment, tmp_path):
    import torch
    from safetensors.torch import save_file

    fasta = tmp_path / "x.fa"
    fasta.write_text(">x\nACGTNNNNACGTA\n")
    nats = torch.tensor([-1.0] * 4 + [-50.0] * 4 + [-2.0] * 5)
    for number, (start, end) in enumerate(((0, 7), (7, 13))):
        part = {"log_likelihood": nats[start:end].clone()}
        save_file(part, tmp_path / f"part-{number:06d}.safetensors", metadata={"start": str(start)})
    found = experiment("dna.inference.run").per_bin(tmp_path, fasta, 8)
    np.testing.assert_allclose(found, [[0, 4, 1 / np.log(2)], [8, 5, 2 / np.log(2)]])


def test_a_part_that_fails_is_a_row_and_the_next_begins(experiment, tmp_path, monkeypatch, capsys):
    script = experiment("dna.inference.run")

    def broken(bench):
        yield {"setting": "so far"}
        raise RuntimeError("no memory")

    monkeypatch.setitem(script.PARTS, "score", broken)
    monkeypatch.setitem(script.PARTS, "kill", lambda bench: iter([{"setting": "after"}]))
    assert script.main(["--smoke", "--out", str(tmp_path), "--parts", "score,kill"]) == 1
    found = [(row["part"], row["setting"], row["note"]) for row in rows_of(tmp_path)]
    assert found == [("score", "so far", ""), ("score", "", "failed: RuntimeError: no memory"), ("kill", "after", "")]
    assert script.main(["--smoke", "--out", str(tmp_path / "late"), "--seconds", "0"]) == 0
    assert capsys.readouterr().out.count("left out for time") == len(script.PARTS)


def test_it_is_a_step_of_the_gpu_run():
    assert re.search(r"dna_inference\(\) \{.*\n.*\n.*experiments/dna/inference/run\.py", RUN_ALL.read_text())
