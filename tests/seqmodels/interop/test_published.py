"""Bad folders: each one clear message, and nothing written."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from seqmodels.cli import main
from seqmodels.interop.convert import convert
from seqmodels.interop.report import ConversionError

CONFIG = {"d_model": 16, "n_layer": 1, "vocab_size": 12, "ssm_cfg": {}}


@pytest.fixture
def weights():
    E, R = 32, 1
    shapes = {"in_proj.weight": (2 * E, 16), "conv1d.weight": (E, 1, 4), "conv1d.bias": (E,), "A_log": (E, 16)}
    shapes |= {"x_proj.weight": (R + 32, E), "dt_proj.weight": (E, R), "dt_proj.bias": (E,), "D": (E,)}
    shapes |= {"out_proj.weight": (16, E)}
    whole = {f"backbone.layers.0.mixer.{name}": shape for name, shape in shapes.items()}
    whole |= {"backbone.embedding.weight": (16, 16), "backbone.norm_f.weight": (16,)}
    whole |= {"backbone.layers.0.norm.weight": (16,)}
    return {name: torch.full(shape, 0.1) for name, shape in whole.items()}


@pytest.fixture
def source(write_published, weights):
    return write_published("source", CONFIG, weights)


class Code:
    """What a hostile pickle holds."""

    def __reduce__(self):
        return (os.mkdir, ("was-run",))


def refused(source, tmp_path, match, kind=ConversionError):
    with pytest.raises(kind, match=match):
        convert(source, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".draft")]


def test_it_converts_when_nothing_is_wrong(source, tmp_path):
    assert convert(source, tmp_path / "run").parameters > 0


def test_a_pickle_with_code_is_not_run(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Code()}, source / "pytorch_model.bin")
    refused(source, tmp_path, r"pytorch_model\.bin is not opened: .* could run foreign code")
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("keep", [0, 10, 200, -100])
def test_a_truncated_pickle(source, tmp_path, keep):
    path = source / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:keep])
    refused(source, tmp_path, r"pytorch_model\.bin is (damaged or truncated|not opened)")


@pytest.mark.parametrize("keep", [0, 10, 200, -100])
def test_a_truncated_safetensors(source, weights, tmp_path, keep):
    path = source / "model.safetensors"
    save_file(weights, path)
    path.write_bytes(path.read_bytes()[:keep])
    refused(source, tmp_path, r"model\.safetensors is damaged or truncated \([\d,]+ bytes\)")


def test_a_pointer_in_place_of_the_weights(source, tmp_path):
    (source / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(source, tmp_path, "Git LFS pointer, not the weights")


def test_not_tensors_by_name(source, tmp_path):
    torch.save([torch.zeros(2)], source / "pytorch_model.bin")
    refused(source, tmp_path, "does not hold tensors by name, but a list")


def test_files_that_are_missing(source, tmp_path):
    refused(tmp_path / "nowhere", tmp_path, "there is no such folder", FileNotFoundError)
    (source / "config.json").unlink()
    refused(source, tmp_path, r"holds no config\.json.*it holds pytorch_model\.bin", FileNotFoundError)
    (source / "pytorch_model.bin").unlink()
    (source / "config.json").write_text(json.dumps(CONFIG))
    refused(source, tmp_path, r"holds no weights: none of model\.safetensors", FileNotFoundError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds a list, not a JSON object"),
        ('{"width": 3}', "neither model_type .* nor d_model and n_layer .* it has width"),
        ('{"model_type": "mamba3"}', "model_type 'mamba3', which is not known here; the nearest is 'mamba"),
    ],
)
def test_a_config_that_says_nothing(source, tmp_path, text, message):
    (source / "config.json").write_text(text)
    refused(source, tmp_path, message)


def test_an_index_that_is_none(source, tmp_path):
    (source / "model.safetensors.index.json").write_text("{}")
    refused(source, tmp_path, "is not an index of shards")
    (source / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../elsewhere.safetensors"}}')
    refused(source, tmp_path, r"names 1 shards, of which \.\./elsewhere", FileNotFoundError)


def test_an_existing_target_is_left_alone(source, tmp_path):
    target = tmp_path / "run"
    target.mkdir()
    (target / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError, match=r"run' exists: name a new folder"):
        convert(source, target)
    assert (target / "mine.txt").read_text() == "x"


def test_a_write_that_fails_leaves_nothing(source, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("seqmodels.interop.convert.write_checkpoint", full)
    refused(source, tmp_path, "run' cannot be written: No space left on device", OSError)


def test_directions(source, write_run, tmp_path):
    run = write_run("ours")
    for words, match in (
        ({"source": source, "to": "hf"}, "holds published weights, which converts to seqmodels"),
        ({"source": run}, "is a run folder, which converts to hf or state-spaces"),
        ({"source": run, "to": "seqmodels"}, "converts to hf or state-spaces"),
        ({"source": run, "to": "onnx"}, "to=onnx"),
        ({"source": run, "to": "hf", "dtype": "int8"}, "dtype='int8': must be one of float32"),
        ({"source": source, "dtype": "float16"}, "run folders keep fp32"),
        ({"source": run, "to": "hf", "dataset": {"tokenizer": {}}}, "leave it out of an export"),
    ):
        with pytest.raises(ConversionError, match=match):
            convert(target=tmp_path / "out", **words)
    assert not (tmp_path / "out").exists()


def test_the_command(source, tmp_path, capsys):
    assert main(["convert", f"source={source}", f"target={tmp_path / 'run'}"]) == 0
    printed = capsys.readouterr().out
    assert "state-spaces layout, 1 x 16 Mamba, vocabulary 12 (16 rows)" in printed
    assert "missing     none" in printed
    assert "prompts and generated sequences are ids, as numbers" in printed
    saved = json.loads((tmp_path / "run" / "conversion.json").read_text())
    assert saved["unused"] == []
    assert len(saved["mapped"]) == 12

    made = tmp_path / "made.txt"
    assert main(["generate", f"run={tmp_path / 'run'}", "length=7", "prompt='3 4 5'", f"output={made}"]) == 0
    assert len(made.read_text().splitlines()[1].split()) == 7
    assert main(["generate", f"run={tmp_path / 'run'}", "length=7", "prompt=hello"]) == 1
    assert "this model came without a tokenizer, so a prompt is ids" in capsys.readouterr().err

    assert main(["convert", f"source={source}", f"target={tmp_path / 'run'}"]) == 1
    assert "exists: name a new folder" in capsys.readouterr().err


def test_converted_with_data_it_evaluates_generates_and_scores(write_run, tmp_path, capsys):
    exported, run = tmp_path / "published", tmp_path / "run"
    assert main(["convert", f"source={write_run('ours')}", f"target={exported}", "to=state-spaces"]) == 0
    words = ["domain=dna_windows", "domain.dataset.window_bases=64"]
    assert main(["convert", f"source={exported}", f"target={run}", *words]) == 0
    assert main(["evaluate", f"run={run}", "max_batches=2"]) == 0
    assert "bits_per_base" in capsys.readouterr().out
    assert main(["generate", f"run={run}", "length=20"]) == 0
    assert set((run / "results" / "generated-0.fa").read_text().split("\n")[1]) <= set("ACGT")

    (tmp_path / "a.fa").write_text(">one\n" + "ACGT" * 50 + "\n")
    header = "##fileformat=VCFv4.2\n##contig=<ID=one,length=200>\n"
    columns = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    (tmp_path / "a.vcf").write_text(f"{header}{columns}one\t101\t.\tA\tG\t.\t.\t.\n")
    scored = tmp_path / "scored.vcf"
    words = [f"vcf={tmp_path / 'a.vcf'}", f"fasta={tmp_path / 'a.fa'}", f"output={scored}"]
    assert main(["score", f"run={run}", *words, "scorer.window_bases=64"]) == 0
    assert scored.read_text().splitlines()[-1].split("\t")[7] != "."


def test_without_data_evaluate_says_so(source, tmp_path, capsys):
    convert(source, tmp_path / "run")
    assert main(["evaluate", f"run={tmp_path / 'run'}"]) == 1
    message = capsys.readouterr().err
    assert "names no data" in message
    assert "domain=" in message
