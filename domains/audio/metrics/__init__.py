"""Numbers about sound: what a clip looks like (spectrograms.py), how good generated clips are (generation.py).

Published figures of generated speech (FID, IS, mIS, AM) are functions of a classifier's answers; `generation.py` has
the standard definitions, and the published variants by name.
"""

from domains.audio.metrics.generation import (
    Interval,
    Rejection,
    accuracy,
    am_score,
    bootstrap,
    class_diversity,
    feature_diversity,
    frechet_distance,
    halves,
    inception_score,
    modified_inception_score,
    tune_rejection,
)
from domains.audio.metrics.spectrograms import Spectrogram, log_mel_spectrogram, quantiser_snr_db, spectrogram

__all__ = [
    "Interval",
    "Rejection",
    "Spectrogram",
    "accuracy",
    "am_score",
    "bootstrap",
    "class_diversity",
    "feature_diversity",
    "frechet_distance",
    "halves",
    "inception_score",
    "log_mel_spectrogram",
    "modified_inception_score",
    "quantiser_snr_db",
    "spectrogram",
    "tune_rejection",
]
