"""Which cores a rank should keep to: those near its GPU, shared out among the ranks near the same ones. No torch.

A rank that runs on the other socket fetches its data and starts its kernels over the link between the sockets. Where
the launcher has bound the process already (it may use fewer cores than the machine has), that is left as it is. Ranks
on a CPU are not bound: on a machine of their own they spread by themselves, on a shared one a rank that may not leave a
busy core waits for it, and all ranks with it.
"""

import contextlib
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SYSFS = Path("/sys")


@dataclass(frozen=True)
class Binding:
    cores: frozenset[int] | None
    """None: stay as it is"""
    words: str
    """for the console"""


def binding(
    gpus: Sequence[str], local_rank: int, allowed: frozenset[int], machine_cores: int, sysfs: Path = SYSFS
) -> Binding:
    """gpus: PCI address of the GPU of each rank of this node, by local rank; or, where a rank sees its own only, that
    one (then `local_rank` is 0). allowed: cores that this process may use."""
    if len(allowed) < machine_cores:
        return Binding(None, f"bound by the launcher to {len(allowed)} of {machine_cores} cores ({ranges(allowed)})")
    near = [near_cores(gpu, sysfs) & allowed for gpu in gpus]
    mine = near[local_rank]
    if not mine:
        return Binding(None, f"not bound: the system does not say which cores are near GPU {gpus[local_rank]}")
    sharing = [rank for rank, cores in enumerate(near) if cores == mine]
    parts = shares(mine, len(sharing), sysfs)
    if parts is None:
        return Binding(None, f"not bound: {len(sharing)} GPUs are near the same {len(mine)} cores")
    cores = parts[sharing.index(local_rank)]
    return Binding(cores, f"bound to {len(cores)} of {machine_cores} cores near its GPU ({ranges(cores)})")


def near_cores(gpu: str, sysfs: Path = SYSFS) -> frozenset[int]:
    """Of a PCI address; none where the system does not say."""
    try:
        return core_list((sysfs / "bus/pci/devices" / gpu / "local_cpulist").read_text())
    except (OSError, ValueError):
        return frozenset()


def shares(cores: frozenset[int], n: int, sysfs: Path = SYSFS) -> list[frozenset[int]] | None:
    """The cores in n parts of neighbours, as equal as can be; threads of one core stay together. None if there are
    fewer cores than parts."""
    whole = sorted({_threads(core, sysfs) & cores for core in cores}, key=min)
    if len(whole) < n:
        return None
    cuts = [len(whole) * part // n for part in range(n + 1)]
    return [frozenset[int]().union(*whole[start:end]) for start, end in itertools.pairwise(cuts)]


def _threads(core: int, sysfs: Path) -> frozenset[int]:
    """Numbers under which the system knows the core's threads."""
    try:
        siblings = core_list((sysfs / f"devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text())
    except (OSError, ValueError):
        siblings = frozenset[int]()
    return siblings | {core}


def core_list(text: str) -> frozenset[int]:
    """ "0-3,8" is 0, 1, 2, 3, 8 (kernel documentation, "list format"). Raises ValueError for anything else."""
    found: set[int] = set()
    for part in text.strip().split(",") if text.strip() else []:
        first, _, last = part.partition("-")
        found |= {*range(int(first), int(last or first) + 1)}
    return frozenset(found)


def ranges(cores: frozenset[int]) -> str:
    """The list format of a set."""
    found: list[list[int]] = []
    for core in sorted(cores):
        if found and core == found[-1][1] + 1:
            found[-1][1] = core
        else:
            found.append([core, core])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def keep_to(cores: frozenset[int]) -> None:
    """Binds every thread of this process, and by inheritance those to come."""
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)
