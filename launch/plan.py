"""`launch plan`: what a run needs and costs, before anything is queued. No torch, so it answers at once.

The arithmetic is in `train/plan.py`, which every run prints at its start; here the facts are found without torch: the
machine from the cluster's configuration, or from this computer, and the data from its manifest if it is there.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

from conf.errors import ConfigError
from data_prep.manifest import Manifest
from launch.performance.reproduce import reproduce
from launch.plan_config import PlanConfig
from train.batch import solve_batch
from train.config import ClusterConfig, Device, TrainConfig
from train.data_config import DataConfig
from train.layout_problems import layout_problems
from train.parallel_config import Precision
from train.plan import Machine, Plan, make_plan, published_peak, render


def plan(config: PlanConfig) -> None:
    """Prints the plan of `config`, or what else it asks for. Raises ConfigError or BatchError if it does not fit the
    cluster's devices."""
    if config.reproduce is not None:
        return reproduce(config.reproduce)
    return print(render(planned(config.train)))


def planned(config: TrainConfig) -> Plan:
    ranks_a_row = config.parallel.tp_size * config.parallel.sp_size
    machine = find_machine(config.cluster, config.parallel.precision, ranks_a_row)
    problems = layout_problems(config)
    if machine.n_devices % ranks_a_row:
        problems.append(
            f"cluster.n_devices={machine.n_devices} does not divide by parallel.tp_size={config.parallel.tp_size} x "
            f"parallel.sp_size={config.parallel.sp_size} = {ranks_a_row}"
        )
    else:
        problems += config.parallel.problems_on(machine.n_devices // config.parallel.tp_size)
    if problems:
        raise ConfigError(problems)
    batch = solve_batch(
        global_batch_size=config.batch.global_batch_size,
        micro_batch_size=config.batch.micro_batch_size,
        dp_size=machine.n_devices // ranks_a_row,
        seq_len=config.data.seq_len,
        total_tokens=config.total_tokens,
    )
    return make_plan(config, batch, machine, _train_tokens(config.data))


def find_machine(cluster: ClusterConfig, precision: Precision, least_devices: int = 1) -> Machine:
    """The configured devices; what the configuration leaves open is looked up on this computer.

    least_devices: those that one replica of the model takes.
    """
    gpu = None if cluster.device == Device.cpu else _gpu_here()
    name, memory = gpu or ("GPU" if cluster.device == Device.cuda else "CPU process", _memory_bytes())
    if cluster.memory_gib is not None:
        memory = int(cluster.memory_gib * 2**30)
    if (configured := cluster.peak(precision)) is not None:
        peak, source = configured, "as configured"
    elif known := published_peak(name, precision):
        peak, source = known
    else:
        peak, source = _measured(), "measured by a matmul now"
    return Machine(name, cluster.n_devices or least_devices, peak, source, memory)


def _gpu_here() -> tuple[str, int] | None:
    """(name, bytes of memory) of this computer's first GPU, if nvidia-smi knows one."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    name, _, mebibytes = answer.stdout.partition("\n")[0].rpartition(", ")
    return (name, int(mebibytes) * 2**20) if answer.returncode == 0 and mebibytes.isdigit() else None


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _measured(size: int = 1024, seconds: float = 0.2) -> float:
    """fp32 FLOP/s of the best of several matmuls of numpy on all cores."""
    import numpy as np

    a = np.ones((size, size), dtype=np.float32)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        np.matmul(a, a)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def _train_tokens(data: DataConfig) -> int | None:
    """None while a dataset is missing. Raises DataError if there is one that cannot be read."""
    total = 0
    for source in data.mixture.values():
        folder = Path(source.folder)
        if not (folder / "manifest.json").exists():
            return None
        shards = Manifest.load(folder).shards_of("train")
        total += sum(s.tokens for s in shards if source.source in (None, s.source))
    return total
