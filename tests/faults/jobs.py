"""A tiny run on real processes that can be hurt: killed, frozen, signalled, and given a fault on the way in.

Each rank is a process of its own, forked warm (`train/verify/ranks.py`), that runs what `python -m train` runs and ends
with its exit code. A fault is a function that a rank calls before anything of the run is looked at: it may replace what
it likes in that process. What a rank prints goes to `rank-N.log` in the folder of the job.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.runs import rows, tiny
from train.config import TrainConfig
from train.parallel import become_rank, free_port
from train.verify.ranks import _context  # pyright: ignore[reportPrivateUsage]

Fault = Callable[[int], None]
"""is given the rank; picklable: a function of a module, or a partial of one"""


class Job:
    """A run that is under way in `folder`, which holds `data/` and `runs/`."""

    def __init__(self, folder: Path, *overrides: str, ranks: int = 2, fault: Fault | None = None):
        self.folder, self._logs = folder, [folder / f"rank-{rank}.log" for rank in range(ranks)]
        self.started = time.monotonic()
        port, config = free_port(), tiny(*overrides)
        self.processes: list[Any] = []
        for rank in range(ranks):
            place = (rank, ranks, port)
            words = (str(folder), config, place, fault, str(self._logs[rank]))
            process = _context.Process(target=_rank, args=words)
            process.start()
            self.processes.append(process)

    def kill(self, rank: int) -> None:
        self.send(signal.SIGKILL, rank)

    def send(self, number: signal.Signals, rank: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.processes[rank].pid, number)

    @property
    def is_running(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def wait_for_step(self, run: Path, step: int) -> None:
        """Until metrics.jsonl has this step. Fails the test if the run ends before."""
        while True:
            alive = self.is_running
            with contextlib.suppress(OSError, ValueError):
                if any(row["step"] >= step for row in rows(run)):
                    return
            if not alive:
                pytest.fail(f"the run ended before step {step}:\n{self.printed()}")
            time.sleep(0.005)

    def end(self, timeout_seconds: float = 120) -> list[int]:
        """Waits; the exit code of each rank, negative for the signal that killed it."""
        until = time.monotonic() + timeout_seconds
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        late = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        for process in self.processes:
            process.kill()
            process.join()
        if late:
            pytest.fail(f"ranks {late} hung:\n{self.printed()}")
        return [process.exitcode for process in self.processes]

    def printed(self) -> str:
        """What all ranks printed, each under its number."""
        return "\n".join(f"--- rank {rank}\n{log.read_text()}" for rank, log in enumerate(self._logs) if log.exists())


def _rank(folder: str, config: TrainConfig, place: tuple[int, int, int], fault: Fault | None, log: str) -> None:
    from train.__main__ import is_said, run

    rank, world_size, port = place
    become_rank(rank, world_size, port, "cpu")
    os.chdir(folder)

    def hurt_and_run() -> int:
        if fault is not None:
            fault(rank)
        return run(config)

    end_as_a_command_does(log, hurt_and_run, is_said)


def end_as_a_command_does(log: Path | str, task: Callable[[], int], is_said: Callable[[Exception], bool]) -> NoReturn:
    """Does the task in this process, speaks into `log`, and leaves with the exit code of `conf.compose.entry`."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    code = 1
    try:
        code = task()
    except BaseException as error:
        code = getattr(error, "exit_code", 1)
        if not hasattr(error, "exit_code"):
            traceback.print_exc()
        elif not (isinstance(error, Exception) and is_said(error)):
            print(f"error: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
