from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from domains.audio.tokenizer import LinearTokenizer, MuLawTokenizer, SampleTokenizer
from domains.audio.torchaudio_guard import load_torchaudio
from domains.audio.wav import read_info, read_samples, write_audio
from seqmodels.data.record import Tokenizer

KINDS = [MuLawTokenizer, LinearTokenizer]
EVERY_16_BIT = np.arange(-32768, 32768, dtype=np.float32) / 32768


def _all(bits: int = 8) -> list[SampleTokenizer]:
    return [
        kind(sample_rate_hz=8000, bits=bits, convention=convention)
        for kind in KINDS
        for convention in ("torchaudio", "sashimi")
    ]


@pytest.mark.parametrize("bits", [8, 9, 10, 11, 12])
def test_mu_law_is_torchaudios_for_every_16_bit_value_and_level(bits: int):
    functional = load_torchaudio().functional
    tokenizer = MuLawTokenizer(sample_rate_hz=8000, bits=bits)
    levels = 1 << bits
    expected = functional.mu_law_encoding(torch.from_numpy(EVERY_16_BIT), levels).numpy()
    assert (tokenizer.encode(EVERY_16_BIT) == expected).all()
    decoded = functional.mu_law_decoding(torch.arange(levels), levels).numpy()
    assert np.abs(tokenizer.decode(np.arange(levels)) - decoded).max() < 1e-6


def _published_sashimi(samples: np.ndarray, bits: int, mu_law: bool) -> np.ndarray:
    """The formulas of the published description, in torch and float32, written out once more."""
    x = torch.from_numpy(samples)
    scaled = (x - x.min()) / (x.max() - x.min() + 1e-6)
    if mu_law:
        y, mu = -1 + 2 * scaled, 2**bits - 1
        y = torch.sign(y) * (torch.log1p(mu * torch.abs(y + 1e-8)) / torch.log1p(torch.tensor(float(mu))))
        scaled = (y + 1) / 2
    return (scaled * (2**bits - 0.01) + 0.005).long().numpy()


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_sashimi_is_the_published_rounding(noise, kind: type[SampleTokenizer], bits: int):
    tokenizer = kind(sample_rate_hz=16000, bits=bits, convention="sashimi")
    for samples in (noise(20000), noise(500, seed=1) * 0.01 + 0.2, EVERY_16_BIT):
        expected = _published_sashimi(samples, bits, kind is MuLawTokenizer)
        assert (tokenizer.encode(samples) == expected).mean() > 0.9999  # a last bit of log1p may fall on an edge
        assert np.abs(tokenizer.encode(samples).astype(int) - expected).max() <= 1


def test_known_values_of_8_bits():
    samples = np.array([-1.0, -0.5, -0.01, 0.0, 0.01, 0.5, 1.0])
    assert list(MuLawTokenizer(sample_rate_hz=8000).encode(samples)) == [0, 16, 98, 128, 157, 239, 255]
    assert list(LinearTokenizer(sample_rate_hz=8000).encode(samples)) == [0, 64, 126, 128, 129, 191, 255]
    sashimi = LinearTokenizer(sample_rate_hz=8000, convention="sashimi")
    assert list(sashimi.encode(samples)) == [0, 64, 126, 127, 129, 191, 255]  # 0 / (2 + 1e-6) lies just below a half
    assert list(sashimi.decode(np.array([0, 64, 128, 255]))) == [-1.0, -0.5, 0.0, 0.9921875]
    torchaudio = LinearTokenizer(sample_rate_hz=8000)
    assert torchaudio.decode(np.array([0, 255])).tolist() == [-1.0, 1.0]
    mu_sashimi = MuLawTokenizer(sample_rate_hz=8000, convention="sashimi")
    assert mu_sashimi.decode(np.array([0, 128])).tolist() == [-1.0, 0.0]
    assert mu_sashimi.decode(np.array([192]))[0] == pytest.approx((256**0.5 - 1) / 255)


@pytest.mark.parametrize("bits", range(8, 13))
@pytest.mark.parametrize("kind", KINDS)
def test_torchaudios_levels_survive_the_round_trip(kind: type[SampleTokenizer], bits: int):
    tokenizer = kind(sample_rate_hz=8000, bits=bits)
    ids = np.arange(tokenizer.vocab_size)
    assert (tokenizer.encode(tokenizer.decode(ids)) == ids).all()


@pytest.mark.parametrize("bits", range(8, 13))
@pytest.mark.parametrize("kind", KINDS)
def test_sashimis_levels_survive_within_one_on_a_clip_of_full_scale(kind: type[SampleTokenizer], bits: int):
    tokenizer = kind(sample_rate_hz=8000, bits=bits, convention="sashimi")
    ids = np.arange(tokenizer.vocab_size)
    again = tokenizer.encode(np.concatenate([tokenizer.decode(ids), [1.0]]))[:-1].astype(int)
    assert set(ids - again) <= {0, 1}


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_what_is_common_to_all(bits: int):
    for tokenizer in _all(bits):
        assert isinstance(tokenizer, Tokenizer)
        assert tokenizer.vocab_size == 2**bits
        assert tokenizer.start_id == 2 ** (bits - 1)
        assert tokenizer.encode(np.zeros(0)).shape == (0,)
        ids = tokenizer.encode(EVERY_16_BIT)
        assert ids.dtype == (np.uint8 if bits == 8 else np.uint16)
        assert (ids[0], ids[-1]) == (0, 2**bits - 1)
        assert (np.diff(ids.astype(int)) >= 0).all()
        levels = tokenizer.decode(np.arange(2**bits))
        assert levels.dtype == np.float32
        assert (np.diff(levels) > 0).all()
        assert np.abs(levels).max() <= 1


@pytest.mark.parametrize("bits", [8, 12])
def test_silence_is_the_start_id_under_torchaudio(bits: int):
    for kind in KINDS:
        tokenizer = kind(sample_rate_hz=8000, bits=bits)
        assert set(tokenizer.encode(np.zeros(5))) == {tokenizer.start_id}
        assert abs(tokenizer.decode(np.array([tokenizer.start_id]))[0]) < 1.001 / (tokenizer.vocab_size - 1)


def test_sashimi_stretches_each_clip_and_makes_a_constant_one_all_zeros():
    tokenizer = LinearTokenizer(sample_rate_hz=8000, convention="sashimi")
    clip = np.array([0.1, 0.15, 0.2])
    assert list(tokenizer.encode(clip)) == [0, 127, 255]
    assert (tokenizer.encode(clip * 0.5 + 0.3) == tokenizer.encode(clip)).all()
    assert set(tokenizer.encode(np.full(9, 0.3))) == {0}


def test_bits_of_two_tokenizers_differ_by_the_width_of_their_levels():
    """An entropy counted on fine levels follows the law of the module's text."""
    samples = np.clip(np.random.default_rng(0).standard_normal(400_000) * 0.1, -1, 1).astype(np.float32)

    def entropy(tokenizer: SampleTokenizer) -> tuple[float, float]:
        ids = tokenizer.encode(samples)
        shares = np.bincount(ids) / len(ids)
        bits = -sum(share * np.log2(share) for share in shares if share)
        return float(bits), tokenizer.mean_log2_width(ids)

    mu_bits, mu_width = entropy(MuLawTokenizer(sample_rate_hz=8000))
    linear_bits, linear_width = entropy(LinearTokenizer(sample_rate_hz=8000))
    fine_bits, fine_width = entropy(LinearTokenizer(sample_rate_hz=8000, bits=12))
    assert abs((fine_bits - linear_bits) - 4) < 0.05
    assert linear_width - fine_width == pytest.approx(np.log2(4095 / 255), abs=1e-3)
    assert mu_bits + mu_width == pytest.approx(linear_bits + linear_width, abs=0.05)
    assert abs(mu_bits - linear_bits) > 0.2  # so the law above says something


@pytest.mark.parametrize("tokenizer", _all(10), ids=lambda t: f"{type(t).__name__}-{t.convention}")
def test_the_spec_rebuilds_the_tokenizer(tokenizer: SampleTokenizer):
    spec = tokenizer.spec()
    module, name = spec.pop("_target_").rsplit(".", 1)
    assert module == "domains.audio.tokenizer"
    again = {kind.__name__: kind for kind in KINDS}[name](**spec)
    assert again.spec() == tokenizer.spec()
    assert (again.encode(EVERY_16_BIT) == tokenizer.encode(EVERY_16_BIT)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"bits": 7}, "8 to 12"), ({"bits": 13}, "8 to 12"), ({"convention": "g711"}, "torchaudio, sashimi")],
)
def test_arguments_out_of_range(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        MuLawTokenizer(sample_rate_hz=8000, **arguments)
    with pytest.raises(ValueError, match="sample_rate_hz=0"):
        MuLawTokenizer(sample_rate_hz=0)


@pytest.mark.parametrize(
    ("samples", "message"),
    [(np.array([0.0, 1.5]), "reach 1.5"), (np.array([np.nan]), "NaN"), (np.zeros((2, 2)), "one row")],
)
def test_samples_that_have_no_ids(samples: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        MuLawTokenizer(sample_rate_hz=8000).encode(samples)


@pytest.mark.parametrize("ids", [np.array([256]), np.array([-1])])
def test_ids_that_have_no_sample(ids: np.ndarray):
    with pytest.raises(ValueError, match=r"0\.\.255"):
        MuLawTokenizer(sample_rate_hz=8000).decode(ids)


# ------------------------------------------------------------------------------------------------ prompts and files


def test_a_prompt_is_a_file_at_the_tokenizers_rate(noise, put):
    tokenizer = MuLawTokenizer(sample_rate_hz=8000)
    path = put("prompt.flac", noise(16000, channels=2), 16000)
    ids = tokenizer.read_prompt(path)
    assert (ids == tokenizer.encode(read_samples(path, sample_rate_hz=8000))).all()
    assert len(ids) == 8000
    with pytest.raises(FileNotFoundError, match=r"prompt='ACGT'.*give the path of a file"):
        tokenizer.read_prompt("ACGT")


@pytest.mark.parametrize("name", ["out.wav", "out.flac"])
def test_one_sequence_is_written_as_exactly_the_path(tmp_path: Path, name: str):
    tokenizer = MuLawTokenizer(sample_rate_hz=11025)
    ids = np.arange(256).repeat(3)
    path = str(tmp_path / name)
    assert tokenizer.write(path, [ids], names=["first"]) == [path]
    info = read_info(path)
    assert (info.frames, info.sample_rate_hz) == (768, 11025)
    assert (tokenizer.read_prompt(path) == ids).all()
    with soundfile.SoundFile(path) as file:
        assert file.title == "first"
        assert "11025 Hz" in file.comment


def test_several_sequences_are_numbered_in_order(tmp_path: Path):
    tokenizer = MuLawTokenizer(sample_rate_hz=8000)
    sequences = [np.full(i + 1, i) for i in range(11)]
    paths = tokenizer.write(str(tmp_path / "out.wav"), sequences, names=[f"n{i}" for i in range(11)])
    assert [Path(p).name for p in paths] == [f"out_{i:02d}.wav" for i in range(11)]
    assert [read_info(p).frames for p in paths] == list(range(1, 12))


def test_a_path_without_suffix_and_other_suffixes(tmp_path: Path):
    tokenizer = MuLawTokenizer(sample_rate_hz=8000)
    assert tokenizer.write(str(tmp_path / "out"), [np.zeros(3, int)], names=["a"]) == [str(tmp_path / "out.wav")]
    with pytest.raises(ValueError, match=r"cannot write \.mp3"):
        tokenizer.write(str(tmp_path / "out.mp3"), [np.zeros(3, int)], names=["a"])
    with pytest.raises(ValueError, match="2 sequences but 1 names"):
        tokenizer.write(str(tmp_path / "out.wav"), [np.zeros(3, int)] * 2, names=["a"])


def test_a_16_bit_file_keeps_the_ids_of_12_bits(tmp_path: Path):
    tokenizer = LinearTokenizer(sample_rate_hz=8000, bits=12)
    ids = np.arange(4096)
    path = write_audio(tmp_path / "a.wav", tokenizer.decode(ids), 8000)
    assert (tokenizer.read_prompt(path) == ids).all()


# ------------------------------------------------------------------------------------------------------ 16 bits


@pytest.mark.parametrize("bits", [13, 14, 15, 16])
@pytest.mark.parametrize("convention", ["torchaudio", "pcm"])
def test_fine_linear_levels_survive_the_round_trip(convention: str, bits: int):
    tokenizer = LinearTokenizer(sample_rate_hz=8000, bits=bits, convention=convention)
    ids = np.arange(tokenizer.vocab_size)
    assert (tokenizer.encode(tokenizer.decode(ids)) == ids).all()
    assert tokenizer.encode(np.zeros(1))[0] == tokenizer.start_id
    assert tokenizer.encode(np.ones(1))[0] == tokenizer.vocab_size - 1


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_pcm_rounds_half_up_and_keeps_silence(bits: int):
    tokenizer = LinearTokenizer(sample_rate_hz=8000, bits=bits, convention="pcm")
    half = 2 ** (bits - 1)
    assert tokenizer.decode(np.array([0, half]))[:2].tolist() == [-1, 0]
    steps = np.array([-1, -0.5, -0.25, 0, 0.25, 0.5, 1, half]) / half
    assert (tokenizer.encode(steps).astype(int) - half).tolist() == [-1, 0, 0, 0, 0, 1, 1, half - 1]
    assert np.diff(tokenizer._lower_edges()) == pytest.approx(1 / half)


def test_16_bit_pcm_loses_nothing_of_a_16_bit_file(tmp_path: Path):
    tokenizer = LinearTokenizer(sample_rate_hz=8000, bits=16, convention="pcm")
    ids = tokenizer.encode(EVERY_16_BIT)
    assert ids.dtype == np.uint16
    assert (ids == np.arange(65536)).all()
    assert (tokenizer.decode(ids) == EVERY_16_BIT).all()
    path = tokenizer.write(str(tmp_path / "a.wav"), [ids], names=["all"])[0]
    assert (tokenizer.read_prompt(path) == ids).all()


def test_which_kind_takes_what():
    with pytest.raises(ValueError, match="bits=16: MuLawTokenizer takes 8 to 12"):
        MuLawTokenizer(sample_rate_hz=8000, bits=16)
    with pytest.raises(ValueError, match="bits=17: LinearTokenizer takes 8 to 16"):
        LinearTokenizer(sample_rate_hz=8000, bits=17)
    with pytest.raises(ValueError, match="'pcm' is not known to MuLawTokenizer; use one of torchaudio, sashimi"):
        MuLawTokenizer(sample_rate_hz=8000, convention="pcm")


def test_bits_per_sample_of_two_depths_differ_by_the_width_of_their_levels():
    """16 bits against 12: four bits finer, so four bits more a sample for the same sound."""
    samples = np.sin(np.arange(4000) / 9).astype(np.float32) * 0.4
    widths = [
        tokenizer.mean_log2_width(tokenizer.encode(samples))
        for tokenizer in (LinearTokenizer(sample_rate_hz=8000, bits=bits, convention="pcm") for bits in (12, 16))
    ]
    assert widths[0] - widths[1] == pytest.approx(4)
