"""How far predictions are from published training speeds and memory: tables in, the errors of each and of all out.

A source seldom states everything. Where the micro-batch, the interleaving of pipeline stages or recomputation is not
stated, its authors are taken to have tuned it: of all that the row may mean, the fastest that fits the memory counts.
The tables are not part of the project: the user says where they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from conf.errors import ConfigError
from launch.performance.constants import Constants
from launch.performance.hardware import Hardware, hardware_named
from launch.performance.layout import Job
from launch.performance.memory import RESERVE_BYTES, memory
from launch.performance.published import Row, csv_files, missing_columns, read
from launch.performance.step import step_time

GIB = 2**30


@dataclass(frozen=True)
class Scored:
    row: Row
    job: Job
    seconds: float | None
    """of a step: predicted / published - 1, so that 0.1 means 10 % too slow; None if no speed is published"""
    bytes: float | None
    """the same for memory"""
    needed: float
    """bytes, as predicted"""
    room: float
    """bytes of the device"""
    fits: bool
    """as predicted"""
    fitted: bool | None
    """as published: True if it ran, False if it would take more than there is or the source says that it did not fit"""


def reproduce(path: str) -> None:
    """Prints the comparison with the tables there. Raises ConfigError for what cannot be read."""
    print(report(read(Path(path)), Constants()))
    for file in csv_files(Path(path)):
        if missing := missing_columns(file):
            print(f"not compared: {file.name}: no such table, it lacks the columns {', '.join(missing)}")


def report(rows: Sequence[Row], constants: Constants) -> str:
    scored, unscored = score_all(rows, constants)
    lines = [
        *_table("step time", scored, seconds),
        "",
        *_table("memory", scored, memory_of),
        "",
        "error: predicted / published - 1, its sign in the worst row only; unseen: no constant was fitted to them",
        f"{len(rows)} rows, {len(scored)} predicted, {len(unscored)} not",
        *(f"  not predicted: {row.file}: {row.name}: {reason}" for row, reason in unscored),
        "",
        *_verdicts(scored),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _table(name: str, scored: Sequence[Scored], of: Callable[[Scored], float | None]) -> list[str]:
    """By source, then all together."""
    those = [one for one in scored if of(one) is not None]
    if not those:
        return [f"{name}: no row to compare"]
    lines = [f"{name:<42}{'rows  median    p90':>19}{'unseen  median    p90':>24}   worst row"]
    for source in sorted({one.row.source for one in those}):
        lines.append(_line(source, [one for one in those if one.row.source == source], of))
    return [*lines, _line("all", those, of)]


def _line(name: str, those: Sequence[Scored], of: Callable[[Scored], float | None]) -> str:
    unseen = [one for one in those if one.row.held_out]
    return f"{name[:41]:<42}{_errors(those, of):>19}{_errors(unseen, of):>24}   {_worst(those, of)}"


def seconds(one: Scored) -> float | None:
    return one.seconds


def memory_of(one: Scored) -> float | None:
    return one.bytes


def score_all(rows: Sequence[Row], constants: Constants) -> tuple[list[Scored], list[tuple[Row, str]]]:
    """(rows that could be predicted, the others with the reason)."""
    scored: list[Scored] = []
    unscored: list[tuple[Row, str]] = []
    for row in rows:
        if row.problem:
            unscored.append((row, row.problem))
            continue
        try:
            scored.append(score(row, hardware_named(row.hardware), constants))
        except ConfigError as error:
            unscored.append((row, error.problems[0]))
        except KeyError as error:
            unscored.append((row, f"{row.hardware} has no {error.args[0]}"))
        except (ArithmeticError, ValueError, AssertionError) as error:  # a shape that no network has
            unscored.append((row, f"cannot be computed: {type(error).__name__}: {error}"))
    return scored, unscored


def score(row: Row, hardware: Hardware, constants: Constants) -> Scored:
    """Raises KeyError if the GPU cannot compute in the row's precision."""
    job = meant(row, hardware, constants)
    needed = memory(job)
    speed = row.tokens_per_second and tokens_per_second(job, hardware, constants)
    ran = True if row.tokens_per_second else None
    too_large = row.did_not_fit or (row.memory_gib is not None and row.memory_gib * GIB > hardware.memory_bytes)
    return Scored(
        row=row,
        job=job,
        seconds=row.tokens_per_second / speed - 1 if row.tokens_per_second and speed else None,
        bytes=needed.total / (row.memory_gib * GIB) - 1 if row.memory_gib else None,
        needed=needed.total,
        room=hardware.memory_bytes,
        fits=needed.fits(hardware),
        fitted=False if too_large else ran,
    )


def meant(row: Row, hardware: Hardware, constants: Constants) -> Job:
    """The job that the row is taken to mean."""
    jobs = [Job(layout, row.stack) for layout in row.layouts]
    if len(jobs) == 1:
        return jobs[0]
    fitting = [job for job in jobs if memory(job).fits(hardware)]
    return max(fitting or jobs, key=lambda job: tokens_per_second(job, hardware, constants))


def tokens_per_second(job: Job, hardware: Hardware, constants: Constants) -> float:
    """Per GPU."""
    return job.layout.tokens_per_step / job.layout.n_gpus / step_time(job, hardware, constants).total


def quantiles(values: Sequence[float]) -> tuple[float, float]:
    """(median, 90th percentile) of absolute errors."""
    ranked = sorted(abs(value) for value in values)
    return median(ranked), ranked[min(len(ranked) - 1, int(0.9 * len(ranked)))]


def _errors(scored: Sequence[Scored], of: Callable[[Scored], float | None]) -> str:
    values = [value for one in scored if (value := of(one)) is not None]
    if not values:
        return "none"
    middle, high = quantiles(values)
    return f"{len(values):>4}  {middle:>6.1%} {high:>6.1%}"


def _worst(scored: Sequence[Scored], of: Callable[[Scored], float | None]) -> str:
    error, one = max(((of(one) or 0.0, one) for one in scored), key=lambda pair: abs(pair[0]))
    return f"{error:+.0%} {one.row.name}" if error else ""


def _verdicts(scored: Sequence[Scored]) -> list[str]:
    too_large = [one for one in scored if one.fitted is False]
    ran = [one for one in scored if one.fitted]
    wrong, refused = [one for one in too_large if one.fits], [one for one in ran if not one.fits]
    return [
        f"of {len(too_large)} layouts that do not fit by their source, {len(wrong)} are called fitting",
        *(f"  {'CALLED FITTING' if one.fits else 'called too large'}: {_need(one)}" for one in too_large),
        f"of {len(ran)} that ran, {len(refused)} are called too large",
        *(f"  called too large: {_need(one)}" for one in refused),
    ]


def _need(one: Scored) -> str:
    return (
        f"{one.row.name}: {one.needed / GIB:.1f} GiB, and {RESERVE_BYTES / GIB:.0f} for what no allocator counts, of "
        f"{one.room / GIB:.1f}"
    )
