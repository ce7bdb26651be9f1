from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from domains.audio.datasets import AudioSegments
from domains.audio.tokenizer import MuLawTokenizer

CONF = Path(__file__).parents[3] / "conf" / "domain"


@pytest.mark.parametrize("name", ["audio_folder", "audio_digits"])
def test_the_yaml_names_every_argument_explains_each_and_builds(name: str, put, tmp_path: Path):
    text = (CONF / f"{name}.yaml").read_text()
    for line in text.splitlines():
        if not line.startswith("#") and not re.fullmatch(r"\s*[a-z_]+:", line):
            assert re.search(r": \S.*  # \S", line), line
    spec = yaml.safe_load(text)["dataset"]
    assert spec.pop("_target_") == "domains.audio.datasets.AudioSegments"
    assert spec["tokenizer"].pop("_target_") == "domains.audio.tokenizer.MuLawTokenizer"
    assert set(spec) == set(inspect.signature(AudioSegments.__init__).parameters) - {"self"}
    tokenizer = MuLawTokenizer(**spec.pop("tokenizer"))
    if spec["folder"] is None:
        with pytest.raises(ValueError, match="say where the sound is"):
            AudioSegments(**spec, tokenizer=tokenizer)
        put("a.wav", np.full(16000, 0.25, np.float32), 8000)
        spec["folder"] = tmp_path
    corpus = AudioSegments(**spec, tokenizer=tokenizer)
    assert len(corpus.split("train")) > 0
    assert corpus.segment_samples == round(spec["segment_seconds"] * tokenizer.sample_rate_hz)
