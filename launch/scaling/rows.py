"""One outcome of training as a law sees it, and which outcomes a law may be fitted to.

In: rows, from `summary.json` or a ledger. Out: those that are used, each of the others with the reason, and what makes
the whole unusable. Rows whose schedule does not end there are no fair points: a run that has not decayed yet lies .04
to .08 nats too high (MultiPowerLaw's curves), as much as a tenfold of compute.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

import numpy as np

from conf.errors import ConfigError
from launch.scaling.minimum import Floats

LEAST_ROWS = 6
"""the law has five constants"""
LEAST_VALUES = 3
"""of N, and of D: two of them leave E and an exponent free"""
_SAME = 0.01  # sizes closer than this are one size


class Counting(StrEnum):
    """What N is. Kaplan's laws leave the embeddings out, Hoffmann's do not; the same runs then give other exponents."""

    matmul = "matmul"
    """what a token is multiplied with: the head counts, look-ups do not"""
    total = "total"
    """every stored number"""
    non_embedding = "non_embedding"
    """without embedding, positions and head (Kaplan et al. 2020)"""
    compute = "compute"
    """FLOPs per token / 6, attention included (DeepSeek LLM 2024 counts so): C = 6ND holds exactly"""


class Convention(StrEnum):
    causal = "causal"
    full = "full"


class Verdict(StrEnum):
    ok = "ok"
    diverged = "diverged"
    edge = "edge"
    """its learning rate or batch is the best tried, at the edge of what was tried"""
    partial = "partial"


@dataclass(frozen=True)
class Row:
    run: str
    group: str
    """runs that share weights, such as cooldowns of one trunk: they are resampled together"""
    n_params: int
    n_params_matmul: int
    n_params_non_embedding: int
    tokens: int
    unique_tokens: int | None
    flops_full: float
    flops_causal: float
    loss: float
    stderr: float | None
    schedule_finished: bool
    seed: int | None
    verdict: Verdict
    tokenizer: str | None
    validation: str | None
    """which validation text: a digest"""
    family: str = "transformer"

    def flops(self, convention: Convention) -> float:
        return self.flops_full if convention == Convention.full else self.flops_causal

    def size(self, counting: Counting, convention: Convention) -> float:
        match counting:
            case Counting.matmul:
                return float(self.n_params_matmul)
            case Counting.total:
                return float(self.n_params)
            case Counting.non_embedding:
                return float(self.n_params_non_embedding)
            case Counting.compute:
                return self.flops(convention) / (6.0 * self.tokens)

    @property
    def epochs(self) -> float:
        return self.tokens / self.unique_tokens if self.unique_tokens else 1.0


@dataclass
class RowRule:
    """Which rows count. To be settled before a held-out run is looked at: one choice moves a forecast by 7 %."""

    name: str = "*"
    """pattern of run names"""
    min_tokens: float = 0.0
    """rows with fewer are not used: the smallest cells are not on the law yet"""
    max_flops: float | None = None
    """rows with more are not used: held out"""
    max_epochs: float = 1.05
    """rows that saw their text more often are not used for the law of fresh text"""
    divergence_margin: float = 0.05
    """a row this much (relative) above one with no more parameters and no more tokens is taken as diverged"""

    def problems(self) -> list[str]:
        found = []
        if self.min_tokens < 0 or (self.max_flops is not None and self.max_flops <= 0):
            found.append("rows.min_tokens must be at least 0 and rows.max_flops above 0")
        if self.max_epochs < 1:
            found.append(f"rows.max_epochs={self.max_epochs} must be at least 1")
        if self.divergence_margin <= 0:
            found.append(f"rows.divergence_margin={self.divergence_margin} must be above 0")
        return found


@dataclass(frozen=True)
class Points:
    """Rows as columns of float64: 6ND passes 2⁶³ from 1.5e9 parameters on, where integers of 64 bits wrap silently."""

    n: Floats
    d: Floats
    unique: Floats
    flops: Floats
    loss: Floats
    groups: tuple[str, ...]


def points(rows: Sequence[Row], counting: Counting, convention: Convention) -> Points:
    return Points(
        n=np.array([row.size(counting, convention) for row in rows], dtype=np.float64),
        d=np.array([float(row.tokens) for row in rows], dtype=np.float64),
        unique=np.array([float(row.unique_tokens or row.tokens) for row in rows], dtype=np.float64),
        flops=np.array([row.flops(convention) for row in rows], dtype=np.float64),
        loss=np.array([row.loss for row in rows], dtype=np.float64),
        groups=tuple(row.group for row in rows),
    )


def split(rows: Sequence[Row], rule: RowRule) -> tuple[list[Row], list[tuple[Row, str]]]:
    """(rows that a law may be fitted to, the others with the reason). By name, so that draws of noise, and with them
    every interval, do not depend on where the rows come from."""
    used, dropped = [], []
    for row in sorted(rows, key=lambda row: row.run):
        reason = _reason(row, rule)
        (dropped.append((row, reason)) if reason else used.append(row))
    diverged = [(row, reason) for row in used if (reason := _above_neighbours(row, used, rule.divergence_margin))]
    return [row for row in used if row not in [one for one, _ in diverged]], dropped + diverged


def refuse_mixtures(rows: Sequence[Row]) -> None:
    """Raises ConfigError when losses cannot be compared with each other."""
    problems = []
    for what, values in (
        ("tokenizers", {row.tokenizer for row in rows}),
        ("validation sets", {row.validation for row in rows}),
    ):
        if len(values) > 1:
            example = {value: next(row.run for row in rows if _identity(row, what) == value) for value in values}
            named = ", ".join(f"{_short(value)} ({run})" for value, run in sorted(example.items(), key=str))
            problems.append(
                f"rows of {len(values)} {what} in one fit: {named}. Their losses are not comparable; choose one kind "
                "with rows.name=PATTERN"
            )
    if problems:
        raise ConfigError(problems)


def refuse_too_few(rows: Sequence[Row], n: Floats, d: Floats) -> None:
    """Raises ConfigError when no law of five constants follows from these rows."""
    sizes, lengths = distinct(n), distinct(d)
    problems = []
    if len(rows) < LEAST_ROWS:
        problems.append(
            f"{len(rows)} usable rows; E + A/N^alpha + B/D^beta has five constants and needs at least {LEAST_ROWS}"
        )
    if sizes < LEAST_VALUES:
        problems.append(
            f"all rows are of {_so_many(sizes, 'size')}; {LEAST_VALUES} are needed to tell E from A and alpha"
        )
    if lengths < LEAST_VALUES:
        problems.append(
            f"all rows have {_so_many(lengths, 'token count')}; {LEAST_VALUES} are needed to tell E from B and beta"
        )
    if problems:
        raise ConfigError(problems)


def distinct(values: Floats) -> int:
    """How many values there are, those within a hundredth as one."""
    ranked = np.sort(np.log(values))
    return int(1 + (np.diff(ranked) > _SAME).sum()) if len(ranked) else 0


def _reason(row: Row, rule: RowRule) -> str:
    if row.verdict == Verdict.diverged:
        return "diverged"
    if row.verdict == Verdict.partial or not row.schedule_finished:
        return "its schedule does not end there"
    if not 0 < row.loss < math.inf:
        return f"its loss is {row.loss:.4g}: diverged, or never measured"
    if reason := _impossible(row):
        return reason
    if not fnmatchcase(row.run, rule.name):
        return f"not of rows.name={rule.name}"
    if row.tokens < rule.min_tokens:
        return f"{row.tokens:.3g} tokens, below rows.min_tokens={rule.min_tokens:.3g}"
    if rule.max_flops is not None and row.flops_causal > rule.max_flops:
        return f"{row.flops_causal:.3g} FLOPs, above rows.max_flops={rule.max_flops:.3g}: held out"
    if row.epochs > rule.max_epochs:
        return f"{row.epochs:.3g} epochs, above rows.max_epochs={rule.max_epochs:.3g}: repeated text"
    return ""


def _impossible(row: Row) -> str:
    """FLOPs that went through an integer of 64 bits are negative or far too few."""
    if min(row.n_params_matmul, row.tokens) <= 0:
        return f"{row.n_params_matmul} parameters and {row.tokens} tokens"
    least = 6.0 * row.n_params_matmul * row.tokens
    if min(row.flops_causal, row.flops_full) < 0.99 * least:
        return (
            f"its FLOPs ({row.flops_causal:.3g} causal, {row.flops_full:.3g} full) are below 6ND = {least:.3g}: "
            "an overflow of 64-bit integers?"
        )
    return ""


def _above_neighbours(row: Row, rows: Sequence[Row], margin: float) -> str:
    """A run with at least as many parameters and tokens as another should not end above it."""
    smaller = [
        other
        for other in rows
        if other is not row
        and other.n_params_matmul <= row.n_params_matmul
        and other.tokens <= row.tokens
        and other.family == row.family
        and other.epochs >= row.epochs / 1.05
    ]
    best = min(smaller, key=lambda other: other.loss, default=row)
    if row.loss <= best.loss * (1 + margin):
        return ""
    return (
        f"diverged: loss {row.loss:.4g} is {row.loss / best.loss - 1:.0%} above that of {best.run}, which has no more "
        "parameters and no more tokens"
    )


def _identity(row: Row, what: str) -> str | None:
    return row.tokenizer if what == "tokenizers" else row.validation


def _so_many(count: int, what: str) -> str:
    return f"one {what}" if count == 1 else f"{count} {what}s"


def _short(value: str | None) -> str:
    return "not stated" if value is None else value[:12]
