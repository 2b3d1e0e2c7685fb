"""The rows of a run → TensorBoard's event files. They are a view of metrics.jsonl: made from it, never read."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from train.console import tell
from train.plan import Plan


class TensorBoardCurves:
    """Event files made anew from the rows at every start, so each step is there exactly once after any number of kills;
    and once more at the end, if they are not as they were left.

    Loss is drawn against step, and as runs `by_tokens` and `by_gigaflops` against tokens and FLOPs.
    """

    AXES = ("", "by_tokens", "by_gigaflops")
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
        self._folder, self._gigaflops_per_token = folder, plan.flops_causal_per_token / 1e9
        self._writers: list[Any] | None = []
        self._added = [0 for _ in self.AXES]

    def begin(self, rows: Iterable[dict[str, Any]]) -> None:
        """Makes the files anew, with these rows in them."""
        self._guarded(self._close)
        self._writers = []
        self._guarded(self._open)
        self.add_all(rows)

    def _open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        for stale in self._folder.rglob("events.out.tfevents.*"):
            stale.unlink()
        self._writers = [SummaryWriter(str(self._folder / axis)) for axis in self.AXES]
        self._added = [0 for _ in self.AXES]

    def add_all(self, rows: Iterable[dict[str, Any]]) -> None:
        self._guarded(lambda: [self._add(row) for row in rows])

    def close(self, rows: Iterable[dict[str, Any]]) -> None:
        """rows: all that were given."""
        self._guarded(self._close)
        if self._writers is not None and not self._is_whole():
            self.begin(rows)
            self._guarded(self._close)

    def _close(self) -> None:
        for writer in self._writers or []:
            writer.close()

    def _is_whole(self) -> bool:
        """Every point that was given is in the files, after the record that each begins with."""
        return all(
            [n_records(file) for file in (self._folder / axis).glob("events.out.tfevents.*")] == [1 + added]
            for axis, added in zip(self.AXES, self._added, strict=True)
        )

    def _add(self, row: dict[str, Any]) -> None:
        gigaflops = int(row["tokens_seen"] * self._gigaflops_per_token)
        for axis, place in enumerate((row["step"], row["tokens_seen"], gigaflops)):
            for key, tag in self.TAGS.items():
                if key in row and self._writers and (axis == 0 or tag.startswith("loss/")):
                    self._writers[axis].add_scalar(tag, row[key], place)
                    self._added[axis] += 1

    def _guarded(self, action: Callable[[], Any]) -> None:
        """After a first fault nothing more is written until the next start, which makes all curves anew. TensorBoard
        hands on what its own thread has met, so any error may come."""
        if self._writers is None:
            return
        try:
            action()
        except Exception as error:
            self._writers = None
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
