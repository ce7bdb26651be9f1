"""Measures of scored variants against brute force, and the report from tables to figures."""

from __future__ import annotations

import csv
import gzip
import itertools

import numpy as np
import pytest


@pytest.fixture
def report(experiment):
    return experiment("dna.inference.report")


def places_of(report, count: int = 300, seed: int = 0):
    random = np.random.default_rng(seed)
    reference = random.integers(0, 4, count)
    observed = (reference + random.integers(1, 4, count)) % 4
    scores = random.integers(-3, 4, (count, 4)).astype(float)
    scores[np.arange(count), reference] = np.nan
    return report.Places("c", random.permutation(5000)[:count] + 20, reference, observed, scores)


def test_auc_counts_pairs(report):
    above, below = np.array([1.0, 2.0, 2.0, 5.0]), np.array([2.0, 0.0, 3.0])
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(above, below)]
    assert report.auc(above, below) == pytest.approx(np.mean(pairs))
    assert report.auc(np.array([3.0]), np.array([1.0, 2.0])) == 1


def test_measures_by_hand(report):
    nan = np.nan
    # A>G observed and first; C>G (a transversion) observed, above C>A; G>T observed, a tie with G>C, below G>A
    places = report.Places(
        "c", np.array([1, 2, 3]), np.array([0, 1, 2]), np.array([2, 2, 3]),
        np.array([[nan, -2.0, -1.0, -3.0], [-4.0, nan, 1.0, 2.0], [3.0, 0.5, nan, 0.5]]),
    )  # fmt: skip
    assert places.transition.tolist() == [2, 3, 0]
    assert report.first_of_three(places) == pytest.approx(1 / 3)
    assert report.first_of_transversions(places) == pytest.approx((1 + 0.5) / 2)
    others = np.array([-2, -3, -4, 2, 3, 0.5])
    assert report.pooled_auc(places) == pytest.approx(report.auc(np.array([-1, 1, 0.5]), others))
    assert report.among_transitions(places) == report.auc(np.array([-1.0]), np.array([2.0, 3.0]))


def test_random_scores_are_at_chance_and_intervals_say_so(report):
    rows = {row["measure"]: row for row in report.measured(places_of(report), "model", "all", 1024)}
    assert rows.keys() == report.MEASURES.keys()
    for name, chance in zip(report.MEASURES, (0.5, 1 / 3, 0.5, 0.5)):
        low, value, high = (rows[name][key] for key in ("low", "value", "high"))
        assert low <= value <= high
        assert abs(value - chance) < high - low, "within twice the interval's half, doubled"


def test_markov_scores_are_those_of_whole_sequences(report):
    """A substitution's score is the difference of two sums over everything, on both strands."""
    random = np.random.default_rng(1)
    codes = random.integers(0, 4, 6000).astype(np.int8)
    codes[700:720] = 9
    markov = report.Markov(codes, 2)
    assert np.exp(markov.logp.reshape(-1, 4)).sum(1) == pytest.approx(1)

    def total(letters: np.ndarray) -> float:
        found = 0.0
        for strand in (letters, np.where(letters < 4, 3 - letters, 9)[::-1]):
            for end in range(2, len(strand)):
                context = strand[end - 2 : end + 1]
                if (context < 4).all():
                    found += markov.logp[int(context[0]) * 16 + int(context[1]) * 4 + int(context[2])] / 2
        return found

    position = np.array([100, 698, 721])
    places = report.Places("c", position, codes[position].astype(int), np.zeros(3, dtype=int), np.zeros((3, 4)))
    scores = markov.scores(codes, places)
    for row, place in enumerate(position):
        near = slice(place - 30, place + 31)
        before = total(codes[near])
        for base in range(4):
            changed = codes.copy()
            changed[place] = base
            if base == codes[place]:
                assert np.isnan(scores[row, base])
            else:
                assert scores[row, base] == pytest.approx(total(changed[near]) - before)


def test_from_tables_to_figures(report, experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("SEQMODELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(report, "RESAMPLINGS", 20)
    monkeypatch.setattr(report, "ORDERS", (1, 2))
    random = np.random.default_rng(2)
    letters = "".join(random.choice(list("ACGTacgt"), 4000))
    (tmp_path / "g.fa").write_text(f">c\n{letters}\n")
    columns = ["chrom", "pos", "id", "ref", "alt", "score", "ref_log_likelihood", "alt_log_likelihood", "status"]
    vcf = ["#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    tables = {"observed": [], "every_base": [], "every_base_8192": []}
    for place in random.permutation(np.arange(50, 3900))[:150].tolist():
        ref = letters[place].upper()
        alts = [base for base in "ACGT" if base != ref]
        observed = alts[int(random.integers(3))]
        vcf.append(f"c\t{place + 1}\t.\t{ref}\t{observed}\t.\t.\t.")
        for name, wanted in (("observed", [observed]), ("every_base", alts), ("every_base_8192", alts)):
            tables[name] += [("c", place + 1, ".", ref, alt, random.normal(), -9, -9, "ok") for alt in wanted]
    (tmp_path / "v.vcf").write_text("\n".join(vcf) + "\n")
    for name, rows in tables.items():
        text = "\n".join("\t".join(map(str, row)) for row in [columns, *rows]) + "\n"
        (tmp_path / f"{name}.tsv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "bits_per_100kb.csv").write_text("start,bases,bits_per_base\n0,100000,1.9\n100000,90000,1.91\n")
    changes = "contig\tpos\tref\tA\tC\tG\tT\nc\t9\tA\t0\t-1\t-2\t-3\nc\t10\tN\t\t\t\t\n"
    (tmp_path / "mutagenesis.tsv").write_text(changes)
    with open(tmp_path / "dna_inference.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, experiment("dna.inference.run").COLUMNS, restval="")
        writer.writeheader()
        about = {"part": "length", "seconds": 1.5, "cpu_mib": 2000, "gpu_mib": 900}
        writer.writerows({**about, "bases": bases} for bases in (100, 1000))
    genome, out = str(tmp_path / "g.fa"), tmp_path / "out.csv"
    report.main([str(tmp_path), "--vcf", str(tmp_path / "v.vcf"), "--genome", genome, "--train", genome,
                 "--csv", str(out), "--figures", str(tmp_path)])  # fmt: skip
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    rule = [row for row in rows if row["scorer"] == "always the transition" and row["group"] == "all"]
    share = next(float(row["value"]) for row in rule if row["measure"].startswith("observed is first of three"))
    transitions = sum({*line.split("\t")[3:5]} in ({"A", "G"}, {"C", "T"}) for line in vcf[1:])
    assert share == pytest.approx(transitions / 150, abs=1e-4), "the rule is right where a transition was observed"
    assert {row["scorer"] for row in rows} >= {"model", "Markov, order 1", "Markov, order 2"}
    assert {row["window_bases"] for row in rows if row["group"] == "places of 8,192"} == {"1024", "8192"}
    for name in ("scores", "chromosome", "mutagenesis"):
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
