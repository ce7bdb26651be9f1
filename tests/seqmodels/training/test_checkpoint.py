"""The checkpoint format: what is written is read back, nothing half-written is ever taken, nothing foreign is run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from seqmodels.training import checkpoint as cp
from seqmodels.training.checkpoint import CheckpointError, damage, find_checkpoint, step_folder, write_checkpoint

META = {"model": {"_target_": "x"}, "step": 3}


def weights(value: float = 1.0) -> dict[str, torch.Tensor]:
    table = torch.full((4, 2), value)
    return {"backbone.embedding.weight": table, "lm_head.weight": table, "norm.weight": torch.arange(3.0)}


def write(run: Path, step: int, value: float = 1.0) -> Path:
    folder = step_folder(run / "checkpoints", step)
    write_checkpoint(
        folder, weights=weights(value), meta={**META, "step": step}, training_state={"a": torch.ones(2), "b": [1, "x"]}
    )
    return folder


def test_what_is_written_is_read_back(tmp_path):
    folder = write(tmp_path, 3)
    assert damage(folder) is None
    read = cp.read_weights(folder)
    assert {name: tensor.tolist() for name, tensor in read.items()} == {n: t.tolist() for n, t in weights().items()}
    assert cp.read_meta(folder)["model"] == {"_target_": "x"}
    state = cp.read_training_state(folder)
    assert state["b"] == [1, "x"]
    assert torch.equal(state["a"], torch.ones(2))


def test_a_model_handed_on_without_its_training_state_is_read_but_not_resumed(tmp_path):
    folder = write(tmp_path, 3)
    (folder / cp.TRAINING_STATE).unlink()
    assert find_checkpoint(tmp_path) == find_checkpoint(folder) == folder
    with pytest.raises(CheckpointError, match=r"training_state.pt is missing, from which training would go on"):
        find_checkpoint(folder, resumable=True)
    with pytest.raises(CheckpointError, match="each is damaged"):
        find_checkpoint(tmp_path, resumable=True)


def test_an_exported_run_holds_one_checkpoint_to_read(tmp_path):
    run, to = tmp_path / "run", tmp_path / "handed on"
    write(run, 3, value=3.0), write(run, 5, value=5.0)
    cp.point(run / "checkpoints", "best", step_folder(run / "checkpoints", 3))
    (run / "config.yaml").write_text("seed: 1\n")
    cp.export_run(run, to)
    for which in ("last", "best"):
        folder = find_checkpoint(to, which)
        assert {name: t.tolist() for name, t in cp.read_weights(folder).items()} == {
            name: t.tolist() for name, t in weights(3.0).items()
        }
        assert cp.read_meta(folder) == cp.read_meta(find_checkpoint(run, "best"))
    assert (to / "config.yaml").read_text() == "seed: 1\n"
    assert not (folder / cp.TRAINING_STATE).exists()
    with pytest.raises(CheckpointError, match="training would go on"):
        find_checkpoint(folder, resumable=True)


def test_tied_weights_are_stored_once(tmp_path):
    folder = write(tmp_path, 3)
    assert cp.read_meta(folder)["shared_weights"] == {"lm_head.weight": "backbone.embedding.weight"}
    from safetensors import safe_open

    with safe_open(folder / cp.WEIGHTS, "pt") as file:
        assert sorted(file.keys()) == ["backbone.embedding.weight", "norm.weight"]


@pytest.mark.parametrize("name", [cp.WEIGHTS, cp.META, cp.TRAINING_STATE, cp.MANIFEST])
@pytest.mark.parametrize("cut", ["gone", "empty", "half", "one byte less", "one bit other"])
def test_any_damage_to_the_newest_gives_the_one_before_and_says_so(tmp_path, name, cut, caplog):
    older, newer = write(tmp_path, 3, value=3.0), write(tmp_path, 5, value=5.0)
    assert find_checkpoint(tmp_path, resumable=True) == newer
    damaged = newer / name
    data = damaged.read_bytes()
    if cut == "gone":
        damaged.unlink()
    elif cut == "one bit other":
        if name == cp.MANIFEST:
            data = data.replace(b'"bytes": ', b'"bytes": 1', 1)
        damaged.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:] if name != cp.MANIFEST else data)
    else:
        damaged.write_bytes(data[: {"empty": 0, "half": len(data) // 2, "one byte less": -3}[cut]])
    assert find_checkpoint(tmp_path, resumable=True) == older
    assert "taking the one before it" in caplog.text
    with pytest.raises(CheckpointError, match="cannot be used"):
        find_checkpoint(newer, resumable=True)


@pytest.mark.parametrize("breaks", ["save_file", "torch.save", "_fingerprint", "_flush", "rename"])
@pytest.mark.parametrize("calls", [1, 2])
def test_a_kill_at_any_moment_of_writing_leaves_what_was(tmp_path, monkeypatch, breaks, calls):
    """Each place that touches the disk fails in turn; the checkpoint before is found and the draft is not."""
    write(tmp_path, 3)
    monkeypatch.undo()
    owner, name = {"torch.save": (torch, "save"), "rename": (Path, "rename")}.get(breaks, (cp, breaks))
    real, count = getattr(owner, name), 0

    def killed(*args, **kwargs):
        nonlocal count
        count += 1
        if count == calls:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, killed)
    if calls == 1 or breaks in ("_fingerprint", "_flush"):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, 5)
        monkeypatch.undo()
        assert find_checkpoint(tmp_path).name == "step-00000003"
        write(tmp_path, 5)
    else:
        write(tmp_path, 5)
    cp.prune(tmp_path / "checkpoints")
    assert not list((tmp_path / "checkpoints").glob(".draft*"))
    assert find_checkpoint(tmp_path).name == "step-00000005"


def test_the_best_and_the_last_two_are_kept(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    for step in (1, 2, 3, 4):
        folder = write(tmp_path, step)
        if step == 1:
            cp.point(checkpoints, "best", folder)
        cp.point(checkpoints, "last", folder)
        cp.prune(checkpoints)
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "best",
        "last",
        "step-00000001",
        "step-00000003",
        "step-00000004",
    ]
    assert find_checkpoint(tmp_path, "best").name == "step-00000001"
    assert find_checkpoint(tmp_path, "last").name == "step-00000004"


def test_without_a_best_the_newest_is_it(tmp_path):
    write(tmp_path, 3)
    newest = write(tmp_path, 7)
    assert find_checkpoint(tmp_path, which="best") == newest


def test_messages_say_what_is_there(tmp_path):
    write(tmp_path / "mamba-dna", 1)
    with pytest.raises(CheckpointError, match=r"there is no run folder .*mamba-dan.*there are mamba-dna"):
        find_checkpoint(tmp_path / "mamba-dan")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        find_checkpoint(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="checkpoint='newest' must be last or best"):
        find_checkpoint(tmp_path / "mamba-dna", "newest")


def test_a_later_format_is_refused(tmp_path):
    folder = write(tmp_path, 1)
    meta = json.loads((folder / cp.META).read_text())
    (folder / cp.META).write_text(json.dumps({**meta, "format": cp.FORMAT_VERSION + 1}))
    with pytest.raises(CheckpointError, match="update seqmodels-mamba"):
        cp.read_meta(folder)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil-was-here"),))


def test_foreign_code_is_not_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path, 1)
    torch.save({"optimizer": Evil()}, folder / cp.TRAINING_STATE)
    with pytest.raises(pickle.UnpicklingError):
        cp.read_training_state(folder)
    assert not (tmp_path / "evil-was-here").exists()
