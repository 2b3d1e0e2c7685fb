"""The processes of a sweep on this computer: what each is started with, and which cores and GPUs it has.

Cells that run side by side get cores of their own, and GPUs of their own where the job asks for them: two that share
cores slow each other down by more than half.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from conf.errors import ConfigError
from launch.sweep.cells import Cell
from launch.sweep.config import SweepConfig

_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True)
class Places:
    """Where cells can run side by side."""

    all_cores: tuple[int, ...]
    gpus: tuple[str, ...]
    count: int

    @staticmethod
    def of(config: SweepConfig) -> "Places":
        """Raises ConfigError where there are fewer cores or GPUs than asked for."""
        cores, count, ranks = tuple(sorted(os.sched_getaffinity(0))), config.sweep.places, config.job.ranks_per_node
        if count * ranks > len(cores):
            raise ConfigError(
                [f"sweep.jobs={count} cells of {ranks} ranks need {count * ranks} cores, and there are {len(cores)}"]
            )
        gpus = _gpus(count * (config.job.gpus_per_node or 0))
        return Places(cores, gpus, count)

    def free(self, taken: Iterable[int | None]) -> int:
        return min(set(range(self.count)) - set(taken))

    def cores(self, place: int | None) -> frozenset[int]:
        """None: of all places."""
        if place is None:
            return frozenset(self.all_cores)
        each = len(self.all_cores) // self.count
        return frozenset(self.all_cores[place * each : (place + 1) * each])

    def gpus_of(self, place: int | None) -> tuple[str, ...]:
        if place is None:
            return self.gpus
        each = len(self.gpus) // self.count
        return self.gpus[place * each : (place + 1) * each]


def _gpus(n: int) -> tuple[str, ...]:
    if n == 0:
        return ()
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    found = seen or sorted((path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")), key=int)
    if len(found) < n:
        raise ConfigError([f"sweep.jobs x job.gpus_per_node asks for {n} GPUs, and there are {len(found)}"])
    return tuple(found[:n])


def command(cell: Cell) -> list[str]:
    meeting = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--nnodes", "1")
    launcher = ("-m", "torch.distributed.run", *meeting, "--nproc-per-node", str(cell.ranks))
    return [sys.executable, *(launcher if cell.ranks > 1 else ()), "-m", "train", *cell.words()]


def environment(places: Places, place: int | None) -> dict[str, str]:
    found = dict(os.environ) | {"PYTHONUNBUFFERED": "1"}
    if gpus := places.gpus_of(place):
        found["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return found


def parented(cores: frozenset[int]) -> Callable[[], None]:
    """What a child does before its program: keeps to its cores, and is told to save and leave when this process is
    gone, whatever took it."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def before() -> None:
        os.sched_setaffinity(0, cores)
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return before
