"""Sound files to samples of a model. Read `audio_segments.py` first: what YAML names, and what its words mean.

| file | holds |
|---|---|
| `audio_segments.py` | `AudioSegments`: every option by its own name, as YAML and checkpoints give them |
| `audio_corpus.py` | `AudioCorpus`: the same from four small objects, where from, how cut, how split, how kept |
| `segments.py` | `Segments`: one split, sample number to record |

| layout or data set | conf/domain |
|---|---|
| a folder of sound files, labelled or not; a manifest | `audio_folder` |
| the packaged spoken digits | `audio_digits` |
| SC09: Speech Commands' ten digits, official lists | `audio_sc09` |
| YouTubeMix, Beethoven: flat folders of music, natural order, 88/6/6 | `audio_youtubemix`, `audio_beethoven` |
| MAESTRO: its CSV | `audio_maestro` |
"""

from domains.audio.datasets.audio_corpus import AudioCorpus, Cutting, Division, Source, Storage
from domains.audio.datasets.audio_segments import AudioSegments
from domains.audio.datasets.segments import Segments, level_dbfs

__all__ = ["AudioCorpus", "AudioSegments", "Cutting", "Division", "Segments", "Source", "Storage", "level_dbfs"]
