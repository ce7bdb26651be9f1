"""Numbers about sound: what a clip looks like (spectrograms.py), how good generated clips are (generation.py).

Published figures of generated speech (FID, IS, mIS, AM) are functions of a classifier's answers; `generation.py` has
the standard definitions, and the published variants by name.
"""

from domains.audio.metrics.spectrograms import Spectrogram, log_mel_spectrogram, quantiser_snr_db, spectrogram

__all__ = ["Spectrogram", "log_mel_spectrogram", "quantiser_snr_db", "spectrogram"]
