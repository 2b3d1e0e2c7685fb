"""The few words of SVG that our pictures are made of: text, lines, round ticks."""

import math
from collections.abc import Iterable
from xml.sax.saxutils import escape


def document(width: int, height: int, parts: Iterable[str]) -> str:
    """A whole picture on white; sizes in pixels."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'font-family="sans-serif" font-size="12">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            *parts,
            "</svg>\n",
        ]
    )


def text(x: float, y: float, words: str, anchor: str = "start", color: str = "#222", size: int = 12) -> str:
    """anchor: start, middle or end: which point of the words stands at x."""
    style = "" if size == 12 else f' font-size="{size}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}"{style}>{escape(words)}</text>'


def polyline(points: Iterable[tuple[float, float]], color: str, width: float) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width:g}"/>'


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, about six of them, within [low, high]."""
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]
