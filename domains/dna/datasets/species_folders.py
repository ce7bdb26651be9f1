"""`SpeciesFolders`: species classification from folders with one FASTA a chromosome, as NCBI gives them.

    data/species/human/chr1.fna  chr2.fna.gz  …      data/species/bonobo/chr1_mat_hsa1.fa  chr11_mat_hsa2b.fa  …

The chromosome's name comes from the file (inside stand accessions), and its first record is used. Files of the T2T
assemblies name the ape's own chromosome and the human one that it corresponds to; the human one counts, because splits
by chromosome keep homologous sequence apart only in one common numbering.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from domains.dna.datasets.species_windows import LabelledWindows, SpeciesSampling
from domains.dna.datasets.window_samples import WindowReader
from domains.dna.fasta import SUFFIXES, Genome, stem_of
from domains.dna.fasta_scan import unpacked
from domains.dna.intervals import HeldOutChromosomes, Splitter
from domains.dna.tokenizer import DnaTokenizer

log = logging.getLogger(__name__)

VALID = ("1", "3", "12", "13")  # the published split of every species
TEST = ("5", "7", "9", "10", "11")
_T2T = re.compile(r"chr[0-9A-Za-z]+_(?:mat|pat|hap[12]|pri)_hsa(?P<human>\w+)")
_PLAIN = re.compile(r"(?:chr(?:omosome)?[_.]?)?(?P<name>[0-9]+[A-Za-z]?|[A-Z]{1,2}|MT)")
_MITOCHONDRIAL = ("M", "MT")  # as likely to be drawn as chromosome 1, and no part of the task: only where listed
_FUSED = re.compile(r"[0-9]+x[0-9]+")  # parts of two human chromosomes: gorilla's hsa17x5 and hsa5x17


class SpeciesFolders(LabelledWindows):
    """Windows labelled with their species, from a folder for each species.

    Args:
        folder: holds one folder a species.
        species: names of the folders to use; None takes all. Labels are the sorted names.
        chromosomes: species -> the chromosomes it must have, `1-22 X Y`; those that are missing are all listed. Species
            without an entry use every chromosome file there is.
        chrom_map: species -> file stem (globs allowed) -> chromosome, for names that say nothing: {NC_073224*: "1"};
            None leaves a file out, e.g. one of two haplotypes: {"*_pat_*": None}.
        splits: default `HeldOutChromosomes` with the published lists: 1, 3, 12, 13 for validation, 5, 7, 9, 10, 11 for
            test, the rest for training.
        window_bases: bases in a window.
        tokenizer: default `DnaTokenizer()`.
        seed: of every draw and of the evaluation lists.
        windows_per_epoch: length of a training epoch; None means training bases / window_bases.
        eval_windows_per_species: validation windows, and as many test windows, of each species.
        sequence_sampling: within a species: "uniform" over its chromosomes (published), or "bases".
        max_n_fraction: windows with a larger share of N are left out.
        reverse_complement_augment: training windows come from either strand with equal chance.
        on_leak: "warn", "error" or "ignore" where held-out windows touch training bases.

    Raises:
        FileNotFoundError: folders or chromosomes are missing; all of them are listed.
        ValueError: two files are the same chromosome, or an argument is out of range.
    """

    def __init__(
        self, folder: str, *, species: Sequence[str] | None = None, chromosomes: Mapping[str, str] | None = None,
        chrom_map: Mapping[str, Mapping[str, str | None]] | None = None, splits: Splitter | None = None,
        window_bases: int = 1024, tokenizer: DnaTokenizer | None = None, seed: int = 0,
        windows_per_epoch: int | None = None, eval_windows_per_species: int = 64, sequence_sampling: str = "uniform",
        max_n_fraction: float = 0.05, reverse_complement_augment: bool = True, on_leak: str = "warn",
    ):  # fmt: skip
        sampling = SpeciesSampling(seed, windows_per_epoch, sequence_sampling, reverse_complement_augment)
        files = find_chromosomes(Path(folder).expanduser(), species, chromosomes or {}, chrom_map or {})
        genome = Genome.of_chromosomes(files)
        _say_unread(genome)
        super().__init__(
            WindowReader(genome, tokenizer), sampling,
            eval_windows_per_species=eval_windows_per_species, window_bases=window_bases,
            splits=splits or HeldOutChromosomes(valid=VALID, test=TEST), max_n_fraction=max_n_fraction, on_leak=on_leak,
        )  # fmt: skip


def _say_unread(genome: Genome) -> None:
    """Files with more records than the first, which alone is the chromosome."""
    unread = {file.path: list(file.lengths.items())[1:] for file in genome.files if len(file.lengths) > 1}
    if unread:
        records = sum(map(len, unread.values()))
        bases = sum(length for others in unread.values() for _, length in others)
        path, others = next(iter(unread.items()))
        log.warning(
            "the first record of a file is its chromosome: %d others (%s bases) in %d files are not read, as %s in %s",
            records, f"{bases:,}", len(unread), others[0][0], path,
        )  # fmt: skip


def find_chromosomes(
    folder: Path,
    species: Sequence[str] | None,
    chromosomes: Mapping[str, str],
    chrom_map: Mapping[str, Mapping[str, str | None]],
) -> dict[str, dict[str, Path]]:
    """species -> chromosome -> file, plain gzip unpacked into the cache; see `SpeciesFolders`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: it should hold one folder of FASTA files a species")
    there = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not there:
        raise FileNotFoundError(f"{folder} holds no folders: it should hold one folder of FASTA files a species")
    wanted = [species] if isinstance(species, str) else list(species) if species is not None else there
    missing = [f"{name}: no folder {folder / name}" for name in wanted if name not in there]
    found: dict[str, dict[str, Path]] = {}
    for name in sorted(set(wanted) & set(there)):
        files, fused = _files_by_chromosome(folder / name, chrom_map.get(name, {}))
        if name in chromosomes:
            needed = expand(chromosomes[name])
            if not needed:
                raise ValueError(f"domain.dataset.chromosomes.{name} is empty: write 1-22 X Y, or leave {name} out")
            if absent := [one for one in needed if one not in files and one not in fused]:
                missing.append(f"{name}: {', '.join(absent)}")
            files = {chromosome: files[chromosome] for chromosome in needed if chromosome in files}
        else:
            files = {chromosome: path for chromosome, path in files.items() if chromosome not in _MITOCHONDRIAL}
        if not files and name not in chromosomes:
            missing.append(f"{name}: no chromosome file (chr1.fa, chr1.fna.gz …) in {folder / name}")
        found[name] = files
    if missing:
        raise FileNotFoundError(
            "species folders lack chromosomes:\n  " + "\n  ".join(missing) + "\nGet the files, shorten the list in"
            " domain.dataset.chromosomes, or say in domain.dataset.chrom_map which file is which"
        )
    return {name: {key: unpacked(path) for key, path in files.items()} for name, files in found.items()}


def expand(text: str) -> list[str]:
    """`1-3 2A X` (spaces or commas) to 1, 2, 3, 2A, X."""
    names: list[str] = []
    for word in str(text).replace(",", " ").split():
        first, dash, last = word.partition("-")
        if dash and first.isdigit() and last.isdigit():
            names += [str(number) for number in range(int(first), int(last) + 1)]
        else:
            names.append(word)
    return names


def chromosome_of(stem: str, chrom_map: Mapping[str, str | None]) -> str | None:
    """`2B` of chr2B, chr11_mat_hsa2b, 2B; what the map says of others; None for a file that is no chromosome."""
    for pattern, name in chrom_map.items():
        if fnmatchcase(stem, pattern):
            return None if name is None else str(name)
    if (named := _T2T.fullmatch(stem)) is not None:
        human = named["human"]
        return human if _FUSED.fullmatch(human) else human.upper()
    if (named := _PLAIN.fullmatch(stem)) is not None:
        return named["name"].upper()
    return None


def _files_by_chromosome(folder: Path, chrom_map: Mapping[str, str | None]) -> tuple[dict[str, Path], set[str]]:
    """chromosome -> file, and the chromosomes that are there only as parts of others."""
    files: dict[str, Path] = {}
    fused: dict[str, str] = {}
    others: list[str] = []
    for path in sorted(entry for entry in folder.iterdir() if entry.name.lower().endswith(SUFFIXES)):
        if path.is_dir():
            continue
        name = chromosome_of(stem_of(path), chrom_map)
        if name is None:
            others.append(path.name)
        elif _FUSED.fullmatch(name):
            fused[name] = path.name
        elif name in files and stem_of(files[name]) != stem_of(path):
            raise ValueError(
                f"{folder}: {files[name].name} and {path.name} are both chromosome {name}; keep one, or name one"
                " of them otherwise (null leaves it out) in domain.dataset.chrom_map"
            )
        elif name not in files or files[name].suffix == ".gz":  # chr1.fna was unpacked from chr1.fna.gz
            files[name] = path
    if others:
        log.info("%s: %d files are no chromosomes: %s", folder, len(others), ", ".join(others[:8]))
    if fused:
        log.warning(
            "%s: left out, as they hold parts of two human chromosomes, which may be in different splits: %s"
            " (chrom_map can give them a name)", folder, ", ".join(fused.values()),
        )  # fmt: skip
    return files, {part for name in fused for part in name.split("x")}
