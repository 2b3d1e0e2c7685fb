"""What stands on a picture of many runs: axes, and layers of lines, dots, bands, areas, bars, tiles and words.

In `plot.py` they become a drawing. What differs differs in shape or dash as well as in colour; ordered things (sizes,
losses) have ordered colours: those of viridis, cut at the end that the page's ground would swallow.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from launch.charts import Point, tick

HALF, WHOLE = 520, 900
"""widths: two beside each other, or over the page"""
N_ORDERED = 8
"""colours of ordered things"""
N_HEAT = 9

PLOT_STYLE = """
:root { --q0: #3f0f5c; --q1: #46317e; --q2: #3b528b; --q3: #2c728e; --q4: #21908d; --q5: #27a277; --q6: #5aa02c;
  --q7: #8a8a00 }
@media (prefers-color-scheme: dark) { :root { --q0: #8f6fd0; --q1: #7286dc; --q2: #559bd6; --q3: #3fb0c4;
  --q4: #3fc4a0; --q5: #6fd374; --q6: #b0dc3f; --q7: #fde725 } }
.sq0 { stroke: var(--q0) } .sq1 { stroke: var(--q1) } .sq2 { stroke: var(--q2) } .sq3 { stroke: var(--q3) }
.sq4 { stroke: var(--q4) } .sq5 { stroke: var(--q5) } .sq6 { stroke: var(--q6) } .sq7 { stroke: var(--q7) }
.cq0 { fill: var(--q0) } .cq1 { fill: var(--q1) } .cq2 { fill: var(--q2) } .cq3 { fill: var(--q3) }
.cq4 { fill: var(--q4) } .cq5 { fill: var(--q5) } .cq6 { fill: var(--q6) } .cq7 { fill: var(--q7) }
.ch0 { fill: #482475 } .ch1 { fill: #414487 } .ch2 { fill: #355f8d } .ch3 { fill: #2a788e } .ch4 { fill: #21918c }
.ch5 { fill: #22a884 } .ch6 { fill: #44bf70 } .ch7 { fill: #7ad151 } .ch8 { fill: #bddf26 }
.scard { stroke: var(--card) }
.sink { stroke: var(--ink) } .cink { fill: var(--ink) } .squiet { stroke: var(--quiet) } .cquiet { fill: var(--quiet) }
.swarn { stroke: var(--warn) } .cwarn { fill: var(--warn) }
.thick { stroke-width: 3.5 } .thin { stroke-width: 1.2 } polyline.dashed { stroke-dasharray: 7 4 }
polyline.dotted { stroke-dasharray: 2 4 } polyline.thick { stroke-width: 3.2 }
polyline.under { stroke-width: 6; opacity: .6 }
polyline.thin { stroke-width: 1.2 }
.wide-band { stroke: none; opacity: .16 } .near-band { stroke: none; opacity: .36 }
.ring { stroke: var(--card); stroke-width: 1.2 }
.hollow { fill: var(--card); stroke-width: 2 } svg text.halo { paint-order: stroke; stroke: var(--card);
  stroke-width: 3px; fill: var(--ink) } svg text.on-dark { fill: #fff } svg text.on-light { fill: #111 }
.plot:not(.whole) { max-width: 560px }
.scroll { overflow-x: auto } .scroll svg { min-width: 430px } .scroll.whole svg { min-width: 690px }
"""


@dataclass(frozen=True)
class Axis:
    label: str
    is_log: bool = False
    names: Sequence[str] = ()
    """of the places 0, 1, 2 …, from the top or the left, instead of numbers"""
    show: Callable[[float], str] = field(default=lambda value: tick(value))
    low: float | None = None
    high: float | None = None
    """ends that are not taken from the layers"""


@dataclass(frozen=True)
class Line:
    name: str
    """in the legend; empty: not there"""
    points: Sequence[Point]
    look: str
    kind: str = ""
    """thick, thin, dashed, dotted; under: the ground of a line upon colours"""
    hint: str = ""


@dataclass(frozen=True)
class Dots:
    name: str
    places: Sequence[tuple[float, float, str]]
    """(x, y, hint)"""
    look: str
    shape: str = "circle"
    """circle, square, diamond, triangle, cross, or ring (hollow)"""
    size: float = 4.0


@dataclass(frozen=True)
class Band:
    name: str
    places: Sequence[tuple[float, float, float]]
    """(x, low, high)"""
    look: str
    is_near: bool = False
    """stronger: the inner of two"""


@dataclass(frozen=True)
class Area:
    points: Sequence[Point]
    look: str
    hint: str = ""


@dataclass(frozen=True)
class Bar:
    """From one x to another at the height of y."""

    name: str
    x: tuple[float, float]
    y: float
    look: str
    thick: float
    hint: str = ""


@dataclass(frozen=True)
class Tile:
    x: tuple[float, float]
    y: tuple[float, float]
    look: str
    label: str
    hint: str
    is_dark: bool = False


@dataclass(frozen=True)
class Note:
    x: float
    y: float
    label: str
    anchor: str = "middle"


Layer = Line | Dots | Band | Area | Bar | Tile | Note


def ordered_look(rank: int, count: int) -> str:
    """The colour of the so-manieth of ordered things."""
    return f"q{round(rank * (N_ORDERED - 1) / max(1, count - 1))}"


def power_of_ten(value: float) -> str:
    """3·10¹⁵"""
    if not value > 0:
        return tick(value)
    power = math.floor(math.log10(value) + 1e-9)
    factor = value / 10.0**power
    raised = f"10{str(power).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
    return raised if abs(factor - 1) < 1e-6 else f"{factor:.3g}·{raised}"
