"""The sound step: a next-sample model of spoken digits, judged beside Markov models, and a WAV that it made."""

from __future__ import annotations

import numpy as np
import soundfile
from stage import Result, Stage

from domains.audio.datasets import AudioSegments
from domains.audio.tokenizer import MuLawTokenizer
from seqmodels.data.markov import MarkovRow, markov_bits
from seqmodels.reporting import Columns, Command, Curve, Curves, Reference, Score, Sound, Table

SAMPLE_RATE_HZ = 8000
WHOLE_CLIP_SAMPLES = 8000  # no clip is longer: evaluation reads each from beginning to end
GENERATED_SAMPLES = 12_000
QUICK = ("trainer.max_steps=4", "trainer.val_every_steps=2", "trainer.val_batches=1", "trainer.log_every_steps=1")


def digits(stage: Stage) -> Result:
    """Trains on raw samples, evaluates, generates."""
    stage.train("digits", "demo_digits", quick=QUICK)
    report = stage.evaluate("digits", f"domain.dataset.segment_samples={WHOLE_CLIP_SAMPLES}")
    corpus = AudioSegments(
        "example:digits", tokenizer=MuLawTokenizer(sample_rate_hz=SAMPLE_RATE_HZ), split_by="balanced", crop="grid",
        segment_samples=WHOLE_CLIP_SAMPLES,
    )  # fmt: skip
    with stage.baseline("Markov models of order 0 and 1 of the same split"):
        table = markov_table(corpus)
    wav = stage.folder / "generated.wav"
    wanted = 800 if stage.quick else GENERATED_SAMPLES
    stage.seqmodels(
        "generate", f"run={stage.shown(stage.run('digits'))}", f"length={wanted}", "temperature=0.95", "seed=1",
        "figure=false", f"output={stage.shown(wav)}",
    )  # fmt: skip
    samples, rate = soundfile.read(wav, dtype="float32")
    if (len(samples), rate) != (wanted, SAMPLE_RATE_HZ):
        raise RuntimeError(f"{wav} has {len(samples)} samples at {rate} Hz; asked for {wanted} at {SAMPLE_RATE_HZ}")
    bits, best = report["metrics"]["bits_per_sample"], min(table, key=lambda row: row.bits)
    score = Score(
        "Raw audio, 8 kHz mu-law",
        bits,
        "bits/sample",
        [Reference("uniform", 8.0), *(Reference(f"Markov order {row.order}", row.bits) for row in table)],
        digits=2,
        note=f"{report['sequences']} held-out clips: digits spoken by a voice that training did not hear say them",
        name="Mamba",
    )
    paragraph = (
        f"On held-out clips the model needs **{bits:.2f} bits a sample**; uniform is 8, Markov models of order 0 and "
        f"1 need {table[0].bits:.2f} and {table[1].bits:.2f}. {score.verdict()} It then made **{len(samples):,} "
        f"samples** one by one, exactly as many as asked for, at {rate:,} Hz. It babbles: half a minute of training "
        f"sound teaches a small model what voices sound like, not what they say."
    )
    curves = Curves(
        [
            Curve("training", *stage.metrics("digits", "train", "bits_per_sample"), smooth=True),
            Curve("validation", *stage.metrics("digits", "valid", "bits_per_sample"), dots=True),
        ],
        "bits a sample",
        "training step",
        [Reference(f"Markov order {best.order}, test", best.bits)],
    )
    rows = [("uniform", 8.0), *((f"Markov order {row.order}", row.bits) for row in table), ("Mamba", bits)]
    real = corpus.split("test")
    sounds = [
        Sound(samples, rate, "Generated", file_bytes=wav.read_bytes()),
        Sound(np.asarray(real.waveform(0)), rate, f"Real: {real[0].id.split('.')[0]}"),
    ]
    results = Table(["model", "held-out bits/sample"], rows, marked=[len(rows) - 1])
    blocks = [Columns(sounds), Columns([curves, results]), Command(stage.typed())]
    return Result("Spoken digits, sample by sample", paragraph, blocks, [score], tuple(stage.commands))


def markov_table(corpus: AudioSegments) -> list[MarkovRow]:
    """Held-out bits a sample of Markov models on whole clips."""
    clips = {name: [record.ids for record in map(corpus.split(name).__getitem__, range(len(corpus.split(name))))]
             for name in ("train", "test")}  # fmt: skip
    return markov_bits(clips["train"], clips["test"], max_order=1)
