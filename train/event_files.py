"""The rows of a run → TensorBoard's event file: curves, their layout, settings, plan and samples. It is a view of the
run's other files: made from them, never read."""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.console import tell
from train.dashboard import OUTCOMES, Layout, points

GENERATED = "generated_text"
"""the tag of what a model writes: the first of the texts by name, since TensorBoard opens the first two"""


@dataclass(frozen=True)
class Board:
    """What stands there beside the curves."""

    layout: Layout
    texts: Mapping[str, str]
    """tag to text, of the run as a whole"""
    hparams: Mapping[str, str | int | float]
    samples: Callable[[], Iterable[tuple[int, str]]]
    """(step, text) of all that were drawn so far"""


class TensorBoardCurves:
    """An event file made anew at every start, so each step is there exactly once after any number of kills; and once
    more at the end, if it is not as it was left."""

    def __init__(self, folder: Path, board: Board):
        self._folder, self._board = folder, board
        self._writer: Any = None
        self._is_given_up = False
        self._added = 0

    def begin(self, rows: Iterable[dict[str, Any]]) -> None:
        """Makes the file anew, with these rows in it."""
        self._guarded(self._close)
        self._is_given_up = False
        self._guarded(self._open)
        self.add_all(rows)

    def _open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        for stale in self._folder.rglob("events.out.tfevents.*"):
            stale.unlink()
        self._writer, self._added = SummaryWriter(str(self._folder)), 0
        self._add_head()
        for step, text in self._board.samples():
            self._add_text(GENERATED, text, step)

    def add_all(self, rows: Iterable[dict[str, Any]]) -> None:
        self._guarded(lambda: [self._add(row) for row in rows])

    def add_sample(self, step: int, text: str) -> None:
        self._guarded(lambda: self._add_text(GENERATED, text, step))

    def close(self, rows: Iterable[dict[str, Any]]) -> None:
        """rows: all that were given."""
        self._guarded(self._close)
        if not self._is_given_up and not self._is_whole():
            self.begin(rows)
            self._guarded(self._close)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _is_whole(self) -> bool:
        """Every record that was given is in the file, after the one that it begins with."""
        return [n_records(file) for file in self._folder.glob("events.out.tfevents.*")] == [1 + self._added]

    def _add_head(self) -> None:
        """Layout, settings and texts."""
        from torch.utils.tensorboard.summary import hparams

        charts = {
            category: {title: ["Multiline", tags] for title, tags in found.items()}
            for category, found in self._board.layout.items()
        }
        self._writer.add_custom_scalars(charts)
        experiment, begins, _ = hparams(dict(self._board.hparams), dict.fromkeys(OUTCOMES))
        for summary in (experiment, begins):
            self._writer.file_writer.add_summary(summary)
        self._added += 3
        for tag, text in self._board.texts.items():
            self._add_text(tag, text, 0)

    def _add(self, row: dict[str, Any]) -> None:
        for tag, value, place in points(row):
            self._writer.add_scalar(tag, value, place)
            self._added += 1

    def _add_text(self, tag: str, text: str, step: int) -> None:
        """As it stands, in lines of equal letters: what is indented is no markup."""
        self._writer.add_text(tag, "".join(f"    {line}\n" for line in text.splitlines()), step)
        self._added += 1

    def _guarded(self, action: Callable[[], Any]) -> None:
        """After a first fault nothing more is written until the next start, which makes all curves anew. TensorBoard
        hands on what its own thread has met, so any error may come."""
        if self._is_given_up:
            return
        try:
            action()
        except Exception as error:
            self._is_given_up = True
            tell(
                f"warning: TensorBoard: {type(error).__name__}: {error}; the curves stop here, metrics.jsonl goes on",
                sys.stderr,
            )


def n_records(file: Path) -> int:
    """Of an event file (each a length, its checksum, the content, its checksum); -1 if it does not end where a record
    does."""
    content = file.read_bytes()
    at = count = 0
    while at + 8 <= len(content):
        at += 16 + int.from_bytes(content[at : at + 8], "little")
        count += 1
    return count if at == len(content) else -1
