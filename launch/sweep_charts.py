"""The pictures of a sweep's law: loss curves, valleys at equal compute, the surface, the frontier, residuals, profiles.

In: curves, cells and what the rows say. Out: a `Picture` each; one without anything to draw is empty.
"""

from collections.abc import Sequence

import numpy as np

from launch import words
from launch.charts import tick
from launch.pictures import Picture
from launch.plot import Plot
from launch.plot_layers import (
    HALF,
    N_HEAT,
    WHOLE,
    Area,
    Axis,
    Band,
    Dots,
    Layer,
    Line,
    Note,
    ordered_look,
    power_of_ten,
)
from launch.scaling.bootstrap import interval
from launch.scaling.envelope import Envelope
from launch.scaling.isoflop import budgets
from launch.scaling.law import Law
from launch.scaling.minimum import Floats
from launch.scaling.rows import Row
from launch.sweep_folder import Curve, Sweep
from launch.sweep_law import Findings

_GRID = 60
_SHOWN_SIZES = 9


def hint(row: Row, found: Findings, more: str = "") -> str:
    """What is said of a run where its mark is pointed at."""
    n = row.size(found.choice.counting, found.choice.flops)
    said = f"{row.run}: N {tick(n)}, {tick(row.tokens)} tokens, {power_of_ten(_flops(row, found))} FLOPs"
    return f"{said}, loss {row.loss:.4f}{more}"


def loss_curves(sweep: Sweep, curves: Sequence[Curve], found: Findings) -> Picture:
    rows = [cell.row for cell in sweep.measured if cell.row is not None]
    sizes = _distinct(
        [curve.n for curve in curves] + [row.size(found.choice.counting, found.choice.flops) for row in rows]
    )
    named: set[int] = set()
    layers: list[Layer] = []
    for curve in sorted(curves, key=lambda curve: curve.n):
        rank = _rank(curve.n, sizes)
        name = "" if rank in named or not _is_shown(rank, len(sizes)) else f"N {tick(sizes[rank])}"
        named.add(rank)
        layers.append(Line(name, curve.points, ordered_look(rank, len(sizes)), "thin", curve.run))
    layers += _ends(sweep, found)
    layers += _lower_bound(found)
    ends = [row.loss for row in rows if row.schedule_finished] or [p[1] for c in curves for p in c.points[-1:]]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    reached = [curve.points[-1][0] for curve in curves] + [_flops(row, found) for row in rows]
    plot = Plot(
        "curves",
        "Loss against compute",
        Axis(
            f"training FLOPs ({found.choice.flops})", is_log=True, show=power_of_ten, low=min(reached, default=1) / 12
        ),
        Axis(_curve_name(found, curves), high=high + max(0.9 * (high - low), 0.12 * high)),
        layers,
        width=WHOLE,
        height=440,
    )
    kinds = " or ".join(sorted({curve.measured for curve in curves}, reverse=True))
    lines = f"lines: {kinds} loss of {len(curves)} runs" if curves else "no run has a curve"
    if any(curve.measured == "training" for curve in curves):
        lines += " (smoothed; too few evaluations for a line of those)"
    told = f"Loss against compute; {lines}; marks: {_loss_name(found).partition(',')[0]} at the end of a run"
    return Picture("curves", plot.svg(), told, is_whole=True)


def valleys(found: Findings) -> Picture:
    """Loss against size at equal compute, where budgets are shared."""
    analysis = found.analysis
    assert analysis is not None
    at, rows = analysis.family.points, _rows_of(found)
    shared = zip([pair for pair in budgets(at.flops) if len(pair[1]) >= 3], analysis.bottoms, strict=True)
    groups = [(flops, which, bottom) for (flops, which), bottom in shared if len(np.unique(at.n[which])) >= 3]
    layers: list[Layer] = []
    for rank, (flops, which, bottom) in enumerate(groups):
        look, x, y = ordered_look(rank, len(groups)), np.log(at.n[which]), at.loss[which]
        fine = np.linspace(x.min() - 0.1, x.max() + 0.1, 40)
        heights = np.polyval(np.polyfit(x - x.mean(), y, 2), fine - x.mean())
        layers.append(Line("", _pairs(np.exp(fine), heights), look))
        places = [(float(at.n[i]), float(at.loss[i]), hint(rows[i], found)) for i in which]
        layers.append(Dots(f"{power_of_ten(float(f'{flops:.2g}'))} FLOPs", places, look))
        told = f"lowest at N {tick(bottom.n)}" + (f": not used, {bottom.flag}" if bottom.flag else "")
        layers.append(Dots("", [(bottom.n, bottom.loss, told)], "warn" if bottom.flag else "ink", "diamond", 5))
    sizes = Axis(_size_name(found), is_log=True, low=at.n.min() / 1.5, high=at.n.max() * 1.5)
    plot = Plot("isoflop", "Loss against size at equal compute", sizes, Axis(_loss_name(found)), layers, WHOLE, 400)
    caption = "Loss against size at equal compute; diamonds: the bottoms of the parabolas, red where they do not count"
    return Picture("isoflop", plot.svg() if groups else "", caption, is_whole=True)


def surface(found: Findings) -> Picture:
    """The law over tokens and size, with the cells on it, and the best size for each budget."""
    analysis = found.analysis
    assert analysis is not None
    law, at = analysis.family.fit.law, analysis.family.points
    ns, ds = np.append(at.n, [p.n for _, p in found.held]), np.append(at.d, [p.d for _, p in found.held])
    n_ends, d_ends = _around(ns), _around(ds)
    layers, notes = _contours(law, d_ends, n_ends)
    budget = np.geomspace(at.flops.min() / 10, max(at.flops.max(), *(p.flops for _, p in found.held), 1.0) * 30, _GRID)
    n, d = law.optimum(budget, analysis.family.cost)
    layers.append(Line("", _pairs(d, n), "card", "under"))
    layers.append(Line("best size for a budget", _pairs(d, n), "ink", "thick"))
    layers.append(
        Dots("cells", [(float(r.tokens), x, hint(r, found)) for r, x in zip(_rows_of(found), at.n, strict=True)], "ink")
    )
    layers.append(Dots("held out", [(p.d, p.n, hint(r, found)) for r, p in found.held], "warn", "diamond", 5.5))
    plot = Plot(
        "surface",
        "The law over tokens and size",
        Axis("training tokens", is_log=True, low=d_ends[0], high=d_ends[1]),
        Axis(_size_name(found), is_log=True, low=n_ends[0], high=n_ends[1]),
        [layer for layer in [*layers, *notes] if not isinstance(layer, Dots) or layer.places],
        WHOLE,
        470,
    )
    return Picture("surface", plot.svg(), "The fitted law: loss by tokens and size, lighter is lower", is_whole=True)


def frontier(found: Findings) -> list[Picture]:
    """The best size and length against compute, with what the other estimators say."""
    analysis = found.analysis
    assert analysis is not None
    family = analysis.family
    at, cost = family.points, family.cost
    top = max([10 * float(at.flops.max()), *(1.5 * p.flops for _, p in found.held)])
    budget = np.geomspace(float(at.flops.min()), top, _GRID)
    best = family.fit.law.optimum(budget, cost)
    drawn = [family.laws.optimum(flops, cost) for flops in budget]
    found_pictures: list[Picture] = []
    for i, (key, label) in enumerate((("frontier-n", _size_name(found)), ("frontier-d", "training tokens"))):
        spans = [interval(one[i]) for one in drawn]
        wide = [(c, s.low95, s.high95) for c, s in zip(budget, spans, strict=True)]
        near = [(c, s.low80, s.high80) for c, s in zip(budget, spans, strict=True)]
        layers: list[Layer] = [
            Band("95 %", wide, "0"),
            Band("80 %", near, "0", is_near=True),
            Line("law", _pairs(budget, best[i]), "0"),
        ]
        layers += _other_estimators(found, i)
        held = [(p.flops, (p.n, p.d)[i], hint(row, found)) for row, p in found.held]
        layers += [Dots("held out", held, "warn", "diamond", 5)] if held else []
        values = np.concatenate([best[i], (at.n, at.d)[i]])
        ends = float(values.min()) / 3, float(values.max()) * 3
        y = Axis(label, is_log=True, low=ends[0], high=ends[1])
        x = Axis(f"training FLOPs ({found.choice.flops})", is_log=True, show=power_of_ten)
        name = "Best size" if i == 0 else "Best length"
        plot = Plot(key, f"{name} against compute", x, y, layers, height=360)
        end = ", to ten times the largest budget" if not held else ""
        found_pictures.append(Picture(key, plot.svg(), f"{name} against compute, with intervals of the law{end}"))
    return found_pictures


def residuals(found: Findings) -> list[Picture]:
    analysis = found.analysis
    assert analysis is not None
    family, rows = analysis.family, _rows_of(found)
    at, off = family.points, np.expm1(-family.fit.residuals)
    predicted = family.fit.law.loss(at.n, at.d)
    noise = analysis.seed_noise
    pictures: list[Picture] = []
    for key, label, xs, held, is_log in (
        ("residuals-loss", "predicted loss", predicted, [p.loss for _, p in found.held], False),
        ("residuals-n", _size_name(found), at.n, [p.n for _, p in found.held], True),
        ("residuals-d", "training tokens", at.d, [p.d for _, p in found.held], True),
    ):
        every = [*xs, *held]
        ends = (min(every) / 1.2, max(every) * 1.2) if is_log else (min(every), max(every))
        layers: list[Layer] = [Band("seed noise", [(x, -noise, noise) for x in ends], "7")] if noise else []
        layers.append(Line("", [(x, 0.0) for x in ends], "quiet", "dashed"))
        places = [(x, y, hint(row, found, f", {y:+.2%}")) for x, y, row in zip(xs, off, rows, strict=True)]
        layers.append(Dots("cells of the fit", places, "0"))
        outside = [(x, r.loss / p.loss - 1, r, p) for x, (r, p) in zip(held, found.held, strict=True)]
        dots = [(x, y, hint(r, found, f", law {p.loss:.4f}, {y:+.2%}")) for x, y, r, p in outside]
        layers += [Dots("held out", dots, "warn", "diamond", 5)] if dots else []
        y = Axis("came over law, less 1", show=lambda value: f"{value:+.1%}" if value else "0 %")
        width = HALF if is_log else WHOLE
        plot = Plot(key, f"Residuals by {label}", Axis(label, is_log=is_log), y, layers, width, 300)
        pictures.append(Picture(key, plot.svg(), f"Residuals by {label}", is_whole=not is_log))
    return pictures


def profiles(found: Findings) -> list[Picture]:
    analysis = found.analysis
    assert analysis is not None
    law, pictures = analysis.family.fit.law, list[Picture]()
    for i, (name, values) in enumerate(analysis.profiles.items()):
        known = [(value, max(rise, 0.0)) for value, rise in values if np.isfinite(rise)]
        best, places = float(getattr(law, name)), [(v, r, f"{name} {v:.4g}: {r:+.1%}") for v, r in known]
        layers: list[Layer] = [
            Line("", known, str(i)),
            Dots("", places, str(i)),
            Dots("", [(best, 0.0, "best")], "ink", "diamond", 5),
        ]
        top = sorted(rise for _, rise in known)[len(known) // 2] if known else 1.0
        y = Axis(
            "rise of the objective",
            show=lambda value: f"{value:+.0%}",
            low=-0.05 * max(2.5 * top, 0.05),
            high=max(2.5 * top, 0.05),
        )
        is_whole = name == "E"
        width = WHOLE if is_whole else HALF
        plot = Plot(f"profile-{name}", f"Profile of {name}", Axis(name), y, layers, width, 260)
        caption = f"{name} held there, all else at its best: how much worse the fit becomes"
        pictures.append(Picture(f"profile-{name}", plot.svg(), caption, is_whole))
    return pictures


# --- layers ----------------------------------------------------------------------------------------------------------


def _ends(sweep: Sweep, found: Findings) -> list[Layer]:
    used = {row.run for row in found.used}
    kinds: dict[str, list[tuple[float, float, str]]] = {"used": [], "not used": [], "held out": []}
    for cell in sweep.measured:
        if (row := cell.row) is not None:
            kind = "held out" if cell.held_out else "used" if row.run in used else "not used"
            kinds[kind].append((_flops(row, found), row.loss, hint(row, found)))
    looks = {"used": ("ink", "circle", 3.2), "not used": ("quiet", "ring", 3.2), "held out": ("warn", "diamond", 5.5)}
    return [Dots(kind, kinds[kind], *looks[kind]) for kind in kinds if kinds[kind]]


def _lower_bound(found: Findings) -> list[Layer]:
    """The envelope through the ends of runs, and the law's lowest loss for each budget."""
    if found.analysis is None:
        return []
    family, envelope = found.analysis.family, found.analysis.envelope
    at, layers = family.points, list[Layer]()
    if isinstance(envelope, Envelope):
        members = [(at.flops[i], at.loss[i]) for i in envelope.members]
        layers.append(Line("envelope", members, "warn", "dashed thick"))
    budget = np.geomspace(at.flops.min(), max([at.flops.max(), *(p.flops for _, p in found.held)]), _GRID)
    best = family.fit.law.loss(*family.fit.law.optimum(budget, family.cost))
    return [*layers, Line("the law at its best size", _pairs(budget, best), "ink", "thick")]


def _contours(law: Law, d_ends: tuple[float, float], n_ends: tuple[float, float]) -> tuple[list[Layer], list[Layer]]:
    """Filled between levels that share the picture evenly, and the words on their borders."""
    d, n = np.geomspace(*d_ends, 80), np.geomspace(*n_ends, 60)
    losses = np.sort(law.loss(n[:, None], d[None, :]).ravel())
    levels = [float(losses[round(i * (len(losses) - 1) / N_HEAT)]) for i in range(N_HEAT - 1, 0, -1)]
    whole = [(d_ends[0], n_ends[0]), (d_ends[1], n_ends[0]), (d_ends[1], n_ends[1]), (d_ends[0], n_ends[1])]
    layers: list[Layer] = [Area(whole, "h0", f"above {levels[0]:.4g}")]
    notes: list[Layer] = []
    for i, level in enumerate(levels, 1):
        border = np.clip(size_for(law, level, d), *n_ends)
        layers.append(
            Area([*_pairs(d, border), (d_ends[1], n_ends[1]), (d_ends[0], n_ends[1])], f"h{i}", f"below {level:.4g}")
        )
        inside = np.flatnonzero((border > n_ends[0] * 1.08) & (border < n_ends[1] / 1.08))
        if len(inside):
            at = inside[len(inside) * (2 + i % 3) // 6]
            notes.append(Note(float(d[at]), float(border[at]), f"{level:.3g}"))
    return layers, notes


def size_for(law: Law, loss: float, d: Floats) -> Floats:
    """N at which the law reaches the loss with so many tokens; infinite where none does."""
    left = loss - law.E - law.B / d**law.beta
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(left > 0, (law.A / np.where(left > 0, left, 1.0)) ** (1 / law.alpha), np.inf)


def _other_estimators(found: Findings, i: int) -> list[Layer]:
    """i: 0 for sizes, 1 for tokens."""
    analysis = found.analysis
    assert analysis is not None
    layers, at = list[Layer](), analysis.family.points
    bottoms = [bottom for bottom in analysis.bottoms if not bottom.flag]
    d_of = [analysis.family.cost.flops(bottom.n, 1.0) for bottom in bottoms]
    places = [
        (b.flops, b.n if i == 0 else b.flops / float(per_token), f"parabola at {power_of_ten(b.flops)} FLOPs")
        for b, per_token in zip(bottoms, d_of, strict=True)
    ]
    layers += [Dots("parabolas", places, "2", "square")] if places else []
    if isinstance(analysis.envelope, Envelope):
        members = list(analysis.envelope.members)
        ends = at.flops[members].min(), at.flops[members].max()
        line = [(float(c), analysis.envelope.optimum(float(c))[i]) for c in ends]
        layers.append(Line("envelope", line, "1", "dashed"))
        rows = _rows_of(found)
        layers.append(
            Dots("", [(at.flops[m], (at.n, at.d)[i][m], hint(rows[m], found)) for m in members], "1", "triangle")
        )
    return layers


# --- points ----------------------------------------------------------------------------------------------------------


def _rows_of(found: Findings) -> list[Row]:
    """Those of the family whose law is shown, in the order of its points."""
    return [row for row in found.used if row.family == found.choice.family]


def _flops(row: Row, found: Findings) -> float:
    return row.flops(found.choice.flops)


def _pairs(x: Floats, y: Floats) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in zip(x, y, strict=True)]


def _around(values: Floats) -> tuple[float, float]:
    room = max(1.5, float((values.max() / values.min()) ** 0.1))
    return float(values.min()) / room, float(values.max()) * room


def _distinct(values: Sequence[float]) -> list[float]:
    """Sizes; those within a hundredth are one."""
    found: list[float] = []
    for value in sorted(values):
        if not found or value > found[-1] * 1.01:
            found.append(value)
    return found


def _rank(value: float, sizes: Sequence[float]) -> int:
    return min(range(len(sizes)), key=lambda i: abs(np.log(value / sizes[i])))


def _is_shown(rank: int, count: int) -> bool:
    """In the legend: all, or some evenly."""
    return count <= _SHOWN_SIZES or rank % -(-count // _SHOWN_SIZES) == 0 or rank == count - 1


def _size_name(found: Findings) -> str:
    return f"parameters N ({str(found.choice.counting).replace('_', '-')})"


def _curve_name(found: Findings, curves: Sequence[Curve]) -> str:
    """Where lines are of training and marks of validation, both are on the axis."""
    is_training = any(curve.measured == "training" for curve in curves)
    return _loss_name(found).replace("validation ", "") if is_training else _loss_name(found)


def _loss_name(found: Findings) -> str:
    return "validation loss, nats per token" if found.choice.loss == "val_loss" else words.cut("bits per byte", 20)
