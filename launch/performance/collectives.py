"""What collectives take: bytes over the slowest link of the ring, and the hops that a ring between nodes has.

A group is so many ranks, of which `in_node` sit in each node. A ring through several nodes enters and leaves each node
once for each of its channels, and NCCL makes as many channels as the group has GPUs (and so adapters) in a node.
"""

from dataclasses import dataclass

from launch.performance.constants import Constants
from launch.performance.hardware import Hardware
from launch.performance.stacks import Stack


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


def gather_seconds(n_bytes: float, among: Group, hardware: Hardware, constants: Constants, stack: Stack) -> float:
    """An all-gather whose result has `n_bytes`, or a reduce-scatter that starts from them. An all-reduce is both."""
    if among.size == 1:
        return 0.0
    share = n_bytes * (among.size - 1) / among.size
    inside = share / (hardware.link_bytes_per_second * constants.link_ratio)
    if among.n_nodes <= 1:
        return inside + constants.kernel_seconds
    ratio = stack.network_ratio or constants.network_ratio
    between = share / (among.in_node * hardware.network_bytes_per_second * ratio)
    return max(inside, between) + (among.n_nodes - 1) * constants.hop_seconds
