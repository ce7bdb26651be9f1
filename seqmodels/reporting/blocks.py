"""The plain blocks of a report: paragraphs, tables, commands, facts, blocks side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from seqmodels.reporting.markup import escape, inline, number


class Block(Protocol):
    """Anything that can stand in a report."""

    def html(self) -> str:
        """The block as HTML that needs nothing from outside the page."""
        ...


@dataclass(frozen=True)
class Paragraph:
    """Prose; `code` and **bold** are understood. `kind` "note" sets it apart as a remark."""

    text: str
    kind: str = ""

    def html(self) -> str:
        return f'<p class="{escape(self.kind)}">{inline(self.text)}</p>' if self.kind else f"<p>{inline(self.text)}</p>"


@dataclass(frozen=True)
class Table:
    """Rows under a heading.

    Args:
        columns: headings, one a column.
        rows: cells; numbers are set right and formatted with `digits` decimals, everything else is prose.
        caption: one line above the table.
        digits: decimals of fractional numbers.
        marked: index of the rows to set off (the model among its baselines).
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    digits: int = 3
    marked: Sequence[int] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {index} has {len(row)} cells, the table {len(self.columns)} columns")

    def html(self) -> str:
        numeric = [bool(self.rows) and all(_is_number(row[c]) for row in self.rows) for c in range(len(self.columns))]
        head = "".join(f"<th{_numeric_class(n)}>{inline(c)}</th>" for c, n in zip(self.columns, numeric))
        body = "".join(
            f"<tr{' class=marked' if index in self.marked else ''}>"
            + "".join(f"<td{_numeric_class(n)}>{self._cell(cell)}</td>" for cell, n in zip(row, numeric))
            + "</tr>"
            for index, row in enumerate(self.rows)
        )
        caption = f"<caption>{inline(self.caption)}</caption>" if self.caption else ""
        return f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'

    def _cell(self, cell: object) -> str:
        return number(cell, self.digits) if isinstance(cell, (int, float)) else inline(str(cell))


@dataclass(frozen=True)
class Command:
    """A command line to copy, with a word on what it does. Line breaks are kept."""

    command: str
    caption: str = "The same by command"

    def html(self) -> str:
        return (
            f'<figure class="command"><figcaption>{inline(self.caption)}</figcaption>'
            f"<pre><code>{escape(self.command)}</code></pre></figure>"
        )


@dataclass(frozen=True)
class Facts:
    """Names and values in pairs, in as many columns as fit."""

    facts: Mapping[str, object]

    def html(self) -> str:
        pairs = "".join(f"<div><dt>{inline(k)}</dt><dd>{self._value(v)}</dd></div>" for k, v in self.facts.items())
        return f'<dl class="facts">{pairs}</dl>'

    def _value(self, value: object) -> str:
        return number(value) if isinstance(value, (int, float)) else inline(str(value))


@dataclass(frozen=True)
class Figure:
    """Any block with a caption under it."""

    block: Block
    caption: str

    def html(self) -> str:
        return f"<figure>{self.block.html()}<figcaption>{inline(self.caption)}</figcaption></figure>"


@dataclass(frozen=True)
class Columns:
    """Blocks side by side where the page is wide enough, under each other where it is not."""

    blocks: Sequence[Block]

    def html(self) -> str:
        cells = "".join(f"<div>{block.html()}</div>" for block in self.blocks)
        return f'<div class="columns">{cells}</div>'


@dataclass(frozen=True)
class Disclosure:
    """Blocks behind a line that opens on a click: detail that most readers skip."""

    summary: str
    blocks: Sequence[Block]

    def html(self) -> str:
        inner = "".join(block.html() for block in self.blocks)
        return f"<details><summary>{inline(self.summary)}</summary>{inner}</details>"


def _is_number(cell: object) -> bool:
    return isinstance(cell, (int, float)) and not isinstance(cell, bool)


def _numeric_class(numeric: bool) -> str:
    return " class=num" if numeric else ""
