"""Scores against numbers computed by hand from a model whose log-likelihood is known in closed form."""

from __future__ import annotations

import csv
import gzip
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pysam
import pytest
import torch

from domains.dna.fasta import Genome
from domains.dna.tokenizer import DnaTokenizer, reverse_complement
from domains.dna.variants import STATUSES, Variant, VariantScorer, VariantWindows, check_vcf
from domains.dna.variants.scorer import shared_beginnings

HEADER = "##fileformat=VCFv4.2\n##contig=<ID=chr1>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
LOGP = {7: -1.0, 8: -2.0, 9: -3.0, 10: -5.0, 11: -100.0}  # of A, C, G, T, N wherever they stand


def letter_model(ids_BL: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """Every base has its own log-probability; padding would show up as NaN."""
    table = torch.full((12,), math.nan)
    for token, value in LOGP.items():
        table[token] = value
    return table[ids_BL]


def total(letters: str) -> float:
    return sum({"A": -1.0, "C": -2.0, "G": -3.0, "T": -5.0, "N": 0.0}[letter] for letter in letters)


def other_strand(letters: str) -> str:
    return bytes(reverse_complement(letters)).decode()


def write_vcf(path: Path, *rows: str, header: str = HEADER) -> str:
    path.write_text(header + "".join("\t".join(row.split(" ")) + "\n" for row in rows))
    return str(path)


def scored(path: Path) -> list[dict[str, str]]:
    rows = [line.split("\t") for line in path.read_text().splitlines() if not line.startswith("#")]
    return [dict(item.split("=") for item in row[7].split(";") if item.startswith("SM_")) for row in rows]


#                0         1         2         3
#                0123456789012345678901234567890123456789
REFERENCE = "ACGTTGCAACGGTTAACCTGACGTNNACGTAGCTAGCTAA"

# Position (0-based), REF, ALT, window -> the reference window and the alternative window.
WINDOWS = [
    (10, "G", "T", 8, "AACGGTTA", "AACTGTTA"),  # SNV: 3 bases left, 4 right
    (10, "GG", "TT", 8, "AACGGTTA", "AACTTTTA"),  # MNV
    (10, "G", "GAT", 8, "ACGGTTAA", "ACGATGTT"),  # insertion: fewer bases from the right
    (10, "GGTT", "G", 8, "ACGGTTAA", "ACGAACCT"),  # deletion: more bases from the right
    (0, "A", "C", 6, "ACGTTG", "CCGTTG"),  # left end
    (39, "A", "C", 6, "AGCTAA", "AGCTAC"),  # right end: the window moves inwards
    (36, "CTAA", "C", 8, "CTAGCTAA", "TAGCTAGC"),  # deletion at the right end: more bases from the left
    (39, "A", "AGG", 8, "CTAGCTAA", "AGCTAAGG"),  # insertion at the right end
    (5, "G", "A", 100, REFERENCE, REFERENCE[:5] + "A" + REFERENCE[6:]),  # longer than the sequence
    (5, "GCA", "G", 100, REFERENCE, REFERENCE[:6] + REFERENCE[8:]),
]


@pytest.mark.parametrize(("start", "ref", "alt", "window", "expected_ref", "expected_alt"), WINDOWS)
def test_windows_by_hand(write_fasta, start, ref, alt, window, expected_ref, expected_alt):
    windows = VariantWindows(Genome(str(write_fasta({"chr1": REFERENCE}))), DnaTokenizer(), window)
    variant = Variant.of(f"chr1\t{start + 1}\t.\t{ref}\t{alt}\t.\t.\t.")
    reference, (alternative,) = windows.of(variant)
    assert variant.statuses == ["ok"]
    assert reference is not None
    assert alternative is not None
    assert DnaTokenizer().decode(reference) == expected_ref
    assert DnaTokenizer().decode(alternative) == expected_alt


@pytest.mark.parametrize("both_strands", [False, True])
def test_scores_by_hand(tmp_path, write_fasta, both_strands: bool):
    fasta = str(write_fasta({"chr1": REFERENCE}))
    rows = [f"chr1 {start + 1} v {ref} {alt} . . ." for start, ref, alt, window, *_ in WINDOWS if window == 8]
    vcf = write_vcf(tmp_path / "in.vcf", *rows)
    scorer = VariantScorer(window_bases=8, both_strands=both_strands, batch_size=3)
    counts = scorer.run(letter_model, DnaTokenizer(), vcf, fasta, str(tmp_path / "out.vcf"))
    assert counts == {"records": 6, "alleles": 6, "ok": 6}
    expected = [(ref, alt) for *_, window, ref, alt in WINDOWS if window == 8]
    for info, (ref, alt) in zip(scored(tmp_path / "out.vcf"), expected):
        strands = [lambda letters: letters, other_strand][: 1 + both_strands]
        ref_total = np.mean([total(strand(ref)) for strand in strands])
        alt_total = np.mean([total(strand(alt)) for strand in strands])
        assert float(info["SM_REF_LL"]) == pytest.approx(ref_total)
        assert float(info["SM_LLR"]) == pytest.approx(alt_total - ref_total)
        assert info["SM_STATUS"] == "ok"


def test_n_does_not_count(tmp_path, write_fasta):
    fasta = str(write_fasta({"chr1": REFERENCE}))
    vcf = write_vcf(tmp_path / "in.vcf", "chr1 27 . A C . . .")
    VariantScorer(window_bases=8, both_strands=False).run(
        letter_model, DnaTokenizer(), vcf, fasta, str(tmp_path / "out.vcf")
    )
    (info,) = scored(tmp_path / "out.vcf")
    assert float(info["SM_REF_LL"]) == total("TNNACGTA")
    assert float(info["SM_LLR"]) == -1.0


ODD = [
    ("chr1 3 . G A,T,<DEL> . . .", "ok,ok,symbolic"),
    ("1 3 . G A . . .", "ok"),
    ("chr1 3 . g a . . .", "ok"),
    ("chr1 3 . C A . . .", "ref_mismatch"),
    ("chr1 41 . A C . . .", "past_end"),
    ("chr1 38 . TAAA T . . .", "past_end"),
    ("chr1 0 . N A . . .", "past_end"),
    ("chr9 3 . G A . . .", "no_such_contig"),
    ("chr1 3 . G * . . .", "symbolic"),
    ("chr1 3 . G G[chr2:5[ . . .", "symbolic"),
    ("chr1 3 . G N . . .", "not_acgt"),
    ("chr1 25 . N A . . .", "not_acgt"),  # REF is what the FASTA has there: no reason to score a letter against none
    ("chr1 3 . G R . . .", "not_acgt"),
    ("chr1 3 . G . . . .", "no_alt"),
    ("chr1 3 . G GACGTACGTA . . .", "too_long"),
    ("chr1 1 . ACGTTGCAAC A . . .", "too_long"),
]


def test_what_cannot_be_scored_is_kept_and_counted(tmp_path, write_fasta):
    fasta = str(write_fasta({"chr1": REFERENCE}))
    vcf = write_vcf(tmp_path / "in.vcf", *(row for row, _ in ODD))
    table = tmp_path / "out.tsv"
    scorer = VariantScorer(window_bases=8, batch_size=4)
    done = []
    counts = scorer.run(
        letter_model, DnaTokenizer(), vcf, fasta, str(tmp_path / "out.vcf"), table=str(table),
        progress=lambda *now: done.append(now),
    )  # fmt: skip
    found = scored(tmp_path / "out.vcf")
    assert [info["SM_STATUS"] for info in found] == [status for _, status in ODD]
    for info, (_, status) in zip(found, ODD):
        values = info.get("SM_LLR", ".").split(",")
        assert [value == "." for value in values] == [one != "ok" for one in status.split(",")]
    assert counts["records"] == len(ODD)
    assert counts["alleles"] == len(ODD) + 2 - 1
    assert sum(counts.get(status, 0) for status in STATUSES) == len(ODD) + 2
    assert counts["past_end"] == 3
    assert done[-1] == (len(ODD), len(ODD))
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["status"] for row in rows] == ",".join(status for _, status in ODD).split(",")
    assert all((row["score"] == "") == (row["status"] != "ok") for row in rows)
    assert rows[0]["alt"] == "A"
    assert float(rows[0]["score"]) == pytest.approx(float(found[0]["SM_LLR"].split(",")[0]))


def test_order_columns_and_old_fields_are_kept(tmp_path, write_fasta):
    """Samples, other INFO fields and the order of records stay; scores of an earlier run are replaced."""
    fasta = str(write_fasta({"chr1": REFERENCE}))
    header = (
        '##fileformat=VCFv4.2\n##contig=<ID=chr1,length=40>\n##INFO=<ID=AC,Number=A,Type=Integer,Description="x">\n'
        '##INFO=<ID=DB,Number=0,Type=Flag,Description="x">\n##FORMAT=<ID=GT,Number=1,Type=String,Description="g">\n'
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts1\n"
    )
    rows = ["chr1 9 late A C 50 PASS AC=3;DB GT 0/1", "chr1 3 early G A . q10 . GT 1/1"]
    vcf = write_vcf(tmp_path / "in.vcf", *rows, header=header)
    first, second = tmp_path / "one.vcf", tmp_path / "two.vcf.gz"
    VariantScorer(window_bases=8).run(letter_model, DnaTokenizer(), vcf, fasta, str(first))
    VariantScorer(window_bases=8).run(letter_model, DnaTokenizer(), str(first), fasta, str(second))
    assert gzip.decompress(second.read_bytes()).decode() == first.read_text()
    assert first.read_text().splitlines()[:5] == header.splitlines()[:5]
    with pysam.VariantFile(str(second)) as file:
        assert [file.header.info[key].number for key in ("SM_LLR", "SM_REF_LL", "SM_STATUS")] == ["A", 1, "."]
        records = list(file)
    assert [(r.id, r.pos, r.info["SM_STATUS"]) for r in records] == [("late", 9, ("ok",)), ("early", 3, ("ok",))]
    assert records[0].info["AC"] == (3,)
    assert records[0].info["DB"] is True
    assert records[1].samples["s1"]["GT"] == (1, 1)
    assert list(records[1].filter) == ["q10"]


def test_parquet_table(tmp_path, write_fasta):
    parquet = pytest.importorskip("pyarrow.parquet")
    fasta = str(write_fasta({"chr1": REFERENCE}))
    vcf = write_vcf(tmp_path / "in.vcf", "chr1 3 . G A . . .", "chr1 3 . C A . . .")
    VariantScorer(window_bases=8).run(
        letter_model, DnaTokenizer(), vcf, fasta, str(tmp_path / "o.vcf"), table=str(tmp_path / "o.parquet")
    )
    columns = parquet.read_table(tmp_path / "o.parquet").to_pydict()
    assert columns["pos"] == [3, 3]
    assert columns["status"] == ["ok", "ref_mismatch"]
    assert columns["score"][1] is None
    assert columns["score"][0] == pytest.approx(-0.5)  # G>A: +2 forward; C>T on the other strand: -3; the mean


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no header line"),
        ("chr1\t3\t.\tG\tA\t.\t.\t.\n", "line 1: a record before the header line"),
        (HEADER + "chr1\t3\t.\tG\tA\n", "line 4: 5 tab-separated columns, the header line has 8"),
        (HEADER + "chr1 3 . G A . . .\n", "line 4: 1 tab-separated columns"),
        (HEADER + "chr1\tthree\t.\tG\tA\t.\t.\t.\n", "line 4: POS 'three'"),
        (HEADER + f"chr1\t{'9' * 30}\t.\tG\tA\t.\t.\t.\n", "line 4: POS '999"),
        (HEADER + "chr1\t²\t.\tG\tA\t.\t.\t.\n", "line 4: POS '²'"),
        (HEADER + "chr1\t3\t.\tG\tA\t.\t.\t.\n" + HEADER, "line 5: a header line after #CHROM; to join"),
        (HEADER + "# a remark\n", "line 4: a header line after #CHROM"),
        ("ACGT\n", "record before the header line"),
    ],
)
def test_broken_vcf_is_refused_and_nothing_written(tmp_path, write_fasta, text: str, message: str):
    path = tmp_path / "x.vcf"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        VariantScorer().run(
            letter_model, DnaTokenizer(), str(path), str(write_fasta({"chr1": REFERENCE})), str(tmp_path / "o.vcf")
        )
    assert str(path) in str(caught.value)
    assert not (tmp_path / "o.vcf").exists()


def test_cut_off_gzip_and_wrong_names(tmp_path):
    path = tmp_path / "x.vcf.gz"
    path.write_bytes(gzip.compress((HEADER + "chr1\t3\t.\tG\tA\t.\t.\t.\n" * 500).encode())[:-20])
    with pytest.raises(ValueError, match="cut off"):
        check_vcf(path)
    with pytest.raises(FileNotFoundError, match=r"none\.vcf"):
        check_vcf(tmp_path / "none.vcf")
    vcf = write_vcf(tmp_path / "in.vcf")
    for output, table, message in (
        (vcf, None, "is the input"), ("o.txt", None, "must end in .vcf"), ("o.vcf", "o.xls", "must end in .tsv"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            VariantScorer().run(letter_model, DnaTokenizer(), vcf, "example:vertebrates", output, table=table)
    with pytest.raises(ValueError, match="window_bases=1"):
        VariantScorer(window_bases=1)


ONE = "chr1\t3\tr\u00e9s\tG\tA\t.\t.\tDB\n"


@pytest.mark.parametrize("name", ["x.vcf", "x.vcf.gz"])
@pytest.mark.parametrize("packed", [False, True])
def test_what_a_vcf_is_says_the_file_and_not_its_name(tmp_path, write_fasta, name, packed):
    """gzip named .vcf, text named .vcf.gz, a byte-order mark, and an ID that is no UTF-8, which comes out as it was."""
    text = b"\xef\xbb\xbf" + (HEADER + ONE).encode("latin-1")
    (tmp_path / name).write_bytes(gzip.compress(text) if packed else text)
    for table in ("t.tsv", "t.parquet"):
        VariantScorer(window_bases=8).run(
            letter_model, DnaTokenizer(), str(tmp_path / name), str(write_fasta({"chr1": REFERENCE})),
            str(tmp_path / "o.vcf"), table=str(tmp_path / table),
        )  # fmt: skip
    record = (tmp_path / "o.vcf").read_bytes().splitlines()[-1]
    assert record.startswith(b"chr1\t3\tr\xe9s\tG\tA\t.\t.\tDB;SM_LLR=-0.5;")
    assert b"\tr\xe9s\t" in (tmp_path / "t.tsv").read_bytes()
    parquet = pytest.importorskip("pyarrow.parquet")
    assert parquet.read_table(tmp_path / "t.parquet").to_pydict()["id"] == ["r\ufffds"]


def test_a_damaged_gzip_is_named(tmp_path):
    records = "".join(f"chr1\t{n}\t.\tG\tA\t.\t.\t.\n" for n in range(3000))
    packed = bytearray(gzip.compress((HEADER + records).encode()))
    packed[10] = 0xFF  # no kind of block that there is: zlib.error, which is no OSError as gzip's own are
    (tmp_path / "x.vcf.gz").write_bytes(packed)
    with pytest.raises(ValueError, match=r"x\.vcf\.gz: damaged or cut off"):
        check_vcf(tmp_path / "x.vcf.gz")


def test_uracil_of_the_reference_is_t(write_fasta):
    windows = VariantWindows(Genome(str(write_fasta({"chr1": REFERENCE.replace("T", "u")}))), DnaTokenizer(), 8)
    variant = Variant.of("chr1\t4\t.\tT\tA\t.\t.\t.")
    windows.of(variant)
    assert variant.statuses == ["ok"]


def test_outputs_that_cannot_be_written_are_found_before_the_work(tmp_path, write_fasta):
    """Hours of scoring, and only then a message, is what happened before."""

    def never(ids_BL: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        raise AssertionError("scored")

    fasta, vcf = str(write_fasta({"chr1": REFERENCE})), write_vcf(tmp_path / "in.vcf", "chr1 3 . G A . . .")
    (tmp_path / "folder.vcf").mkdir()
    (tmp_path / "folder.tsv").mkdir()
    (tmp_path / "file").write_text("")
    for output, table, message in (
        ("folder.vcf", None, "output=.*folder.vcf' is a folder"),
        ("file/o.vcf", None, "output=.* cannot be written: (File exists|Not a directory)"),
        ("o.vcf", "folder.tsv", "table=.*folder.tsv' is a folder"),
        ("o.vcf", "file/t.tsv", "table=.* cannot be written"),
        ("o.vcf", "/proc/nothing/t.tsv", "table=.* cannot be written"),
    ):
        table = table and str(tmp_path / table)
        with pytest.raises(ValueError, match=message):
            VariantScorer().run(never, DnaTokenizer(), vcf, fasta, str(tmp_path / output), table=table)
    with pytest.raises(ValueError, match="is a folder, not a VCF"):
        VariantScorer().run(never, DnaTokenizer(), str(tmp_path), fasta, str(tmp_path / "o.vcf"))


def test_going_on_with_a_changed_input_is_refused(tmp_path, write_fasta):
    """Same paths, other contents: the VCF, the FASTA, the model's weights; and other settings."""

    def kill(done: int, total: int) -> None:
        raise KeyboardInterrupt

    fasta = str(write_fasta({"chr1": REFERENCE}))
    rows = [f"chr1 {place + 1} . {REFERENCE[place]} T . . ." for place in (0, 1, 2, 5, 6, 7, 8, 9, 10, 11)]
    vcf = write_vcf(tmp_path / "in.vcf", *rows)
    out = str(tmp_path / "o.vcf")

    def go(model: str = "a", progress=None, **settings) -> None:
        scorer = VariantScorer(**({"window_bases": 8, "batch_size": 1} | settings))
        scorer.run(letter_model, DnaTokenizer(), vcf, fasta, out, progress=progress, model_identity=[model])

    with pytest.raises(KeyboardInterrupt):
        go(progress=kill)
    for change, named in (
        ({"model": "b"}, "model"), ({"both_strands": False}, "both_strands"), ({"precision": "bf16"}, "precision"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"changed: {named}\)"):
            go(**change)
    write_fasta({"chr1": REFERENCE.replace("A", "G", 1)})
    with pytest.raises(ValueError, match=r"changed: fasta\)"):
        go()
    write_vcf(tmp_path / "in.vcf", *rows[:-1])
    with pytest.raises(ValueError, match=r"changed: fasta, vcf\)"):
        go()


def test_a_model_trained_on_at_the_same_path_is_another(tmp_path):
    """What tells models apart: their weights and tokenizer, not only the folder."""
    from types import SimpleNamespace

    from domains.dna.resume import identity_of_model

    def loaded(scale: float, iupac: str = "n") -> SimpleNamespace:
        model = torch.nn.Linear(3, 2)
        torch.nn.init.constant_(model.weight, scale)
        torch.nn.init.zeros_(model.bias)
        return SimpleNamespace(model=model.to(torch.bfloat16), tokenizer=DnaTokenizer(iupac=iupac), folder=tmp_path)

    assert identity_of_model(loaded(1.0)) == identity_of_model(loaded(1.0))
    assert len({tuple(identity_of_model(one)) for one in (loaded(1.0), loaded(2.0), loaded(1.0, "error"))}) == 3


KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[1:3]
from domains.dna.tokenizer import DnaTokenizer
from domains.dna.variants import VariantScorer
from test_variants import letter_model
vcf, fasta, output, table = sys.argv[3:]
def kill(done, total):
    if done >= 16:
        open(output.replace("o.vcf", ".o.vcf.99.part"), "w").write("half")  # as a kill while the output was written
        os.kill(os.getpid(), signal.SIGKILL)
VariantScorer(window_bases=8, batch_size=1).run(
    letter_model, DnaTokenizer(), vcf, fasta, output, table=table, progress=kill
)
"""


def test_kill_9_and_again_gives_the_bytes_of_a_run_left_alone(tmp_path, write_fasta):
    fasta = str(write_fasta({"chr1": REFERENCE}))
    rows = [f"chr1 {place + 1} v{place} {REFERENCE[place]} {alt} . . ." for place in range(20) for alt in "AT"]
    vcf = write_vcf(tmp_path / "in.vcf", *rows)
    out, table, whole = (str(tmp_path / name) for name in ("o.vcf", "o.tsv", "whole.vcf"))
    folders = [str(Path(__file__).resolve().parents[3]), str(Path(__file__).parent)]
    killed = subprocess.run([sys.executable, "-c", KILLED, *folders, vcf, fasta, out, table], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not Path(out).exists()
    scorer = VariantScorer(window_bases=8, batch_size=1)
    scorer.run(letter_model, DnaTokenizer(), vcf, fasta, out, table=table)
    scorer.run(letter_model, DnaTokenizer(), vcf, fasta, whole)
    assert Path(out).read_bytes() == Path(whole).read_bytes()
    assert {path.name for path in tmp_path.glob(".*")} == set(), "nothing half done is left"


def test_two_runs_to_one_output_at_once_are_refused(tmp_path, write_fasta):
    fasta = str(write_fasta({"chr1": REFERENCE}))
    vcf = write_vcf(tmp_path / "in.vcf", "chr1 3 . G A . . .")

    def run(progress=None) -> None:
        VariantScorer(window_bases=8).run(
            letter_model, DnaTokenizer(), vcf, fasta, str(tmp_path / "o.vcf"), progress=progress
        )

    with pytest.raises(ValueError, match="another process is writing this output"):
        run(progress=lambda done, total: run())
    run()


@pytest.mark.parametrize("damage", ["", "{", '{"identity": {}}'])
def test_a_damaged_note_of_a_killed_run_is_said(tmp_path, write_fasta, damage):
    fasta = str(write_fasta({"chr1": REFERENCE}))
    vcf = write_vcf(tmp_path / "in.vcf", "chr1 3 . G A . . .")
    (tmp_path / ".o.vcf.resume").mkdir()
    (tmp_path / ".o.vcf.resume/position.json").write_text(damage)
    with pytest.raises(ValueError, match=r"o\.vcf\.resume holds a stopped run that is damaged .*delete it"):
        VariantScorer(window_bases=8).run(letter_model, DnaTokenizer(), vcf, fasta, str(tmp_path / "o.vcf"))
    assert (tmp_path / ".o.vcf.resume/position.json").exists(), "what is refused is left as it is"


def test_long_windows_go_in_smaller_batches(tmp_path, write_fasta, monkeypatch):
    """A batch that is right for 1,024 bases would not fit into memory at 65,536; scores do not change."""
    fasta = str(write_fasta({"chr1": REFERENCE}))
    rows = [f"chr1 {place + 1} . {REFERENCE[place]} T . . ." for place in (0, 1, 2, 6, 7)]
    vcf = write_vcf(tmp_path / "in.vcf", *rows)
    sizes: list[int] = []

    def watched(ids_BL: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        sizes.append(ids_BL.numel())
        return letter_model(ids_BL, lengths_B)

    def scores() -> str:
        VariantScorer(window_bases=8).run(watched, DnaTokenizer(), vcf, fasta, str(tmp_path / "o.vcf"))
        return (tmp_path / "o.vcf").read_text()

    whole = scores()
    assert max(sizes) > 24
    sizes.clear()
    monkeypatch.setattr("domains.dna.variants.scorer.PASS_BASES", 24)
    assert scores() == whole
    assert max(sizes) == 24


def test_failure_in_the_middle_leaves_no_output(tmp_path, write_fasta):
    def failing(ids_BL: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")

    vcf = write_vcf(tmp_path / "in.vcf", "chr1 3 . G A . . .")
    fasta = str(write_fasta({"chr1": REFERENCE}))
    with pytest.raises(RuntimeError, match="out of memory"):
        VariantScorer().run(
            failing, DnaTokenizer(), vcf, fasta, str(tmp_path / "o.vcf"), table=str(tmp_path / "o.tsv")
        )
    assert {entry.name for entry in tmp_path.iterdir() if entry.name.startswith(("o.", ".o"))} == set()


def test_scores_of_a_real_model(tmp_path, write_fasta):
    """From VCF to scored VCF with an untrained Mamba: each score is the difference of two sums of log-probabilities."""
    from seqmodels.backbones.stack import Stack
    from seqmodels.heads.next_token import NextTokenHead
    from seqmodels.inference import LoadedModel, token_log_likelihood
    from seqmodels.layers.mamba import Mamba
    from seqmodels.model import SequenceModel

    torch.manual_seed(0)
    backbone = Stack(vocab_size=12, d_model=16, n_layers=2, layer=Mamba)
    model = SequenceModel(backbone, NextTokenHead(d_model=16, vocab_size=12)).eval()
    loaded = LoadedModel(model, DnaTokenizer(), (), {}, tmp_path)
    vcf = write_vcf(tmp_path / "in.vcf", "chr1 11 . G T . . .", "chr1 11 . GGTT G . . .")
    fasta = str(write_fasta({"chr1": REFERENCE}))
    VariantScorer(window_bases=8, both_strands=False)(loaded, vcf, fasta, str(tmp_path / "o.vcf"))

    def log_likelihood(letters: str) -> float:
        ids_BL = torch.from_numpy(DnaTokenizer().encode(letters)).long()[None]
        return float(token_log_likelihood(model, ids_BL, start_id=2)[0].double().sum())

    found = [float(info["SM_LLR"]) for info in scored(tmp_path / "o.vcf")]
    snv = log_likelihood("AACTGTTA") - log_likelihood("AACGGTTA")
    deletion = log_likelihood("ACGAACCT") - log_likelihood("ACGGTTAA")
    assert found == pytest.approx([snv, deletion], abs=1e-4)
    assert all(abs(score) > 1e-3 for score in found)


def test_what_alleles_have_in_common_is_read_once(tmp_path, write_fasta, monkeypatch):
    """Scores of alleles that share a beginning are those of each window by itself, for fewer symbols read."""
    from functools import partial

    from seqmodels.backbones.stack import Stack
    from seqmodels.heads.next_token import NextTokenHead
    from seqmodels.inference import LoadedModel
    from seqmodels.layers.mamba import Mamba
    from seqmodels.model import SequenceModel

    torch.manual_seed(0)
    backbone = Stack(vocab_size=12, d_model=16, n_layers=2, layer=partial(Mamba, d_state=4))
    model = SequenceModel(backbone, NextTokenHead(d_model=16, vocab_size=12)).eval()
    loaded = LoadedModel(model, DnaTokenizer(), (), {}, tmp_path)
    fasta = str(write_fasta({"chr1": REFERENCE, "short": "ACGTACG", "tiny": "AC"}))
    rows = ["chr1 11 . G T,A,GAT . . .", "chr1 13 . TTA T . . .", "chr1 1 . A C . . .", "chr1 40 . A C,AGG . . .",
            "chr1 20 . G T . . .", "short 4 . T G . . .", "tiny 1 . A T . . .", "tiny 2 . C CT . . ."]  # fmt: skip
    vcf = write_vcf(tmp_path / "in.vcf", *rows)
    read: list[int] = []
    backbone.register_forward_pre_hook(lambda _, args: read.append(args[0].numel()))

    def scores(batch: int) -> list[float]:
        read.clear()
        VariantScorer(window_bases=16, batch_size=batch)(loaded, vcf, fasta, str(tmp_path / "o.vcf"))
        return [float(value) for info in scored(tmp_path / "o.vcf") for value in info["SM_LLR"].split(",")]

    alone = scores(1)
    assert all(abs(score) > 1e-3 for score in alone)
    for batch in (2, 3, 7, 100):
        assert scores(batch) == pytest.approx(alone, abs=1e-4)
    snvs = [f"chr1 {place + 1} . {REFERENCE[place]} {'A' if REFERENCE[place] != 'A' else 'T'} . . ."
            for place in range(10, 20)]  # fmt: skip
    write_vcf(tmp_path / "in.vcf", *snvs)
    alone = scores(1)
    assert sum(read) == 2 * 20 * 16, "two strands of ten pairs of windows"
    assert scores(4) == pytest.approx(alone, abs=1e-4)
    assert sum(read) == (10 * 7 + 20 * 9) + (10 * 8 + 20 * 8), "seven bases before the variant, eight behind it"


def test_rows_that_begin_alike():
    ids_BL = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 9, 6, 7, 8], [1, 2, 3, 9, 5, 6, 7, 8],
                           [1, 9, 3, 4, 5, 6, 7, 8], [9, 2, 3, 4, 5, 6, 7, 8], [9, 2, 3, 4, 5, 6, 7, 8]])  # fmt: skip
    whole = torch.full((6,), 8)
    assert shared_beginnings(ids_BL, whole) == ([0, 0, 0, 3, 4, 4], 3)
    assert shared_beginnings(ids_BL, torch.tensor([8, 8, 8, 8, 8, 3])) == ([0, 0, 0, 3, 4, 4], 2)
    assert shared_beginnings(ids_BL[3:5], whole[:2]) == ([0, 1], 0)
    assert shared_beginnings(ids_BL[:1], whole[:1]) == ([0], 0)


def test_records_of_an_empty_vcf_and_crlf(tmp_path, write_fasta):
    fasta = str(write_fasta({"chr1": REFERENCE}))
    out = tmp_path / "o.vcf"
    counts = VariantScorer().run(letter_model, DnaTokenizer(), write_vcf(tmp_path / "in.vcf"), fasta, str(out))
    assert counts == {"records": 0, "alleles": 0}
    assert out.read_text().splitlines()[-1] == HEADER.splitlines()[-1]
    crlf = tmp_path / "crlf.vcf"
    crlf.write_bytes((HEADER + "chr1\t3\t.\tG\tA\t.\t.\tDB\n").replace("\n", "\r\n").encode())
    VariantScorer(window_bases=8).run(letter_model, DnaTokenizer(), str(crlf), fasta, str(out))
    assert out.read_text().splitlines()[-1].endswith("DB;SM_LLR=-0.5;SM_REF_LL=-22;SM_STATUS=ok")


@pytest.mark.parametrize("stopped_after", [1, 2, 3])
def test_a_run_that_was_killed_goes_on_without_losing_or_repeating(tmp_path, write_fasta, stopped_after):
    fasta = str(write_fasta({"chr1": REFERENCE}))
    rows = [f"chr1 {place + 1} v{place} {REFERENCE[place]} {alt} . . ." for place in range(20) for alt in "AT"]
    vcf = write_vcf(tmp_path / "in.vcf", *rows)
    scorer = VariantScorer(window_bases=8, batch_size=1)
    asked: list[int] = []

    def counting_model(ids_BL: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        asked.append(len(ids_BL))
        return letter_model(ids_BL, lengths_B)

    def outputs(name: str) -> dict[str, str]:
        return {"output": str(tmp_path / f"{name}.vcf"), "table": str(tmp_path / f"{name}.tsv")}

    whole = scorer.run(counting_model, DnaTokenizer(), vcf, fasta, **outputs("whole"))
    asked_for_all = len(asked)
    asked.clear()
    calls = []

    def kill(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == stopped_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scorer.run(counting_model, DnaTokenizer(), vcf, fasta, progress=kill, **outputs("cut"))
    assert not (tmp_path / "cut.vcf").exists()
    with open(tmp_path / ".cut.vcf.resume/records.vcf", "a") as file:
        file.write("chr1\thalf a rec")  # what a kill in the middle of a write leaves
    with pytest.raises(ValueError, match="other settings or inputs \\(changed: window_bases\\)"):
        VariantScorer(window_bases=9, batch_size=1).run(letter_model, DnaTokenizer(), vcf, fasta, **outputs("cut"))
    again = scorer.run(counting_model, DnaTokenizer(), vcf, fasta, **outputs("cut"))
    assert again == whole
    assert len(asked) == asked_for_all, "nothing was scored twice"
    for suffix in ("vcf", "tsv"):
        assert (tmp_path / f"cut.{suffix}").read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    assert not (tmp_path / ".cut.vcf.resume").exists()
