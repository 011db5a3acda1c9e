"""Charts as inline SVG. Colours are CSS classes (s0 result, s1 base, p0..p4 stages): the page defines them, light and
dark. Every mark has a tooltip (`<title>`) with its number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

_WIDTH, _LEFT, _RIGHT = 640, 56, 14
_PLOT = _WIDTH - _LEFT - _RIGHT


def ticks(top: float, count: int = 4) -> list[float]:
    """Round numbers from 0 that reach `top`: steps of 1, 2, 2.5 or 5 times a power of ten."""
    if not top > 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(top / count))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power * count >= top * (1 - 1e-9))
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


def number(value: float) -> str:
    """Short, for axes and tooltips."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _svg(height: float, label: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">'
    return "".join([head, *parts, "</svg>"])


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _rows_of_grid(marks: Sequence[float], top: float, bottom: float, unit: str) -> list[str]:
    """Horizontal lines at `marks` (0 at `bottom`, the last at `top`) with their numbers; the unit above."""
    parts = [_text(2, top - 12, unit, "start")] if unit else []
    for mark in marks:
        y = bottom - (bottom - top) * mark / marks[-1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(_LEFT - 8, y + 4, number(mark), "end"))
    return parts


def _legend(names: Sequence[str], classes: Sequence[str], y: float) -> list[str]:
    parts, x = [], float(_LEFT)
    for name, kind in zip(names, classes):
        if "thin" in kind:
            parts.append(f'<line class="line {kind}" x1="{x - 2:.0f}" x2="{x + 13:.0f}" y1="{y - 4}" y2="{y - 4}"/>')
        else:
            parts.append(f'<rect class="{kind}" x="{x:.0f}" y="{y - 9:.0f}" width="11" height="11" rx="2"/>')
        parts.append(_text(x + 16, y + 1, name, "start", "label"))
        x += 34 + 7.2 * len(name)
    return parts


def lines(
    label: str, unit: str, x: Sequence[str], series: Mapping[str, Sequence[float]], classes: Sequence[str]
) -> str:
    """Lines with dots over named places on the x axis; a class ending in " thin" is dashed."""
    top, bottom, height = 46.0, 236.0, 262.0
    marks = ticks(max((max(values) for values in series.values()), default=0.0))
    parts = _legend(list(series), classes, 14) + _rows_of_grid(marks, top, bottom, unit)
    places = [_LEFT + _PLOT * (i + 0.5) / len(x) for i in range(len(x))]
    parts += [_text(place, bottom + 18, name) for place, name in zip(places, x)]
    for (name, values), kind in zip(series.items(), classes):
        points = [(px, bottom - (bottom - top) * v / marks[-1]) for px, v in zip(places, values)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        parts.append(f'<polyline class="line {kind}" points="{path}"/>')
        for (px, py), place, value in zip(points, x, values):
            tip = f"{name}, {place}: {number(value)} {unit}"
            parts.append(
                f'<circle class="{kind}" cx="{px:.1f}" cy="{py:.1f}" r="3.5"><title>{escape(tip)}</title></circle>'
            )
    return _svg(height, label, parts)


def bars(label: str, names: Sequence[str], series: Mapping[str, Sequence[float | None]], classes: Sequence[str]) -> str:
    """Horizontal bars, one group per name, one bar per series, values from 0 up; None is written as such."""
    left, thick, gap = 150.0, 11.0, 9.0
    wide = _WIDTH - left - 70
    marks = ticks(max((v for values in series.values() for v in values if v is not None), default=0.0))
    parts, y = _legend(list(series), classes, 14), 32.0
    for row, name in enumerate(names):
        parts.append(_text(left - 8, y + thick * len(series) / 2 + 4, name, "end", "label"))
        for (side, values), kind in zip(series.items(), classes):
            value = values[row]
            length = 0.0 if value is None else max(wide * value / marks[-1], 0.0)
            tip = f"{name}, {side}: {'does not occur' if value is None else number(value)}"
            parts.append(
                f'<rect class="{kind}" x="{left}" y="{y:.1f}" width="{max(length, 1):.1f}" height="{thick - 1}" rx="2">'
            )
            parts.append(f"<title>{escape(tip)}</title></rect>")
            shown = "-" if value is None else number(value)
            parts.append(_text(left + length + 6, y + thick - 2, shown, "start"))
            y += thick
        y += gap
    return _svg(y, label, parts)


def stacked(label: str, unit: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """One bar per row, divided into its named parts."""
    parts_of = list(next(iter(rows.values())))
    classes = [f"p{i}" for i in range(len(parts_of))]
    marks = ticks(max(sum(parts.values()) for parts in rows.values()))
    parts, y = _legend(parts_of, classes, 14), 36.0
    for name, values in rows.items():
        parts.append(_text(_LEFT - 8, y + 18, name, "end", "label"))
        x = float(_LEFT)
        for (part, value), kind in zip(values.items(), classes):
            length = _PLOT * value / marks[-1]
            tip = f"{name}, {part}: {number(value)} {unit}"
            parts.append(
                f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{length:.2f}" height="26">'
                f"<title>{escape(tip)}</title></rect>"
            )
            x += length
        y += 38
    for mark in marks:
        parts.append(_text(_LEFT + _PLOT * mark / marks[-1], y + 10, number(mark)))
    parts.append(_text(_LEFT - 8, y + 10, unit, "end"))
    return _svg(y + 18, label, parts)


def histogram(label: str, unit: str, series: Mapping[str, np.ndarray], classes: Sequence[str]) -> str:
    """Shares of the values of each series per bin, as steps over a common axis; a triangle marks each median."""
    top, bottom, height = 46.0, 220.0, 262.0
    everything = np.concatenate(list(series.values()))
    low, high = float(everything.min()), float(everything.max())
    if high - low < 1e-9 * max(high, 1e-9):
        low, high = 0.9 * low, 1.1 * high or 1.0
    edges = np.linspace(low, high, min(40, max(8, len(everything) // 4)) + 1)
    shares = {name: np.histogram(values, edges)[0] / len(values) for name, values in series.items()}
    marks = ticks(100 * max(float(share.max()) for share in shares.values()))
    parts = _legend(list(series), classes, 14) + _rows_of_grid(marks, top, bottom, "% of frames")
    places = _LEFT + _PLOT * (edges - low) / (high - low)
    for (name, share), kind in zip(shares.items(), classes):
        heights = bottom - (bottom - top) * 100 * share / marks[-1]
        corners = [(places[0], bottom)]
        for i, y in enumerate(heights):
            corners += [(places[i], y), (places[i + 1], y)]
        corners.append((places[-1], bottom))
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in corners)
        middle = float(np.median(series[name]))
        x = _LEFT + _PLOT * (middle - low) / (high - low)
        parts.append(f'<polygon class="area {kind}" points="{path}"><title>{escape(name)}</title></polygon>')
        tip = f"{name}, median: {number(middle)} {unit}"
        parts.append(f'<path class="{kind}" d="M{x:.1f} {bottom} l5 9 h-10 z"><title>{escape(tip)}</title></path>')
    for i, value in enumerate(np.linspace(low, high, 5)):
        anchor = "end" if i == 4 else "middle"  # the last one would reach out of the picture
        parts.append(_text(_LEFT + _PLOT * i / 4, bottom + 26, number(float(value)), anchor))
    parts.append(_text(_WIDTH - _RIGHT, bottom + 41, unit, "end"))
    return _svg(height, label, parts)
