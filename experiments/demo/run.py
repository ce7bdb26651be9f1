"""`make demo`: real DNA and real sound to trained models and their output, under five minutes on two CPU cores.

    python experiments/demo/run.py                       everything, into runs/demo
    python experiments/demo/run.py --quick --output X    a few training steps of everything, to see that it works

Every step runs `seqmodels` commands and prints them. What comes out: runs/demo/report.html (one file, opens offline),
the trained models, a WAV, a scored VCF. Each call starts afresh: it removes what the last one left in its folder, but
the old report stays until the new one is complete.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.markup import escape
from rich.padding import Padding

OWN = ("dna", "species", "digits", "generated.wav", "samples.tsv", "human_rhesus.scored.vcf", "human_rhesus.scored.tsv")


def main(words: list[str] | None = None) -> int:
    """Runs the steps and writes the report; 0, or the exit code of the command that failed."""
    arguments = parse(words)
    # As the seqmodels command does, before torch is imported: threads that wait sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import dna
    import sound
    from stage import ROOT, Stage, StepError
    from summary import write_report

    os.chdir(ROOT)
    stage = Stage(arguments.output, arguments.quick)
    clear(stage.folder)
    steps: list[tuple[str, Callable]] = [
        ("learn to predict DNA, base by base, from eight vertebrate genomes", dna.language_model),
        ("train that model on, told the species, and ask it which of eight a window is of", dna.species),
        ("learn to predict sound, sample by sample, and make some", sound.digits),
        ("score variants with the DNA model", dna.variants),
    ]
    results, started = [], time.perf_counter()
    for number, (what, step) in enumerate(steps, 1):
        stage.console.rule(f"[bold]{number}/{len(steps)}[/]  {what}", align="left")
        stage.commands = []
        begun = time.perf_counter()
        try:
            result = step(stage)
        except StepError as failure:
            print(f"\nThe demo ended at: {failure.command}", file=sys.stderr)
            return failure.code
        result.seconds = time.perf_counter() - begun
        results.append(result)
        text = escape(result.paragraph).replace("**", "")
        stage.console.print(Padding(f"[green]{text}[/]", (1, 2)))
    report = write_report(stage, results, time.perf_counter() - started)
    stage.console.rule("[bold]done[/]", align="left")
    stage.console.print(f"  report      {report}  (open it in a browser; it needs no network)", soft_wrap=True)
    stage.console.print(f"  and beside it the models, generated.wav and {OWN[-2]}", soft_wrap=True)
    return 0


def parse(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Real DNA and real sound to trained models and their output.")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for everything (runs/demo)")
    parser.add_argument("--quick", action="store_true", help="a few training steps only; the numbers mean nothing")
    arguments = parser.parse_args(words)
    arguments.output = arguments.output.absolute()
    return arguments


def clear(folder: Path) -> None:
    """Removes what an earlier demo made, and nothing else."""
    for name in OWN:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nStopped. `make demo` starts afresh.", file=sys.stderr)
        sys.exit(130)
