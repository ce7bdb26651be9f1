"""Public DNA data by name: addresses, and the folders in which the data sets look for it.

The addresses are those of the publishers and of the papers' own instructions. `seqmodels prepare` lists them.
"""

from __future__ import annotations

from dataclasses import dataclass

from seqmodels.data.download import RemoteFile

_BASENJI = "https://storage.googleapis.com/basenji_barnyard2"
_UCSC_HG38 = "https://hgdownload.soe.ucsc.edu/goldenPath/hg38/bigZips"
_ZENODO_BENCHMARKS = "https://zenodo.org/records/16605299/files"
_NUCLEOTIDE_TRANSFORMER = (
    "https://huggingface.co/datasets/InstaDeepAI/nucleotide_transformer_downstream_tasks/resolve/main"
)
_NCBI = "https://ftp.ncbi.nlm.nih.gov/genomes/all"
BENCHMARKS = (
    "demo_coding_vs_intergenomic_seqs", "demo_human_or_worm", "drosophila_enhancers_stark",
    "dummy_mouse_enhancers_ensembl", "human_enhancers_cohn", "human_enhancers_ensembl", "human_ensembl_regulatory",
    "human_nontata_promoters", "human_ocr_ensembl",
)  # fmt: skip
TASKS = (
    "enhancers", "enhancers_types", "H3", "H3K4me1", "H3K4me2", "H3K4me3", "H3K9ac", "H3K14ac", "H3K36me3", "H3K79me3",
    "H4", "H4ac", "promoter_all", "promoter_no_tata", "promoter_tata", "splice_sites_all", "splice_sites_acceptors",
    "splice_sites_donors",
)  # fmt: skip
# Species of HyenaDNA's task -> the assembly's folder at NCBI, its chromosomes.
ASSEMBLIES = {
    "human": ("GCA/009/914/755/GCA_009914755.4_T2T-CHM13v2.0", [*range(1, 23), "X", "Y"]),
    "lemur": ("GCA/020/740/605/GCA_020740605.1_mLemCat1.pri", [*range(1, 28), "X", "Y"]),
    "mouse": ("GCA/921/998/355/GCA_921998355.2_A_J_v3", [*range(1, 20), "X"]),
    "pig": ("GCA/002/844/635/GCA_002844635.1_USMARCv1.0", [*range(1, 19), "X", "Y"]),
    "hippo": ("GCA/023/065/835/GCA_023065835.1_ASM2306583v1", [*range(1, 18), "X"]),
}


@dataclass(frozen=True)
class PublicData:
    """A public data set.

    Attributes:
        title: one line.
        folder: where its domain's YAML looks for it.
        files: what to download.
        use: words behind `seqmodels train` that read it.
    """

    title: str
    folder: str
    files: tuple[RemoteFile, ...]
    use: str


def catalogue() -> dict[str, PublicData]:
    """All of them by name."""
    found = {
        "hg38": PublicData(
            "human genome and intervals of Basenji, HyenaDNA, Caduceus and the Mamba paper (3 GB)",
            "data/hg38",
            (
                RemoteFile(f"{_BASENJI}/hg38.ml.fa.gz", "hg38.ml.fa.gz"),
                RemoteFile(f"{_BASENJI}/sequences_human.bed", "human-sequences.bed"),
            ),
            "domain=dna_hg38",
        ),
        "hg38_2bit": PublicData(
            "human genome of UCSC, soft-masked, as 2bit (0.8 GB)",
            "data/hg38",
            (RemoteFile(f"{_UCSC_HG38}/hg38.2bit", "hg38.2bit", checksums_url=f"{_UCSC_HG38}/md5sum.txt"),),
            "domain=dna_windows domain.dataset.fasta=data/hg38/hg38.2bit",
        ),
    }
    found |= {f"species_{name}": _species(name) for name in ASSEMBLIES}
    for name in BENCHMARKS:
        found[name] = PublicData(
            "GenomicBenchmarks, sequences",
            "data/genomic_benchmarks",
            (RemoteFile(f"{_ZENODO_BENCHMARKS}/{name}_v0.zip?download=1", f"{name}.zip"),),
            f"domain=dna_genomic_benchmark domain.dataset.folder=data/genomic_benchmarks/{name}",
        )
    for task in TASKS:
        splits = (f"{task}/{split}.parquet" for split in ("train", "test"))
        found[f"nt_{task}"] = PublicData(
            "Nucleotide Transformer task, first version",
            "data/nucleotide_transformer",
            tuple(RemoteFile(f"{_NUCLEOTIDE_TRANSFORMER}/{path}", path) for path in splits),
            f"domain=dna_nucleotide_transformer domain.dataset.task={task}",
        )
    return found


def _species(name: str) -> PublicData:
    assembly, chromosomes = ASSEMBLIES[name]
    root = f"{_NCBI}/{assembly}"
    structure = f"{root}/{assembly.rpartition('/')[2]}_assembly_structure/Primary_Assembly"
    files = tuple(
        RemoteFile(
            f"{structure}/assembled_chromosomes/FASTA/chr{chromosome}.fna.gz",
            f"{name}/chr{chromosome}.fna.gz",
            checksums_url=f"{root}/md5checksums.txt",
        )
        for chromosome in chromosomes
    )
    use = "domain=dna_species_folders domain.dataset.species=[human,lemur,mouse,pig,hippo]"
    return PublicData(f"chromosomes of {name} for species classification (HyenaDNA)", "data/species", files, use)
