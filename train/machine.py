"""What the devices of this run can do: the dense peak by name where it is published, by measurement elsewhere."""

import os
import time

import torch

from train.config import ClusterConfig
from train.parallel_config import Precision
from train.plan import Machine, published_peak


def find_machine(cluster: ClusterConfig, precision: Precision, device: str, n_devices: int) -> Machine:
    name = device_name(device)
    peak, source = cluster.peak(precision), "as configured"
    if peak is None:
        peak, source = published_peak(name, precision) or (_measured(device, precision), "measured by a matmul now")
    memory = None if cluster.memory_gib is None else int(cluster.memory_gib * 2**30)
    return Machine(name, n_devices, peak, source, memory or _memory_bytes(device))


def device_name(device: str) -> str:
    return "CPU process" if device == "cpu" else torch.cuda.get_device_name(device)


def _measured(device: str, precision: Precision, seconds: float = 0.5) -> float:
    """FLOP/s of the best of many square matmuls: a lower bound of the peak, honest about this machine. Large ones
    to reach a GPU's, small ones to fit between what else runs on a CPU."""
    dtype = torch.float32 if precision == Precision.fp32 else torch.bfloat16
    operands = [
        torch.ones(n, n, dtype=dtype, device=device) for n in ((256, 1024) if device == "cpu" else (1024, 8192))
    ]
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end or best == 0.0:
        for a in operands:
            started = time.perf_counter()
            torch.mm(a, a)
            if device != "cpu":
                torch.cuda.synchronize()
            best = max(best, 2 * a.shape[0] ** 3 / (time.perf_counter() - started))
    return best


def _memory_bytes(device: str) -> int:
    if device == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return torch.cuda.get_device_properties(device).total_memory
