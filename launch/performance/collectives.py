"""What collectives take: bytes over the slowest link of the ring, and the hops that a ring between nodes has.

A group is so many ranks, of which `in_node` sit in each node. A ring through several nodes enters and leaves each node
once for each of its channels, and NCCL makes as many channels as the group has GPUs (and so adapters) in a node.
"""

from dataclasses import dataclass

from launch.performance.constants import Constants
from launch.performance.hardware import Hardware


@dataclass(frozen=True)
class Group:
    size: int
    in_node: int

    @property
    def n_nodes(self) -> float:
        return self.size / self.in_node


def group(size: int, stride: int, hardware: Hardware) -> Group:
    """`size` ranks, `stride` apart from each other in the numbering of ranks."""
    return Group(size, max(1, min(size, hardware.gpus_per_node // stride)))


@dataclass(frozen=True)
class Cost:
    seconds: float = 0.0
    """from start to end"""
    inside: float = 0.0
    """of these, as many as the links inside a node are busy: the GPUs' memory and processors are busy with them too"""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.seconds + other.seconds, self.inside + other.inside)

    def times(self, factor: float) -> "Cost":
        return Cost(self.seconds * factor, self.inside * factor)

    def exposed(self, compute: float, constants: Constants) -> float:
        """Seconds by which a step becomes longer if this runs beside so many seconds of computation."""
        return max(self.seconds - constants.hideable * compute, constants.interference * self.inside)


def gather(n_bytes: float, among: Group, hardware: Hardware, constants: Constants) -> Cost:
    """An all-gather whose result has `n_bytes`, or a reduce-scatter that starts from them. An all-reduce is both."""
    if among.size == 1:
        return Cost()
    share = n_bytes * (among.size - 1) / among.size
    inside = share / (hardware.link_bytes_per_second * constants.link_ratio)
    if among.n_nodes <= 1:
        return Cost(inside + constants.kernel_seconds, inside)
    between = share / (among.in_node * hardware.network_bytes_per_second * constants.network_ratio)
    return Cost(max(inside, between) + (among.n_nodes - 1) * constants.hop_seconds, inside)
