"""Divides the corpus into tasks that are named by their content: fixed lists of spans, each of one source.

In: the spans of the inputs, sorted by name. Out: tasks, each with an id that is a hash of names, sizes, versions and
byte ranges of its spans and of how they are read. Every stage works task by task and names what it makes after the task
and its own options, so what is done is recognised after a crash, in another order, on another machine or with other
files beside it, and changed inputs give other ids: only those are done again.

The borders between tasks are drawn by the inputs' own names and sizes, so a file added in the middle moves the borders
near it, not all that follow (content-defined chunking, as in LBFS, Muthitacharoen et al. 2001).
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from data_prep.inputs import Span

TEMPORARY = re.compile(r"\..+\.tmp-[A-Za-z0-9_.-]+")  # what `files.published` leaves behind when it is killed
ID_DIGITS = 16


@dataclass(frozen=True)
class Task:
    id: str
    source: str
    spans: tuple[Span, ...]

    @property
    def bytes(self) -> int:
        return sum(span.stop - span.start for span in self.spans)


@dataclass(frozen=True)
class Done:
    """What a job has got through since it last said so: bytes of its weight, documents, UTF-8 bytes, tokens."""

    bytes: int = 0
    documents: int = 0
    text_bytes: int = 0
    tokens: int = 0


class Job(Protocol):
    """One unit of a stage's work: reads files, writes its output whole under a name of its own. May be pickled."""

    @property
    def id(self) -> str: ...

    @property
    def bytes(self) -> int:
        """Its weight: what the share done is measured by."""
        ...

    def finished(self) -> bool: ...

    def run(self, advance: Callable[[Done], None]) -> None: ...


@dataclass(frozen=True)
class Backlog:
    """What a stage consists of: for each of its jobs the weight in bytes, and whether it is finished."""

    jobs: tuple[tuple[int, bool], ...]

    @property
    def left(self) -> int:
        """Number of unfinished jobs."""
        return sum(not finished for _, finished in self.jobs)

    def elements(self, n: int) -> list[int]:
        """Those of a job array of `n` with something left."""
        return [i for i in range(n) if self.left_of(i, n)]

    def left_of(self, element: int, n: int) -> list[int]:
        """Weights of the element's unfinished jobs."""
        return [n_bytes for n_bytes, finished in self.jobs[element::n] if not finished]


def in_ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] becomes "0-2,5", as job arrays take it. `numbers` rise."""
    starts = [n for i, n in enumerate(numbers) if not i or numbers[i - 1] != n - 1]
    ends = [n for i, n in enumerate(numbers) if i == len(numbers) - 1 or numbers[i + 1] != n + 1]
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def content_id(facts: Any) -> str:
    """16 hexadecimal digits of the SHA-256 over the canonical JSON of plain values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:ID_DIGITS]


def plan(spans: Sequence[Span], task_bytes: int, reading: dict[str, Any]) -> tuple[Task, ...]:
    """Every span in exactly one task, in the order given. `reading`: the options that decide what a span's documents
    are."""
    return tuple(task_of(group, reading) for group in groups(spans, task_bytes))


def task_of(spans: tuple[Span, ...], reading: dict[str, Any]) -> Task:
    facts = [[span.input.name, span.input.bytes, span.input.version, span.start, span.stop] for span in spans]
    return Task(content_id({"spans": facts, "reading": reading}), spans[0].input.source, spans)


def groups(spans: Sequence[Span], task_bytes: int) -> Iterator[tuple[Span, ...]]:
    """Consecutive spans of one source, together at most `task_bytes`, or one single span."""
    group: list[Span] = []
    size = 0
    for span in spans:
        n_bytes = span.stop - span.start
        if group and (size + n_bytes > task_bytes or span.input.source != group[0].input.source):
            yield tuple(group)
            group, size = [], 0
        group.append(span)
        size += n_bytes
        if size >= task_bytes // 2 and _is_border(span, task_bytes):
            yield tuple(group)
            group, size = [], 0
    if group:
        yield tuple(group)


def _is_border(span: Span, task_bytes: int) -> bool:
    """A draw by the input's name, more likely for larger ones: about two in each half of `task_bytes`."""
    draw = int.from_bytes(hashlib.sha256(span.input.name.encode()).digest()[:8]) / 2**64
    return draw < (span.stop - span.start) / (task_bytes / 4)


def clear_temporaries(folder: Path) -> None:
    """Removes what a killed run left half-written; only for who holds the folder alone."""
    for file in folder.iterdir() if folder.is_dir() else ():
        if TEMPORARY.fullmatch(file.name):
            with contextlib.suppress(OSError):
                file.unlink()
