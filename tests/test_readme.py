"""Every command of the README runs: on small files, with few steps, in the README's order."""

from __future__ import annotations

import pathlib
import re
import shlex

import numpy as np
import pytest
import soundfile

from seqmodels.cli import COMMANDS, main

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
# Added to a command of the README so that it takes a second instead of minutes.
SHORTER = {
    "train": (
        *("trainer.accelerator=cpu", "trainer.max_steps=2", "trainer.val_every_steps=2", "trainer.val_batches=1"),
        *("data.batch_size=2", "backbone.n_layers=1"),
    ),
    "evaluate": ("max_batches=1",),
    "generate": ("length=20",),
    "score": ("scorer.window_bases=64",),
    "embed": (),
    "mutagenesis": ("scorer.window_bases=64",),
    "describe": (),
    "convert": (),
    "prepare": (),
}


def commands() -> list[list[str]]:
    """The words of every `seqmodels ...` line in the README's shell blocks, comments left out."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("seqmodels ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    """my.fa, my.csv, my.vcf, ape.fa, mouse.fa and wavs/, as the README names them."""
    monkeypatch.chdir(tmp_path)
    dice = np.random.default_rng(0)
    genomes = {name: "".join(dice.choice(list("ACGT"), 40_000)) for name in ("my", "ape", "mouse")}
    for name, letters in genomes.items():
        (tmp_path / f"{name}.fa").write_text(f">chr1\n{letters}\n")
    rows = [f"{''.join(dice.choice(list('ACGT'), 40))},{number % 2}" for number in range(60)]
    (tmp_path / "my.csv").write_text("\n".join(["sequence,label", *rows]) + "\n")
    ref, alt = genomes["my"][499], "A" if genomes["my"][499] != "A" else "C"
    header = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    (tmp_path / "my.vcf").write_text(f"{header}chr1\t500\t.\t{ref}\t{alt}\t.\t.\t.\n")
    (tmp_path / "wavs").mkdir()
    for number in range(6):
        soundfile.write(tmp_path / f"wavs/{number}.wav", 0.1 * dice.standard_normal(16_000), 16_000)
    return tmp_path


def test_the_readme_shows_every_kind_of_command():
    shown = {words[0] for words in commands()}
    assert shown == set(SHORTER) <= set(COMMANDS)


def shortened(words: list[str], run: pathlib.Path | None) -> list[str]:
    """The command on the DNA run made before it, with fewer and smaller steps: later words win over the README's."""
    named = [word.replace("runs/<name>", str(run)).replace("seed=1,2,3", "seed=1,2") for word in words]
    if any(word.startswith("resume=") for word in named):
        return [word.replace("max_steps=10000", "max_steps=3") for word in named]
    if any(word.startswith("seconds=") for word in named):
        named = [word for word in named if not word.startswith("seconds=")]  # the run before it is DNA
    if any(word.startswith("backbone=") for word in named):  # a preset says itself how many layers
        return [*named, *[word for word in SHORTER[words[0]] if word != "backbone.n_layers=1"]]
    return [*named, *SHORTER[words[0]]]


def test_every_command_of_the_readme_runs(own_files, capfd):
    dna_run: pathlib.Path | None = None
    for number, words in enumerate(commands()):
        named = [f"name=run{number}"] if words[0] == "train" and "resume=" not in " ".join(words) else []
        final = [*shortened(words, dna_run), *named]
        assert main(final) == 0, f"seqmodels {shlex.join(final)}\n{capfd.readouterr().err}"
        if "experiment=quickstart_dna" in words and dna_run is None:
            dna_run = own_files / "runs" / f"run{number}"
            published = ["convert", f"source={dna_run}", "target=mamba-130m", "to=state-spaces"]
            assert (own_files / "mamba-130m").exists() or main(published) == 0, capfd.readouterr().err
    assert (own_files / "scored.vcf").exists()
    assert (own_files / "embedded/manifest.json").exists()
    assert (own_files / "ism.png").exists()
    assert (own_files / "runs/mamba-130m/checkpoints").exists()
    (made,) = own_files.glob("runs/*/results/*.fa")
    assert set("".join(made.read_text().splitlines()[1::2])) <= set("ACGT"), "special tokens were drawn"
    assert dna_run is not None
    assert "\n3,valid," in (dna_run / "metrics.csv").read_text(), "resumed from step 2 to step 3"


def test_the_readme_is_short_and_its_files_exist():
    assert len(README.splitlines()) <= 150
    for path in re.findall(r"`((?:seqmodels|domains|kernels|experiments|conf|tests)/[\w./]+\.\w+)`", README):
        assert (ROOT / path).exists(), path
