"""What one machine has: software, GPUs, cores, memory. No torch until it is looked at.

Out: a `Node`, which preflight compares between nodes and `launch doctor` shows (as JSON: `python -m train.node`).
Everything is read; nothing is changed, and no GPU is used.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("train", "model", "data_prep", "launch", "conf")
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_bytes: int
    pci: str
    """as sysfs writes it: 0000:3b:00.0"""


@dataclass(frozen=True)
class Node:
    host: str
    python: str
    torch: str
    deepspeed: str
    cuda: str | None
    """that torch was built for; None for a CPU build"""
    nccl: str | None
    driver: str | None
    """of NVIDIA; None where there is none"""
    code: str
    """digest of this project's own source files"""
    gpus: tuple[Gpu, ...]
    """that this process may see"""
    cores: int
    """that this process may use"""
    machine_cores: int
    memory_bytes: int
    """that this process may use: of the machine, or of its control group"""
    available_bytes: int
    shared_memory_bytes: int
    """free in /dev/shm, where NCCL and data loaders put what processes of a node share; 0 if there is none"""
    temp_folder: str
    temp_bytes: int
    """free there"""

    @staticmethod
    def from_tree(tree: dict[str, Any]) -> "Node":
        return Node(**{**tree, "gpus": tuple(Gpu(**gpu) for gpu in tree["gpus"])})


def look() -> Node:
    """At this machine, as this process sees it."""
    import torch

    machine, available = _memory()
    return Node(
        host=socket.gethostname(),
        python=platform.python_version(),
        torch=torch.__version__,
        deepspeed=version_of("deepspeed") or "not installed",
        cuda=torch.version.cuda,
        nccl=_nccl(),
        driver=driver(),
        code=code_digest(),
        gpus=_gpus(),
        cores=len(os.sched_getaffinity(0)),
        machine_cores=os.cpu_count() or 1,
        memory_bytes=machine,
        available_bytes=available,
        shared_memory_bytes=free_bytes(SHARED_MEMORY) or 0,
        temp_folder=tempfile.gettempdir(),
        temp_bytes=free_bytes(Path(tempfile.gettempdir())) or 0,
    )


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def driver(version_file: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Of the kernel module that is loaded; asked of nvidia-smi where /proc does not show it, as in some containers."""
    with contextlib.suppress(OSError):
        if found := re.search(r"Kernel Module(?: for \S+)?\s+([\d.]+)", version_file.read_text()):
            return found[1]
    if shutil.which("nvidia-smi") is None:
        return None
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.splitlines() or [None])[0] if done.returncode == 0 else None


def code_digest(root: Path = ROOT) -> str:
    """12 hex digits over the names and contents of this project's sources and choices (*.py, *.yaml)."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.suffix in (".py", ".yaml") and path.is_file():
                digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def free_bytes(folder: Path) -> int | None:
    """For an ordinary user, on the disk of the folder or of the nearest one above it that exists."""
    for place in (folder, *folder.absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return None


def _nccl() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return None
    nccl: Any = importlib.import_module("torch.cuda.nccl")
    return ".".join(map(str, nccl.version()))


def _gpus() -> tuple[Gpu, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    found = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return tuple(Gpu(of.name, of.total_memory, pci_address(of)) for of in found)


def pci_address(properties: Any) -> str:
    """Of what torch tells about a device."""
    return f"{properties.pci_domain_id:04x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"


def _memory() -> tuple[int, int]:
    """(bytes that may be used, bytes of them that are free), by /proc/meminfo and the control group."""
    told = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE))
    total, available = (int(told[name]) * 1024 for name in ("MemTotal", "MemAvailable"))
    for limit, used in _group_limits():
        total, available = min(total, limit), min(available, max(0, limit - used))
    return total, available


def _group_limits() -> list[tuple[int, int]]:
    """(limit, in use) of this process's control group and those above it: version 2, or memory of version 1."""
    found: list[tuple[int, int]] = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds not in ("", "memory"):
                continue
            root = Path("/sys/fs/cgroup") / kinds
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
            place = root / path.strip("/")
            for folder in (place, *place.parents):
                if not folder.is_relative_to(root):
                    break
                with contextlib.suppress(OSError, ValueError):  # "max" is no limit
                    limit, used = (int((folder / name).read_text()) for name in names)
                    found.append((limit, used - _page_cache(folder)))
    return found


def _page_cache(group: Path) -> int:
    """Counted as used, and given back when it is needed."""
    told = re.search(r"^(?:total_)?inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
    return int(told[1]) if told else 0


if __name__ == "__main__":
    print(json.dumps(asdict(look())))
