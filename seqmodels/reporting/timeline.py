"""Where the time went: one bar cut into the steps, and a table of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from seqmodels.reporting.markup import duration, escape, inline


@dataclass(frozen=True)
class Timeline:
    """Steps and their wall-clock seconds, in order."""

    seconds: Mapping[str, float]

    def html(self) -> str:
        total = sum(self.seconds.values())
        if total <= 0:
            return ""
        pieces = "".join(
            f'<i class="s{i % 4}" style="flex-grow:{value / total:.4f}" title="{escape(name)}: {duration(value)}"></i>'
            for i, (name, value) in enumerate(self.seconds.items())
        )
        rows = "".join(
            f'<li><i class="s{i % 4}"></i><span>{inline(name)}</span><b>{duration(value)}</b></li>'
            for i, (name, value) in enumerate(self.seconds.items())
        )
        return f'<div class="timeline"><div class="bar">{pieces}</div><ol>{rows}</ol></div>'
