"""metrics.jsonl → one picture of the run: loss against tokens, with the baselines that say whether it is any good.

The left axis is nats per token; the right one the same in bits per byte of the validation text, which is what gzip and
xz are measured in. An SVG file, drawn by hand: it needs nothing to be made and any browser to be seen.
"""

import math
from pathlib import Path
from typing import Any

from data_prep.files import publish_bytes
from train.svg import document, polyline, text, ticks

WIDTH, HEIGHT = 860, 480
LEFT, RIGHT, TOP, BOTTOM = 70, 200, 66, 56
Point = tuple[float, float]  # tokens seen, nats per token
_LINES = {"uniform": "uniform guess", "gzip": "gzip -9", "xz": "xz"}


def write_curve(path: Path, rows: list[dict[str, Any]], baselines: dict[str, float]) -> None:
    """rows: as in metrics.jsonl; baselines: uniform_loss and NAME_bits_per_byte. Writes nothing before a first loss."""
    train = [(row["tokens_seen"], row["loss"]) for row in rows if "loss" in row]
    val = [(row["tokens_seen"], row["val_loss"]) for row in rows if "val_loss" in row]
    bits = [row["bits_per_byte"] for row in rows if "val_loss" in row]
    if train:
        publish_bytes(path, _draw(train, val, bits, baselines).encode())


def _draw(train: list[Point], val: list[Point], bits: list[float], baselines: dict[str, float]) -> str:
    bits_per_nat = baselines["uniform_bits_per_byte"] / baselines["uniform_loss"]
    levels = {
        label: baselines[f"{name}_bits_per_byte"] / bits_per_nat
        for name, label in _LINES.items()
        if f"{name}_bits_per_byte" in baselines
    }
    losses = [loss for _, loss in train + val] + list(levels.values())
    frame = _Frame(train[-1][0], 0.9 * min(losses), 1.03 * max(losses))
    parts = [
        *_axes(frame, bits_per_nat),
        *_levels(frame, levels, bits_per_nat),
        _line(frame, train, "#9ecae1", 1),
        _line(frame, _smoothed(train), "#2171b5", 2),
        _line(frame, val, "#d94801", 2),
        *(f'<circle cx="{frame.x(t):.1f}" cy="{frame.y(v):.1f}" r="3" fill="#d94801"/>' for t, v in val),
        *_legend(train, val, bits),
    ]
    return document(WIDTH, HEIGHT, parts)


class _Frame:
    """From tokens and nats to pixels."""

    def __init__(self, tokens: float, low: float, high: float):
        self.tokens, self.low, self.high = tokens, low, high

    def x(self, tokens: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * tokens / self.tokens

    def y(self, loss: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.high - loss) / (self.high - self.low)


def _axes(frame: _Frame, bits_per_nat: float) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts: list[str] = []
    for value in ticks(frame.low, frame.high):
        y = frame.y(value)
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eee"/>')
        parts.append(text(LEFT - 8, y + 4, f"{value:g}", "end"))
    for value in ticks(0, frame.tokens):
        parts.append(text(frame.x(value), bottom + 18, _count(value), "middle"))
    parts.append(f'<path d="M{LEFT},{TOP} V{bottom} H{right}" fill="none" stroke="#444"/>')
    parts.append(text((LEFT + right) / 2, HEIGHT - 12, "tokens seen", "middle"))
    parts.append(text(LEFT, 22, f"loss, nats per token (x {bits_per_nat:.3f} = bits per byte)", "start"))
    return parts


def _levels(frame: _Frame, levels: dict[str, float], bits_per_nat: float) -> list[str]:
    parts: list[str] = []
    right, last_y = WIDTH - RIGHT, -math.inf
    for label, loss in sorted(levels.items(), key=lambda item: -item[1]):
        y = frame.y(loss)
        last_y = max(y, last_y + 15)  # labels of close levels must not cover each other
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#888" stroke-dasharray="5 4"/>')
        parts.append(text(right + 8, last_y + 4, f"{label}: {loss * bits_per_nat:.2f} bits/byte", "start", "#555"))
    return parts


def _legend(train: list[Point], val: list[Point], bits: list[float]) -> list[str]:
    entries = [("#2171b5", f"train {_smoothed(train)[-1][1]:.3f} (running mean)")]
    if val:
        entries.append(("#d94801", f"validation {val[-1][1]:.3f} = {bits[-1]:.3f} bits/byte"))
    parts: list[str] = []
    for i, (color, label) in enumerate(entries):
        x, y = LEFT + 250 * i, TOP - 22
        parts.append(f'<line x1="{x}" x2="{x + 24}" y1="{y}" y2="{y}" stroke="{color}" stroke-width="3"/>')
        parts.append(text(x + 30, y + 4, label, "start"))
    return parts


def _line(frame: _Frame, points: list[Point], color: str, width: int) -> str:
    return polyline(((frame.x(tokens), frame.y(loss)) for tokens, loss in points), color, width)


def _smoothed(points: list[Point]) -> list[Point]:
    """A running mean over a twentieth of the run."""
    window = max(1, len(points) // 20)
    return [
        (tokens, sum(loss for _, loss in points[max(0, i + 1 - window) : i + 1]) / min(window, i + 1))
        for i, (tokens, _) in enumerate(points)
    ]


def _count(value: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"
