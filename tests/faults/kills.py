"""Processes that die at a chosen operation on files: SIGKILL before one is made, written, synced, renamed or removed.

`Operations` sees what a process does inside one folder; `die_before` is a fault for `Job`; `killed_saves` saves with
two ranks, forked from a warm process and agreeing over a socket, as often as there are operations to die before.
"""

import io
import json
import os
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_PATHS = {"open": 1, "os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "shutil.rmtree": 1}
"""audit event → how many of its arguments are paths"""


class Operations:
    """Calls `before` with (event, paths) of all that this process is about to do to files whose path holds `text`."""

    def __init__(self, text: str, before: Callable[[str, str], None]):
        self._text, self._before = text, before
        sys.addaudithook(self._audit)
        sync, opened = os.fsync, io.open

        def fsync(descriptor: int) -> None:
            self._tell("fsync", _path_of(descriptor))
            sync(descriptor)

        def open_(file: Any, mode: str = "r", *options: Any, **more: Any) -> Any:
            if mode != "wb":
                return opened(file, mode, *options, **more)
            return _Written(io.FileIO(file, "w"), lambda: self._tell("write", str(file)))

        os.fsync, io.open = fsync, open_  # what pathlib opens files with

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in _PATHS or (event == "open" and not (isinstance(args[2], int) and args[2] & WRITES)):
            return
        words = [str(arg) for arg in args[: _PATHS[event]]]
        if event in ("os.remove", "os.rmdir") and args[1] not in (-1, None):  # relative to a folder that is open
            words = [f"{_path_of(args[1])}/{words[0]}"]
        self._tell(event, " ".join(words))

    def _tell(self, event: str, paths: str) -> None:
        if self._text in paths:
            self._before(event, paths)


def _path_of(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


class _Written(io.BufferedWriter):
    """Half-written files are to be seen half-written: nothing waits in memory."""

    def __init__(self, raw: io.RawIOBase, before: Callable[[], None]):
        super().__init__(raw)
        self._before = before

    def write(self, block: Any) -> int:
        self._before()
        n = super().write(block)
        self.flush()
        return n


def die_before(rank: int, victim: int, event: str, words: tuple[str, ...]) -> None:
    """A fault: the victim dies before the first such operation on checkpoints whose paths hold all these words."""
    if rank != victim:
        return

    def before(seen: str, paths: str) -> None:
        if seen == event and all(word in paths for word in words):
            os.kill(os.getpid(), signal.SIGKILL)

    Operations("/checkpoints/", before)


# --- two ranks that save


def killed_saves(folder: str, victim: str, every: int = 1) -> list[dict[str, Any]]:
    """One row for each, or every so manieth, operation of rank 0 or 1 in the save of step 3 (victim "0", "1"; "both"
    die at rank 0's), with what was there after it died: `before` which operation, `left` names, the step `found`,
    whether its numbers are `good`, the `passed` ones, and the `names` after the next save by another attempt.
    """
    import torch

    torch.set_num_threads(1)
    template = Path(folder) / "template"
    for step in (1, 2):
        _save_alone(template, step, attempt=0)
    one, log = Path(folder) / "case", Path(folder) / "operations"
    shutil.copytree(template, one)
    _two_ranks(one, victim, None, log)
    operations = log.read_text().splitlines()
    rows = []
    for number, operation in list(enumerate(operations))[::every]:
        shutil.rmtree(one)
        shutil.copytree(template, one)
        _two_ranks(one, victim, number, log)
        rows.append({"before": operation} | _what_is_left(one))
    return rows


def _what_is_left(folder: Path) -> dict[str, Any]:
    from train.checkpoint.folders import remove_leftovers
    from train.checkpoint.verify import newest_valid

    left = sorted(path.name for path in folder.iterdir())
    remove_leftovers(folder, attempt=2)
    found, passed = newest_valid(folder)
    assert found is not None
    good = all(bool((tensor == found.step).all()) for _, _, tensor in found.tensors())
    _save_alone(folder, 4, attempt=2)
    names = sorted(path.name for path in folder.iterdir())
    return {"left": left, "found": found.step, "good": good, "passed": list(map(str, passed)), "names": names}


def _save_alone(folder: Path, step: int, attempt: int) -> None:
    from train.checkpoint.peers import ALONE
    from train.checkpoint.saver import Saver
    from train.config import CheckpointConfig

    saver = Saver(folder, CheckpointConfig(), ALONE, attempt)
    saver.save(step, (part for rank in (0, 1) for part in fragments(rank, step)), {"step": step})
    outcome = saver.wait()
    assert outcome is not None
    assert outcome.problem is None, outcome.problem


def fragments(rank: int, step: int) -> Iterable[tuple[str, Any, Any]]:
    """Half of a matrix for either rank, and a vector for the first; all numbers are the step."""
    import torch

    from train.fragment import Fragment

    for kind in ("master", "exp_avg"):
        yield kind, Fragment("matrix", (10, 10), None, 0, 0, 50 * rank, 50 * rank + 50), torch.full((50,), float(step))
        if rank == 0:
            yield kind, Fragment("vector", (7,), None, 0, 0, 0, 7), torch.full((7,), float(step))


def _two_ranks(folder: Path, victim: str, die_at: int | None, log: Path) -> None:
    """Both ranks save step 3; the operations of the one that would die go to `log` if none dies."""
    ends = socket.socketpair()
    second = _forked(lambda: _save_as(1, folder, ends, victim == "1", die_at, log, None))
    other = second if victim == "both" else None
    first = _forked(lambda: _save_as(0, folder, ends, victim != "1", die_at, log, other))
    for end in ends:
        end.close()
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in (first, second)]
    if die_at is None:
        assert codes == [0, 0]
    else:
        assert codes[victim == "1"] == -signal.SIGKILL


def _save_as(
    rank: int,
    folder: Path,
    ends: tuple[socket.socket, socket.socket],
    is_victim: bool,
    die_at: int | None,
    log: Path,
    other: int | None,
) -> None:
    from train.checkpoint.saver import Saver
    from train.config import CheckpointConfig

    ends[1 - rank].close()
    saver = Saver(folder, CheckpointConfig(), socket_peers(rank, ends[rank]), attempt=1)
    seen: list[str] = []

    def before(event: str, paths: str) -> None:
        if len(seen) == die_at:
            if other is not None:
                os.kill(other, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        seen.append(f"{event} {paths.replace(str(folder) + '/', '')}")

    if is_victim:
        Operations(f"{folder}/", before)
    saver.save(3, fragments(rank, 3), {"step": 3})
    saver.wait()
    if is_victim:
        log.write_text("\n".join(seen))


def socket_peers(rank: int, end: socket.socket) -> Any:
    """Of two ranks; a rank whose peer is gone ends, as one that trains does."""
    from train.checkpoint.peers import Peers

    stream = end.makefile("rwb")

    def agree(flags: list[int]) -> list[int]:
        try:
            stream.write(json.dumps(flags).encode() + b"\n")
            stream.flush()
            theirs = stream.readline()
        except OSError:
            os._exit(1)
        if not theirs:
            os._exit(1)
        return [mine + other for mine, other in zip(flags, json.loads(theirs), strict=True)]

    return Peers(rank, 2, agree)


def _forked(run: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        run()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
