"""`make demo` with a handful of training steps: every step runs, and what it leaves is whole and true to itself."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from seqmodels.backbones.class_conditioned import ClassConditioned
from seqmodels.inference import load
from seqmodels.reporting import external_references

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "experiments" / "demo"


def _demo(output: Path) -> subprocess.CompletedProcess[str]:
    # One thread each: the tests' workers share two cores, and waiting threads would take them from each other.
    single = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    command = [sys.executable, str(DEMO / "run.py"), "--quick", "--output", str(output)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env={**os.environ, **single})


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of a quick demo that found leftovers of an earlier one, and how it went."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "dna").mkdir()
    (folder / "dna" / "leftover").write_text("of a demo that was stopped")
    (folder / "mine.txt").write_text("not the demo's")
    return folder, _demo(folder)


@pytest.mark.slow
def test_it_runs_through_in_silence(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, process = demo
    assert process.returncode == 0, process.stdout + process.stderr
    assert "Traceback" not in process.stdout + process.stderr
    assert "arning" not in process.stderr, process.stderr
    for number in range(1, 5):
        assert f"{number}/4" in process.stdout
    assert process.stdout.count("$ seqmodels train") == 3


@pytest.mark.slow
def test_the_report_is_one_file_with_every_result(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    page = (demo[0] / "report.html").read_text()
    assert external_references(page) == []
    assert "<script" not in page
    assert page.count("<article") == 4
    assert page.count('class="confusion"') == 2
    assert page.count("data:audio/wav;base64,") == 2
    assert page.count("data:image/png;base64,") == 2
    for heading in ("DNA language model", "Species of DNA windows", "Spoken digits", "Variant scores", "How to go on"):
        assert heading in page
    assert "the numbers mean nothing" in page


@pytest.mark.slow
def test_species_are_named_by_likelihood(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """By the DNA model, which was told the species and has learnt on: what the report shows is what it answered."""
    folder, process = demo
    assert re.search(r"\$ seqmodels evaluate run=\S*species by_likelihood=true", process.stdout)
    answer = json.loads((folder / "species" / "results" / "evaluate-test.json").read_text())
    assert answer["by_likelihood"]
    assert np.sum(answer["confusion"]) == answer["sequences"] > 0
    assert f"<strong>{answer['metrics']['accuracy']:.1%}</strong> of them" in (folder / "report.html").read_text()
    told = load(folder / "species").model.backbone
    assert isinstance(told, ClassConditioned)
    assert told.num_classes == 8


@pytest.mark.slow
def test_the_sound_has_the_asked_length_and_rate(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    samples, rate = soundfile.read(demo[0] / "generated.wav")
    assert (samples.shape, rate) == ((800,), 8000)


@pytest.mark.slow
def test_every_variant_is_scored_in_place(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    def records(path: Path) -> list[list[str]]:
        return [line.split("\t") for line in path.read_text().splitlines() if not line.startswith("#")]

    before, after = records(DEMO / "human_rhesus.vcf"), records(demo[0] / "human_rhesus.scored.vcf")
    assert [cells[:7] for cells in before] == [cells[:7] for cells in after]
    scores = [float(re.findall(r"SM_LLR=([^;]*)", cells[7])[0]) for cells in after]
    assert np.isfinite(scores).all()
    with open(demo[0] / "human_rhesus.scored.tsv", newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    np.testing.assert_allclose([float(row["score"]) for row in table], scores, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_it_starts_afresh_and_leaves_other_files_alone(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = demo
    assert not (folder / "dna" / "leftover").exists()
    assert (folder / "mine.txt").read_text() == "not the demo's"


def test_the_variants_are_what_they_say() -> None:
    import gzip

    def bases(name: str) -> str:
        path = ROOT / "domains" / "dna" / "examples" / "vertebrates" / f"{name}.fa.gz"
        with gzip.open(path, "rt") as file:
            return "".join(line.strip() for line in file if not line.startswith(">")).upper()

    human, rhesus = bases("hg38"), bases("rheMac3")
    lines = (DEMO / "human_rhesus.vcf").read_text().splitlines()
    records = [line.split("\t") for line in lines if not line.startswith("#")]
    kinds: dict[str, list[tuple[str, str]]] = {"rhesus": [], "in_silico": []}
    for _, pos, _, ref, alt, _, _, info in records:
        at = int(pos) - 1
        origin = info.split(";")[0].removeprefix("ORIGIN=")
        assert human[at] == ref != alt
        assert at >= 0.9 * len(human)
        assert f"HG38_POS={186_964 + at}" in info
        with_alt = human[at - 10 : at] + alt + human[at + 1 : at + 11]
        assert origin != "rhesus" or with_alt in rhesus
        kinds[origin].append((ref, alt))
    assert len({cells[1] for cells in records}) == len(records)
    assert len(kinds["rhesus"]) == 143
    assert sorted(kinds["rhesus"]) == sorted(kinds["in_silico"])


def test_the_area_under_the_curve_counts_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DEMO))
    from dna import area_under_curve, auc_error  # pyright: ignore[reportMissingImports]

    assert area_under_curve(np.array([3.0, 1.0]), np.array([2.0, 1.0])) == pytest.approx((2 + 0.5) / 4)
    assert auc_error(0.5, 100, 100) == pytest.approx(0.0408, abs=5e-4)  # sqrt((1/12)(1/100+1/100)) at chance
