"""What the stages after `clean` read: the documents of one task, from its inputs or from the part that `clean` made.

A slice has a content-derived id, so whatever a stage makes of it can be named after it. Documents are counted 0, 1, 2 …
over a slice; lists of removed documents (duplicates, contaminated ones) speak of these numbers.
"""

from builtins import bytes as utf8_bytes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.config import OnBad
from data_prep.document import HARMLESS, Document, Outcome, Reason, refusing
from data_prep.jobs import Task
from data_prep.sources.config import Source


@dataclass(frozen=True)
class Reading:
    """How the documents of all tasks are read."""

    source: Source
    on_bad: OnBad

    def outcomes(self, task: Task) -> Iterator[tuple[int, Outcome]]:
        """(number of the span in the task, document or why there is none), in order. Raises DataError."""
        from data_prep.sources.read import read

        for i, span in enumerate(task.spans):
            for outcome in refusing(read(self.source, span), self.on_bad):
                yield i, outcome

    def refuses(self, reason: str) -> bool:
        """True if a document removed for this reason would now be an error: made under laxer rules, not used again."""
        return self.on_bad is OnBad.error and reason in set(Reason) - HARMLESS


@dataclass(frozen=True)
class Slice:
    id: str
    source: str
    task: Task
    reading: Reading
    part: Path | None
    """The cleaned documents; None when nothing is cleaned, and the inputs are read instead."""

    @property
    def bytes(self) -> int:
        return self.task.bytes

    def outcomes(self) -> Iterator[tuple[int, Outcome]]:
        """(number of the span, outcome); from a part only documents come, `clean` has counted the rest."""
        if self.part is None:
            yield from self.reading.outcomes(self.task)
        else:
            from data_prep.parts import read_part

            yield from read_part(self.part)

    def texts(self) -> Iterator[utf8_bytes]:
        for _, outcome in self.outcomes():
            if isinstance(outcome, Document):
                yield outcome.utf8
