"""Pictures of many runs as SVG inside a page: axes that may be logarithmic or names, and layers upon them.

In: layers (`plot_layers.py`) in the order in which they are drawn, each mark with the words that show where it is
pointed at. Out: a drawing whose colours are the page's variables, so dark and light both fit. For one run over time
there is `charts.py`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import assert_never

from launch import words
from launch.charts import Point, outline, safe, text
from launch.plot_layers import HALF, Area, Axis, Band, Bar, Dots, Layer, Line, Note, Tile
from train.svg import ticks

_TOP, _LEGEND_LINE, _LEAST_LEFT, _RIGHT, _BOTTOM = 12, 18, 52, 16, 40
_LETTER = 6.4
"""about as wide as a character"""


@dataclass(frozen=True)
class Plot:
    key: str
    """names it in the page and as a file"""
    title: str
    x: Axis
    y: Axis
    layers: Sequence[Layer]
    width: int = HALF
    height: int = 330

    def svg(self) -> str:
        """Empty if there is nothing to draw."""
        frame = _frame(self)
        if frame is None:
            return ""
        drawn = [part for layer in self.layers for part in _layer(layer, frame)]
        box = f'x="{frame.left}" y="{frame.top}" width="{frame.right - frame.left}" height="{frame.bottom - frame.top}"'
        return "\n".join(
            [
                f'<svg viewBox="0 0 {self.width} {self.height}" role="img"><title>{safe(self.title)}</title>',
                f'<clipPath id="clip-{self.key}"><rect {box}/></clipPath>',
                *_grid(self, frame),
                f'<g clip-path="url(#clip-{self.key})">',
                *drawn,
                "</g>",
                *_labels(self, frame),
                *_legend(self),
                "</svg>",
            ]
        )


# --- the frame -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frame:
    left: float
    right: float
    top: float
    bottom: float
    x_ends: tuple[float, float]
    y_ends: tuple[float, float]
    x_log: bool
    y_log: bool

    def x(self, value: float) -> float:
        return self.left + _share(value, self.x_ends, self.x_log) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - _share(value, self.y_ends, self.y_log) * (self.bottom - self.top)


def _share(value: float, ends: tuple[float, float], is_log: bool) -> float:
    """Of the way from one end to the other; far outside, as far as a drawing should go."""
    low, high = ends
    if is_log:
        low, high, value = math.log10(low), math.log10(high), math.log10(value) if value > 0 else -400.0
    return min(20.0, max(-20.0, (value - low) / (high - low)))


def _frame(plot: Plot) -> _Frame | None:
    places = [place for layer in plot.layers for place in _places(layer)]
    x_ends, y_ends = (_ends(axis, [p[i] for p in places]) for i, axis in enumerate((plot.x, plot.y)))
    if x_ends is None or y_ends is None:
        return None
    if plot.y.names:
        y_ends = (y_ends[1], y_ends[0])  # the first name on top
    labels = [_cut(name) for name in plot.y.names] or [plot.y.show(v) for v in _ticks(y_ends, plot.y.is_log)]
    left = max(_LEAST_LEFT, 36 + 1.08 * _LETTER * max(map(words.width, labels), default=0))
    top = _TOP + _LEGEND_LINE * len(_legend_lines(plot))
    log = plot.x.is_log, plot.y.is_log
    return _Frame(left, plot.width - _RIGHT, top + 4, plot.height - _BOTTOM, x_ends, y_ends, *log)


def _places(layer: Layer) -> Iterator[Point]:
    match layer:
        case Line() | Area():
            yield from layer.points
        case Dots():
            yield from ((x, y) for x, y, _ in layer.places)
        case Band():
            yield from ((x, y) for x, *pair in layer.places for y in pair)
        case Bar():
            yield from ((x, layer.y) for x in layer.x)
        case Tile():
            yield from zip(layer.x, layer.y, strict=True)
        case Note():
            yield (layer.x, layer.y)
        case _:
            assert_never(layer)


def _ends(axis: Axis, values: Sequence[float]) -> tuple[float, float] | None:
    if axis.names:
        return (-0.5, len(axis.names) - 0.5)
    known = [value for value in values if math.isfinite(value) and (value > 0 or not axis.is_log)]
    if not known:
        return None
    low, high = min(known), max(known)
    if axis.is_log:
        room = max(1.06, (high / low) ** 0.05)
        low, high = low / room, high * room
    else:
        room = 0.06 * (high - low) or 0.5 * (abs(high) or 1.0)
        low, high = low - room, high + room
    low, high = low if axis.low is None else axis.low, high if axis.high is None else axis.high
    return (low, high) if low < high else (low, low * 2 if axis.is_log else low + 1)


def _ticks(ends: tuple[float, float], is_log: bool) -> list[float]:
    low, high = min(ends), max(ends)
    if not is_log:
        return ticks(low, high)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if len(found) >= 4:
            return found[:: -(-len(found) // 9)]
    return found if len(found) >= 3 else [value for value in ticks(low, high) if value > 0]


# --- around it -------------------------------------------------------------------------------------------------------


def _grid(plot: Plot, frame: _Frame) -> list[str]:
    found: list[str] = []
    for value in [] if plot.y.names else _ticks(frame.y_ends, plot.y.is_log):
        y = f"{frame.y(value):.1f}"
        found.append(f'<line class="level" x1="{frame.left:.1f}" x2="{frame.right:.1f}" y1="{y}" y2="{y}"/>')
    for value in [] if plot.x.names else _ticks(frame.x_ends, plot.x.is_log):
        x = f"{frame.x(value):.1f}"
        found.append(f'<line class="level" x1="{x}" x2="{x}" y1="{frame.top}" y2="{frame.bottom}"/>')
    base = f'x1="{frame.left:.1f}" x2="{frame.right:.1f}" y1="{frame.bottom}" y2="{frame.bottom}"'
    return [*found, f'<line class="base" {base}/>']


def _labels(plot: Plot, frame: _Frame) -> list[str]:
    found: list[str] = []
    for value, label in _named_ticks(plot.y, frame.y_ends):
        found.append(text(frame.left - 6, frame.y(value) + 4, _cut(label), "end"))
    end = -math.inf
    for value, label in _named_ticks(plot.x, frame.x_ends):
        half = _LETTER * words.width(label) / 2
        x = min(frame.x(value), plot.width - 2 - half)
        if x - half > end + 8:  # else it would touch the one before
            found.append(text(x, frame.bottom + 16, label, "middle"))
            end = x + half
    found.append(text((frame.left + frame.right) / 2, plot.height - 6, plot.x.label, "middle"))
    middle = (frame.top + frame.bottom) / 2
    turned = (
        f'<text transform="translate(13 {middle:.0f}) rotate(-90)" text-anchor="middle">{safe(plot.y.label)}</text>'
    )
    return [*found, turned]


def _named_ticks(axis: Axis, ends: tuple[float, float]) -> list[tuple[float, str]]:
    if axis.names:
        return [(float(i), name) for i, name in enumerate(axis.names)]
    return [(value, axis.show(value)) for value in _ticks(ends, axis.is_log)]


def _cut(label: str) -> str:
    return words.cut(label, 26)


def _legend(plot: Plot) -> list[str]:
    found: list[str] = []
    for i, line in enumerate(_legend_lines(plot)):
        y = _TOP + _LEGEND_LINE * i
        for x, layer in line:
            found += _key(layer, x, y)
            found.append(text(x + 24, y + 4, _name(layer), "start", "ink"))
    return found


def _legend_lines(plot: Plot) -> list[list[tuple[float, Layer]]]:
    """(x, layer) of each line of the legend: what has no room goes to the next."""
    lines: list[list[tuple[float, Layer]]] = []
    x = math.inf
    for layer in plot.layers:
        if _name(layer):
            needed = 24 + _LETTER * words.width(_name(layer)) + 18
            if x + needed > plot.width:
                lines.append([])
                x = 16.0
            lines[-1].append((x, layer))
            x += needed
    return lines


def _name(layer: Layer) -> str:
    return layer.name if isinstance(layer, Line | Dots | Band | Bar) else ""


def _key(layer: Layer, x: float, y: float) -> list[str]:
    match layer:
        case Line():
            return [f'<polyline class="s{layer.look} {layer.kind}" points="{x:.0f},{y} {x + 18:.0f},{y}"/>']
        case Dots():
            return [_mark(x + 9, y, "", layer)]
        case Band():
            return [f'<rect class="{_band(layer)}" x="{x:.0f}" y="{y - 6}" width="18" height="12"/>']
        case Bar():
            half = min(layer.thick, 10) / 2
            return [f'<rect class="c{layer.look}" x="{x:.0f}" y="{y - half}" width="18" height="{2 * half}"/>']
        case _:
            return []


# --- the layers ------------------------------------------------------------------------------------------------------


def _layer(layer: Layer, frame: _Frame) -> list[str]:
    match layer:
        case Line():
            points = _path(outline([p for p in layer.points if all(map(math.isfinite, p))]), frame)
            return [f'<polyline class="s{layer.look} {layer.kind}" points="{points}">{_hint(layer.hint)}</polyline>']
        case Dots():
            known = (place for place in layer.places if all(map(math.isfinite, place[:2])))
            return [_mark(frame.x(x), frame.y(y), hint, layer) for x, y, hint in known]
        case Band():
            known = [place for place in layer.places if all(map(math.isfinite, place))]
            around = [(x, high) for x, _, high in known] + [(x, low) for x, low, _ in reversed(known)]
            return [f'<polygon class="{_band(layer)}" points="{_path(around, frame)}"/>']
        case Area():
            points = _path(layer.points, frame)
            return [f'<polygon class="c{layer.look}" points="{points}">{_hint(layer.hint)}</polygon>']
        case Bar():
            return [_box(layer.x, (layer.y, layer.y), f"c{layer.look}", layer.hint, frame, layer.thick / 2)]
        case Tile():
            middle = [sum(map(scale, ends)) / 2 for scale, ends in ((frame.x, layer.x), (frame.y, layer.y))]
            on = "on-dark" if layer.is_dark else "on-light"
            box = _box(layer.x, layer.y, f"c{layer.look} ring", layer.hint, frame)
            return [box, text(middle[0], middle[1] + 4, layer.label, "middle", on)]
        case Note():
            return [text(frame.x(layer.x), frame.y(layer.y), layer.label, layer.anchor, "halo")]
        case _:
            assert_never(layer)


def _band(layer: Band) -> str:
    return f"{'near' if layer.is_near else 'wide'}-band c{layer.look}"


def _path(points: Sequence[Point], frame: _Frame) -> str:
    return " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)


def _box(
    xs: tuple[float, float], ys: tuple[float, float], kind: str, hint: str, frame: _Frame, more: float = 0.0
) -> str:
    """more: so many pixels above and below."""
    (left, right), (top, bottom) = sorted(map(frame.x, xs)), sorted(map(frame.y, ys))
    size = f'width="{max(right - left, 1):.1f}" height="{bottom - top + 2 * more:.1f}"'
    return f'<rect class="{kind}" x="{left:.1f}" y="{top - more:.1f}" {size}>{_hint(hint)}</rect>'


def _mark(x: float, y: float, hint: str, dots: Dots) -> str:
    r, kind, said = dots.size, f"c{dots.look} ring", _hint(hint)
    match dots.shape:
        case "circle":
            return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{r:g}">{said}</circle>'
        case "ring":
            return f'<circle class="s{dots.look} hollow" cx="{x:.1f}" cy="{y:.1f}" r="{r:g}">{said}</circle>'
        case "square":
            return f'<path class="{kind}" d="M{x - r:.1f},{y - r:.1f}h{2 * r:g}v{2 * r:g}h{-2 * r:g}z">{said}</path>'
        case "diamond":
            d = f"M{x:.1f},{y - 1.4 * r:.1f}l{1.4 * r:.1f},{1.4 * r:.1f}l{-1.4 * r:.1f},{1.4 * r:.1f}"
            return f'<path class="{kind}" d="{d}l{-1.4 * r:.1f},{-1.4 * r:.1f}z">{said}</path>'
        case "triangle":
            d = f"M{x:.1f},{y - 1.3 * r:.1f}l{1.2 * r:.1f},{2.2 * r:.1f}h{-2.4 * r:.1f}z"
            return f'<path class="{kind}" d="{d}">{said}</path>'
        case _:
            arms = f"M{x - r:.1f},{y - r:.1f}l{2 * r:g},{2 * r:g}m0,{-2 * r:g}l{-2 * r:g},{2 * r:g}"
            return f'<path class="s{dots.look} thick" d="{arms}">{said}</path>'


def _hint(hint: str) -> str:
    return f"<title>{safe(hint)}</title>" if hint else ""
