"""Pictures as SVG inside the page: stacked bars of lengths, and the curve of token frequencies.

Colours are the page's CSS variables, so both of its modes fit. Positions are pixels of the drawing's own view box.
"""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt

from data_prep.harmless import plain
from data_prep.inspection.survey import EDGES

WIDTH, HEIGHT = 480, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 26, 40
N_COLOURS = 8
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def lengths(title: str, unit: str, rows: Sequence[tuple[str, npt.NDArray[np.int64]]], median: int) -> str:
    """rows: (source, amount in each bin of EDGES), largest source first; drawn upon each other over log2 of length."""
    total = np.sum([row for _, row in rows], axis=0)
    filled = np.flatnonzero(total)
    if not len(filled):
        return ""
    first, last = int(filled[0]), int(filled[-1])
    low, high = math.log2(EDGES[first]), math.log2(EDGES[min(last + 1, len(EDGES) - 1)])
    low, high = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
    top = float(total.max())

    def x(tokens: float) -> float:
        return LEFT + (math.log2(tokens) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    parts = [*_levels(top, unit)]
    for bin in range(first, last + 1):
        start, stop = x(int(EDGES[bin])), x(int(EDGES[min(bin + 1, len(EDGES) - 1)]))
        parts += _column(start, max(1.0, stop - start - 1), [(name, int(row[bin])) for name, row in rows], top, bin)
    step = max(1, math.ceil((high - low) / 9))
    for power in range(low, high + 1, step):
        parts.append(_text(x(2.0**power), HEIGHT - BOTTOM + 16, short(2**power), "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "tokens in the document", "middle", "quiet"))
    at = x(max(1, median))
    parts.append(f'<line class="median" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    parts.append(_text(at, TOP - 6, f"half below {short(median)}", "middle", "ink"))
    return _svg(title, parts)


def frequencies(title: str, counts: npt.NDArray[np.int64], half: int) -> str:
    """counts: (V,), largest first; rank and share of all tokens, both on log axes."""
    used = counts[counts > 0]
    if len(used) < 2:
        return ""
    share = used / used.sum()
    ranks = np.unique(np.round(np.geomspace(1, len(used), 160)).astype(np.int64))
    low, high = math.floor(math.log10(share[-1])), math.ceil(math.log10(share[0]))
    width = math.log10(len(counts))

    def x(rank: float) -> float:
        return LEFT + math.log10(rank) / width * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - math.log10(value)) / max(1, high - low) * (HEIGHT - TOP - BOTTOM)

    parts: list[str] = []
    for power in range(low, high + 1):
        parts += _level(y(10.0**power), _percent(power + 2))
    for power in range(math.floor(width) + 1):
        parts.append(_text(x(10.0**power), HEIGHT - BOTTOM + 16, short(10**power), "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "rank of the id", "middle", "quiet"))
    start, stop = x(len(used)), x(len(counts))
    if stop - start > 1:
        box = f'x="{start:.1f}" y="{TOP}" width="{stop - start:.1f}" height="{HEIGHT - TOP - BOTTOM}"'
        parts.append(f'<rect class="unused" {box}><title>not in the sample</title></rect>')
    points = " ".join(f"{x(int(rank)):.1f},{y(float(share[rank - 1])):.1f}" for rank in ranks)
    parts.append(f'<polyline class="curve" points="{points}"/>')
    at = x(half)
    parts.append(f'<line class="median" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    parts.append(_text(at, TOP - 6, f"{short(half)} ids make half of it", "middle", "ink"))
    return _svg(title, parts)


def short(n: float, digits: int = 2) -> str:
    """20_480 as `20 k`; 3_879_038 with three digits as `3.88 M`."""
    for unit in ("", " k", " M", " G", " T"):
        if n < 1000 or unit == " T":
            return f"{n:,.0f}{unit}" if n >= 100 or n == round(n) else f"{n:.{digits}g}{unit}"
        n /= 1000
    raise AssertionError


def _percent(power: int) -> str:
    """10 to this power, as a share in per cent."""
    return f"{10.0**power:g} %" if power >= -2 else f"10{str(power).translate(SUPERSCRIPT)} %"


def _column(x: float, width: float, stack: list[tuple[str, int]], top: float, bin: int) -> list[str]:
    """One bin; the largest source at the bottom, what lies beyond the colours in the last one."""
    parts: list[str] = []
    base = float(HEIGHT - BOTTOM)
    span = f"{int(EDGES[bin]):,} … {int(EDGES[min(bin + 1, len(EDGES) - 1)]) - 1:,} tokens"
    for i, (name, amount) in enumerate(stack):
        height = amount / top * (HEIGHT - TOP - BOTTOM)
        if amount:
            base -= height
            box = f'x="{x:.1f}" y="{base:.2f}" width="{width:.1f}" height="{max(height, 0.6):.2f}"'
            hint = escape(f"{plain(name)}: {amount:,} ({span})")
            parts.append(f'<rect class="c{min(i, N_COLOURS - 1)}" {box}><title>{hint}</title></rect>')
    return parts


def _levels(top: float, unit: str) -> list[str]:
    """Two to five round horizontal lines."""
    rough = top / 4
    step = 10 ** math.floor(math.log10(max(rough, 1e-9)))
    step = next(step * m for m in (1, 2, 5, 10) if step * m >= rough)
    parts: list[str] = []
    value = step
    while value <= top:
        parts += _level(HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM), short(value))
        value += step
    return [*parts, _text(LEFT - 6, HEIGHT - BOTTOM + 4, "0", "end"), _text(4, 12, unit, "start", "quiet")]


def _level(y: float, label: str) -> list[str]:
    line = f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return [line, _text(LEFT - 6, y + 4, label, "end")]


def _text(x: float, y: float, content: str, anchor: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def _svg(title: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>'
    base = f'<line class="base" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>'
    return "\n".join([head, *parts, base, "</svg>"])
