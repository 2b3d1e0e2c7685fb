"""What a run tells: metrics.jsonl (the truth, every step once), TensorBoard, the console line, and summary.json.

Only rank 0 has these. A log that cannot be written warns and never stops training.
"""

import statistics
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from train.account import Flops
from train.batch import BatchPlan
from train.console import tell
from train.engine.core import StepResult
from train.engine.exchange import Report
from train.engine.norms import Norms
from train.evaluate import Evaluation, SourceFigures
from train.event_files import TensorBoardCurves
from train.metrics_file import MetricsFile
from train.plan import GIB, Plan


@dataclass
class DeviceSeconds:
    """Seconds that all devices together spent, by purpose; carried over restarts inside the checkpoint."""

    train: float = 0.0
    eval: float = 0.0
    checkpoint: float = 0.0
    idle: float = 0.0
    """start-up, and work that a kill threw away"""

    def hours(self) -> dict[str, float]:
        return {name: seconds / 3600 for name, seconds in vars(self).items()}

    @property
    def total(self) -> float:
        return sum(vars(self).values())


class Stopwatch:
    """Charges the time since the last call to one purpose, times the number of devices."""

    def __init__(self, spent: DeviceSeconds, n_devices: int, started: float):
        self.spent, self._n_devices, self._last = spent, n_devices, started

    def charge(self, purpose: str) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        setattr(self.spent, purpose, getattr(self.spent, purpose) + seconds * self._n_devices)
        return seconds


class Metrics:
    """Takes each step and each evaluation, and passes it to file, TensorBoard and console."""

    def __init__(
        self,
        file: MetricsFile,
        curves: TensorBoardCurves,
        batch: BatchPlan,
        plan: Plan,
        every_steps: int,
        sources: Sequence[str],
        val_sources: Sequence[str],
    ):
        """sources: names of those whose losses a step tells apart; val_sources: an evaluation."""
        self.file, self._curves, self._batch, self._plan, self._every = file, curves, batch, plan, every_steps
        self._sources, self._val_sources = sources, val_sources
        self._console = Console(batch, every_steps)

    def step(
        self,
        step: int,
        result: StepResult,
        lr: float,
        seconds: float,
        consumed: dict[str, int],
        work: Flops,
        total: Flops,
    ) -> None:
        """consumed: slots of each source used so far. work: of the step; total: of the run up to here."""
        machine = self._plan.machine
        rate = self._batch.tokens_per_step / seconds
        possible = machine.peak_flops_per_second * machine.n_devices * seconds
        row = {
            **self._place(step, total),
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "lr": lr,
            "seconds": round(seconds, 6),
            "data_seconds": round(max(report.data_seconds for report in result.reports), 6),
            "tokens_per_second": round(rate, 1),
            "tokens_per_second_per_device": round(rate / machine.n_devices, 1),
            "mfu": round(work.causal / possible, 5),
            "mfu_full": round(work.full / possible, 5),
            "n_targets": result.n_targets,
            "batch_hash": result.batch_hash,
            "source_tokens": consumed,
            **by_source(self._sources, result.source_losses),
            **spread(result.reports),
            **memory(result.reports),
            **by_layer(result.norms),
        }
        self.file.append(row)
        self._curve(row)
        self._console.step(row)

    def skipped(self, step: int, reason: str, consumed: dict[str, int], total: Flops) -> None:
        """A step whose batch was left out."""
        self.file.append({**self._place(step, total), "skipped": reason, "source_tokens": consumed})
        self._console.say(f"step {step:>6}  left out: {reason}")

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Forgets what came after `step`, in the file and in the curves. Returns the rows. Comes before everything
        else."""
        forgotten = self.file.rewind(step)
        self._curves.begin(self._points(self.file.rows))
        return forgotten

    def evaluation(self, step: int, evaluation: Evaluation, total: Flops) -> None:
        row = {
            **self._place(step, total),
            "val_loss": evaluation.val_loss,
            "val_loss_stderr": evaluation.val_loss_stderr,
            "bits_per_byte": evaluation.bits_per_byte,
            "val_tokens": evaluation.n_tokens,
            **val_by_source(self._val_sources, evaluation.of_sources),
        }
        newest = self.file.rows[-1:]
        if [(old["step"], "val_loss" in old) for old in newest] != [(step, True)]:  # else made again: see catch_up
            self.file.append(row)
            self._curve(row)
        self._console.say(f"step {step:>6}  val loss {row['val_loss']:.4f}  {row['bits_per_byte']:.4f} bits/byte")

    def sample(self, step: int, text: str) -> None:
        """What the model wrote after `step`: TensorBoard shows it."""
        self._curves.add_sample(step, text)

    def say(self, message: str) -> None:
        self._console.say(message)

    def last(self, key: str) -> Any:
        """The newest value of `key`, or None."""
        return next((row[key] for row in reversed(self.file.rows) if key in row), None)

    def step_seconds(self, after_step: int) -> float:
        """Of the later steps of the curve, each once."""
        return sum(row.get("seconds", 0.0) for row in self.file.rows if row["step"] > after_step)

    def mean_of_last_steps(self, key: str, count: int) -> float | None:
        values = [row[key] for row in self.file.rows if key in row][-count:]
        return sum(values) / len(values) if values else None

    def close(self) -> None:
        self._console.close()
        self._curves.close(self._points(self.file.rows))

    def _place(self, step: int, total: Flops) -> dict[str, int]:
        """What each row begins with: totals of the run up to here."""
        tokens = self._batch.tokens_seen(step)
        return {"step": step, "tokens_seen": tokens, "flops_full": total.full, "flops_causal": total.causal}

    def _curve(self, row: dict[str, Any]) -> None:
        self._curves.add_all(self._points([row]))

    def _points(self, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those that TensorBoard gets."""
        return [row for row in rows if "val_loss" in row or row["step"] % self._every == 0]


def spread(reports: Sequence[Report]) -> dict[str, float | int]:
    """How the ranks' times of a step differ, in seconds; nothing for a single rank."""
    if len(reports) < 2:
        return {}
    found: dict[str, float | int] = {}
    for kind in ("work", "data", "communication"):
        seconds = [getattr(report, f"{kind}_seconds") for report in reports]
        for figure, value in (("min", min(seconds)), ("median", statistics.median(seconds)), ("max", max(seconds))):
            found[f"{kind}_seconds_{figure}"] = round(value, 6)
    work = [report.work_seconds for report in reports]
    return found | {"slowest_rank": work.index(max(work))}


def by_source(names: Sequence[str], losses: Sequence[float | None]) -> dict[str, Any]:
    """Nats per target of the sources that a step had rows of; nothing where there is a single source."""
    found = {name: loss for name, loss in zip(names, losses, strict=True) if loss is not None}
    return {"source_loss": found} if found else {}


def val_by_source(names: Sequence[str], figures: Sequence[SourceFigures | None]) -> dict[str, Any]:
    told = [(name, of) for name, of in zip(names, figures, strict=True) if of is not None]
    if not told:
        return {}
    return {
        "source_val_loss": {name: of.val_loss for name, of in told},
        "source_bits_per_byte": {name: of.bits_per_byte for name, of in told},
    }


def memory(reports: Sequence[Report]) -> dict[str, float]:
    """Of the rank that used most; nothing where the step did not tell."""
    kinds = ("memory_gib", "allocated_bytes"), ("memory_reserved_gib", "reserved_bytes")
    most = {key: max(getattr(report, kind) for report in reports) for key, kind in kinds}
    most["host_memory_gib"] = max(report.resident_bytes for report in reports)
    return {key: round(n_bytes / GIB, 4) for key, n_bytes in most.items() if n_bytes}


def by_layer(norms: Norms | None) -> dict[str, Any]:
    return {} if norms is None else {"grad_norms": norms.gradients, "weight_norms": norms.weights}


@dataclass
class Console:
    """At a terminal one line that is written over; elsewhere one line every so many steps."""

    batch: BatchPlan
    every_steps: int
    _started: float = field(default_factory=time.perf_counter)
    _first_step: int | None = None
    _open_line: bool = False
    _recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=10))
    """(tokens/s, MFU) of the last steps: a single step's rate flickers too much to be read"""

    def step(self, row: dict[str, Any]) -> None:
        now, step, total = time.perf_counter(), row["step"], self.batch.total_steps
        if self._first_step is None:
            self._first_step, self._started = step, now  # the first step warms up; it tells nothing about the rest
        done = step - self._first_step
        eta = _clock((now - self._started) / done * (total - step)) if done else "--:--"
        self._recent.append((row["tokens_per_second"], row["mfu"]))
        rate, mfu = (statistics.harmonic_mean(values) for values in zip(*self._recent, strict=True))
        line = (
            f"step {step:>6}/{total}  loss {row['loss']:.4f}  lr {row['lr']:.2e}  norm {row['grad_norm']:.2f}  "
            f"{rate:>9,.0f} tokens/s  MFU {mfu:.1%}  ETA {eta}"
        )
        if sys.stdout.isatty():
            tell(f"\r\033[2K{line}", end="")
            self._open_line = True
        elif step % self.every_steps == 0 or step == total:
            tell(line)

    def say(self, message: str) -> None:
        tell(("\n" if self._open_line else "") + message)
        self._open_line = False

    def close(self) -> None:
        if self._open_line:
            tell("")
        self._open_line = False


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes:02d}:{seconds:02d}"
