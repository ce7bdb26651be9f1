"""Raw sound: files to sample ids and back.

Read in the order data flows: `wav/` (files to samples), `manifest.py` (folders to clips and splits), `tokenizer.py`
(samples to ids), `datasets/` (clips to records). Importing this package loads neither torch nor torchaudio; it only
makes a later `import torchaudio` safe (torchaudio_guard.py).
"""

from domains.audio import torchaudio_guard

torchaudio_guard.install()
