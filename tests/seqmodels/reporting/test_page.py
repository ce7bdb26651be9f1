"""A report is one file that loads nothing, says what it was given, and escapes what it does not understand."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from seqmodels.reporting import (
    Columns,
    Command,
    ConfusionMatrix,
    Curve,
    Curves,
    Disclosure,
    Facts,
    Figure,
    Histogram,
    Paragraph,
    PredictionTrace,
    Reference,
    Report,
    Score,
    ScoreBoard,
    Section,
    Sound,
    Table,
    Timeline,
    external_references,
)


class _Balance(HTMLParser):
    """Collects tags that were closed without being open, or left open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An SVG element closed in itself leaves nothing open."""

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def _every_block() -> list:
    generator = np.random.default_rng(0)
    curve = Curve("training", list(range(50)), list(2 + generator.normal(size=50) / 10), smooth=True)
    return [
        Paragraph("plain **bold** `code` <script>alert(1)</script>"),
        Paragraph("remark", kind="note"),
        Table(["model", "bits"], [["a & b", 1.5], ["<c>", 2]], caption="held out", marked=[1]),
        Command('seqmodels train name="x" && echo'),
        Facts({"Python": "3.11", "bases": 1769489}),
        Curves([curve, Curve("held out", [0, 40], [2.2, 1.9], dots=True)], "bits", references=[Reference("flat", 2)]),
        ConfusionMatrix([[3, 1], [0, 0]], ["ape <i>", "hen"]),
        PredictionTrace(np.full((12, 4), 0.25), "ACGT", "ACGTNACGTACG", first_position=100),
        Columns([Figure(Sound(np.sin(np.arange(900) / 5), 8000, "tone"), "a tone"), Paragraph("beside")]),
        Histogram({"a & b": [1.0, 2.0, 2.5], "c": [3.0]}, "nats"),
        Disclosure("more", [Timeline({"one": 2.0, "two": 61.0})]),
        ScoreBoard([Score("LM", 1.9, "bits/base", [Reference("uniform", 2.0)], note="n = 1")]),
    ]


def test_a_page_with_every_block_is_well_formed_and_loads_nothing(tmp_path: Path) -> None:
    first = Section("One: <first>", _every_block(), lead="led", aside="3 s")
    report = Report("A title & more", [first, Section("Two")])
    text = report.write(tmp_path / "new" / "report.html").read_text()
    balance = _Balance()
    balance.feed(text)
    assert balance.wrong == []
    assert balance.open == []
    assert external_references(text) == []
    assert "http://" not in text
    assert "https://" not in text
    assert "<script" not in text
    assert "default-src &#x27;none&#x27;" in text or "default-src 'none'" in text
    assert '<a href="#one-first">' in text
    assert 'id="one-first"' in text
    assert "nan" not in text.split("</style>")[1].lower().replace("data:", "").split("base64")[0]


@pytest.mark.parametrize(
    "text",
    [
        '<img src="https://example.org/a.png">',
        "<link rel=stylesheet href=style.css>",
        "<style>@import 'other.css'</style>",
        "<style>a { background: url(picture.png) }</style>",
        '<svg><image x="1" href="/a.png" /></svg>',
        '<audio controls src="sound.wav"></audio>',
    ],
)
def test_whatever_a_browser_would_fetch_is_found(text: str) -> None:
    assert len(external_references(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        '<a href="https://example.org">link</a>',
        '<a href="#part">x</a>',
        '<img src="data:image/png;base64,AA==">',
        "no markup",
    ],
)
def test_links_and_data_uris_are_not_fetched(text: str) -> None:
    assert external_references(text) == []


def test_a_page_that_would_load_something_is_not_written(tmp_path: Path) -> None:
    class Foreign:
        def html(self) -> str:
            return '<img src="https://example.org/a.png">'

    with pytest.raises(AssertionError, match=r"example\.org"):
        Report("x", [Section("y", [Foreign()])]).write(tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_the_style_sheet_loads_no_fonts_or_pictures() -> None:
    from importlib import resources

    style = resources.files("seqmodels.reporting").joinpath("page.css").read_text()
    assert "url(" not in style
    assert "@import" not in style


@pytest.mark.parametrize(
    ("value", "better", "sentence"),
    [
        (1.930, "lower", "Ahead of Markov by 0.008."),
        (1.940, "lower", "Behind Markov by 0.002."),
        (1.9383, "lower", "Level with Markov."),
        (2.1, "higher", "Ahead of uniform by 0.100."),
        (1.9, "higher", "Behind uniform by 0.100."),
    ],
)
def test_the_verdict_is_against_the_strongest_reference(value: float, better: str, sentence: str) -> None:
    references = [Reference("uniform", 2.0), Reference("Markov", 1.938)]
    assert Score("LM", value, references=references, better=better).verdict() == sentence


def test_scores_list_the_best_first() -> None:
    html = Score("LM", 1.95, references=[Reference("uniform", 2.0), Reference("Markov", 1.9)]).html()
    assert html.index("Markov</span>") < html.index("this model") < html.index("uniform</span>")
    assert 'left:0.0%"></b></i><span>1.900' in html
    assert 'left:50.0%"></b></i><span>1.950' in html


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="'lower' or 'higher'"):
        Score("LM", 1.0, better="less")
    with pytest.raises(ValueError, match="only finite"):
        Score("LM", float("nan"))
    with pytest.raises(ValueError, match="row 1 has 1 cells"):
        Table(["a", "b"], [[1, 2], [3]])
    with pytest.raises(ValueError, match="3 steps but 2 values"):
        Curve("x", [1, 2, 3], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"need \(2, 2\)"):
        ConfusionMatrix([[1, 2, 3], [1, 2, 3]], ["a", "b"])
    with pytest.raises(ValueError, match="group 'x' needs"):
        Histogram({"x": [1.0, float("inf")]}, "nats")
    with pytest.raises(ValueError, match="mono samples"):
        Sound(np.zeros((2, 10)), 8000, "stereo")
