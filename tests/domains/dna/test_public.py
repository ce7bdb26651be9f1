"""The catalogue is well formed: addresses, places, and the configuration that reads them."""

from __future__ import annotations

from pathlib import PurePosixPath

from domains.dna.datasets.nucleotide_transformer import spellings
from domains.dna.public import ASSEMBLIES, TASKS, catalogue
from seqmodels.cli.compose import compose
from seqmodels.data.download import unpacked_path


def test_every_entry_goes_where_its_domain_looks():
    for name, data in catalogue().items():
        assert data.files, name
        paths = [file.path for file in data.files]
        assert len(set(paths)) == len(paths), name
        assert all(not PurePosixPath(path).is_absolute() and ".." not in path for path in paths)
        config = str(compose("train", data.use.split()))
        assert data.folder in config, f"{name}: {data.use} does not read {data.folder}"


def test_the_published_hg38_layout():
    data = catalogue()["hg38"]
    config = compose("train", data.use.split())["domain"]["dataset"]
    from pathlib import Path

    there = [str(unpacked_path(Path(data.folder) / file.path)) for file in data.files]
    assert there == [config["fasta"], config["splits"]["path"]]


def test_species_have_the_chromosomes_that_the_yaml_asks_for():
    from domains.dna.datasets.species_folders import expand

    asked = compose("train", ["domain=dna_species_folders"])["domain"]["dataset"]["chromosomes"]
    for species, (_, chromosomes) in ASSEMBLIES.items():
        assert expand(asked[species]) == [str(chromosome) for chromosome in chromosomes]


def test_tasks_are_found_by_other_spellings():
    assert spellings("promoter_non_tata")[1] == "promoter_no_tata"
    assert {"enhancers", "H3", "splice_sites_donors"} <= set(TASKS)
