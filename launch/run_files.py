"""Small things that a reader of run folders asks of files again and again: whether they changed, what JSON they hold,
whether whoever wrote them gives signs of life. Nothing here raises for a file that is missing or damaged.
"""

import contextlib
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from data_prep.harmless import plain
from train.attempt import Identity

SILENT_SECONDS = 60.0
"""a run elsewhere of which nothing has changed for so long is lost: thirty signs of life did not come. (A new start
waits for run.lease_seconds at the least; between clocks of two machines more is due.)"""


class Pulse:
    """Whether a holder on another machine gives signs of life: by what is seen to change. Only before anything was, the
    time of its files is compared with the clock here."""

    def __init__(self) -> None:
        self._signs: object = None
        self._changed_at: float | None = None

    def beats(self, signs: object, newest: float) -> bool:
        now = time.monotonic()
        if self._signs is not None and signs != self._signs:
            self._changed_at = now
        self._signs = signs
        if self._changed_at is not None:
            return now - self._changed_at < SILENT_SECONDS
        return abs(time.time() - newest) < SILENT_SECONDS


class JsonFile:
    def __init__(self, path: Path):
        self._path, self._stamp = path, object()
        self._facts: dict[str, Any] = {}
        self.problem: str | None = None

    def read(self) -> dict[str, Any]:
        """{} if there is none that can be read."""
        stamp = stamp_of(self._path)
        if stamp != self._stamp:
            self._stamp, self._facts, self.problem = stamp, {}, None
            if stamp is not None:
                self._load()
        return self._facts

    def _load(self) -> None:
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            self.problem = f"{self._path.name} cannot be read: {plain(str(error))}"
            return
        if isinstance(found, dict):
            self._facts = found
        else:
            self.problem = f"{self._path.name} does not hold a JSON object"


def entries(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(folder.iterdir())
    return []


def stamp_of(path: Path) -> tuple[int, int, int] | None:
    """Changes when the file does."""
    with contextlib.suppress(OSError):
        facts = path.stat()
        return facts.st_ino, facts.st_mtime_ns, facts.st_size
    return None


def modified(path: Path) -> float:
    stamp = stamp_of(path)
    return stamp[1] / 1e9 if stamp else 0.0


def holder_identity(holder: dict[str, Any]) -> Identity | None:
    with contextlib.suppress(KeyError):
        return Identity(**{item.name: holder[item.name] for item in dataclasses.fields(Identity)})
    return None
