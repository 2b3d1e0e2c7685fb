"""From the environment of a launcher to a grid of ranks and a device. The only file that reads environment
variables here.

torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT; in a step of Slurm with
several tasks the last two come from the batch script (`python -m launch submit`) and the others from srun. Without them
this is a single process that needs no launcher, and the same variables are filled in for it.
"""

import contextlib
import os
import random
import re
import socket
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from train.attempt import Identity, started_at
from train.binding import binding, keep_to
from train.config import Device
from train.host_list import hosts_of
from train.node import pci_address
from train.watch import FLIGHT_FOLDER
from train.watchdog import FlightRecorder


class LaunchError(Exception):
    """The processes were started in a way that cannot work."""

    exit_code = 2


@dataclass(frozen=True)
class RankGrid:
    """Where this process stands: rank = (dp_rank * sp_size + sp_rank) * tp_size + tp_rank.

    The ranks of a tensor-parallel group (tp) follow each other, so they share a node; those of a sequence-parallel
    group (sp) are next; data-parallel replicas (dp) are furthest apart.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    """ranks on this machine; 1 where the launcher does not say"""
    tp_size: int = 1
    sp_size: int = 1

    @property
    def tp_rank(self) -> int:
        return self.rank % self.tp_size

    @property
    def sp_rank(self) -> int:
        return self.rank // self.tp_size % self.sp_size

    @property
    def dp_rank(self) -> int:
        return self.rank // (self.tp_size * self.sp_size)

    @property
    def dp_size(self) -> int:
        return self.world_size // (self.tp_size * self.sp_size)

    @property
    def is_first(self) -> bool:
        """True on the one rank that writes files and speaks to the console."""
        return self.rank == 0

    def describe(self) -> str:
        """All ranks as a table of at most seven lines: ranks, their node, and their place in each dimension."""
        n_rows = self.world_size // self._ranks_a_row
        shown = range(n_rows) if n_rows <= 5 else [0, 1, 2, None, n_rows - 1]
        rows = [("ranks", "node", "dp", "sp", "tp"), *(self._row(number) for number in shown)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join(
            [f"{self.world_size} ranks = dp {self.dp_size} x sp {self.sp_size} x tp {self.tp_size}", *lines]
        )

    @property
    def _ranks_a_row(self) -> int:
        """A row is one group of the innermost dimension in use; with data parallelism alone, one node."""
        if self.tp_size > 1:
            return self.tp_size
        if self.sp_size > 1:
            return self.sp_size
        return self.local_world_size if self.world_size % self.local_world_size == 0 else self.world_size

    def _row(self, number: int | None) -> tuple[str, ...]:
        if number is None:
            return ("...",) * 5
        first = number * self._ranks_a_row
        ends = [replace(self, rank=rank) for rank in (first, first + self._ranks_a_row - 1)]
        places = [(g.rank, g.rank // g.local_world_size, g.dp_rank, g.sp_rank, g.tp_rank) for g in ends]
        return tuple(str(a) if a == b else f"{a}-{b}" for a, b in zip(*places, strict=True))


_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def rank_grid(tp_size: int = 1, sp_size: int = 1) -> RankGrid:
    """Reads the grid from the environment; touches no process group and imports no torch.

    Raises LaunchError if the launcher's variables are incomplete, or its ranks cannot form the groups asked for.
    """
    found = {name: os.environ[name] for name in (*_NEEDED, "LOCAL_WORLD_SIZE") if name in os.environ}
    if "RANK" not in found and "SLURM_STEP_ID" in os.environ:
        found = _from_srun(found)
    if not found:
        _check_groups(1, 1, tp_size, sp_size)
        return RankGrid(0, 1, 0, 1, tp_size, sp_size)
    if missing := [name for name in _NEEDED if name not in found]:
        raise LaunchError(f"the launcher set {', '.join(found)} but not {', '.join(missing)}; start with torchrun")
    local_world_size = int(found["LOCAL_WORLD_SIZE"]) if "LOCAL_WORLD_SIZE" in found else None
    world_size = int(found["WORLD_SIZE"])
    _check_groups(world_size, local_world_size, tp_size, sp_size)
    return RankGrid(
        rank=int(found["RANK"]),
        world_size=world_size,
        local_rank=int(found["LOCAL_RANK"]),
        local_world_size=local_world_size or 1,
        tp_size=tp_size,
        sp_size=sp_size,
    )


def _from_srun(rendezvous: dict[str, str]) -> dict[str, str]:
    """The same variables from those that srun gives to each task (srun(1), OUTPUT ENVIRONMENT VARIABLES)."""
    n_tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS", "1"))
    if n_tasks == 1:
        return {}
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in rendezvous]:
        raise LaunchError(
            f"srun started {n_tasks} tasks without {' and '.join(missing)}: each would train alone on the same run "
            "folder. `python -m launch submit` writes a script that sets them"
        )
    rank, local_rank, node = (int(os.environ[f"SLURM_{name}"]) for name in ("PROCID", "LOCALID", "NODEID"))
    tasks = tasks_per_node(os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ["SLURM_TASKS_PER_NODE"])
    if rank != sum(tasks[:node]) + local_rank:
        raise LaunchError(
            f"srun gave rank {rank} to task {local_rank} of node {node}: ranks that follow each other have to share a "
            "node; start them with srun --distribution=block"
        )
    places = {"RANK": rank, "WORLD_SIZE": n_tasks, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": tasks[node]}
    return rendezvous | {name: str(value) for name, value in places.items()}


def tasks_per_node(text: str) -> list[int]:
    """ "4(x2),3" is 4, 4, 3."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise LaunchError(f"SLURM_TASKS_PER_NODE={text}: {part!r} was not expected there")
        found += [int(match[1])] * int(match[2] or 1)
    return found


@dataclass(frozen=True)
class SlurmJob:
    number: str
    ends: float | None
    """unix time; None where this version of Slurm does not say"""


def slurm_job() -> SlurmJob | None:
    """The job that this process is part of. The last element of an array has the array's own number in SLURM_JOB_ID."""
    number, ends = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_JOB_END_TIME", "")
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        number = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return None if number is None else SlurmJob(number, float(ends) if ends.isdigit() else None)


EXIT_WORD = "CRISOL_EXIT_WORD"
"""names the file in which a rank tells the batch script why it ended; srun tells only the largest code of all tasks,
and those that it stopped itself count among them"""


def leave_word(code: object) -> None:
    """Of an end that another start would not change (2 to 6), or that asks for other nodes (7). The first rank's word
    stays."""
    file = os.environ.get(EXIT_WORD)
    if file and isinstance(code, int) and 2 <= code <= 7:
        with contextlib.suppress(OSError), Path(file).open("x") as stream:
            stream.write(f"{code}\n")


BAD_NODES = "CRISOL_BAD_NODES"
"""names the file into which preflight writes the nodes that a job should not be given again, one a line"""


def bad_nodes_file() -> Path | None:
    """Where the batch script looks for them; None if nobody does."""
    name = os.environ.get(BAD_NODES)
    return Path(name) if name else None


def node_name() -> str:
    """By which the launcher knows this machine: Slurm's name for it, else its own."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def launched_nodes() -> list[str] | None:
    """The node of each rank, as the launcher dealt them out, whether they ever come or not; None if it does not say."""
    nodes, tasks = (os.environ.get(f"SLURM_STEP_{name}") for name in ("NODELIST", "TASKS_PER_NODE"))
    if nodes is None or tasks is None or "TORCHELASTIC_RUN_ID" in os.environ:
        return None
    return [name for name, n_ranks in zip(hosts_of(nodes), tasks_per_node(tasks), strict=True) for _ in range(n_ranks)]


def has_launchers_store() -> bool:
    """True if torchrun keeps the store in which ranks meet; else rank 0 does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def extensions_folder() -> Path:
    """Where torch keeps the C++ that it compiled (torch.utils.cpp_extension)."""
    name = os.environ.get("TORCH_EXTENSIONS_DIR")
    return Path(name) if name else Path.home() / ".cache" / "torch_extensions"


def hush_torch() -> None:
    """Its C++ parts print a stack for each socket that closes. Must come before torch is imported."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")


def wait_for_nccl_in_python() -> None:
    """A collective that is late raises, instead of ending the process from another thread. Read when a group is
    made."""
    os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"


def _check_groups(world_size: int, local_world_size: int | None, tp_size: int, sp_size: int) -> None:
    found: list[str] = []
    together = tp_size * sp_size
    if world_size % together:
        below, above = world_size // together * together, -(-world_size // together) * together
        sizes = " or ".join(str(size) for size in (below, above) if size)
        fitting = ", ".join(str(n) for n in range(1, world_size + 1) if world_size % n == 0)
        found.append(
            f"parallel.tp_size={tp_size} x parallel.sp_size={sp_size} = {together} does not divide the {world_size} "
            f"ranks that were started; start {sizes} ranks, or let tp_size x sp_size be one of {fitting}"
        )
    if local_world_size is not None and local_world_size % tp_size and world_size > 1:
        fitting = ", ".join(str(n) for n in range(1, local_world_size + 1) if local_world_size % n == 0)
        found.append(
            f"parallel.tp_size={tp_size} does not divide the {local_world_size} ranks of a node: a tensor-parallel "
            f"group would cross nodes, which is far too slow for two reductions a layer; tp_size can be one of "
            f"{fitting}; for more ranks on one sequence use parallel.sp_size"
        )
    if found:
        raise LaunchError("\n".join(found))


def identity() -> Identity:
    """Who this process is, for whoever finds its claim on a run later."""
    return Identity(
        host=socket.gethostname(),
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        pid_namespace=str(Path("/proc/self/ns/pid").readlink()),
        pid=os.getpid(),
        pid_started=started_at(os.getpid()),
        slurm_job=_slurm_job(),
        slurm_restarts=int(os.environ.get("SLURM_RESTART_COUNT", "0")),  # unset, not 0, in the first run
        torchrun=_torchrun(),
        torchrun_restarts=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
    )


def _slurm_job() -> str | None:
    """Two clusters on one file system may count their jobs alike."""
    job = os.environ.get("SLURM_JOB_ID")
    return job and f"{os.environ.get('SLURM_CLUSTER_NAME', '')}/{job}"


def _torchrun() -> str | None:
    """None for one without an id ("none"), as every plain torchrun is. A person may give one id to two of them; but
    the address of the store in which their workers meet is of one only."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    address = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
    return None if run_id == "none" else f"{run_id}@{address}"


def is_first_of_its_machine() -> bool:
    """True for one process of each machine, whatever else is wrong with the launch."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def variables() -> dict[str, str]:
    """All of this process; train/environment.py chooses."""
    return dict(os.environ)


def torchrun_error_file() -> Path | None:
    """Where torchrun looks for the cause when this process fails; None if it did not start it."""
    name = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return Path(name) if name else None


def share_cores() -> None:
    """Lets threads that wait for each other sleep after a short while. Must come before torch is imported.

    GNU OpenMP lets them spin at every barrier; with any other work on the same cores that made training on two of them
    up to eleven times slower, and this setting costs a seventh on idle ones (EXPERIMENTS, 2026-11-20). What the
    environment says already wins.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def name_accelerator(device: str) -> None:
    """Tells DeepSpeed what it would else look for, with a warning: "cpu" or "cuda"."""
    os.environ.setdefault("DS_ACCELERATOR", device)


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
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return f"cuda:{device_index(grid.local_rank, grid.local_world_size, found, bool(named) and ',' not in named)}"


def device_index(local_rank: int, local_world_size: int, visible: int, is_own: bool) -> int:
    """Of the CUDA device that a rank takes, among those that it sees.

    is_own: its launcher showed this process a single device (CUDA_VISIBLE_DEVICES names one, as --gpus-per-task makes
    it). Two ranks on one device are refused by NCCL, by name. Raises LaunchError if there are not enough.
    """
    if visible == 1 and is_own:
        return 0
    if local_world_size > visible:
        raise LaunchError(f"{local_world_size} ranks were started on this machine, which shows {visible} CUDA devices")
    return local_rank


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
        "MASTER_PORT": "29500",  # where a process alone meets nobody: see `join_ranks`
        "DS_ACCELERATOR": "cpu" if device == "cpu" else "cuda",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if device == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // grid.local_world_size))
    else:
        torch.cuda.set_device(device)
        _bind(device, grid)
        os.environ["LOCAL_RANK"] = device.removeprefix("cuda:")  # which DeepSpeed takes for the number of its device
        _keep_flight_record()


def _bind(device: str, grid: RankGrid) -> None:
    """To the cores near the GPU of this rank, and says so."""
    import torch

    index, n_seen = int(device.removeprefix("cuda:")), torch.cuda.device_count()
    seen = range(grid.local_world_size) if index == grid.local_rank and n_seen > 1 else [index]
    gpus = [pci_address(torch.cuda.get_device_properties(number)) for number in seen]
    place = grid.local_rank if len(gpus) > 1 else 0
    bound = binding(gpus, place, frozenset(os.sched_getaffinity(0)), os.cpu_count() or 1)
    if bound.cores is not None:
        keep_to(bound.cores)
        torch.set_num_threads(len(bound.cores))
    if grid.is_first:
        print(f"rank 0 is {bound.words}", flush=True)


def _keep_flight_record() -> None:
    """NCCL's last 2,000 collectives, written down when the watchdog of the rank asks; read when a group is made."""
    folder = tempfile.mkdtemp(prefix=FLIGHT_FOLDER)  # removed by the watchdog
    os.environ.setdefault("TORCH_NCCL_DEBUG_INFO_PIPE_FILE", f"{folder}/wish_of_rank_")
    os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", f"{folder}/nccl_rank_")
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")


def flight_recorder(rank: int) -> FlightRecorder | None:
    """Where NCCL listens and writes on this rank; None without NCCL. torch puts the rank behind both names."""
    pipe, record = (os.environ.get(f"TORCH_{name}") for name in ("NCCL_DEBUG_INFO_PIPE_FILE", "FR_DUMP_TEMP_FILE"))
    return FlightRecorder(Path(f"{pipe}{rank}.pipe"), Path(f"{record}{rank}")) if pipe and record else None


def meeting_place() -> tuple[str, int]:
    """Host and port at which rank 0 waits for the others."""
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def restarted_store() -> Any:
    """The store in which the ranks of a torchrun's second and later starts meet; None where the usual one will do.

    torchrun keeps one store over its restarts, and torch does not tell the starts apart in it (seen with 2.13): ranks
    would look for each other at addresses of the dead. Only on one machine do all ranks have the same restart count;
    for several, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes torchrun take a new store each time.
    """
    restart, uses_agent = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), "TORCHELASTIC_USE_AGENT_STORE"
    is_one_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    if restart == "0" or not is_one_machine or os.environ.get(uses_agent) != "True":
        return None
    import torch

    dist: Any = torch.distributed  # its stores are public by the documentation, not by their stubs
    agent = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    return dist.PrefixStore(f"restart-{restart}", agent)


def become_rank(rank: int, world_size: int, port: int, device: str) -> None:
    """Lets this process be one of `world_size` ranks of this machine, as a launcher would."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": device,
    }


def free_port() -> int:
    """A port of this machine that nobody listens on.

    Below those that systems hand out by themselves (from 32768 on): one of them could be taken by the time it is used.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))  # on every address, as rank 0 will
            return port
    raise LaunchError("no free port was found among 100 between 20000 and 32000")
