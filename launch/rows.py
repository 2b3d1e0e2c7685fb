"""A growing metrics.jsonl, read again and again at the price of what is new in it.

In: the file of a run, which another process appends to, replaces (a run that went back), or leaves torn. Out: its
newest rows, and an even selection of all of them for a curve. The first look at a large file reads its end and some
hundred places in it, not all; what comes later is read from where the last look ended. Lines that are no rows are
passed over and counted, and half a line at the end waits for the next look.
"""

import contextlib
import json
import math
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import orjson

Row = dict[str, Any]
RECENT = 240
CURVE = 512
_WHOLE_BYTES = 1 << 18
"""smaller files are read as a whole; of others so much of their end"""
_PLACE_BYTES = 1 << 14
"""read at each place of a large file: a row at least, even with the norms of many layers"""
_PLACES = 128
_MARK_BYTES = 1024
"""of what was read last: if it does not stand there any more, the file is another one"""


class GrowingRows:
    def __init__(self, path: Path):
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self.recent: deque[Row] = deque(maxlen=RECENT)
        """of steps"""
        self.curve: list[Row] = []
        """of steps, evenly over the run, at most CURVE"""
        self.evaluations: list[Row] = []
        """the same"""
        self.n_foreign = 0
        """lines seen that are no rows"""
        self._offset, self._mark, self._identity, self._seen = 0, b"", (0, 0), (0, 0)
        self._every, self._since = 1, 0

    @property
    def last(self) -> Row:
        return self.recent[-1] if self.recent else {}

    @property
    def last_evaluation(self) -> Row:
        return self.evaluations[-1] if self.evaluations else {}

    def refresh(self) -> bool:
        """True if there is something new."""
        try:
            with self.path.open("rb") as stream:
                return self._read(stream, os.fstat(stream.fileno()))
        except OSError:
            changed = bool(self._offset or self.recent)
            self._forget()
            return changed

    def _read(self, stream: IO[bytes], facts: os.stat_result) -> bool:
        seen, identity = (facts.st_size, facts.st_mtime_ns), (facts.st_dev, facts.st_ino)
        if identity == self._identity and seen == self._seen:
            return False
        if identity != self._identity or not self._goes_on(stream):
            self._forget()
            if facts.st_size > _WHOLE_BYTES:
                self._sample(stream, facts.st_size)
        self._identity, self._seen = identity, seen
        stream.seek(self._offset)
        self._take(stream.read(facts.st_size - self._offset))
        return True

    def _goes_on(self, stream: IO[bytes]) -> bool:
        """False if what was read last does not stand there now, or the file is shorter."""
        stream.seek(self._offset - len(self._mark))
        return stream.read(len(self._mark)) == self._mark

    def _take(self, content: bytes) -> None:
        """Whole lines; the rest stays for the next time."""
        whole = content[: content.rfind(b"\n") + 1]
        for row in self._parsed(whole.split(b"\n")):
            self._add(row)
        self._offset += len(whole)
        self._mark = (self._mark + whole)[-_MARK_BYTES:]

    def _add(self, row: Row) -> None:
        if "val_loss" in row:
            self.evaluations.append(row)
            if len(self.evaluations) > CURVE:
                self.evaluations = self.evaluations[::2]
            return
        self.recent.append(row)
        self._since += 1
        if self._since >= self._every:
            self._since = 0
            self.curve.append(row)
            if len(self.curve) > CURVE:
                self.curve, self._every = self.curve[::2], 2 * self._every

    def _sample(self, stream: IO[bytes], n_bytes: int) -> None:
        """Rows at even distances before the end, and the newest evaluation there; then the offset is where the end
        begins."""
        begin = n_bytes - _WHOLE_BYTES
        for place in range(_PLACES):
            for row in self._at(stream, begin * place // _PLACES):
                (self.evaluations if "val_loss" in row else self.curve).append(row)
        self._newest_evaluation(stream, begin)
        stream.seek(begin)
        rest = stream.readline()
        self._offset, self._mark = begin + len(rest), rest[-_MARK_BYTES:]
        per_row = _WHOLE_BYTES / max(1, stream.read(_WHOLE_BYTES).count(b"\n"))
        self._every = max(1, round(begin / per_row / _PLACES))

    def _at(self, stream: IO[bytes], place: int) -> Iterator[Row]:
        """After a place, the first step, and the first evaluation if there is one near."""
        stream.seek(place)
        lines = stream.read(_PLACE_BYTES).split(b"\n")[1 if place else 0 : -1]
        evaluations = (line for line in lines if b'"val_loss"' in line)
        steps = (line for line in lines if b'"val_loss"' not in line)
        for line in (next(steps, b""), next(evaluations, b"")):
            yield from self._parsed([line])

    def _newest_evaluation(self, stream: IO[bytes], end: int) -> None:
        """Before `end`, by its name among the bytes: a row of it is seldom near."""
        known = {row["step"] for row in self.evaluations}
        while end > 0:
            begin = max(0, end - _WHOLE_BYTES)
            before = max(0, begin - _PLACE_BYTES)  # the line may begin there
            stream.seek(before)
            content = stream.read(end - before + _PLACE_BYTES)
            at = content.rfind(b'"val_loss"', 0, end - before)
            if at >= 0:
                line = content[content.rfind(b"\n", 0, at) + 1 :].split(b"\n", 1)[0]
                self.evaluations += [row for row in self._parsed([line]) if row["step"] not in known]
                return
            end = begin

    def _parsed(self, lines: list[bytes]) -> Iterator[Row]:
        for line in lines:
            if row := parsed_row(line):
                yield row
            elif line.strip():
                self.n_foreign += 1


def parsed_row(line: bytes) -> Row | None:
    """None if it is none of a run: whatever else stands there must not end a display of runs."""
    with contextlib.suppress(ValueError, RecursionError):
        try:
            row = orjson.loads(line)
        except ValueError:
            row = json.loads(line)  # NaN and Infinity, which are no JSON
        if isinstance(row, dict) and type(row.get("step")) is int and type(row.get("tokens_seen")) is int:
            return row
    return None


def figure(facts: Row, key: str) -> float | None:
    """A number among facts: NaN where it is none, None where it is not there."""
    value = facts.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:  # an integer of hundreds of digits is JSON
            return math.inf
    return None if value is None else math.nan


def all_rows(path: Path) -> list[Row]:
    """All rows of a file, by step, an evaluation after its step; of rows that tell of the same, the last one."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return []
    found = {(row["step"], "val_loss" in row): row for line in lines if (row := parsed_row(line))}
    return [found[key] for key in sorted(found)]
