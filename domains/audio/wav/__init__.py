"""Sound files to float32 samples in [-1, 1] at a stated rate, and back to WAV or FLAC.

    info = read_info("a.flac")                                        header only, and a check that the file is whole
    samples = read_samples(info, 8000, 16000, sample_rate_hz=16000)   samples 8000..23999 of the file at 16 kHz
    write_audio("out.wav", samples, 16000)                            exactly those samples, 16 bit, all or nothing

soundfile (libsndfile) decodes: WAV 8/16/24/32 bit and float, FLAC, OGG Vorbis and Opus, MP3, AIFF, AU, GSM, CAF, W64,
RF64; headerless raw when its format is given. A stretch is read by seeking, never by decoding the whole file. MP3, GSM
6.10 and G.721 cannot seek to an exact sample: those are decoded from their start and are best cached. Channels are
mixed to mono by their mean, and other rates resampled (resample.py) with enough context that a stretch equals the same
slice of the whole file at that rate.
"""

from __future__ import annotations

from domains.audio.wav.file import AUDIO_SUFFIXES, AudioFileError, AudioInfo, RawFormat, read_info
from domains.audio.wav.read import LevelMeter, read_samples
from domains.audio.wav.write import WRITE_FORMATS, write_audio

__all__ = [
    "AUDIO_SUFFIXES",
    "WRITE_FORMATS",
    "AudioFileError",
    "AudioInfo",
    "LevelMeter",
    "RawFormat",
    "read_info",
    "read_samples",
    "write_audio",
]
