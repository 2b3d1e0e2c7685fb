"""The pictures of what a sweep was for beside its law: forecasts, learning rates and batches, repeated text, cost.

In: forecasts, cells and what the rows say. Out: a `Picture` each; one without anything to draw is empty.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from launch import words
from launch.charts import tick
from launch.pictures import Picture
from launch.plot import Plot
from launch.plot_layers import HALF, N_HEAT, WHOLE, Axis, Bar, Dots, Layer, Line, Tile, ordered_look
from launch.sweep_charts import hint
from launch.sweep_folder import Cell, Sweep
from launch.sweep_forecasts import Origin, Told
from launch.sweep_law import Findings

BASELINE_SHAPES = ("square", "triangle", "cross", "ring")


def forecasts(told: Sequence[Told]) -> Picture:
    """Each forecast's intervals, with what came and what simple rules would have said."""
    known = [one for one in told if one.predicted is not None]
    names = [f"{one.number} {one.run}" for one in known]
    layers: list[Layer] = []
    for i, one in enumerate(known):
        for label, ends, look, thick in (("95 %", one.ends95, "7", 8.0), ("80 %", one.ends80, "0", 16.0)):
            if ends is not None:
                said = f"{label} interval: {ends[0]:.4f} to {ends[1]:.4f}"
                layers.append(Bar(label if i == 0 else "", ends, float(i), look, thick, said))
    places = [(one.predicted or 0.0, float(i), f"forecast {one.predicted:.4f}") for i, one in enumerate(known)]
    layers.append(Dots("forecast", places, "ink", "circle", 4))
    came = [(one.score.measured, float(i), f"came {one.score.measured:.4f}") for i, one in enumerate(known)
            if one.score is not None and one.score.measured is not None]  # fmt: skip
    rules = list(dict.fromkeys(rule.name for one in known for rule in one.baselines))
    for k, rule in enumerate(rules):
        values = [
            (said.loss, i + 0.25 + 0.11 * (k % 3), f"{rule}: {said.loss:.4f}, {said.words}")
            for i, one in enumerate(known)
            for said in one.baselines
            if said.name == rule and said.loss is not None
        ]
        layers.append(Dots(words.cut(rule, 40), values, "1", BASELINE_SHAPES[k % len(BASELINE_SHAPES)], 3.5))
    layers += [Dots("what came", came, "warn", "diamond", 6)] if came else []
    height = 110 + 18 * (len(rules) // 3) + 66 * len(known)
    plot = Plot("forecasts", "Forecast and outcome", Axis("loss"), Axis("", names=names), layers, WHOLE, height)
    caption = "Forecasts as sealed, what came, and what simpler rules said"
    return Picture("forecasts", plot.svg() if known else "", caption, is_whole=True)


def origins(found: Sequence[Origin]) -> Picture:
    """Rolling origin: the error of each rung, forecast from those below."""
    known = [(i, one) for i, one in enumerate(found) if one.error is not None]
    inside = [(i, one) for i, one in known if one.inside95]
    outside = [(i, one) for i, one in known if one.inside95 is False]
    unknown = [(i, one) for i, one in known if one.inside95 is None]
    layers: list[Layer] = [Line("", [(-0.5, 0.0), (len(found) - 0.5, 0.0)], "quiet", "dashed")]
    for name, some, look, shape in (
        ("inside 95 %", inside, "0", "circle"),
        ("outside", outside, "warn", "diamond"),
        ("no interval", unknown, "quiet", "ring"),
    ):
        places = [(float(i), o.error or 0.0, _said(o)) for i, o in some]
        layers += [Dots(name, places, look, shape, 5)] if places else []
    y = Axis("forecast over what came, less 1", show=lambda value: f"{value:+.1%}" if value else "0 %")
    names = Axis("held back, forecast from all that is smaller", names=[words.cut(one.run, 16) for one in found])
    plot = Plot("rolling-origin", "Rolling origin", names, y, layers, WHOLE, 300)
    return Picture(
        "rolling-origin", plot.svg() if known else "", "Each rung in turn as the held-out one", is_whole=True
    )


def _said(one: Origin) -> str:
    return f"{one.run}: forecast {words.fixed(one.predicted, 4)}, came {words.fixed(one.measured, 4)}"


@dataclass(frozen=True)
class Tuned:
    """Runs alike but for learning rate and batch."""

    what: str
    losses: Mapping[tuple[float, float], float]
    """(peak learning rate, tokens per step): mean over seeds"""
    runs: Mapping[tuple[float, float], str]

    @property
    def best(self) -> tuple[float, float]:
        return min(self.losses, key=lambda key: self.losses[key])

    @property
    def edges(self) -> list[str]:
        """On which edge of what was tried the best lies."""
        found: list[str] = []
        for i, name in enumerate(("learning rate", "batch")):
            tried = sorted({key[i] for key in self.losses})
            if len(tried) > 1 and self.best[i] in (tried[0], tried[-1]):
                found.append(f"the best {name}, {tick(self.best[i])}, is the {_end(self.best[i], tried)} tried")
        return found


def tuned(sweep: Sweep) -> list[Tuned]:
    """Sizes and lengths at which more than one learning rate or batch was tried."""
    groups: dict[str, dict[tuple[float, float], list[Cell]]] = {}
    for cell in sweep.measured:
        rate, batch, row = cell.number("peak_lr"), cell.number("tokens_per_step"), cell.row
        if row is not None and rate and batch and row.schedule_finished and rate > 0 and batch > 0:
            # a batch need not divide the budget: lengths that agree to a hundredth are one
            what = f"N {tick(row.n_params_matmul)}, {tick(float(f'{row.tokens:.2g}'))} tokens"
            what += "" if row.family == "transformer" else f", {row.family}"
            groups.setdefault(what, {}).setdefault((rate, batch), []).append(cell)
    return [
        Tuned(
            what,
            {key: statistics.fmean(c.row.loss for c in cells if c.row) for key, cells in tried.items()},
            {key: ", ".join(cell.run for cell in cells) for key, cells in tried.items()},
        )
        for what, tried in groups.items()
        if len(tried) > 1
    ]


def rates(of: Tuned, number: int) -> Picture:
    """A tile for each pair, or a curve where only one of the two was varied."""
    xs, ys = (sorted({key[i] for key in of.losses}) for i in (0, 1))
    low, high = min(of.losses.values()), max(of.losses.values())
    name, caption = (
        f"rate-{number}",
        f"{of.what}: loss by learning rate and batch; {'; '.join(of.edges) or 'the best is inside'}",
    )
    if min(len(xs), len(ys)) == 1:
        axis, values = ("tokens per step", 1) if len(xs) == 1 else ("peak learning rate", 0), sorted(of.losses.items())
        points = [(key[axis[1]], loss) for key, loss in values]
        places = [(key[axis[1]], loss, f"{of.runs[key]}: {loss:.4f}") for key, loss in values]
        best = [(of.best[axis[1]], low, f"{of.runs[of.best]}: {low:.4f}, the best")]
        look = "warn" if of.edges else "2"
        layers: list[Layer] = [Line("", points, "0"), Dots("", places, "0"), Dots("best", best, look, "diamond", 6)]
        return Picture(
            name, Plot(name, caption, Axis(axis[0], is_log=True), Axis("loss"), layers, height=290).svg(), caption
        )
    tiles: list[Layer] = []
    for (rate, batch), loss in of.losses.items():
        i, j, heat = xs.index(rate), ys.index(batch), _heat(loss, low, high)
        star = " ★" if (rate, batch) == of.best else ""
        said = f"{of.runs[rate, batch]}: learning rate {rate:.3g}, {tick(batch)} tokens a step, loss {loss:.4f}"
        tiles.append(Tile((i - 0.5, i + 0.5), (j - 0.5, j + 0.5), f"h{heat}", f"{loss:.3f}{star}", said, heat < 5))
    x, y = (
        Axis("peak learning rate", names=[f"{x:.3g}" for x in xs]),
        Axis("tokens per step", names=[f"{y:,.0f}" for y in ys]),
    )
    width = HALF if len(xs) <= 7 else WHOLE
    return Picture(name, Plot(name, caption, x, y, tiles, width, 90 + 44 * len(ys)).svg(), caption, width == WHOLE)


def repeated(found: Findings) -> Picture:
    """Loss against epochs: what came, what fresh text would have given, and the law for repeated text."""
    groups: dict[tuple[float, int], list[tuple[float, float, str]]] = {}
    for row in found.repeating:
        n = row.size(found.choice.counting, found.choice.flops)
        said = hint(row, found, f", {row.epochs:.3g} epochs of {tick(row.unique_tokens or 0)} tokens")
        groups.setdefault((n, row.unique_tokens or row.tokens), []).append((row.epochs, row.loss, said))
    layers: list[Layer] = []
    for rank, ((n, unique), places) in enumerate(sorted(groups.items())):
        look = ordered_look(rank, len(groups))
        layers.append(Dots(f"N {tick(n)}, {tick(unique)} unique", places, look))
        epochs = np.geomspace(1.0, max(place[0] for place in places), 40)
        if found.analysis is not None:
            fresh = found.analysis.family.fit.law.loss(n, unique * epochs)
            layers.append(Line("" if rank else "fresh text", list(zip(epochs, fresh, strict=True)), look, "dotted"))
        if found.decay is not None:
            fitted = found.decay.repeated.loss(
                np.full(len(epochs), n), unique * epochs, np.full(len(epochs), float(unique))
            )
            layers.append(
                Line("" if rank else "law of repeated text", list(zip(epochs, np.asarray(fitted), strict=True)), look)
            )
    plot = Plot("repeated", "Repeated text", Axis("epochs", is_log=True), Axis("loss"), layers, WHOLE, 360)
    caption = "Loss against epochs: dots came, solid is the law of repeated text, dotted what fresh text would give"
    return Picture("repeated", plot.svg(), caption, is_whole=True)


def costs(sweep: Sweep) -> Picture:
    """Device-hours predicted and measured, a mark a cell."""
    pairs = [
        (cell.number("predicted_device_hours"), cell.own_hours, cell)
        for cell in sweep.cells
        if cell.state == "finished"
    ]
    known = [(x, y, cell) for x, y, cell in pairs if x and y and min(x, y) > 0]
    unit, size = ("hours", 1.0) if max((y for _, y, _ in known), default=0.0) > 5 else ("minutes", 60.0)
    places = [(x * size, y * size, f"{cell.run}: {_time(x)} predicted, {_time(y)} measured") for x, y, cell in known]
    values = [value for x, y, _ in places for value in (x, y)]
    ends = (min(values), max(values)) if values else (1.0, 1.0)
    layers: list[Layer] = [Line("as predicted", [(e, e) for e in ends], "quiet", "dashed"), Dots("cells", places, "0")]
    x, y = Axis(f"predicted device-{unit}", is_log=True), Axis(f"measured device-{unit}", is_log=True)
    svg = Plot("cost", "Cost predicted and measured", x, y, layers).svg() if known else ""
    return Picture("cost", svg, "Device time of each cell, predicted and measured; less what a branch shares")


def _time(hours: float) -> str:
    return words.duration(hours * 3600)


def _heat(loss: float, low: float, high: float) -> int:
    """Lighter is lower; the square root tells the best apart."""
    share = math.sqrt((loss - low) / (high - low)) if high > low else 0.0
    return round((1 - share) * (N_HEAT - 1))


def _end(value: float, tried: Sequence[float]) -> str:
    return "lowest" if value == tried[0] else "highest"
