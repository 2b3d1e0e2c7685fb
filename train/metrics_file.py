"""metrics.jsonl: the truth about a run, every step once, whatever happens to the file. No torch."""

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from data_prep.files import DataError, publish_bytes, write_error
from train.console import tell

_TAIL_BYTES = 1 << 16
_NUMBER = (int, float)
_STEP = {
    **dict.fromkeys(("loss", "grad_norm", "lr", "seconds", "tokens_per_second", "mfu"), _NUMBER),
    "n_targets": (int,),
    "batch_hash": (str,),
    "source_tokens": (dict,),
}
_SKIPPED = {"skipped": (str,)}
_EVALUATION = {"val_loss": _NUMBER, "bits_per_byte": _NUMBER}
"""what each kind of row has beside step and tokens_seen, and of which types"""
_NOW_AND_THEN = {
    **dict.fromkeys(("flops_full", "flops_causal"), (int,)),
    **dict.fromkeys(("mfu_full", "data_seconds", "tokens_per_second_per_device"), _NUMBER),
    **dict.fromkeys(("memory_gib", "memory_reserved_gib", "host_memory_gib"), _NUMBER),
}
"""what a row may have besides, and of which type"""
_NUMBERS = {"source_loss", "source_val_loss", "source_bits_per_byte", "grad_norms", "weight_norms"}
"""the same: a number for each source or layer"""
_BETWEEN_RANKS = re.compile(r"(work|data|communication)_seconds_(min|median|max)|slowest_rank")


class MetricsFile:
    """metrics.jsonl: one JSON object a line, steps in order, each exactly once.

    The rows are kept in memory too. A file that is not as this process left it (a line that could not be written, or
    somebody cut, garbled or removed it) is written again as a whole. `metrics.copy.jsonl` holds the same rows as of the
    newest checkpoint: rows that were lost while no process was there to see it are taken from it.

    Every write calls `insist` first, which raises FencedError if the run is another's now: that alone is not taken as a
    fault of the disk.
    """

    def __init__(self, path: Path, insist: Callable[[], None] = lambda: None):
        self.rows: list[dict[str, Any]] = []
        self._insist = insist
        self._file = _RowsOnDisk(path, self.rows)
        self._copy = _RowsOnDisk(path.with_name(f"{path.stem}.copy.jsonl"), self.rows)

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Forgets rows after `step`: they will be made again. Returns what was forgotten; warns about what is
        missing.
        """
        told = self.rows
        for path in (self._file.path, self._copy.path):
            found, n_damaged = read_lines(path)
            told = [*found, *told]
            if n_damaged:
                tell(f"warning: {n_damaged} lines of {path} are no rows of a run: they are left out")
        rows = in_order(told)
        self.rows[:] = [row for row in rows if row["step"] <= step]
        missing = step - sum(is_step(row) for row in self.rows)
        if missing:
            tell(f"warning: {self._file.path} lacks {missing} of the first {step} steps; the run itself is whole")
        self._insist()
        for file in (self._file, self._copy):
            file.write(whole=True)
        return [row for row in rows if row["step"] > step]

    def append(self, row: dict[str, Any]) -> None:
        self._insist()
        self.rows.append(row)
        self._file.write()

    def sync(self) -> None:
        """Makes the rows so far survive a power cut; called before a checkpoint that they belong to."""
        self._insist()
        for file in (self._file, self._copy):
            file.write(at_once=True)


class _RowsOnDisk:
    """A file that is to hold the given rows, and is brought up to them by `write`. Raises nothing: what cannot be
    written is told once, and written later."""

    RETRY_SECONDS = 30.0
    """between attempts to write a file again: each costs all of its rows"""

    def __init__(self, path: Path, rows: list[dict[str, Any]]):
        self.path, self._rows = path, rows
        self._held, self._bytes = 0, -1
        """rows in the file, and its size if nobody else has touched it"""
        self._is_failing, self._next_try = False, 0.0

    def write(self, *, whole: bool = False, at_once: bool = False) -> None:
        """at_once: now, even after a failure, and down to the disk. whole: not only what the file lacks."""
        if self._is_failing and not at_once and time.monotonic() < self._next_try:
            return
        try:
            if whole or not self._append(at_once):
                self._publish()
        except (OSError, DataError) as error:
            if not self._is_failing:
                problem = write_error(error, self.path) if isinstance(error, OSError) else error
                tell(f"warning: {problem}\ntraining goes on; the lines are written later", sys.stderr)
            self._is_failing, self._next_try = True, time.monotonic() + self.RETRY_SECONDS
            self._bytes = -1
            return
        if self._is_failing:
            tell(f"{self.path} is written again, nothing is missing from it", sys.stderr)
        self._is_failing = False

    def _append(self, sync: bool) -> bool:
        """False if the file is not as it was left."""
        with contextlib.suppress(FileNotFoundError), self.path.open("r+b") as stream:
            if stream.seek(0, os.SEEK_END) != self._bytes:
                return False
            self._bytes += stream.write(_lines(self._rows[self._held :]))
            self._held = len(self._rows)
            if sync:
                stream.flush()
                os.fsync(stream.fileno())
            return True
        return False

    def _publish(self) -> None:
        content = _lines(self._rows)
        publish_bytes(self.path, content)
        self._held, self._bytes = len(self._rows), len(content)


def _lines(rows: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


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
    return max((row["step"] for row in _parsed(lines)), default=0)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; what is no row is left out. [] if there is no file."""
    return read_lines(path)[0]


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(the rows of a metrics.jsonl, number of lines that are none). Not counted is an end that a kill cut short."""
    if not path.is_file():
        return [], 0
    text = path.read_text(errors="replace")
    lines = text.split("\n")  # what follows the last newline is the end, whole or cut short
    rows = _parsed(lines)
    return rows, sum(map(bool, lines[:-1])) - len(rows) + len(_parsed(lines[-1:]))


def _parsed(lines: list[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            if _is_ours(row := json.loads(line)):
                rows.append(row)
    return rows


def _is_ours(row: Any) -> bool:
    """A row of one of the kinds, each fact of it there and of its type: whatever else stands in the file, be it JSON,
    must not take the place of a row in the copy."""
    if not isinstance(row, dict) or not _has(row, {"step": (int,), "tokens_seen": (int,)}):
        return False
    besides = {key: _NUMBER for key in row if _BETWEEN_RANKS.fullmatch(key)}
    besides |= {key: types for key, types in _NOW_AND_THEN.items() if key in row}
    if not all(_is_numbers(row[key]) for key in _NUMBERS if key in row):
        return False
    return any(_has(row, kind | besides) for kind in (_STEP, _SKIPPED, _EVALUATION))


def _is_numbers(found: Any) -> bool:
    return isinstance(found, dict) and all(type(number) in _NUMBER for number in found.values())


def _has(row: dict[str, Any], facts: Mapping[str, tuple[type, ...]]) -> bool:
    return all(type(row.get(key)) in types for key, types in facts.items())


def in_order(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """By step, an evaluation after its step; of rows that tell of the same, the last one given."""
    found = {(row["step"], "val_loss" in row): row for row in rows}
    return [found[key] for key in sorted(found)]
