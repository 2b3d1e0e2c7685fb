"""From the environment of a launcher to a grid of ranks and a device. The only file that reads environment
variables here.

torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Without them this is a single
process that needs no launcher, and the same variables are filled in for it.
"""

import os
import socket
from dataclasses import dataclass

from train.config import Device


class LaunchError(Exception):
    """The processes were started in a way that cannot work."""

    exit_code = 2


@dataclass(frozen=True)
class RankGrid:
    """Where this process stands. Today every rank is a data-parallel rank."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @property
    def dp_rank(self) -> int:
        return self.rank

    @property
    def dp_size(self) -> int:
        return self.world_size

    @property
    def is_first(self) -> bool:
        """True on the one rank that writes files and speaks to the console."""
        return self.rank == 0


_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def rank_grid() -> RankGrid:
    """Reads the grid from the environment; touches no process group and imports no torch. Raises LaunchError."""
    present = [name for name in _NEEDED if name in os.environ]
    if not present:
        n_tasks = int(os.environ.get("SLURM_NTASKS", "1"))
        if n_tasks > 1 and "SLURM_STEP_ID" in os.environ:
            raise LaunchError(
                f"srun started {n_tasks} tasks without a rendezvous: each would train alone on the same run folder. "
                "Start one torchrun per node instead: srun --ntasks-per-node=1 torchrun ... -m train ..."
            )
        return RankGrid(rank=0, world_size=1, local_rank=0, local_world_size=1)
    if missing := [name for name in _NEEDED if name not in os.environ]:
        raise LaunchError(f"the launcher set {', '.join(present)} but not {', '.join(missing)}; start with torchrun")
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return RankGrid(
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ["LOCAL_RANK"]),
        local_world_size=local_world_size,
    )


def share_cores() -> None:
    """Lets threads that wait for each other sleep after a short while. Must come before torch is imported.

    GNU OpenMP lets them spin at every barrier; with any other work on the same cores that made training on two of them
    up to eleven times slower, and this setting costs a seventh on idle ones (EXPERIMENTS, 2026-11-20). What the
    environment says already wins.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def choose_device(wanted: Device, grid: RankGrid) -> str:
    """ "cpu" or "cuda:N". Raises LaunchError if CUDA is asked for and missing, or has fewer devices than ranks here."""
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == Device.cpu or (wanted == Device.auto and found == 0):
        return "cpu"
    if found == 0:
        raise LaunchError(
            "cluster.device=cuda, but torch finds no CUDA device; check the driver, or cluster.device=cpu"
        )
    if grid.local_world_size > found:
        raise LaunchError(
            f"{grid.local_world_size} ranks were started on this machine, which shows {found} CUDA devices"
        )
    return f"cuda:{grid.local_rank}"


def prepare_environment(device: str, grid: RankGrid) -> None:
    """What must be set before torch.distributed and DeepSpeed start: rendezvous of a single process, threads,
    accelerator.
    """
    import torch

    defaults = {
        "RANK": str(grid.rank),
        "WORLD_SIZE": str(grid.world_size),
        "LOCAL_RANK": str(grid.local_rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()) if grid.world_size == 1 else "29500",
        "DS_ACCELERATOR": "cpu" if device == "cpu" else "cuda",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if device == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // grid.local_world_size))
    else:
        torch.cuda.set_device(grid.local_rank)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
