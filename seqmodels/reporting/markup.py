"""Text to HTML: everything is escaped; of markup only `code` in backticks and **bold** are understood."""

from __future__ import annotations

import html
import re

_CODE = re.compile(r"`([^`]+)`")
_BOLD = re.compile(r"\*\*([^*]+)\*\*")


def escape(text: object) -> str:
    """The text of `text`, safe inside an element or a double-quoted attribute."""
    return html.escape(str(text), quote=True)


def inline(text: str) -> str:
    """One run of prose as HTML.

    >>> inline("a < b, see `x_BLD` and **this**")
    'a &lt; b, see <code>x_BLD</code> and <strong>this</strong>'
    """
    return _BOLD.sub(r"<strong>\1</strong>", _CODE.sub(r"<code>\1</code>", escape(text)))


def number(value: float, digits: int = 3) -> str:
    """A number for a reader: integers with thousands separators, everything else with `digits` decimals.

    >>> number(1769489), number(1.92345), number(float("nan"))
    ('1,769,489', '1.923', 'n/a')
    """
    if value != value:
        return "n/a"
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{int(value):,}"
    return f"{value:,.{digits}f}"


def duration(seconds: float) -> str:
    """A duration for a reader.

    >>> duration(0.42), duration(17.3), duration(241)
    ('0.4 s', '17 s', '4 min 01 s')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def slug(title: str) -> str:
    """An anchor name made of `title`: lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
