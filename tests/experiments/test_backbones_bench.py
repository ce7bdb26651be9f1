"""The comparison of backbones in tiny sizes: sizes are equal, cells are whole, and what cannot run says so."""

from __future__ import annotations

import csv
import gzip
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["mamba", "mamba2", "transformer", "hybrid", "s4d", "mamba_s4", "mamba_complex", "hyena", "dilated_conv",
         "lstm", "unet", "caduceus_ph", "caduceus_ps"]  # fmt: skip


@pytest.fixture
def bench(experiment):
    return experiment("backbones.bench")


@pytest.fixture
def zoo(experiment):
    return experiment("backbones.zoo")


@pytest.fixture
def setting(bench):
    options = bench.arguments(["--smoke"])
    return bench.Setting(bench.Bases.load(options.fasta, options.region, "cpu"), "cpu", options)


def test_the_list_of_names_is_the_zoo(zoo):
    assert list(zoo.ZOO) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_backbone_has_seven_million_parameters(zoo, name):
    with torch.device("meta"):
        model = zoo.build_model(name, 12)
    assert zoo.parameters(model) == pytest.approx(zoo.PARAMETERS, rel=zoo.TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_a_backbone_gives_every_row(bench, zoo, setting, name):
    rows = list(bench.run_job(name, setting))
    assert [row["status"] for row in rows] == ["ok"] * len(rows), rows
    kinds = [row["what"] for row in rows]
    causal = zoo.ZOO[name].objective == "next"
    assert kinds == ["train", "train", *(["decode", "decode"] if causal else []), "quality"]
    for row in rows:
        assert row.keys() <= set(bench.COLUMNS)
    quality = rows[-1]
    assert 1 < quality["bits_per_base"] < 4
    assert quality["tokens"] == 512


def test_bytes_of_state_grow_for_attention_alone(bench, setting):
    def sizes(name):
        return [row["state_bytes"] for row in bench.decode_rows(name, setting)]

    assert sizes("mamba")[0] == sizes("mamba")[1]
    short, long = sizes("transformer")
    assert long == 2 * short  # contexts 32 and 64


def test_a_stretched_cache_is_as_large_as_the_context(bench, setting, monkeypatch):
    monkeypatch.setattr(bench, "PREFILL_CHUNK", 16)
    model = setting.model("transformer", 64).eval()
    with torch.no_grad():
        state, _, note = bench.state_after(model, 50, setting)
        whole = model.backbone(setting.bases.train_S[None, :50].long())[1]
    assert "repeated" in note
    assert [part.k_BTGP.shape for part in state if hasattr(part, "k_BTGP")] == [
        part.k_BTGP.shape for part in whole if hasattr(part, "k_BTGP")
    ]


def test_targets_of_both_objectives(bench):
    from domains.dna.tokenizer import BOS, MASK, N
    from seqmodels.data.record import IGNORE_INDEX

    ids = torch.tensor([[7, 8, N, 9, 10] * 200])
    batch = bench.batch_of(ids, "next", torch.Generator().manual_seed(0))
    assert batch.input_ids_BL[0, :4].tolist() == [BOS, 7, 8, N]
    assert batch.target_ids_BL[0, :5].tolist() == [7, 8, IGNORE_INDEX, 9, 10]
    batch = bench.batch_of(ids, "masked", torch.Generator().manual_seed(0))
    asked = batch.target_ids_BL != IGNORE_INDEX
    assert (batch.input_ids_BL[asked] == MASK).all()
    assert (batch.input_ids_BL[~asked] == ids[~asked]).all()
    assert (batch.target_ids_BL[asked] == ids[asked]).all()
    assert not (asked & (ids == N)).any()
    assert asked.float().mean().item() == pytest.approx(0.15 * 0.8, abs=0.03)


def test_regions_of_a_fasta(bench, tmp_path):
    plain, packed = tmp_path / "a.fa", tmp_path / "a.fa.gz"
    plain.write_bytes(b">one first\nACGT\nAC\n>20 second\nTTTT\nGGGG\nCC\n")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for file in (plain, packed):
        assert bench.read_region(file, None) == b"ACGTAC"
        assert bench.read_region(file, "20:3-6") == b"TGG"
        assert bench.read_region(file, "20") == b"TTTTGGGGCC"
    with pytest.raises(ValueError, match="no record '21'"):
        bench.read_region(plain, "21:0-1")
    with pytest.raises(ValueError, match="has 10 bases"):
        bench.read_region(plain, "20:5-11")


def test_training_and_validation_parts_do_not_touch(bench, setting):
    whole = bench.read_region(setting.options.fasta, None)
    assert len(setting.bases.train_S) == int(0.8 * len(whole))
    assert len(setting.bases.valid_S) == len(whole) - int(0.9 * len(whole))
    assert setting.bases.valid_windows(4, 100).shape == (4, 100)
    assert (setting.bases.valid_windows(4, 100)[-1] == setting.bases.valid_S[-100:]).all()


def test_what_takes_too_long_is_left_out_and_says_so(bench, setting):
    assert bench._seconds_a_token([], 64) == 0
    assert bench._seconds_a_token([(10, 1.0)], 64) == 1.0
    assert bench._seconds_a_token([(10, 1.0), (20, 2.0)], 40) == pytest.approx(4.0)
    assert bench._seconds_a_token([(10, 2.0), (20, 1.0)], 40) == 1.0
    options = setting.options
    options.cell_seconds = options.train_seconds = 1e-9
    rows = [*bench.train_rows("mamba", setting), *bench.quality_rows("mamba", setting)]
    assert [row["status"] for row in rows] == ["ok", "skipped", "skipped"]
    assert "would take" in rows[1]["note"]


def test_out_of_memory_is_tried_again_with_recomputed_blocks(bench, setting, monkeypatch):
    plain = bench._time_steps

    def short_of_memory(name, B, L, setting, recompute, expected_s):
        if L == 64 or not recompute:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return plain(name, B, L, setting, recompute, expected_s)

    monkeypatch.setattr(bench, "_time_steps", short_of_memory)
    first, second = bench.train_rows("mamba", setting)
    assert (first["status"], first["recomputed_blocks"]) == ("ok", "yes")
    assert (second["status"], second["recomputed_blocks"]) == ("out of memory", "yes")


def test_a_failing_cell_costs_itself_alone(bench, setting, monkeypatch):
    plain = bench._time_steps

    def broken(name, B, L, setting, recompute, expected_s):
        if L == 32:
            raise RuntimeError("cuFFT error: CUFFT_INTERNAL_ERROR")
        return plain(name, B, L, setting, recompute, expected_s)

    monkeypatch.setattr(bench, "_time_steps", broken)
    first, second = bench.train_rows("mamba", setting)
    assert (first["status"], first["recomputed_blocks"]) == ("failed", "no"), "recomputing is for want of memory"
    assert second["status"] == "ok"


def test_an_error_that_spoils_the_gpu_ends_the_process(bench, setting, monkeypatch):
    def broken(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(bench, "_time_steps", broken)
    with pytest.raises(RuntimeError, match="illegal memory"):
        list(bench.run_job("mamba", setting))


def test_a_failing_part_and_a_missing_layer_become_rows(bench, zoo, setting, monkeypatch):
    def fail(name, setting):
        raise RuntimeError("the kernel says no")
        yield {}

    monkeypatch.setitem(bench.PARTS, "train", fail)
    rows = list(bench.run_job("mamba", setting))
    assert (rows[0]["what"], rows[0]["status"]) == ("train", "failed")
    assert "the kernel says no" in rows[0]["note"]
    assert rows[-1]["what"] == "quality"
    nowhere = {"_target_": "seqmodels.layers.gone.Gone", "_partial_": True}
    gone = replace(zoo.ZOO["mamba"], backbone=zoo.stack(nowhere, 2))
    monkeypatch.setitem(zoo.ZOO, "mamba", gone)
    (row,) = bench.run_job("mamba", setting)
    assert (row["what"], row["status"]) == ("build", "missing")


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_cells_on_a_gpu(bench, zoo, name):
    """Tiny sizes; what matters is that kernels run, memory is counted and a step fits into a CUDA graph."""
    options = bench.arguments(["--smoke"])
    rows = list(bench.run_job(name, bench.Setting(bench.Bases.load(options.fasta, None, "cuda"), "cuda", options)))
    assert [row["status"] for row in rows] == ["ok"] * len(rows), rows
    assert all(row["peak_gib"] >= 0 for row in rows if row["what"] == "train")
    assert all(row["cuda_graph"] == "yes" for row in rows if row["what"] == "decode")


@pytest.mark.slow
def test_the_command_writes_rows_and_the_report(tmp_path):
    file = tmp_path / "rows.csv"
    script = ROOT / "experiments/backbones/bench.py"
    command = [sys.executable, script, "--smoke", "--only", "mamba,transformer", "--csv", file, "--commit", "abc"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert {row["backbone"] for row in rows} == {"mamba", "transformer"}
    assert all(row["commit"] == "abc" for row in rows)
    report = [sys.executable, ROOT / "experiments/backbones/report.py", file, tmp_path / "backbones.png"]
    printed = subprocess.run(report, capture_output=True, text=True, timeout=100, check=True).stdout
    assert "| mamba |" in printed
    assert (tmp_path / "backbones.png").read_bytes().startswith(b"\x89PNG")
