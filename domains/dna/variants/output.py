"""Scored records to files: kept while the job runs, written whole when it is done."""

from __future__ import annotations

import csv
import glob
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from domains.dna.fasta_scan import written_whole
from domains.dna.resume import ResumeFolder, prepare_target, remove_leftovers
from domains.dna.variants.vcf import TABLE_COLUMNS, Row, Variant


class Journal:
    """The records scored so far, on disk: lines of the VCF and rows of the table, and how many of them count.

    Lines are added first and counted second, so what a kill leaves half written lies behind the last count and is cut
    off when the next run begins.
    """

    def __init__(self, output: Path, identity: dict[str, Any], *, table: str | None = None):
        self._targets = [output, *([Path(table)] if table else [])]
        self._resume = ResumeFolder(output.with_name(f".{output.name}.resume"), identity)
        self._paths = [self._resume.folder / name for name in ("records.vcf", "rows.jsonl")]
        self.counts: Counter[str] = Counter(records=0, alleles=0)

    def __enter__(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(self._resume)
            found = self._resume.load()
            for target in self._targets:
                remove_leftovers(target.parent, glob.escape(target.name))
            sizes = [0, 0]
            if found:
                sizes, self.counts = found[0]["bytes"], Counter(found[0]["counts"])
            self._files = [stack.enter_context(open(path, "ab")) for path in self._paths]
            for file, size in zip(self._files, sizes):
                file.truncate(size)
                file.seek(size)
            self._open = stack.pop_all()

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def skip(self, lines: Iterator[str]) -> None:
        """Passes over the records that an earlier run has scored."""
        for _ in itertools.islice((line for line in lines if line.strip()), self.counts["records"]):
            pass

    def add(self, variants: list[Variant]) -> None:
        rows = [json.dumps([variant_row for variant in variants for variant_row in variant.rows()])]
        for file, text in zip(self._files, ([variant.line() for variant in variants], rows)):
            file.write(encoded(text))
            file.flush()
        self.counts["records"] += len(variants)
        for variant in variants:
            self.counts["alleles"] += len(variant.alts)
            self.counts.update(variant.statuses or ["no_alt"])
        sizes = [file.tell() for file in self._files]
        self._resume.save({"step": self.counts["records"], "counts": dict(self.counts), "bytes": sizes})

    def copy_lines(self, out: Any) -> None:
        if not self.counts["records"]:
            return
        with open(self._paths[0], "rb") as file:
            while piece := file.read(1 << 20):
                out.write(piece)

    def rows(self) -> Iterator[list[Row]]:
        if not self.counts["records"]:
            return
        with open(self._paths[1], encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                yield [tuple(row) for row in json.loads(line)]

    def done(self) -> None:
        self._resume.done()


def check_outputs(vcf: str, output: str, table: str | None) -> None:
    """Refuses, before any work, what could not be written at its end."""
    if not output.endswith((".vcf", ".vcf.gz")):
        raise ValueError(f"output={output!r} must end in .vcf or .vcf.gz")
    if table and not table.endswith((".tsv", ".csv", ".parquet")):
        raise ValueError(f"table={table!r} must end in .tsv, .csv or .parquet")
    for name, path in (("output", output), ("table", table)):
        if path and Path(path).resolve() == Path(vcf).resolve():
            raise ValueError(f"{path} is the input; name another output")
        if path:
            prepare_target(path, name=name)
    if table and table.endswith(".parquet"):
        _pyarrow(table)


def encoded(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("utf-8", errors="surrogateescape")


@contextmanager
def vcf_writer(path: str) -> Iterator[Any]:
    """A binary file that becomes `path` when all went well; bgzip for .gz."""
    with written_whole(Path(path)) as partial:
        if path.endswith(".gz"):
            import pysam

            with pysam.BGZFile(str(partial), "wb", None) as file:
                yield file
        else:
            with open(partial, "wb") as file:
                yield file


@contextmanager
def table_writer(path: str | None) -> Iterator[Callable[[list[Row]], None]]:
    """A function that adds rows of `TABLE_COLUMNS` to a table, which becomes `path` when all went well."""
    if path is None:
        yield lambda rows: None
        return
    with written_whole(Path(path)) as partial, ExitStack() as stack:
        if path.endswith(".parquet"):
            yield _parquet_rows(stack, partial, path)
        else:
            file = stack.enter_context(open(partial, "w", newline="", encoding="utf-8", errors="surrogateescape"))
            writer = csv.writer(file, delimiter="," if path.endswith(".csv") else "\t", lineterminator="\n")
            writer.writerow(TABLE_COLUMNS)
            yield lambda rows: writer.writerows([[_cell(value) for value in row] for row in rows])


def _pyarrow(path: str) -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError(f"table={path!r} needs pyarrow (pip install pyarrow); or name it .tsv") from None
    return pa, pq


def _parquet_rows(stack: ExitStack, partial: Path, path: str) -> Callable[[list[Row]], None]:
    pa, pq = _pyarrow(path)
    numbers = {"score", "ref_log_likelihood", "alt_log_likelihood"}
    kinds = {name: pa.float64() if name in numbers else pa.string() for name in TABLE_COLUMNS} | {"pos": pa.int64()}
    schema = pa.schema(list(kinds.items()))
    writer = stack.enter_context(pq.ParquetWriter(str(partial), schema))

    def add(rows: list[Row]) -> None:
        columns = [[_utf8(value) for value in column] for column in zip(*rows)]
        arrays = [pa.array(column, type=kind, from_pandas=True) for column, kind in zip(columns, kinds.values())]
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))

    return add


def _utf8(value: Any) -> Any:
    """Bytes of the VCF that are no UTF-8, which Parquet does not hold, as U+FFFD."""
    return value.encode(errors="surrogateescape").decode(errors="replace") if isinstance(value, str) else value


def _cell(value: Any) -> Any:
    return ("" if math.isnan(value) else repr(value)) if isinstance(value, float) else value
