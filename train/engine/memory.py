"""Bytes that a process has used: of its device since the last question, and of its host now."""

import os
from pathlib import Path

import torch


def memory_in_use(device: str) -> dict[str, int]:
    """The three figures of a `Report`."""
    allocated, reserved = device_peak(device)
    return {"allocated_bytes": allocated, "reserved_bytes": reserved, "resident_bytes": resident_bytes()}


def device_peak(device: str) -> tuple[int, int]:
    """(allocated, reserved) at the most since the last call, by torch's allocator; (0, 0) on a CPU."""
    if not device.startswith("cuda"):
        return 0, 0
    peak = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def resident_bytes() -> int:
    """Of this process in the memory of its host, files that are mapped into it included (proc_pid_statm(5))."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
