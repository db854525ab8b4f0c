"""Legends and answers as HTML for the page. Every word in them is escaped: labels and queries are what somebody typed."""

from collections.abc import Sequence
from html import escape

import numpy as np

from pointcept3m.utils.palette import score_colors

STEPS = 24  # of a colour bar


def color_bar(title: str, low: float, high: float, note: str = "", name: str = "inferno", mark: float | None = None) -> str:
    """A bar of a colour map with its ends; `mark`: a value that gets a tick, where it lies inside."""
    stops = score_colors(np.linspace(0, 1, STEPS), name=name)
    gradient = ", ".join(f"rgb({r},{g},{b})" for r, g, b in stops)
    middle = (low + high) / 2
    tick = ""
    if mark is not None and low < mark < high:
        place = 100 * (mark - low) / (high - low)
        tick = f'<div style="position:absolute;left:{place:.1f}%;top:-3px;height:20px;border-left:2px solid #0a7"></div>'
    return (
        f'<div class="p3m-legend" style="{BOX}">{_title(title)}'
        f'<div style="position:relative;height:14px;border-radius:3px;background:linear-gradient(to right, {gradient})">{tick}</div>'
        f'<div style="display:flex;justify-content:space-between;{SMALL}"><span>{low:.2f}</span><span>{middle:.2f}</span><span>{high:.2f}</span></div>'
        f"{_note(note)}</div>"
    )


def swatches(title: str, rows: Sequence[tuple[str, Sequence[int], str]], note: str = "") -> str:
    """(name, colour, what stands behind it) a row."""
    lines = "".join(
        f'<div style="display:flex;align-items:center;gap:6px;{SMALL}"><span style="flex:none;width:12px;height:12px;border-radius:2px;'
        f'background:rgb({",".join(str(int(value)) for value in color)})"></span><span style="flex:1">{escape(name)}</span><span>{escape(behind)}</span></div>'
        for name, color, behind in rows
    )
    return f'<div class="p3m-legend" style="{BOX};max-height:260px;overflow-y:auto">{_title(title)}{lines}{_note(note)}</div>'


def words(title: str, text: str) -> str:
    """A title and a sentence."""
    return f'<div class="p3m-legend" style="{BOX}">{_title(title)}{_note(text)}</div>'


def table(title: str, facts: Sequence[tuple[str, str]], ranked: Sequence[tuple[str, float]] = (), ranked_title: str = "") -> str:
    """Facts as two columns, and below them names with a bar as long as their value."""
    lines = "".join(
        f'<div style="display:flex;gap:8px;{SMALL}"><span style="flex:none;width:6.2em;opacity:0.65">{escape(key)}</span><span>{escape(value)}</span></div>'
        for key, value in facts
    )
    bars = ""
    if ranked:
        longest = max(max(value for _, value in ranked), 1e-6)
        bars = f'<div style="{SMALL};opacity:0.65;margin-top:6px">{escape(ranked_title)}</div>' + "".join(
            f'<div style="display:flex;align-items:center;gap:6px;{SMALL}"><span style="flex:none;width:7em;overflow:hidden;text-overflow:ellipsis;'
            f'white-space:nowrap">{escape(name)}</span><span style="height:8px;border-radius:2px;background:#8a6fd1;'
            f'width:{max(0.0, 8.5 * value / longest):.2f}em"></span><span>{value:.2f}</span></div>'
            for name, value in ranked
        )
    return f'<div class="p3m-answer" style="{BOX}">{_title(title)}{lines}{bars}</div>'


BOX = "padding:4px 8px 6px 8px;line-height:1.45"
SMALL = "font-size:0.78rem"


def _title(text: str) -> str:
    return "" if not text else f'<div style="font-size:0.84rem;font-weight:600;margin-bottom:3px;overflow-wrap:anywhere">{escape(text)}</div>'


def _note(text: str) -> str:
    return f'<div style="{SMALL};opacity:0.65;margin-top:3px">{escape(text)}</div>' if text else ""
