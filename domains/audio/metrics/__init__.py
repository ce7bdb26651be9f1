"""Numbers about sound: what a clip looks like, and how good generated clips are.

| file | holds |
|---|---|
| `spectrograms.py` | spectrogram, log-mel spectrogram, what a quantiser loses |
| `answers.py` | clips to a trained classifier's probabilities and features |
| `generation.py` | FID, IS, modified IS, AM, accuracy, diversity of those; rejection by likelihood; intervals |
| `sample_scores.py` | all of them for sounds on disk, beside the real splits: `seqmodels evaluate classifier=…` |
"""

from domains.audio.metrics.answers import Answers, classifier_answers
from domains.audio.metrics.generation import (
    FeatureGaussian,
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
from domains.audio.metrics.sample_scores import MadeSounds, SampleScores, made_sounds
from domains.audio.metrics.spectrograms import Spectrogram, log_mel_spectrogram, quantiser_snr_db, spectrogram

__all__ = [
    "Answers",
    "FeatureGaussian",
    "Interval",
    "MadeSounds",
    "Rejection",
    "SampleScores",
    "Spectrogram",
    "accuracy",
    "am_score",
    "bootstrap",
    "class_diversity",
    "classifier_answers",
    "feature_diversity",
    "frechet_distance",
    "halves",
    "inception_score",
    "log_mel_spectrogram",
    "made_sounds",
    "modified_inception_score",
    "quantiser_snr_db",
    "spectrogram",
    "tune_rejection",
]
