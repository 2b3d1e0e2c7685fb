"""Curves as SVG inside a page: lines over steps or tokens, with bands, levels, and marks where a run was started again.

In: series of points, perhaps very many, perhaps not all numbers. Out: a drawing whose colours are the page's variables,
so dark and light both fit. A line of many points is drawn as the least and the greatest of each pixel's worth of them;
a gap is a value that is no number, and is marked at the bottom.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from data_prep.harmless import plain
from launch import words
from train.svg import ticks

WIDTH, HEIGHT = 520, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 30, 38
_COLUMNS = 400
"""a line has at most twice as many points"""

Point = tuple[float, float]

CHART_STYLE = """
.s0 { stroke: var(--c0) } .s1 { stroke: var(--c1) } .s2 { stroke: var(--c2) } .s3 { stroke: var(--c3) }
.s4 { stroke: var(--c4) } .s5 { stroke: var(--c5) } .s6 { stroke: var(--c6) } .s7 { stroke: var(--c7) }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round } polyline.faint { stroke-width: 1; opacity: .35 }
.band { stroke: none; opacity: .22 } .restart { stroke: var(--quiet); stroke-dasharray: 2 4; opacity: .8 }
.reference { stroke: var(--quiet); stroke-dasharray: 6 4 } .gap { stroke: var(--warn); stroke-width: 2 }
.key { stroke-width: 3 } svg text { font-size: 12px }
"""


@dataclass(frozen=True)
class Series:
    name: str
    points: Sequence[Point]
    colour: int
    """of the page's eight"""
    is_faint: bool = False
    """no legend, and a thin line: the raw values behind a mean"""
    has_dots: bool = False


@dataclass(frozen=True)
class Band:
    """Between two values at each place."""

    places: Sequence[tuple[float, float, float]]
    """(x, low, high)"""
    colour: int


@dataclass(frozen=True)
class Chart:
    title: str
    x_label: str
    series: Sequence[Series]
    bands: Sequence[Band] = ()
    levels: Sequence[tuple[str, float]] = ()
    """horizontal lines to compare with"""
    marks: Sequence[tuple[float, str]] = ()
    """(x, hint) of vertical ones"""
    show: Callable[[float], str] = field(default=lambda value: tick(value))
    from_zero: bool = False
    is_log: bool = False
    width: int = WIDTH
    height: int = HEIGHT
    right: int = RIGHT
    """room for the names of levels, beside the curves; with no more than RIGHT they stand inside"""

    def svg(self) -> str:
        """Empty if there is nothing to draw."""
        frame = _frame(self)
        if frame is None:
            return ""
        parts = [*_axes(self, frame), *_levels(self, frame), *_marks(self, frame)]
        for band in self.bands:
            parts += _band(band, frame)
        for series in sorted(self.series, key=lambda series: not series.is_faint):
            parts += _line(series, frame)
        parts += _legend(self, frame)
        head = f'<svg viewBox="0 0 {self.width} {self.height}" role="img"><title>{safe(self.title)}</title>'
        return "\n".join([head, *parts, "</svg>"])


def smoothed(points: Sequence[Point], share: float = 0.04) -> list[Point]:
    """A running median of means: over this share of the points around each, no spike among them moves it."""
    finite = [point for point in points if math.isfinite(point[1])]
    if len(finite) < 8:
        return finite
    half = max(1, round(len(finite) * share / 2))
    stride = max(1, len(finite) // _COLUMNS)
    return [
        (finite[i][0], statistics.fmean(value for _, value in _middle(finite[max(0, i - half) : i + half + 1])))
        for i in range(0, len(finite), stride)
    ]


def _middle(points: Sequence[Point]) -> Sequence[Point]:
    """Without the outer tenth on both sides."""
    outer = len(points) // 10
    ordered = sorted(points, key=lambda point: point[1])
    return ordered[outer : len(ordered) - outer]


def tick(value: float) -> str:
    """As short as it can be said: 6k, 2.5, 0.003."""
    if value and abs(value) < 0.01:
        return f"{value:.3g}".replace("e-0", "e-")
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


# --- the frame -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frame:
    left: float
    right: float
    low: float
    high: float
    width: int
    height: int
    margin: int
    is_log: bool

    def x(self, value: float) -> float:
        return LEFT + (value - self.left) / (self.right - self.left) * (self.width - LEFT - self.margin)

    def y(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        share = (min(max(value, low), high) - low) / (high - low)
        return self.height - BOTTOM - share * (self.height - TOP - BOTTOM)

    @property
    def bottom(self) -> float:
        return self.height - BOTTOM


def _frame(chart: Chart) -> _Frame | None:
    xs = [x for series in chart.series for x, _ in series.points] + [x for b in chart.bands for x, *_ in b.places]
    firm = [y for series in chart.series if not series.is_faint for _, y in series.points]
    faint = [y for series in chart.series if series.is_faint for _, y in series.points]
    firm += [y for band in chart.bands for _, *pair in band.places for y in pair]
    values = sorted(y for y in firm + _within_reason(faint) + [y for _, y in chart.levels] if math.isfinite(y))
    if chart.is_log:
        values = [value for value in values if value > 0]
    if not xs or not values:
        return None
    low, high = values[0], values[-1]
    low, high = _padded(0.0 if chart.from_zero and not chart.is_log else low, high, chart.is_log)
    left, right = min(xs), max(xs)
    return _Frame(
        left, right if right > left else left + 1, low, high, chart.width, chart.height, chart.right, chart.is_log
    )


def _within_reason(values: Sequence[float]) -> list[float]:
    """Without the outer hundredth: a spike may leave the frame, and be cut off."""
    finite = sorted(value for value in values if math.isfinite(value))
    outer = len(finite) // 100
    return finite[outer : len(finite) - outer]


def _padded(low: float, high: float, is_log: bool) -> tuple[float, float]:
    if is_log:
        return (low / 1.3, high * 1.3)
    if high <= low:
        return (low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1))
    room = 0.06 * (high - low)
    return (low if low == 0 else low - room, high + room)


# --- its parts -------------------------------------------------------------------------------------------------------


def _axes(chart: Chart, frame: _Frame) -> list[str]:
    parts: list[str] = []
    values = _powers(frame) if chart.is_log else ticks(frame.low, frame.high)
    for value in values:
        y = frame.y(value)
        parts.append(f'<line class="level" x1="{LEFT}" x2="{chart.width - chart.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(text(LEFT - 6, y + 4, chart.show(value), "end"))
    for value in ticks(frame.left, frame.right)[: 9 if chart.width > WIDTH else 7]:
        if frame.x(value) < chart.width - chart.right - 12:
            parts.append(text(frame.x(value), frame.bottom + 16, tick(value), "middle"))
    parts.append(text((LEFT + chart.width - chart.right) / 2, chart.height - 5, chart.x_label, "middle"))
    right = chart.width - chart.right
    parts.append(f'<line class="base" x1="{LEFT}" x2="{right}" y1="{frame.bottom}" y2="{frame.bottom}"/>')
    return parts


def _powers(frame: _Frame) -> list[float]:
    first, last = math.ceil(math.log10(frame.low)), math.floor(math.log10(frame.high))
    found = [10.0**power for power in range(first, last + 1)]
    return found if len(found) > 1 else [frame.low * 1.3, *found, frame.high / 1.3]


def _levels(chart: Chart, frame: _Frame) -> list[str]:
    parts: list[str] = []
    last, right, outside = math.inf, chart.width - chart.right, chart.right > RIGHT
    for name, value in sorted(chart.levels, key=lambda level: level[1]):
        y = frame.y(value)
        parts.append(f'<line class="reference" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        last = min(y + (4 if outside else -4), last - 15)  # labels of close levels must not cover each other
        x, anchor = (right + 6, "start") if outside else (right - 2, "end")
        parts.append(text(x, last, name, anchor))
    return parts


def _marks(chart: Chart, frame: _Frame) -> list[str]:
    parts: list[str] = []
    for x, hint in chart.marks:
        if frame.left <= x <= frame.right:
            at = f'x1="{frame.x(x):.1f}" x2="{frame.x(x):.1f}" y1="{TOP - 4}" y2="{frame.bottom}"'
            parts.append(f'<line class="restart" {at}><title>{safe(hint)}</title></line>')
    return parts


def _band(band: Band, frame: _Frame) -> list[str]:
    places = _thinned(band.places)
    if len(places) < 2:
        return []
    upper = [f"{frame.x(x):.1f},{frame.y(high):.1f}" for x, _, high in places]
    lower = [f"{frame.x(x):.1f},{frame.y(low):.1f}" for x, low, _ in reversed(places)]
    return [f'<polygon class="band c{band.colour}" points="{" ".join(upper + lower)}"/>']


def _thinned(places: Sequence[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    finite = [place for place in places if all(map(math.isfinite, place))]
    size = max(1, len(finite) // _COLUMNS)
    groups = [finite[i : i + size] for i in range(0, len(finite), size)]
    return [(group[0][0], min(low for _, low, _ in group), max(high for *_, high in group)) for group in groups]


def _line(series: Series, frame: _Frame) -> list[str]:
    kind = f"s{series.colour}{' faint' if series.is_faint else ''}"
    parts: list[str] = []
    for piece in _pieces(series.points):
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in outline(piece))
        parts.append(f'<polyline class="{kind}" points="{path}"/>')
    if series.has_dots or len(series.points) == 1:
        finite = [point for point in series.points if math.isfinite(point[1])]
        for x, y in finite if len(finite) <= 60 else finite[-1:]:
            parts.append(f'<circle class="c{series.colour}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3"/>')
    for x, y in series.points:
        if not math.isfinite(y):
            at, base = frame.x(x), frame.bottom
            parts.append(f'<path class="gap" d="M{at - 3:.1f},{base - 9:.0f} l6,6 m0,-6 l-6,6"/>')
    return parts


def _pieces(points: Sequence[Point]) -> Iterable[list[Point]]:
    """Between the values that are no numbers."""
    piece: list[Point] = []
    for point in points:
        if math.isfinite(point[1]):
            piece.append(point)
        elif piece:
            yield piece
            piece = []
    if piece:
        yield piece


def outline(points: Sequence[Point]) -> list[Point]:
    """The least and the greatest of each pixel's worth of points."""
    if len(points) <= 2 * _COLUMNS:
        return list(points)
    size = -(-len(points) // _COLUMNS)
    found: list[Point] = []
    for i in range(0, len(points), size):
        group = points[i : i + size]
        found += sorted({min(group, key=lambda p: p[1]), max(group, key=lambda p: p[1])})
    return found


def _legend(chart: Chart, frame: _Frame) -> list[str]:
    named = [series for series in chart.series if series.name]
    parts: list[str] = []
    x = float(LEFT)
    for series in named:
        if x + 24 + 6.6 * len(series.name) > frame.width:
            break  # what has no room is told by the hint of the whole
        parts.append(f'<line class="key s{series.colour}" x1="{x:.0f}" x2="{x + 16:.0f}" y1="12" y2="12"/>')
        parts.append(text(x + 21, 16, series.name, "start", "ink"))
        x += 36 + 6.6 * words.width(series.name)
    return parts


def text(x: float, y: float, content: str, anchor: str, kind: str = "") -> str:
    """anchor: start, middle or end: which point of the words stands at x."""
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text{of_kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{safe(content)}</text>'


def safe(words_of_anyone: str) -> str:
    return escape(plain(words_of_anyone))
