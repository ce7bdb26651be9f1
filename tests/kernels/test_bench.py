"""The timing harness: rows, the CSV file, the command."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from seqkernels import bench

SHAPE = {"B": 1, "E": 4, "L": 8, "N": 2}


def test_rows_carry_every_column_and_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "results" / "scan.csv"
    for _ in range(2):
        rows = bench.run(
            "selective_scan", shapes=[SHAPE], implementation="cpu", device="cpu", csv_path=path, seconds=0.01
        )
        assert [row["mode"] for row in rows] == ["fwd", "fwd+bwd"]
    with path.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert len(written) == 4
    assert tuple(written[0]) == bench.COLUMNS
    row = written[1]
    assert {key: row[key] for key in ("op", "implementation", "B", "E", "L", "N", "dtype")} == {
        "op": "selective_scan", "implementation": "cpu", "B": "1", "E": "4", "L": "8", "N": "2", "dtype": "float32",
    }  # fmt: skip
    assert 0 < float(row["ms_p20"]) <= float(row["ms_p50"]) <= float(row["ms_p80"])
    rate = 32 / float(row["ms_p50"]) / 1e6
    assert float(row["gelems_per_s"]) == pytest.approx(rate, rel=1e-2)
    assert row["bound_share"] == ""  # the bound is a GPU's


def test_a_file_with_other_columns_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("op,speed\nscan,1\n")
    with pytest.raises(ValueError, match=r"other.csv: its columns differ from the new rows' in: .*speed"):
        bench.append_csv(path, [dict.fromkeys(bench.COLUMNS, "")])
    assert path.read_text() == "op,speed\nscan,1\n"


def test_columns_are_written_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("b,a\n1,2\n")
    bench.append_csv(path, [{"a": "3", "b": "4"}])
    assert path.read_text().split() == ["b,a", "1,2", "4,3"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "usage"),
        (["op=rms_norm", "sped=1"], 2, "usage"),
        (["op=norm"], 1, "op='norm' is unknown"),
        (["op=rms_norm", "mode=bwd", "device=cpu"], 1, "mode='bwd' is unknown; accepted: fwd, fwd+bwd"),
        (["op=rms_norm", "implementation=triton", "device=cpu"], 1, "cannot run here"),
    ],
)
def test_mistakes_are_answered_in_words(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(arguments) == code
    assert said in capsys.readouterr().err


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["op=mamba_step", "implementation=reference", "device=cpu", "mode=fwd", "seconds=0.01"]) == 0
    header, row = capsys.readouterr().out.strip().split("\n")
    assert header.split()[:4] == ["op", "implementation", "mode", "B"]
    assert row.split()[:4] == ["mamba_step", "reference", "fwd", "1"]
