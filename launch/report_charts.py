"""The curves of a run's page, from the rows of metrics.jsonl. What a run does not record has no curve."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from launch import words
from launch.charts import WIDTH, Band, Chart, Point, Series, smoothed
from launch.rows import Row, figure
from train.history import Story

Drawn = list[tuple[str, str]]
"""(SVG, caption)"""
_MARKS, _SLOWEST = 60, 8


def loss(rows: Sequence[Row], stories: Sequence[Story], summary: Mapping[str, Any]) -> str:
    """The SVG, over the whole width."""
    raw, val = _points(rows, "loss"), _points(rows, "val_loss")
    chart = Chart(
        "Loss against tokens",
        "tokens seen",
        [
            Series("", raw, 0, is_faint=True),
            Series("train, running mean", smoothed(raw), 0),
            *([Series("validation", val, 1, has_dots=True)] if val else []),
        ],
        levels=_levels(summary),
        marks=_starts(rows, stories, "tokens_seen"),
        width=2 * WIDTH,
        height=340,
        right=170,
    )
    return chart.svg()


def learning(rows: Sequence[Row], stories: Sequence[Story]) -> Drawn:
    raw, val, tokens = _points(rows, "loss"), _points(rows, "val_loss"), _starts(rows, stories, "tokens_seen")
    late = _late(raw, smoothed(raw), val)
    lr = Chart("Learning rate", "tokens seen", [Series("learning rate", _points(rows, "lr"), 2)], from_zero=True)
    norms = _points(rows, "grad_norm")
    norm = Chart(
        "Gradient norm",
        "tokens seen",
        [Series("", norms, 3, is_faint=True), Series("before clipping, running mean", smoothed(norms), 3)],
        marks=tokens,
        from_zero=True,
    )
    return [
        (late.svg() if late else "", "Loss from a fifth of the run on"),
        (_by_compute(rows), "Loss against compute, causal pairs counted"),
        (lr.svg(), "Learning rate"),
        (norm.svg(), "Gradient norm"),
    ]


def _by_compute(rows: Sequence[Row]) -> str:
    """Rows of earlier versions tell no FLOPs."""
    most = max((flops for row in rows if (flops := figure(row, "flops_causal")) and flops < math.inf), default=0.0)
    if not most:
        return ""
    power = 3 * int(math.log10(most) // 3)
    told = [{**row, "compute": flops / 10**power} for row in rows if (flops := figure(row, "flops_causal"))]
    raw, val = smoothed(_points(told, "loss", "compute")), _points(told, "val_loss", "compute")
    series = [Series("train, running mean", raw, 0), *([Series("validation", val, 1, has_dots=True)] if val else [])]
    return Chart("Loss against compute", f"10^{power} FLOPs", series, show=lambda value: words.fixed(value, 2)).svg()


def _late(raw: Sequence[Point], means: Sequence[Point], val: Sequence[Point]) -> Chart | None:
    if len(raw) < 50:
        return None
    first = raw[0][0] + 0.2 * (raw[-1][0] - raw[0][0])

    def kept(points: Sequence[Point]) -> list[Point]:
        return [point for point in points if point[0] >= first]

    series = [Series("train, running mean", kept(means), 0)]
    series += [Series("validation", kept(val), 1, has_dots=True)] if kept(val) else []
    return Chart("Loss, later", "tokens seen", series, show=lambda value: words.fixed(value, 2))


def speed(rows: Sequence[Row], stories: Sequence[Story]) -> Drawn:
    marks = _starts(rows, stories, "step")
    rate = _points(rows, "tokens_per_second", "step")
    mfu, full = _points(rows, "mfu", "step"), _points(rows, "mfu_full", "step")
    throughput = Chart(
        "Throughput",
        "step",
        [Series("", rate, 2, is_faint=True), Series("tokens/s, running mean", smoothed(rate), 2)],
        marks=marks,
        from_zero=True,
    )
    shares = [Series("", mfu, 4, is_faint=True), Series("MFU", smoothed(mfu), 4)]
    shares += [Series("by full attention", smoothed(full), 5)] if full else []
    use = Chart("MFU", "step", shares, marks=marks, show=lambda value: f"{value:.0%}", from_zero=True)
    restarts = "; dotted: the run was started again" if marks else ""
    return [
        (throughput.svg(), f"Tokens per second, all devices{restarts}"),
        (use.svg(), f"Share of the peak{restarts}"),
    ]


def ranks(rows: Sequence[Row]) -> Drawn:
    kinds = [
        (kind, colour)
        for colour, kind in enumerate(("work", "communication", "data"))
        if any(f"{kind}_seconds_max" in row for row in rows)
    ]
    series = [Series(kind, smoothed(_points(rows, f"{kind}_seconds_median", "step")), c) for kind, c in kinds]
    bands = [Band(_between(rows, f"{kind}_seconds_min", f"{kind}_seconds_max"), colour) for kind, colour in kinds]
    chart = Chart("Times of the ranks", "step", series, bands, from_zero=True)
    return [(chart.svg(), "Seconds of a step: the median rank, and between the fastest and the slowest")]


def slowest_ranks(rows: Sequence[Row]) -> list[tuple[int, int, float]]:
    """(rank, steps in which it was the slowest, their share), of those that were it most often."""
    found = Counter(int(rank) for row in rows if (rank := figure(row, "slowest_rank")) is not None and rank >= 0)
    return [(rank, n, n / found.total()) for rank, n in found.most_common(_SLOWEST)]


def memory(rows: Sequence[Row], planned_bytes: float | None) -> Drawn:
    """planned_bytes: of what the device's curve is of."""
    used, host = _points(rows, "memory_gib", "step"), _points(rows, "host_memory_gib", "step")
    series = ([Series("device", used, 4)] if used else []) + ([Series("host", host, 5)] if host else [])
    levels = [("planned", planned_bytes / 2**30)] if used and planned_bytes else []
    chart = Chart("Memory", "step", series, levels=levels, from_zero=True)
    return [(chart.svg() if series else "", "GiB at most, on the rank that used most")]


def sources(rows: Sequence[Row]) -> Drawn:
    return [
        (_by_name(rows, "source_loss", faint=True), "Loss of each source in training, running mean"),
        (_by_name(rows, "source_val_loss", faint=False), "Validation loss of each source"),
    ]


def layers(rows: Sequence[Row]) -> Drawn:
    return [
        (_by_name(rows, "grad_norms", faint=True, is_log=True), "Gradient norm of each layer"),
        (_by_name(rows, "weight_norms", faint=True), "Norm of the weights of each layer"),
    ]


def _by_name(rows: Sequence[Row], key: str, *, faint: bool, is_log: bool = False) -> str:
    """A line for each name in a mapping that rows may have, in its order; the first eight have colours of their own."""
    found: dict[str, list[Point]] = {}
    for row in rows:
        held: dict[str, Any] = row[key] if isinstance(row.get(key), dict) else {}
        for name in held:
            if (value := figure(held, name)) is not None:
                found.setdefault(str(name), []).append((float(row["tokens_seen"]), value))
    series = [
        Series(name, smoothed(points) if faint else points, i % 8, has_dots=not faint)
        for i, (name, points) in enumerate(found.items())
    ]
    return Chart(key, "tokens seen", series, is_log=is_log).svg() if series else ""


# --- points ----------------------------------------------------------------------------------------------------------


def _points(rows: Sequence[Row], key: str, x: str = "tokens_seen") -> list[Point]:
    return [(float(row[x]), value) for row in rows if (value := figure(row, key)) is not None]


def _between(rows: Sequence[Row], low: str, high: str) -> list[tuple[float, float, float]]:
    pairs = ((row["step"], figure(row, low), figure(row, high)) for row in rows)
    return [(float(step), least, most) for step, least, most in pairs if least is not None and most is not None]


def _starts(rows: Sequence[Row], stories: Sequence[Story], x: str) -> list[tuple[float, str]]:
    """Where later attempts went on."""
    place = {row["step"]: float(row[x]) for row in rows} if rows else {}
    found = [(story, place.get(story.from_step)) for story in stories[1:] if story.from_step]
    return [(at, f"attempt {story.number} from step {story.from_step}") for story, at in found if at is not None][
        :_MARKS
    ]


def _levels(summary: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What the loss is to be compared with, in nats per token."""
    held = summary.get("baselines")
    held = held if isinstance(held, dict) else {}
    nats, bits = figure(held, "uniform_loss"), figure(held, "uniform_bits_per_byte")
    if not nats or not bits or not math.isfinite(nats / bits):
        return []
    named = {"uniform_bits_per_byte": "guessing", "gzip_bits_per_byte": "gzip -9", "xz_bits_per_byte": "xz"}
    return [
        (f"{name}: {value:.2f} bits/byte", value * nats / bits)
        for key, name in named.items()
        if (value := figure(held, key)) is not None
    ]
