"""A run on one page, while it is trained: `<run>/report.html`, curves of metrics.csv and the newest samples."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

SHOWN_STEPS = 8  # the newest, with their first sample
SHOWN_LETTERS = 60  # of a sample that is text


def write_report(run_dir: Path) -> Path | None:
    """The page; None where there is nothing to show yet.

    Args:
        run_dir: with `metrics.csv` (`CsvLog`) and `samples/` (`SampleLog`), as far as they are there.
    """
    from seqmodels.reporting import Columns, Curves, Report, Section, Table

    sections = []
    measure, curves = _curves(run_dir / "metrics.csv")
    if curves:
        name = measure.replace("_", " ")
        latest = Table(["", "step", name], [[c.name, int(c.steps[-1]), c.values[-1]] for c in curves], digits=4)
        sections.append(Section("Training", [Columns([Curves(curves, name), latest])]))
    if blocks := _newest(run_dir / "samples"):
        lead = "The same seed each time: what changes is the model."
        sections.append(Section("Samples while it was trained", [Columns(blocks)], lead=lead))
    if not sections:
        return None
    return Report(run_dir.name, sections, kicker="seqmodels train").write(run_dir / "report.html")


def _curves(metrics: Path) -> tuple[str, list[Any]]:
    """What is drawn, bits a symbol where there are any, and its curves."""
    from seqmodels.reporting import Curve

    if not metrics.exists():
        return "loss", []
    with open(metrics, newline="") as file:
        rows = list(csv.DictReader(file))
    measure = next((name for name in (rows[0] if rows else ()) if name.startswith("bits_per_")), "loss")
    curves = []
    for split, name in (("train", "training"), ("valid", "validation")):
        points = [(float(row["step"]), float(row[measure])) for row in rows if row["split"] == split]
        if points:
            steps, values = zip(*points)
            curves.append(Curve(name, steps, values, smooth=split == "train", dots=split == "valid"))
    return measure, curves


def _newest(folder: Path) -> list[Any]:
    """The first sample of each of the newest steps, the newest first."""
    from seqmodels.reporting import Paragraph, Sound
    from seqmodels.reporting.sound import read_wav

    first_of: dict[str, Path] = {}
    for path in sorted(folder.glob("step-*")):
        if path.suffix != ".svg" and ".partial" not in path.name:
            first_of.setdefault(path.stem.split("_")[0], path)
    blocks: list[Any] = []
    for name, path in sorted(first_of.items(), reverse=True)[:SHOWN_STEPS]:
        title = f"Step {int(name.removeprefix('step-')):,}"
        if path.suffix == ".wav":
            samples_S, rate_hz = read_wav(path)
            blocks.append(Sound(samples_S, rate_hz, title, file_bytes=path.read_bytes()))
        else:
            letters = "".join(line for line in path.read_text().splitlines()[:4] if not line.startswith(">"))
            blocks.append(Paragraph(f"**{title}** `{letters[:SHOWN_LETTERS]}…`"))
    return blocks
