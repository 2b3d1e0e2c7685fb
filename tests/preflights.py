"""A preflight on several nodes that this machine pretends to be: each rank is a process of its own, told by Slurm's
variables which node it is on, and hurt by a fault before it begins.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.jobs import end_as_a_command_does
from tests.runs import tiny
from train.config import TrainConfig
from train.parallel import BAD_NODES, become_rank, free_port
from train.verify.ranks import _context  # pyright: ignore[reportPrivateUsage]

Fault = Callable[[str, int], None]
"""is given node and rank; picklable: a function of a module, or a partial of one"""


@dataclass(frozen=True)
class Outcome:
    codes: list[int]
    """of each rank; negative for the signal that killed it"""
    printed: str
    """by rank 0"""
    others: str
    """what all the others printed"""
    bad: list[str]
    """in the file that the batch script looks into"""


def on_nodes(
    folder: Path, nodes: int, *overrides: str, ranks: int = 1, fault: Fault | None = None, slurm: bool = True
) -> Outcome:
    """`ranks` on each of the nodes n1, n2, ..., in `folder`, which holds `data/`."""
    return Pretended(folder, nodes, *overrides, ranks=ranks, fault=fault, slurm=slurm).end()


class Pretended:
    def __init__(
        self, folder: Path, nodes: int, *overrides: str, ranks: int = 1, fault: Fault | None = None, slurm: bool = True
    ):
        self._bad = folder / "bad-nodes"
        self._logs = [folder / f"rank-{rank}.log" for rank in range(nodes * ranks)]
        port, config = free_port(), tiny("run.name=checked", *overrides)
        self.processes: list[Any] = []
        for rank, log in enumerate(self._logs):
            place = (rank, ranks, nodes, port, slurm)
            process = _context.Process(target=_rank, args=(str(folder), config, place, fault, str(log)))
            process.start()
            self.processes.append(process)

    def send(self, number: signal.Signals, rank: int) -> None:
        os.kill(self.processes[rank].pid, number)

    def end(self, timeout_seconds: float = 120) -> Outcome:
        until = time.monotonic() + timeout_seconds
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        late = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        for process in self.processes:
            process.kill()
            process.join()
        printed = [log.read_text() if log.exists() else "" for log in self._logs]
        if late:
            pytest.fail(f"ranks {late} hung:\n" + "\n---\n".join(printed))
        bad = self._bad.read_text().split() if self._bad.exists() else []
        return Outcome([process.exitcode for process in self.processes], printed[0], "".join(printed[1:]), bad)


def _rank(
    folder: str, config: TrainConfig, place: tuple[int, int, int, int, bool], fault: Fault | None, log: str
) -> None:
    from train.preflight import judge
    from train.preflight.__main__ import is_said, leave_when_told, run

    judge.SLOW_RATIO = 0.05  # nodes that share two cores are often half as fast as each other
    rank, ranks, nodes, port, slurm = place
    become_rank(rank, nodes * ranks, port, "cpu")
    node = f"n{rank // ranks + 1}"
    os.environ |= {"LOCAL_RANK": str(rank % ranks), "LOCAL_WORLD_SIZE": str(ranks), "SLURMD_NODENAME": node}
    os.environ |= {BAD_NODES: f"{folder}/bad-nodes", "GLOO_SOCKET_IFNAME": "lo"}
    if slurm:
        os.environ |= {"SLURM_STEP_NODELIST": f"n[1-{nodes}]", "SLURM_STEP_TASKS_PER_NODE": f"{ranks}(x{nodes})"}
    os.chdir(folder)

    def hurt_and_run() -> int:
        leave_when_told()
        if fault is not None:
            fault(node, rank)
        return run(config)

    end_as_a_command_does(log, hurt_and_run, is_said)
