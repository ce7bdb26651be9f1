"""The document: a report is a head, headline scores, sections of blocks and a foot, in one HTML file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from seqmodels.data.whole_file import written_whole
from seqmodels.reporting.blocks import Block
from seqmodels.reporting.markup import escape, inline, slug

# The browser itself refuses whatever is not inside the file, scripts included.
CONTENT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"

# Attributes and functions that make a browser load something. A plain link (<a href>) loads nothing by itself.
_LOADING = re.compile(
    r"""(?:<(?!a\b)[a-z][^>]*?\s(?:src|href|srcset|poster|data|action)\s*=\s*["']?|url\(\s*["']?|@import\s+["']?)"""
    r"""(?!data:|\#)([^"'\s>)]+)""",
    re.IGNORECASE,
)


def external_references(html: str) -> list[str]:
    """Everything in `html` that a browser would fetch from outside the page; empty for a self-contained page."""
    return _LOADING.findall(html)


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Args:
        title: heading; also names the anchor.
        blocks: what stands in it, in order.
        lead: one paragraph under the heading: the result in words.
        aside: a few words at the right of the heading, e.g. the duration.
    """

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)
    lead: str = ""
    aside: str = ""

    def html(self) -> str:
        aside = f'<span class="aside">{inline(self.aside)}</span>' if self.aside else ""
        lead = f'<p class="lead">{inline(self.lead)}</p>' if self.lead else ""
        body = "".join(block.html() for block in self.blocks)
        return f'<section id="{slug(self.title)}"><h2>{inline(self.title)}{aside}</h2>{lead}{body}</section>'


@dataclass(frozen=True)
class Report:
    """A whole page.

    Args:
        title: heading and browser title.
        sections: the parts, in order; the page links to each at its top.
        lead: one paragraph that says what was done and what came out.
        kicker: a few words above the title.
        headline: blocks before the first section, usually a `ScoreBoard`.
        foot: one line at the end.
    """

    title: str
    sections: Sequence[Section] = field(default_factory=tuple)
    lead: str = ""
    kicker: str = ""
    headline: Sequence[Block] = field(default_factory=tuple)
    foot: str = ""

    def html(self) -> str:
        """The page as one HTML document that loads nothing from outside itself."""
        style = resources.files("seqmodels.reporting").joinpath("page.css").read_text(encoding="utf-8")
        links = "".join(f'<a href="#{slug(s.title)}">{inline(s.title)}</a>' for s in self.sections)
        page = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{style}</style></head><body><main>"
            f"<header>{_optional('p', 'kicker', self.kicker)}<h1>{inline(self.title)}</h1>"
            f"{_optional('p', 'lead', self.lead)}</header>"
            f"{''.join(block.html() for block in self.headline)}"
            f"{f'<nav>{links}</nav>' if len(self.sections) > 1 else ''}"
            f"{''.join(section.html() for section in self.sections)}"
            f"{_optional('footer', '', self.foot)}</main></body></html>\n"
        )
        outside = external_references(page)
        assert not outside, f"the report would load {outside[:3]} from outside itself"
        return page

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to `path` (folders are made; the old page stays until the new one is complete)."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(target) as partial:
            partial.write_text(self.html(), encoding="utf-8")
        return target


def _optional(tag: str, style: str, text: str) -> str:
    attribute = f' class="{style}"' if style else ""
    return f"<{tag}{attribute}>{inline(text)}</{tag}>" if text else ""
