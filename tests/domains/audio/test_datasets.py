from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from domains.audio.augment import WaveformAugment
from domains.audio.datasets import AudioSegments, level_dbfs
from domains.audio.store import SampleStore
from domains.audio.tokenizer import LinearTokenizer, MuLawTokenizer
from domains.audio.wav import AudioFileError, read_info, read_samples
from seqmodels.data.record import Corpus, Record, SampleKey, SequenceDataset

TOKENIZER = MuLawTokenizer(sample_rate_hz=8000)


@pytest.fixture
def folder(noise: Callable[..., np.ndarray], put: Callable[..., str], tmp_path: Path) -> Path:
    """Ten clips of 1000 to 1900 samples, two of them at 16 kHz stereo."""
    for i in range(10):
        if i in (3, 7):
            put(f"clip{i}.flac", noise(2 * (1000 + 100 * i), channels=2, seed=i), 16000)
        else:
            put(f"clip{i}.wav", noise(1000 + 100 * i, seed=i))
    return tmp_path


def _corpus(folder: Path | str, **options) -> AudioSegments:
    return AudioSegments(folder, tokenizer=TOKENIZER, **({"segment_samples": 300} | options))


def _all_records(corpus: AudioSegments, epoch: int = 0) -> dict[str, list[Record]]:
    splits = {name: corpus.split(name) for name in ("train", "valid", "test")}
    return {name: [split[SampleKey(epoch, i)] for i in range(len(split))] for name, split in splits.items()}


def _equal(a: Record, b: Record) -> bool:
    return (a.id, a.label) == (b.id, b.label) and np.array_equal(a.ids, b.ids)


def test_it_is_a_corpus(folder: Path):
    corpus = _corpus(folder)
    assert isinstance(corpus, Corpus)
    assert isinstance(corpus.split("train"), SequenceDataset)
    assert (corpus.class_names, corpus.tokenizer) == ((), TOKENIZER)


def test_the_grid_covers_every_sample_once(folder: Path):
    corpus = _corpus(folder, crop="grid")
    records = [record for split in _all_records(corpus).values() for record in split]
    covered: dict[str, list[tuple[int, int]]] = {}
    for record in records:
        name, span = record.id.rsplit(":", 1)
        start, stop = map(int, span.split("-"))
        assert len(record.ids) == stop - start <= 300
        expected = read_samples(folder / name, start, stop - start, sample_rate_hz=8000)
        assert np.abs(record.ids.astype(int) - TOKENIZER.encode(expected)).max() <= 1  # resampling: a last bit
        covered.setdefault(name, []).append((start, stop))
    for name, spans in covered.items():
        borders = sorted(spans)
        assert [start for start, _ in borders] == [0, *(stop for _, stop in borders[:-1])]
        assert borders[-1][1] == read_info(folder / name).samples_at(8000)
    assert len(covered) == 10


def test_the_report_counts_what_was_read(folder: Path):
    report = _corpus(folder).report()
    expected = {
        "layout": "folder", "files": 10, "samples": 14500, "seconds": 1.812, "sample_rate_hz": 8000,
        "source_rates_hz": "8000 (8 files), 16000 (2 files)", "resampled_files": 2, "mixed_down_files": 2,
        "clipped_files": 0, "skipped_files": 0, "silent_segments": 0, "dropped_short_segments": 0,
        "duplicates_across_splits": 0, "segment_samples": 300,
    }  # fmt: skip
    assert {key: report[key] for key in expected} == expected
    assert sum(float(report[f"{s}_seconds"]) for s in ("train", "valid", "test")) == pytest.approx(1.8125, abs=2e-3)
    assert sum(int(report[f"{s}_segments"]) for s in ("train", "valid", "test")) == sum(
        -(-(1000 + 100 * i) // 300) for i in range(10)
    )


def test_random_crops_depend_on_seed_epoch_and_index_alone(folder: Path):
    train = _corpus(folder).split("train")
    same = _corpus(folder).split("train")
    for index in range(len(train)):
        assert _equal(train[SampleKey(3, index)], same[SampleKey(3, index)])
    first, second = train[SampleKey(0, 0)], train[SampleKey(1, 0)]
    assert first.id != second.id
    assert first.id.split(":")[0] == second.id.split(":")[0]
    assert _equal(train[0], first)
    starts = {int(train[SampleKey(e, 0)].id.rsplit(":", 1)[1].split("-")[0]) for e in range(400)}
    length = read_info(folder / first.id.split(":")[0]).samples_at(8000)
    assert min(starts) < 30
    assert length - 300 - 30 < max(starts) <= length - 300
    assert all(len(train[SampleKey(0, i)].ids) == 300 for i in range(len(train)))
    other = AudioSegments(folder, tokenizer=TOKENIZER, segment_samples=300, seed=1, split_by="time").split("train")
    base = AudioSegments(folder, tokenizer=TOKENIZER, segment_samples=300, seed=0, split_by="time").split("train")
    assert any(not _equal(other[i], base[i]) for i in range(len(base)))


def test_held_out_splits_are_the_grid_in_every_epoch(folder: Path):
    valid = _corpus(folder, augment=WaveformAugment(gain_db=6.0)).split("valid")
    assert all(_equal(valid[SampleKey(0, i)], valid[SampleKey(9, i)]) for i in range(len(valid)))
    assert valid[0].id.endswith(":0-300")


def test_crops_never_leave_their_stretch_of_time(folder: Path):
    corpus = _corpus(folder, split_by="time", segment_samples=100)
    for name, low, high in (("train", 0.0, 0.8), ("valid", 0.8, 0.9), ("test", 0.9, 1.0)):
        split = corpus.split(name)
        for epoch in range(5):
            for i in range(len(split)):
                file, span = split[SampleKey(epoch, i)].id.rsplit(":", 1)
                start, stop = map(int, span.split("-"))
                length = read_info(folder / file).samples_at(8000)
                assert round(low * length) <= start < stop <= round(high * length)


def test_clips_shorter_than_a_segment_keep_their_length(folder: Path):
    corpus = _corpus(folder, segment_samples=1500)
    lengths = {len(record.ids) for record in _all_records(corpus)["train"]}
    assert min(lengths) < 1500
    assert max(lengths) == 1500
    assert corpus.report()["short_segments"] == 9  # five clips and four ends; one clip fits exactly


def test_short_ends_can_be_dropped_and_are_counted(folder: Path):
    corpus = _corpus(folder, min_segment_samples=300, crop="grid")
    assert {len(r.ids) for split in _all_records(corpus).values() for r in split} == {300}
    assert corpus.report()["dropped_short_segments"] == sum((1000 + 100 * i) % 300 > 0 for i in range(10))


def test_seconds_that_are_no_whole_number_of_samples_are_rounded_and_said(folder: Path, caplog):
    corpus = AudioSegments(folder, tokenizer=TOKENIZER, segment_seconds=0.03333)
    assert corpus.segment_samples == 267
    assert "266.640 samples at 8000 Hz: took 267" in str(corpus.report()["segment_rounded"])
    assert "took 267" in caplog.text
    assert AudioSegments(folder, tokenizer=TOKENIZER, segment_seconds=0.1).segment_samples == 800
    assert "segment_rounded" not in AudioSegments(folder, tokenizer=TOKENIZER, segment_seconds=0.1).report()


def test_labels_become_sorted_classes(put, noise, tmp_path: Path):
    for i, label in enumerate(["two", "ten", "one"] * 5):
        put(f"{label}/{i}.wav", noise(200, seed=i))
    corpus = _corpus(tmp_path, label="folder")
    assert corpus.class_names == ("one", "ten", "two")
    for records in _all_records(corpus).values():
        for record in records:
            assert corpus.class_names[record.label or 0] == record.id.split("/")[0]
    assert _corpus(tmp_path).split("train")[0].label is None


def test_region_ids_are_the_whole_clips_of_a_split(folder: Path):
    corpus = _corpus(folder)
    lengths = [len(ids) for split in ("train", "valid", "test") for ids in corpus.region_ids(split)]
    assert sorted(lengths) == [1000 + 100 * i for i in range(10)]
    with pytest.raises(ValueError, match="no split 'dev'"):
        list(corpus.region_ids("dev"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "center"}, "random, grid"),
        ({"silence": "trim"}, "keep, drop"),
        ({"segment_samples": 0}, "whole number from 1"),
        ({"segment_samples": 2.5}, "whole number from 1"),
        ({"segment_samples": None, "segment_seconds": 0.0}, "less than one sample"),
        ({"min_segment_samples": 301}, "1 to 300"),
        ({"seed": -1}, "seed=-1"),
        ({"split_by": "chance"}, "split_by='chance'"),
    ],
)
def test_arguments_out_of_range(folder: Path, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        _corpus(folder, **options)


def test_empty_and_unknown_splits_say_what_there_is(folder: Path):
    corpus = _corpus(folder, test_fraction=0.0)
    with pytest.raises(ValueError, match=r"'test' is empty .*with segments: train, valid"):
        corpus.split("test")
    with pytest.raises(ValueError, match="no split 'dev'; there are: train, valid, test"):
        corpus.split("dev")
    with pytest.raises(IndexError):
        corpus.split("train")[len(corpus.split("train"))]


# --------------------------------------------------------------------------------------------- silence and levels


def test_level_dbfs():
    assert level_dbfs(np.ones(10, np.float32)) == 0
    assert level_dbfs(np.full(10, 0.001, np.float32)) == pytest.approx(-60, abs=1e-3)
    assert level_dbfs(np.zeros(10, np.float32)) == level_dbfs(np.zeros(0, np.float32)) == -np.inf


@pytest.fixture
def half_silent(put: Callable[..., str], tmp_path: Path) -> Path:
    samples = np.zeros(3000, np.float32)
    samples[1500:] = 0.25 * np.sin(np.arange(1500))
    put("a.wav", samples)
    return tmp_path


@pytest.mark.parametrize("memory_mib", [256, 0])
def test_silent_segments_are_dropped_from_the_grid(half_silent: Path, memory_mib: int):
    options = {"segment_samples": 500, "valid_fraction": 0.0, "test_fraction": 0.0, "crop": "grid"}
    options["memory_mib"] = memory_mib
    kept = _corpus(half_silent, **options)
    assert kept.report()["silent_segments"] == (3 if memory_mib else "not counted: files are read as needed")
    assert len(kept.split("train")) == 6
    dropped = _corpus(half_silent, silence="drop", **options)
    assert [r.id for r in map(dropped.split("train").__getitem__, range(3))] == [
        f"a.wav:{s}-{s + 500}" for s in (1500, 2000, 2500)
    ]
    assert (dropped.report()["silent_segments"], dropped.report()["dropped_silent_segments"]) == (3, 3)


def test_silent_random_crops_are_drawn_again(half_silent: Path):
    options = {"segment_samples": 500, "valid_fraction": 0.0, "test_fraction": 0.0}

    def silent(corpus: AudioSegments) -> int:
        train = corpus.split("train")
        return sum(level_dbfs(train.waveform(SampleKey(epoch, 0))) < -60 for epoch in range(200))

    assert 60 < silent(_corpus(half_silent, **options)) < 100  # starts 0..1000 of 0..2500: two fifths
    assert silent(_corpus(half_silent, silence="drop", **options)) <= 2


def test_clipped_files_are_counted(put, tmp_path: Path):
    for i in range(10):
        samples = np.full(100, 0.1 + i / 100, np.float32)
        samples[: 10 * (i < 2)] = 1.0
        put(f"{i}.wav", samples)
    report = _corpus(tmp_path).report()
    assert (report["clipped_files"], report["clipped_samples"]) == (2, 20)


# ------------------------------------------------------------------------------------------- memory, cache, files


def test_memory_cache_and_files_give_the_same_records(folder: Path, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    ways = [{}, {"memory_mib": 0}, {"cache_folder": cache}, {"cache_folder": cache}]
    corpora = [_corpus(folder, silence="drop", **way) for way in ways]
    expected = _all_records(corpora[0], epoch=2)
    for corpus in corpora[1:]:
        for split, records in _all_records(corpus, epoch=2).items():
            assert [r.id for r in records] == [r.id for r in expected[split]]
            for a, b in zip(records, expected[split]):
                assert np.abs(a.ids.astype(int) - b.ids.astype(int)).max() <= 1
                if "flac" not in a.id:  # not resampled: the same bits
                    assert np.array_equal(a.ids, b.ids)
    ways_taken = [str(corpus.report()["decoded"]).split()[0] for corpus in corpora]
    assert ways_taken == ["decoded", "read", "decoded", "decoded"]


def test_the_bound_of_memory_decides(put, noise):
    fits, too_large = (read_info(put(f"{n}.wav", noise(n))) for n in (2**18, 2**18 + 1))  # 4 bytes a sample
    assert SampleStore([fits], sample_rate_hz=8000, memory_mib=1).mode == "memory"
    assert SampleStore([too_large], sample_rate_hz=8000, memory_mib=1).mode == "files"


def test_the_cache_is_made_once_and_again_when_a_file_changes(folder: Path, put, noise, tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    first = _corpus(folder, cache_folder=cache).report()
    made = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(made) == 20  # samples and account of each file
    again = _corpus(folder, cache_folder=cache).report()
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == made
    assert first == again
    put("clip0.wav", noise(1000, seed=99))
    changed = _corpus(folder, cache_folder=cache, crop="grid", split_by="time")
    assert len(list(cache.iterdir())) == 22
    expected = TOKENIZER.encode(read_samples(folder / "clip0.wav", 0, 300))
    assert np.array_equal(changed.split("train")[0].ids, expected)


def test_the_cache_sees_a_change_that_the_hash_of_samples_of_a_file_does_not(put, noise, tmp_path, tmp_path_factory):
    cache, samples = tmp_path_factory.mktemp("cache"), noise(60_000)
    os.utime(put("a.wav", samples), ns=(0, 10**9))
    _corpus(tmp_path, cache_folder=cache)
    samples[10_000] = 0.9  # between the places that are hashed
    os.utime(put("a.wav", samples), ns=(0, 2 * 10**9))
    train = _corpus(tmp_path, cache_folder=cache, crop="grid").split("train")
    assert np.array_equal(train[33].ids, TOKENIZER.encode(samples[9900:10_200]))


def test_a_cache_that_was_killed_half_way_is_not_used(folder: Path, tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    original = os.replace

    def killed(source, target):
        if str(target).endswith(".npy"):
            raise KeyboardInterrupt
        original(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        _corpus(folder, cache_folder=cache)
    monkeypatch.undo()
    assert not list(cache.glob("*.npy"))
    assert len(_corpus(folder, cache_folder=cache).split("train")) > 0


def _read_all(corpus: AudioSegments, answers) -> None:
    split = corpus.split("train")
    answers.put([(split[SampleKey(1, i)].id, bytes(split[SampleKey(1, i)].ids)) for i in range(len(split))])


@pytest.mark.parametrize("way", ["memory", "files", "mapped"])
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_what_the_parent_reads(folder: Path, tmp_path_factory, way: str, start: str):
    if start == "spawn" and way != "mapped":
        corpus = _corpus(folder, memory_mib=256 if way == "memory" else 0)  # a spawned worker gets it pickled
        again = pickle.loads(pickle.dumps(corpus))
        assert all(_equal(corpus.split("train")[i], again.split("train")[i]) for i in range(5))
        return
    options = {"memory": {}, "files": {"memory_mib": 0}, "mapped": {"cache_folder": tmp_path_factory.mktemp("c")}}
    corpus = _corpus(folder, **options[way])
    split = corpus.split("train")
    expected = [(split[SampleKey(1, i)].id, bytes(split[SampleKey(1, i)].ids)) for i in range(len(split))]
    if start == "spawn":
        again = pickle.loads(pickle.dumps(corpus)).split("train")
        assert [(again[SampleKey(1, i)].id, bytes(again[SampleKey(1, i)].ids)) for i in range(len(split))] == expected
        return
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    workers = [context.Process(target=_read_all, args=(corpus, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert found == [expected, expected]


# ------------------------------------------------------------------------------------------------------- bad files


def _damage_inside(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 1500] = bytes(1500)
    path.write_bytes(data)


@pytest.mark.parametrize("cached", [False, True])
def test_a_damaged_file_stops_or_is_left_out_and_counted(put, noise, tmp_path, tmp_path_factory, cached: bool):
    for i in range(10):
        put(f"{i}.flac", noise(6000, seed=i))
    _damage_inside(tmp_path / "4.flac")
    options = {"cache_folder": tmp_path_factory.mktemp("c")} if cached else {}
    with pytest.raises(AudioFileError, match=r"4\.flac"):
        _corpus(tmp_path, **options)
    corpus = _corpus(tmp_path, on_bad_file="skip", **options)
    assert (corpus.report()["files"], corpus.report()["skipped_files"]) == (9, 1)
    assert corpus.report()["samples"] == 9 * 6000
    assert not any("4.flac" in record.id for records in _all_records(corpus).values() for record in records)


def test_a_file_that_changes_during_a_run_is_named(folder: Path):
    corpus = _corpus(folder, memory_mib=0, crop="grid", split_by="time")
    train = corpus.split("train")
    assert train[0].id == "clip0.wav:0-300"
    os.utime(folder / "clip0.wav", ns=(0, 0))
    with pytest.raises(AudioFileError, match=r"clip0\.wav: changed since the run began"):
        train[0]


def test_copies_across_official_splits_are_warned_about(put, noise, tmp_path: Path, caplog):
    for take in (0, 7, 12):
        put(f"1_kim_{take}.wav", noise(100, seed=1))
    corpus = _corpus(tmp_path)
    assert corpus.report()["duplicates_across_splits"] == 2
    assert "copies of training files" in caplog.text


def test_files_that_cannot_seek_are_warned_about_when_read_as_needed(put, noise, tmp_path: Path, caplog):
    put("a.mp3", noise(8000))
    train = _corpus(tmp_path, memory_mib=0).split("train")
    assert "decode them once with cache_folder" in caplog.text
    expected = _corpus(tmp_path).split("train")
    assert all(_equal(train[i], expected[i]) for i in range(len(train)))


def test_headerless_files_by_a_mapping(tmp_path: Path, noise):
    (tmp_path / "a.raw").write_bytes((noise(4000) * 32768).astype("<i2").tobytes())
    corpus = _corpus(tmp_path, raw_format={"sample_rate_hz": 8000})
    assert corpus.report()["samples"] == 4000


# ------------------------------------------------------------------------------------------------ packaged examples


def test_the_packaged_digits_from_file_to_record():
    corpus = AudioSegments("example:digits", tokenizer=TOKENIZER, segment_seconds=0.5)
    report = corpus.report()
    assert (report["files"], report["samples"], report["resampled_files"]) == (50, 255813, 0)
    assert corpus.class_names == tuple("0123456789")
    record = corpus.split("test")[0]
    assert record.id == "0_en_US_f_Allison.wav:0-4000"
    assert record.label == 0
    assert (record.ids.dtype, len(record.ids)) == (np.uint8, 4000)
    assert len(set(record.ids)) > 100


def test_the_packaged_loops_are_mixed_resampled_and_cut_by_time():
    tokenizer = LinearTokenizer(sample_rate_hz=8000, bits=10)
    corpus = AudioSegments("example:loops", tokenizer=tokenizer, segment_samples=4096)
    report = corpus.report()
    assert (report["files"], report["resampled_files"], report["mixed_down_files"]) == (3, 3, 3)
    assert report["samples"] == sum(clip.info.samples_at(8000) for clip in corpus.clips)
    assert corpus.split("train")[0].ids.dtype == np.uint16


@pytest.mark.parametrize("memory_mib", [256, 0])
def test_stretches_of_one_file_are_clips_of_their_own(put, noise, tmp_path: Path, memory_mib: int):
    path, rows = put("hour.wav", noise(8000)), []
    for number, split in enumerate(["train", "train", "valid", "test"]):
        place = f'"start": {number / 4}, "duration": 0.25'
        rows.append(f'{{"path": "hour.wav", {place}, "split": "{split}", "label": {number}}}')
    (tmp_path / "m.jsonl").write_text("\n".join(rows))
    corpus = _corpus(None, manifest=tmp_path / "m.jsonl", segment_samples=2000, memory_mib=memory_mib)
    assert (corpus.report()["files"], corpus.report()["stretches"]) == (1, 4)
    assert corpus.report()["duplicates_across_splits"] == 0
    record = corpus.split("valid")[0]
    assert (record.id, record.label) == ("hour.wav:4000-6000", 2)
    assert np.array_equal(record.ids, TOKENIZER.encode(read_samples(path, 4000, 2000)))
    for epoch in range(5):
        for index in range(2):
            start, stop = corpus.split("train")[SampleKey(epoch, index)].id.split(":")[1].split("-")
            assert 2000 * index <= int(start) < int(stop) <= 2000 * (index + 1)


def test_stretches_of_one_file_stay_together_when_files_are_split(put, noise, tmp_path: Path):
    rows = []
    for number in range(12):
        put(f"{number}.wav", noise(1000, seed=number))
        rows += [f'{{"path": "{number}.wav", "start": {start}, "duration": 0.05}}' for start in (0, 0.0625)]
    (tmp_path / "m.jsonl").write_text("\n".join(rows))
    splits = _all_records(_corpus(None, manifest=tmp_path / "m.jsonl", split_by="file"))
    files = [{record.id.split(":")[0] for record in records} for records in splits.values()]
    assert all(files)
    assert sum(map(len, files)) == len(set.union(*files))


def test_a_length_warm_up_cuts_training_shorter(folder: Path):
    corpus = _corpus(folder, crop="grid")
    assert corpus.sample_length == 300
    short = corpus.train_at(100)
    assert len(short) > len(corpus.split("train"))
    assert max(len(short[i].ids) for i in range(len(short))) == 100
    assert len(corpus.train_at(300)) == len(corpus.split("train"))
    least = _corpus(folder, crop="grid", min_segment_samples=300).train_at(100)
    assert {len(least[i].ids) for i in range(len(least))} == {100}
    quiet = _corpus(folder, silence="drop", silence_dbfs=-1.0, split_by="file", crop="grid", min_segment_samples=1)
    with pytest.raises(ValueError, match="no training segment of 100 samples"):
        quiet.train_at(100)


def test_a_full_disk_while_the_cache_is_made_is_said_and_leaves_nothing(folder: Path, tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")

    def full(*_args, **_how):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np.lib.format, "write_array_header_2_0", full)
    with pytest.raises(OSError, match=r"cache_folder=.*No space left on device; it needs \d+ MiB for the whole corpus"):
        _corpus(folder, cache_folder=cache)
    assert not list(cache.iterdir())


def test_the_beginning_of_every_clip_and_silence_behind_short_ones(folder: Path):
    """crop=start: one segment a clip in every split; fill: a known number of start ids behind the clip's own."""
    own = _all_records(_corpus(folder, segment_samples=1500, crop="start"))
    assert sum(map(len, own.values())) == 10
    lengths = sorted(len(record.ids) for records in own.values() for record in records)
    assert lengths == [1000, 1100, 1200, 1300, 1400, 1500, 1500, 1500, 1500, 1500]
    assert _corpus(folder, segment_samples=1500, crop="start").report()["dropped_seconds_behind_the_start"] == 0.125
    for fill, splits in {"train": {"train"}, "all": {"train", "valid", "test"}}.items():
        made = _all_records(_corpus(folder, segment_samples=1500, crop="start", fill=fill))
        for split in own:
            for record, bare in zip(made[split], own[split], strict=True):
                length = len(bare.ids)
                np.testing.assert_array_equal(record.ids[:length], bare.ids)
                assert len(record.ids) == (1500 if split in splits else length)
                assert (record.ids[length:] == TOKENIZER.start_id).all()
    with pytest.raises(ValueError, match="fill='test'"):
        _corpus(folder, fill="test")


@pytest.mark.parametrize("fill", ["none", "all"])
def test_a_sound_from_elsewhere_is_read_as_a_held_out_clip(folder: Path, fill: str):
    corpus = _corpus(folder, segment_samples=1500, crop="start", fill=fill)
    for index in range(len(split := corpus.split("test"))):
        name = split[index].id.split(":")[0]
        assert np.array_equal(corpus.ids_of(read_samples(folder / name, sample_rate_hz=8000)), split[index].ids)
