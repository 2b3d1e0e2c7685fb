"""The coordinate check as a picture: how far each kind of activation has moved, over the width, one line a step.

A column for each kind, the standard recipe above and muP below on the same scale: under muP the lines lie level.
"""

import math
from collections.abc import Sequence

from train.coordinates import Coordinates, pairs
from train.svg import document, polyline, text

PANEL_WIDTH, PANEL_HEIGHT, GAP = 150, 190, 46
LEFT, TOP, BOTTOM, RIGHT = 84, 96, 60, 110
FIRST_STEP, LAST_STEP = (198, 219, 239), (8, 48, 107)  # light to dark blue


def draw(found: Sequence[Coordinates], peak_lr: float) -> str:
    """An SVG file's text."""
    columns = pairs(found)
    width = LEFT + len(columns) * (PANEL_WIDTH + GAP) - GAP + RIGHT
    height = TOP + 2 * PANEL_HEIGHT + GAP + BOTTOM
    steps = len(found[0].change) - 1
    parts = [
        text(LEFT, 26, "How far activations have moved from where they began, by width of the model", size=16),
        text(
            LEFT,
            46,
            f"mean |x(step) - x(0)|, both axes logarithmic; learning rate {peak_lr:g}; slope: of the last step, "
            "0 is level",
            color="#555",
        ),
        *_legend(width - RIGHT + 24, steps),
    ]
    for i, (mup, standard) in enumerate(columns):
        x = LEFT + i * (PANEL_WIDTH + GAP)
        low, high = _span([*mup.change[1:], *standard.change[1:]])
        parts.append(text(x + PANEL_WIDTH / 2, TOP - 12, mup.kind, "middle", size=13))
        for row, panel in enumerate((standard, mup)):
            parts += _panel(panel, x, TOP + row * (PANEL_HEIGHT + GAP), low, high)
        parts.append(text(x + PANEL_WIDTH / 2, height - 16, "d_model", "middle", "#555"))
    for row, name in enumerate(("standard (gpt2)", "muP")):
        y = TOP + row * (PANEL_HEIGHT + GAP) + PANEL_HEIGHT / 2
        parts.append(f'<g transform="rotate(-90 22 {y:.0f})">{text(22, y, name, "middle", size=14)}</g>')
    return document(width, height, parts)


def _panel(panel: Coordinates, left: float, top: float, low: float, high: float) -> list[str]:
    """low, high: log10 of the ends of the upright axis."""

    def x(width: float) -> float:
        first, last = math.log2(panel.widths[0]), math.log2(panel.widths[-1])
        return left + 10 + (PANEL_WIDTH - 20) * (math.log2(width) - first) / (last - first)

    def y(value: float) -> float:
        return top + PANEL_HEIGHT * (high - math.log10(value)) / (high - low)

    bottom, right = top + PANEL_HEIGHT, left + PANEL_WIDTH
    parts: list[str] = []
    for value in _marks(low, high):
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#e6e6e6"/>')
        parts.append(text(left - 5, y(value) + 4, f"{value:g}", "end", "#555", 11))
    for width in panel.widths:
        parts.append(text(x(width), bottom + 16, str(width), "middle", "#555", 11))
    parts.append(f'<path d="M{left},{top} V{bottom} H{right}" fill="none" stroke="#444"/>')
    steps = len(panel.change) - 1
    lines = [
        [(x(w), y(v)) for w, v in zip(panel.widths, values, strict=True) if 0 < v < math.inf]
        for values in panel.change[1:]
    ]
    for step, line in enumerate(lines, 1):
        parts.append(polyline(line, _color(step, steps), 2.5 if step == steps else 1.2))
    parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{_color(steps, steps)}"/>' for px, py in lines[-1]]
    verdict = f"slope {panel.slope:+.2f}" + (", flat" if panel.is_flat else "")
    parts.append(text(left + 6, top + 12, verdict, color="#1a7a1a" if panel.is_flat else "#c0392b"))
    return parts


def _legend(x: float, steps: int) -> list[str]:
    shown = sorted({1, *(round(1 + (steps - 1) * i / 4) for i in range(5)), steps})
    parts = [text(x, TOP + 4, "step")]
    for i, step in enumerate(shown):
        y = TOP + 22 + 18 * i
        width = 2.5 if step == steps else 1.2
        parts.append(polyline([(x, y), (x + 24, y)], _color(step, steps), width))
        parts.append(text(x + 30, y + 4, str(step)))
    return parts


def _color(step: int, steps: int) -> str:
    share = (step - 1) / (steps - 1) if steps > 1 else 1.0
    return "rgb({},{},{})".format(*(round(a + (b - a) * share) for a, b in zip(FIRST_STEP, LAST_STEP, strict=True)))


def _span(tables: Sequence[Sequence[float]]) -> tuple[float, float]:
    """log10 of the axis' ends: a margin round all values, more above, where the verdict stands; a decade at least."""
    values = [math.log10(value) for row in tables for value in row if 0 < value < math.inf] or [0.0]
    low, high = min(values), max(values)
    middle, half = (low + high) / 2, max(0.5, (high - low) / 2)
    return middle - 1.1 * half, middle + 1.35 * half


def _marks(low: float, high: float) -> list[float]:
    """Powers of ten; and 2 and 5 times them where there would be fewer than three."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    whole = [10.0**n for n in decades if low <= n <= high]
    if len(whole) >= 3:
        return whole
    fine = [round(digit * 10.0**n, 12) for n in decades for digit in (1, 2, 5)]
    return [value for value in fine if low <= math.log10(value) <= high]
