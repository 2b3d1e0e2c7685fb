"""The machine that a plan is for, found without torch: as configured, by its name, or by looking at this computer."""

import os
import shutil
import subprocess
import time

from conf.errors import ConfigError
from train.config import ClusterConfig, Device
from train.parallel_config import Precision
from train.plan import Machine, published_peak


def find_machine(cluster: ClusterConfig, precision: Precision, least_devices: int = 1) -> Machine:
    """The configured devices; what the configuration leaves open is looked up on this computer.

    least_devices: those that one replica of the model takes. Raises ConfigError for a GPU whose peak is not known.
    """
    gpu = None if cluster.device == Device.cpu else _gpu_here()
    name, memory = gpu or ("GPU" if cluster.device == Device.cuda else "CPU process", _memory_bytes())
    if cluster.memory_gib is not None:
        memory = int(cluster.memory_gib * 2**30)
    if (configured := cluster.peak(precision)) is not None:
        peak, source = configured, "as configured"
    elif known := published_peak(name, precision):
        peak, source = known
    elif cluster.device == Device.cuda or gpu is not None:
        dtype = "fp32" if precision == Precision.fp32 else "bf16"
        raise ConfigError(
            [
                f"the peak of {cluster.name} ({name}) in parallel.precision={precision} is not known: set "
                f"cluster.{dtype}_flops_per_second to the dense figure of its data sheet"
            ]
        )
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
