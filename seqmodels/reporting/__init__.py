"""Self-contained HTML reports: results beside their baselines, curves, confusion matrices, sound, timings, versions.

A `Report` is a list of `Section`s, a section a list of blocks, and a block is anything with an `html()` method. The
written page is one file that loads nothing: style sheet inline, figures as inline SVG or base64 PNG, sound as data
URIs, and a content policy that makes the browser itself refuse anything else. No JavaScript.

>>> from seqmodels.reporting import Curve, Curves, Report, Section
>>> curve = Curve("training", steps=[0, 1, 2], values=[2.0, 1.95, 1.93])
>>> page = Report(title="My run", sections=[Section("Curve", [Curves([curve], y_label="bits per base")])])
>>> page.write("report.html")  # doctest: +SKIP

Open in this order: page.py (the document), blocks.py (text, tables, commands), then one file per figure.
"""

from seqmodels.reporting.blocks import Columns, Command, Disclosure, Facts, Figure, Paragraph, Table
from seqmodels.reporting.confusion import ConfusionMatrix, macro_recall, recall_per_class
from seqmodels.reporting.curves import Curve, Curves
from seqmodels.reporting.environment import machine, versions
from seqmodels.reporting.histogram import Histogram
from seqmodels.reporting.page import Block, Report, Section, external_references
from seqmodels.reporting.prediction_trace import PredictionTrace
from seqmodels.reporting.scores import Reference, Score, ScoreBoard
from seqmodels.reporting.sound import Sound
from seqmodels.reporting.timeline import Timeline

__all__ = [
    "Block",
    "Columns",
    "Command",
    "ConfusionMatrix",
    "Curve",
    "Curves",
    "Disclosure",
    "Facts",
    "Figure",
    "Histogram",
    "Paragraph",
    "PredictionTrace",
    "Reference",
    "Report",
    "Score",
    "ScoreBoard",
    "Section",
    "Sound",
    "Table",
    "Timeline",
    "external_references",
    "machine",
    "macro_recall",
    "recall_per_class",
    "versions",
]
