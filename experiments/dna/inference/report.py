"""What the tables of run.py say: numbers with confidence intervals, and the figures of the README.

    python experiments/dna/inference/report.py RESULTS --vcf build/inference/observed.vcf.gz \
        --genome build/dna/human.fa.gz --train build/dna/chr20.fa.gz

RESULTS is the folder that run.py filled. Rows go to experiments/results/dna_variant_scores.csv, PNGs beside this file.
Baselines of "which base is the observed one?": the rule that it is the transition, and Markov models of several orders
that learnt from the model's own training bases (both strands) and score the same substitutions the same way.
Intervals are 95 %, from 500 resamplings of places.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from experiments import charts  # noqa: E402

HERE = Path(__file__).parent
RESULTS = ROOT / "experiments" / "results" / "dna_variant_scores.csv"
ORDERS = (2, 6, 8, 10)
TRAIN_BASES = 54 * 2**20  # of chromosome 20: what experiments/dna/data.py trains on
BASES = "ACGT"
PARTNER = {"A": "G", "G": "A", "C": "T", "T": "C"}  # the base that a transition leads to
RESAMPLINGS = 500
MATCHED_TRANSITIONS = "AUC among transitions, observed or not"
BLUE, GREEN, OCHRE = "#1458c0", "#1f8a4c", "#b07800"
Row = dict[str, Any]


@dataclass(frozen=True)
class Places:
    """SNVs with a score for each of the three other bases.

    Attributes:
        position: 0-based, on the record of `contig`.
        reference: index of the reference base in ACGT.
        observed: index of the observed base.
        scores: (n, 4) nats; NaN at the reference base.
    """

    contig: str
    position: np.ndarray
    reference: np.ndarray
    observed: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.position)

    @property
    def transition(self) -> np.ndarray:
        """Index of the base that a transition leads to."""
        return np.array([BASES.index(PARTNER[base]) for base in BASES])[self.reference]

    def take(self, rows: np.ndarray) -> Places:
        arrays = (self.position, self.reference, self.observed, self.scores)
        return Places(self.contig, *(array[rows] for array in arrays))

    def scored_by(self, scores: np.ndarray) -> Places:
        return Places(self.contig, self.position, self.reference, self.observed, scores)


# ---------------------------------------------------------------------------------------------------------- reading


def read_table(path: Path) -> list[dict[str, str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def read_places(table: Path, vcf: Path) -> Places:
    """Places of which all three alternatives were scored."""
    from experiments.dna.inference.data import lines_of

    seen: dict[int, str] = {}
    for line in lines_of(vcf):
        cells = line.split("\t")
        if not line.startswith("#") and len(cells[3]) == len(cells[4]) == 1:
            seen[int(cells[1])] = cells[4]
    rows = [row for row in read_table(table) if row["status"] == "ok"]
    positions = list(dict.fromkeys(int(row["pos"]) for row in rows))
    of = {pos: number for number, pos in enumerate(positions)}
    scores = np.full((len(of), 4), np.nan)
    reference = np.zeros(len(of), dtype=int)
    for row in rows:
        number = of[int(row["pos"])]
        scores[number, BASES.index(row["alt"])] = float(row["score"])
        reference[number] = BASES.index(row["ref"])
    observed = np.array([BASES.index(seen[pos]) for pos in positions])
    places = Places(rows[0]["chrom"], np.array(positions) - 1, reference, observed, scores)
    return places.take(np.isfinite(scores).sum(1) == 3)


# --------------------------------------------------------------------------------------------------------- measures


def auc(above: np.ndarray, below: np.ndarray) -> float:
    """Probability that a value of `above` exceeds one of `below`; ties count half."""
    below = np.sort(below)
    lower, upper = (below.searchsorted(above, side=side).mean() for side in ("left", "right"))
    return float((lower + upper) / 2 / len(below))


def pooled_auc(places: Places) -> float:
    """Observed bases against the two others, of all places together."""
    rows = np.arange(len(places))
    others = places.scores.copy()
    others[rows, places.observed] = np.nan
    return auc(places.scores[rows, places.observed], others[np.isfinite(others)])


def first_of_three(places: Places) -> float:
    """Share of places where the observed base has the highest score of the three; ties count in part."""
    best = np.nanmax(places.scores, axis=1, keepdims=True) == places.scores
    return float((best[np.arange(len(places)), places.observed] / best.sum(1)).mean())


def first_of_transversions(places: Places) -> float:
    """Of places with an observed transversion: share where it scores above the other transversion. Chance is 0.5."""
    rows = np.flatnonzero(places.observed != places.transition)
    scores = places.scores[rows].copy()
    scores[np.arange(len(rows)), places.transition[rows]] = np.nan
    observed = scores[np.arange(len(rows)), places.observed[rows]]
    other = np.nansum(scores, axis=1) - observed
    return float(((observed > other) + 0.5 * (observed == other)).mean())


def among_transitions(places: Places) -> float:
    """AUC of transitions that were observed against transitions at places where a transversion was: like with like."""
    scores = places.scores[np.arange(len(places)), places.transition]
    observed = places.observed == places.transition
    return auc(scores[observed], scores[~observed])


MEASURES: dict[str, Callable[[Places], float]] = {
    "AUC, observed against the two others": pooled_auc,
    "observed is first of three": first_of_three,
    "observed transversion above the other one": first_of_transversions,
    MATCHED_TRANSITIONS: among_transitions,
}


def interval(
    measure: Callable[[Any], float], of: Any, size: int, take: Callable[[Any, np.ndarray], Any]
) -> list[float]:
    """95 % interval of a measure by resampling."""
    random = np.random.default_rng(0)
    found = [measure(take(of, random.integers(0, size, size))) for _ in range(RESAMPLINGS)]
    return [float(value) for value in np.nanpercentile(found, [2.5, 97.5])]


def measured(places: Places, scorer: str, group: str, window: int | str = "") -> Iterator[Row]:
    for name, measure in MEASURES.items():
        transitions = int((places.observed == places.transition).sum())
        by_kind = "transition" in name or "transversion" in name
        if len(places) < 20 or (by_kind and min(transitions, len(places) - transitions) < 20):
            continue
        low, high = interval(measure, places, len(places), Places.take)
        yield {
            "measure": name, "group": group, "scorer": scorer, "window_bases": window, "places": len(places),
            "value": round(measure(places), 4), "low": round(low, 4), "high": round(high, 4),
        }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- Markov


class Markov:
    """p(base | the `order` bases before it), counted on both strands."""

    def __init__(self, codes: np.ndarray, order: int, smoothing: float = 1.0):
        self.order = order
        counts = np.zeros(4 ** (order + 1))
        for strand in (codes, 3 - codes[::-1]):
            numbers, whole = _numbers(strand, order + 1)
            counts += np.bincount(numbers[whole], minlength=len(counts))
        table = counts.reshape(-1, 4)
        prior = counts.reshape(-1, 4).sum(0) / counts.sum()  # of the base alone, where a context is rare
        self.logp = np.log((table + 4 * smoothing * prior) / (table.sum(1, keepdims=True) + 4 * smoothing)).ravel()

    def scores(self, codes: np.ndarray, places: Places) -> np.ndarray:
        """As a language model would: both strands, log p(with the base) - log p(reference), of all it changes."""
        k = self.order
        around = codes[places.position[:, None] + np.arange(-k, k + 1)]
        found = np.full((len(places), 4), np.nan)
        total = {}
        for base in range(4):
            changed = around.copy()
            changed[:, k] = base
            total[base] = (self._total(changed) + self._total(3 - changed[:, ::-1])) / 2
        reference = np.choose(places.reference, [total[base] for base in range(4)])
        for base in range(4):
            found[:, base] = np.where(places.reference == base, np.nan, total[base] - reference)
        return found

    def _total(self, around: np.ndarray) -> np.ndarray:
        """log p of the k+1 bases that the middle one takes part in; contexts over an N give nothing."""
        total = np.zeros(len(around))
        for start in range(self.order + 1):
            piece = around[:, start : start + self.order + 1]
            known = np.all((piece >= 0) & (piece < 4), axis=1)
            numbers = (np.where(known[:, None], piece, 0) * 4 ** np.arange(self.order, -1, -1)).sum(1)
            total += np.where(known, self.logp[numbers], 0.0)
        return total


def _numbers(codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The number of every k-mer to base 4, and whether all of it is known."""
    count = len(codes) - k + 1
    numbers, whole = np.zeros(count, dtype=np.int64), np.ones(count, dtype=bool)
    for offset in range(k):
        piece = codes[offset : offset + count]
        known = (piece >= 0) & (piece < 4)
        whole &= known
        numbers = numbers * 4 + np.where(known, piece, 0)
    return numbers, whole


def codes_of(letters: np.ndarray) -> np.ndarray:
    """A 0, C 1, G 2, T 3; anything else 9."""
    table = np.full(256, 9, dtype=np.int8)
    for code, base in enumerate(BASES):
        table[ord(base)] = table[ord(base.lower())] = code
    return table[letters]


# ---------------------------------------------------------------------------------------------------------- analysis


def groups_of(places: Places, letters: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of each kind of place."""
    repeat = letters[places.position] >= ord("a")
    codes = codes_of(letters)
    c, g = BASES.index("C"), BASES.index("G")
    cpg = ((places.reference == c) & (codes[places.position + 1] == g)) | (
        (places.reference == g) & (codes[places.position - 1] == c)
    )
    return {"all": np.ones(len(places), dtype=bool), "repeat": repeat, "unique": ~repeat, "CpG": cpg, "not CpG": ~cpg}


def of_every_base(options: argparse.Namespace, letters: np.ndarray) -> Iterator[Row]:
    """Which base is the observed one? The model, the rule, Markov models."""
    from domains.dna.fasta import Genome

    places = read_places(options.results / "every_base.tsv.gz", options.vcf)
    groups = groups_of(places, letters)
    for group, rows in groups.items():
        yield from measured(places.take(np.flatnonzero(rows)), "model", group, 1024)
    rule = np.where(np.arange(4) == places.transition[:, None], 1.0, 0.0)
    rule[np.isnan(places.scores)] = np.nan
    for group, rows in groups.items():
        yield from measured(places.scored_by(rule).take(np.flatnonzero(rows)), "always the transition", group)
    first_the_rule = places.scored_by(places.scores + 1000 * rule)  # more than any score
    for group, rows in groups.items():
        yield from measured(first_the_rule.take(np.flatnonzero(rows)), "the transition, then the model", group)
    train = Genome(str(options.train))
    name = next(iter(train.lengths))
    codes = codes_of(train.fetch(name, 0, min(TRAIN_BASES, train.lengths[name])))
    for order in ORDERS:
        by_markov = places.scored_by(Markov(codes, order).scores(codes_of(letters), places))
        for group, rows in groups.items():
            yield from measured(by_markov.take(np.flatnonzero(rows)), f"Markov, order {order}", group)


def of_windows(options: argparse.Namespace) -> Iterator[Row]:
    """The same places in windows of every length, and what the longer ones add."""
    tables = {1024: options.results / "every_base.tsv.gz"}
    for path in sorted(options.results.glob("every_base_*.tsv.gz")):
        tables[int(path.name.split("_")[2].split(".")[0])] = path
    by_window = {window: read_places(path, options.vcf) for window, path in sorted(tables.items())}
    for longest in [window for window in by_window if window > 1024]:
        shared = set.intersection(
            *(set(places.position.tolist()) for window, places in by_window.items() if window <= longest)
        )
        same = {}
        for window, places in by_window.items():
            if window <= longest:
                rows = [row for row, position in enumerate(places.position.tolist()) if position in shared]
                chosen = places.take(np.array(rows))
                same[window] = chosen.take(np.argsort(chosen.position))
        for window, places in same.items():
            yield from measured(places, "model", f"places of {longest:,}", window)
        first = same[1024]
        more = pooled_auc(same[longest]) - pooled_auc(first)
        low, high = interval(
            lambda pair: pooled_auc(pair[1]) - pooled_auc(pair[0]), (first, same[longest]), len(first),
            lambda pair, rows: (pair[0].take(rows), pair[1].take(rows)),
        )  # fmt: skip
        yield {
            "measure": "AUC more than at 1,024", "group": f"places of {longest:,}", "scorer": "model",
            "window_bases": longest, "places": len(first),
            "value": round(more, 4), "low": round(low, 4), "high": round(high, 4),
        }  # fmt: skip


def kinds_of(rows: list[dict[str, str]], letters: np.ndarray) -> Mapping[str, np.ndarray]:
    """Scores of observed variants by kind."""
    scores = np.array([float(row["score"]) for row in rows])
    snv = np.array([len(row["ref"]) == len(row["alt"]) == 1 for row in rows])
    transition = np.array([PARTNER.get(row["ref"]) == row["alt"] for row in rows])
    longer = np.array([len(row["alt"]) > len(row["ref"]) for row in rows])
    repeat = letters[np.array([int(row["pos"]) - 1 for row in rows])] >= ord("a")
    return {
        "transition": scores[snv & transition], "transversion": scores[snv & ~transition],
        "insertion": scores[~snv & longer], "deletion": scores[~snv & ~longer],
        "SNV in a repeat": scores[snv & repeat], "SNV elsewhere": scores[snv & ~repeat],
    }  # fmt: skip


def of_observed(kinds: Mapping[str, np.ndarray]) -> Iterator[Row]:
    def mean_row(name: str, values: np.ndarray) -> Row:
        low, high = interval(np.mean, values, len(values), lambda all_of, rows: all_of[rows])
        return {"measure": "mean score, nats", "group": name, "places": len(values), "value": round(values.mean(), 4),
                "low": round(low, 4), "high": round(high, 4)}  # fmt: skip

    for name, values in kinds.items():
        if len(values):
            yield {"scorer": "model", "window_bases": 1024, **mean_row(name, values)}
            share = float((values > 0).mean())
            spread = 1.96 * np.sqrt(share * (1 - share) / len(values))
            yield {"measure": "share that the model prefers to REF", "group": name, "scorer": "model",
                   "window_bases": 1024, "places": len(values), "value": round(share, 4),
                   "low": round(share - spread, 4), "high": round(share + spread, 4)}  # fmt: skip
    both = np.concatenate([kinds["transition"], kinds["transversion"]])
    which = np.arange(len(both)) < len(kinds["transition"])

    def transitions_above(of: tuple[np.ndarray, np.ndarray]) -> float:
        return auc(of[0][of[1]], of[0][~of[1]])

    low, high = interval(
        transitions_above, (both, which), len(both), lambda pair, rows: (pair[0][rows], pair[1][rows])
    )
    yield {"measure": "AUC, transitions above transversions", "group": "observed", "scorer": "model",
           "window_bases": 1024, "places": len(both), "value": round(transitions_above((both, which)), 4),
           "low": round(low, 4), "high": round(high, 4)}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ figures


def draw_scores(rows: list[Row], kinds: Mapping[str, np.ndarray], places: Places, to: Path) -> None:
    """Distributions of scores; who finds the observed base, in all and like with like; what longer windows add."""
    longer = any(row["group"].startswith("places of") for row in rows)
    figure, axes = charts.panels(3 + longer, columns=3 - longer, width=4.8, height=3.6)
    draw_distributions(kinds, places, axes[0])
    best = best_order(rows)
    of_all = {"model": BLUE, "always the transition": OCHRE, "the transition, then the model": GREEN}
    of_all[best] = charts.MUTED
    draw_groups(rows, "AUC, observed against the two others", of_all, axes[1])
    axes[1].set(title="Observed base against the other two", ylabel="AUC, 95 % interval", ylim=(0.45, 0.95))
    for measure, marker in (("observed transversion above the other one", "o"), (MATCHED_TRANSITIONS, "s")):
        draw_groups(rows, measure, {"model": BLUE, best: charts.MUTED}, axes[2], marker)
    axes[2].set(title="Like with like", ylabel="share or AUC, 95 % interval", ylim=(0.45, 0.7))
    if longer:
        draw_windows(rows, axes[3])
    charts.save(figure, to)


def draw_distributions(kinds: Mapping[str, np.ndarray], places: Places, axes: Any) -> None:
    made_up = places.scores.copy()
    made_up[np.arange(len(places)), places.observed] = np.nan
    shown = {"observed transitions": kinds["transition"], "observed transversions": kinds["transversion"],
             "made-up bases": made_up[np.isfinite(made_up)]}  # fmt: skip
    for (name, values), colour in zip(shown.items(), (BLUE, GREEN, charts.MUTED)):
        axes.hist(values, bins=np.linspace(-9, 9, 73), weights=np.full(len(values), 4 / len(values)), histtype="step",
                  color=colour, label=name, linewidth=1.3)  # fmt: skip
    axes.axvline(0, color=charts.MUTED, linewidth=0.8, linestyle=":")
    axes.set(title="Scores, windows of 1,024", xlabel="log p(ALT) - log p(REF), nats", ylabel="density", ylim=(0, 0.45))
    axes.legend(fontsize=7, loc="upper left")


def draw_groups(rows: list[Row], measure: str, colours: Mapping[str, str], axes: Any, marker: str = "o") -> None:
    """A measure of several scorers at each kind of place."""
    groups = ("all", "repeat", "unique", "CpG", "not CpG")
    short = {"observed transversion above the other one": ", transversions", MATCHED_TRANSITIONS: ", transitions"}
    shift, fill = (0.1, "white") if marker == "s" else (0.0, "")
    for number, (name, colour) in enumerate(colours.items()):
        found = [row for row in rows if row["measure"] == measure and row["scorer"] == name and row["group"] in groups]
        at = [groups.index(row["group"]) + 0.2 * (number - (len(colours) - 1) / 2) + shift for row in found]
        axes.errorbar(at, *with_spread(found), fmt=marker, color=colour, markersize=4, markerfacecolor=fill or colour,
                      label=name + short.get(measure, ""))  # fmt: skip
    axes.axhline(0.5, color=charts.MUTED, linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(groups)), groups, fontsize=8)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)


def draw_windows(rows: list[Row], axes: Any) -> None:
    for group in dict.fromkeys(row["group"] for row in rows if row["group"].startswith("places of")):
        found = [row for row in rows if row["group"] == group and row["measure"].startswith("AUC, obs")]
        at = [row["window_bases"] for row in found]
        axes.errorbar(at, *with_spread(found), marker="o", capsize=2, label=f"{found[0]['places']:,} places")
    axes.set(title="The same places, longer windows", xlabel="bases in the window", ylabel="AUC, 95 % interval")
    axes.set_xscale("log", base=2)
    axes.legend(fontsize=7)


def with_spread(rows: list[Row]) -> tuple[list[float], list[list[float]]]:
    """Values, and how far their intervals reach below and above."""
    values = [row["value"] for row in rows]
    below = [row["value"] - row["low"] for row in rows]
    return values, [below, [row["high"] - row["value"] for row in rows]]


def best_order(rows: list[Row]) -> str:
    """The Markov model with the highest AUC on all places."""
    found = [row for row in rows if row["scorer"].startswith("Markov") and row["group"] == "all"
             and row["measure"].startswith("AUC")]  # fmt: skip
    return max(found, key=lambda row: row["value"])["scorer"]


def draw_chromosome(results: Path, to: Path) -> None:
    """Bits a base along chromosome 20, and what its length costs."""
    bits = np.genfromtxt(results / "bits_per_100kb.csv", delimiter=",", skip_header=1)
    rows = [row for row in charts.read_rows(results / "dna_inference.csv") if row["part"] == "length" and row["bases"]]
    rows = charts.newest(rows, "bases")
    figure, (left, right) = charts.panels(2, columns=2, width=5.6)
    kept = bits[:, 1] > 50_000
    left.plot(bits[kept, 0] / 1e6, bits[kept, 2], ".", color=BLUE, markersize=2.5)
    left.axvline(TRAIN_BASES / 1e6, color=charts.MUTED, linewidth=0.8)
    left.text(TRAIN_BASES / 1e6 - 0.6, bits[kept, 2].min(), "trained on | held out", fontsize=8, ha="center")
    left.set(title="Every base of chromosome 20, read in one stream", xlabel="Mb", ylabel="bits a base, 100 kb")
    lengths = [int(row["bases"]) / 1e6 for row in rows]
    for column, name, colour in (("gpu_mib", "GPU, highest", BLUE), ("cpu_mib", "CPU, highest", GREEN)):
        values = [(x, float(row[column]) / 1024) for x, row in zip(lengths, rows) if row[column]]
        right.plot([x for x, _ in values], [y for _, y in values], "o-", color=colour, label=name)
    for x, row in zip(lengths, rows):
        right.annotate(f"in {float(row['seconds']):.1f} s", (x, 0), textcoords="offset points", xytext=(0, 6),
                       fontsize=8, ha="center")  # fmt: skip
    right.set(title="Memory does not grow with the sequence", xlabel="Mb", ylabel="GiB", xscale="log")
    right.set_xticks(lengths, [f"{x:.3g}" for x in lengths])
    right.minorticks_off()
    right.set(xlim=(lengths[0] / 1.5, lengths[-1] * 1.5), ylim=(0, 2))
    right.legend(fontsize=8, loc="upper right")
    charts.save(figure, to)


def draw_mutagenesis(results: Path, letters: np.ndarray, to: Path) -> None:
    """How much the model minds a change, along the region; where the genome is soft-masked."""
    rows = read_table(results / "mutagenesis.tsv")
    position = np.array([int(row["pos"]) for row in rows])
    effects = np.array([[float(row[base] or 0) for base in BASES] for row in rows])
    mean = -effects.sum(1) / 3
    figure, (axes,) = charts.panels(1, columns=1, width=10, height=2.8)
    repeat = letters[position - 1] >= ord("a")
    axes.fill_between(position, 0, 1, where=repeat, transform=axes.get_xaxis_transform(), color=OCHRE, alpha=0.12,
                      step="mid", label="repeat (soft-masked)")  # fmt: skip
    axes.bar(position, mean, width=1.0, color=BLUE)
    axes.set_axisbelow(True)
    axes.axhline(0, color=charts.INK, linewidth=0.6)
    axes.set(title="Every substitution of an Alu and what lies around it", xlabel=f"{rows[0]['contig']}, position",
             ylabel="mean loss of a change, nats")  # fmt: skip
    axes.ticklabel_format(axis="x", style="plain", useOffset=False)
    axes.legend(fontsize=8)
    charts.save(figure, to)


# --------------------------------------------------------------------------------------------------------------- main


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--vcf", type=Path, required=True, help="observed.vcf.gz of data.py")
    parser.add_argument("--genome", type=Path, required=True, help="what the variants lie on, soft-masked")
    parser.add_argument("--train", type=Path, required=True, help="chromosome 20: what Markov models learn from")
    parser.add_argument("--csv", type=Path, default=RESULTS)
    parser.add_argument("--figures", type=Path, default=HERE)
    options = parser.parse_args(words)
    from domains.dna.fasta import Genome

    observed = [row for row in read_table(options.results / "observed.tsv.gz") if row["status"] == "ok"]
    letters = Genome(str(options.genome)).fetch(observed[0]["chrom"])
    kinds = kinds_of(observed, letters)
    rows = [*of_observed(kinds), *of_every_base(options, letters), *of_windows(options)]
    columns = ["measure", "group", "scorer", "window_bases", "places", "value", "low", "high"]
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    with options.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print("  ".join(str(row.get(name, "")) for name in columns))
    places = read_places(options.results / "every_base.tsv.gz", options.vcf)
    draw_scores(rows, kinds, places, options.figures / "scores.png")
    if (options.results / "bits_per_100kb.csv").exists():  # parts that a short run left out have no figure
        draw_chromosome(options.results, options.figures / "chromosome.png")
    if (options.results / "mutagenesis.tsv").exists():
        draw_mutagenesis(options.results, letters, options.figures / "mutagenesis.png")


if __name__ == "__main__":
    main()
