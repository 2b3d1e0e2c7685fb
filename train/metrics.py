"""What a run tells: metrics.jsonl (the truth, every step once), TensorBoard, the console line, and summary.json.

Only rank 0 has these. A log that cannot be written warns and never stops training.
"""

import contextlib
import json
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from data_prep.files import DataError, publish_bytes
from train.batch import BatchPlan
from train.engine.core import StepResult
from train.engine.exchange import Report
from train.evaluate import Evaluation
from train.plan import Plan

_TAIL_BYTES = 1 << 16


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


class MetricsFile:
    """metrics.jsonl: one JSON object a line, steps in order, each exactly once.

    The rows are kept in memory too; after a line that could not be written the whole file is written again. Every
    write calls `insist` first, which raises FencedError if the run is another's now: that alone is not taken as a fault
    of the disk.
    """

    def __init__(self, path: Path, insist: Callable[[], None] = lambda: None):
        self._path, self._insist = path, insist
        self.rows: list[dict[str, Any]] = []
        self._torn = False

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Forgets rows after `step`: they will be made again. Returns what was forgotten; warns about what is
        missing.
        """
        rows = read_rows(self._path)
        self.rows = [row for row in rows if row["step"] <= step]
        missing = step - len({row["step"] for row in self.rows if is_step(row)})
        if missing:
            print(
                f"warning: {self._path} lacks {missing} of the first {step} steps; the run itself is whole", flush=True
            )
        self._torn = True
        self._write(self._rewrite)
        return [row for row in rows if row["step"] > step]

    def append(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._write(self._rewrite if self._torn else lambda: self._append(row))

    def sync(self) -> None:
        """Makes the rows so far survive a power cut; called before a checkpoint that they belong to."""
        self._write(self._rewrite if self._torn else self._sync)

    def _write(self, action: Callable[[], None]) -> None:
        self._insist()
        try:
            action()
        except (OSError, DataError) as error:
            self._torn = True
            print(f"warning: {error}\ntraining goes on; the line is written later", file=sys.stderr)

    def _append(self, row: dict[str, Any]) -> None:
        with self._path.open("a") as stream:
            stream.write(json.dumps(row) + "\n")

    def _rewrite(self) -> None:
        publish_bytes(self._path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
        self._torn = False

    def _sync(self) -> None:
        with self._path.open("rb") as stream:
            os.fsync(stream.fileno())


def is_step(row: dict[str, Any]) -> bool:
    """The row of a step, learnt from or left out; not of an evaluation."""
    return "loss" in row or "skipped" in row


def last_step(path: Path) -> int:
    """The largest step of the last rows of a metrics.jsonl; 0 if there is none. Reads the end of the file only."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return 0
    return max((row["step"] for row in _parsed(lines) if isinstance(row["step"], int)), default=0)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a line that a kill or a full disk cut short is left out. [] if there is no file."""
    return _parsed(path.read_text(errors="replace").splitlines()) if path.is_file() else []


def _parsed(lines: list[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for line in lines:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and "step" in row:
                rows.append(row)
    return rows


class Metrics:
    """Takes each step and each evaluation, and passes it to file, TensorBoard and console."""

    def __init__(self, file: MetricsFile, tensorboard: Path, batch: BatchPlan, plan: Plan, every_steps: int):
        self.file, self._batch, self._plan, self._every = file, batch, plan, every_steps
        self._tensorboard = tensorboard
        self._console = Console(batch, every_steps)
        self._curves = TensorBoardCurves(tensorboard, plan)
        for row in file.rows:
            self._curve(row)

    def step(self, step: int, result: StepResult, lr: float, seconds: float, consumed: dict[str, int]) -> None:
        """consumed: slots of each source used so far."""
        rate = self._batch.tokens_per_step / seconds
        peak = self._plan.machine.peak_flops_per_second * self._plan.machine.n_devices
        row = {
            "step": step,
            "tokens_seen": self._batch.tokens_seen(step),
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "lr": lr,
            "seconds": round(seconds, 6),
            "tokens_per_second": round(rate, 1),
            "mfu": round(self._plan.flops_causal_per_token * rate / peak, 5),
            "mfu_full": round(self._plan.flops_full_per_token * rate / peak, 5),
            "n_targets": result.n_targets,
            "batch_hash": result.batch_hash,
            "source_tokens": consumed,
            **spread(result.reports),
        }
        self.file.append(row)
        self._curve(row)
        self._console.step(row)

    def skipped(self, step: int, reason: str, consumed: dict[str, int]) -> None:
        """A step whose batch was left out."""
        row = {"step": step, "tokens_seen": self._batch.tokens_seen(step), "skipped": reason, "source_tokens": consumed}
        self.file.append(row)
        self._console.say(f"step {step:>6}  left out: {reason}")

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Forgets what came after `step`, in the file and in the curves. Returns the rows."""
        forgotten = self.file.rewind(step)
        self._curves.close()
        self._curves = TensorBoardCurves(self._tensorboard, self._plan)
        for row in self.file.rows:
            self._curve(row)
        return forgotten

    def evaluation(self, step: int, evaluation: Evaluation) -> None:
        row = {
            "step": step,
            "tokens_seen": self._batch.tokens_seen(step),
            "val_loss": evaluation.val_loss,
            "val_loss_stderr": evaluation.val_loss_stderr,
            "bits_per_byte": evaluation.bits_per_byte,
            "val_tokens": evaluation.n_tokens,
        }
        self.file.append(row)
        self._curve(row)
        self._console.say(f"step {step:>6}  val loss {row['val_loss']:.4f}  {row['bits_per_byte']:.4f} bits/byte")

    def say(self, message: str) -> None:
        self._console.say(message)

    def last(self, key: str) -> Any:
        """The newest value of `key`, or None."""
        return next((row[key] for row in reversed(self.file.rows) if key in row), None)

    def mean_of_last_steps(self, key: str, count: int) -> float | None:
        values = [row[key] for row in self.file.rows if key in row][-count:]
        return sum(values) / len(values) if values else None

    def close(self) -> None:
        self._console.close()
        self._curves.close()

    def _curve(self, row: dict[str, Any]) -> None:
        if "val_loss" in row or row["step"] % self._every == 0:
            self._curves.add(row)


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


class TensorBoardCurves:
    """Event files made anew from the rows at every start, so each step is there exactly once after any number of kills.

    Loss is drawn against step, and as runs `by_tokens` and `by_gigaflops` against tokens and FLOPs.
    """

    TAGS: ClassVar = {
        "loss": "loss/train",
        "val_loss": "loss/val",
        "bits_per_byte": "loss/bits_per_byte",
        "lr": "optimizer/lr",
        "grad_norm": "optimizer/grad_norm",
        "tokens_per_second": "throughput/tokens_per_second",
        "mfu": "throughput/mfu",
        **{
            f"{kind}_seconds_{figure}": f"ranks/{kind}_seconds_{figure}"
            for kind in ("work", "data", "communication")
            for figure in ("min", "median", "max")
        },
        "slowest_rank": "ranks/slowest",
    }

    def __init__(self, folder: Path, plan: Plan):
        self._gigaflops_per_token = plan.flops_causal_per_token / 1e9
        self._writers: list[Any] | None = []
        self._guarded(lambda: self._open(folder))

    def _open(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        for stale in folder.rglob("events.out.tfevents.*"):
            stale.unlink()
        self._writers = [SummaryWriter(str(folder / axis)) for axis in ("", "by_tokens", "by_gigaflops")]

    def add(self, row: dict[str, Any]) -> None:
        self._guarded(lambda: self._add(row))

    def close(self) -> None:
        self._guarded(lambda: [writer.close() for writer in self._writers or []])

    def _add(self, row: dict[str, Any]) -> None:
        if not self._writers:
            return
        by_step, by_tokens, by_gigaflops = self._writers
        for key, tag in self.TAGS.items():
            if key in row:
                by_step.add_scalar(tag, row[key], row["step"])
            if key in row and tag.startswith("loss/"):
                by_tokens.add_scalar(tag, row[key], row["tokens_seen"])
                by_gigaflops.add_scalar(tag, row[key], int(row["tokens_seen"] * self._gigaflops_per_token))

    def _guarded(self, action: Callable[[], Any]) -> None:
        """After a first fault nothing more is written until the next start, which makes all curves anew."""
        if self._writers is None:
            return
        try:
            action()
        except OSError as error:
            self._writers = None
            print(f"warning: TensorBoard: {error}; the curves stop here, metrics.jsonl goes on", file=sys.stderr)


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
            print(f"\r\033[2K{line}", end="", flush=True)
            self._open_line = True
        elif step % self.every_steps == 0 or step == total:
            print(line, flush=True)

    def say(self, message: str) -> None:
        print(("\n" if self._open_line else "") + message, flush=True)
        self._open_line = False

    def close(self) -> None:
        if self._open_line:
            print(flush=True)
        self._open_line = False


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes:02d}:{seconds:02d}"
