"""Genomes and tables of sequences to samples. Every class is a `Corpus`: `split`, `report`, `tokenizer`, `class_names`.

| class | reads | conf/domain |
|---|---|---|
| `GenomeWindows` | windows of a genome, without labels, also HG38 + `human-sequences.bed` | `dna_windows`, `dna_hg38` |
| `SpeciesWindows` | windows labelled with their species, one source a species | `dna_species` |
| `SpeciesFolders` | the same from folders with a FASTA for each chromosome | `dna_species_folders` |
| `GenomicBenchmark` | a GenomicBenchmarks data set, intervals or sequences | `dna_genomic_benchmark` |
| `NucleotideTransformerTask` | a Nucleotide Transformer task, FASTA, Parquet or CSV | `dna_nucleotide_transformer` |
| `SequenceTable` | any CSV, TSV or Parquet with a sequence and a label; GUE | `dna_table`, `dna_gue` |

    corpus = GenomeWindows("genome.fa", window_bases=4096)
    corpus.split("train")[SampleKey(epoch=0, index=7)]
"""

from domains.dna.datasets.genome_windows import GenomeWindows
from domains.dna.datasets.genomic_benchmark import GenomicBenchmark
from domains.dna.datasets.nucleotide_transformer import NucleotideTransformerTask
from domains.dna.datasets.sequence_table import SequenceTable
from domains.dna.datasets.species_folders import SpeciesFolders
from domains.dna.datasets.species_windows import SpeciesWindows

__all__ = [
    "GenomeWindows",
    "GenomicBenchmark",
    "NucleotideTransformerTask",
    "SequenceTable",
    "SpeciesFolders",
    "SpeciesWindows",
]
