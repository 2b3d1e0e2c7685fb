"""How fast the nodes' links are: all-reduces between pairs of nodes, in rounds with other neighbours each, then one
over all ranks.

In each round every node has one partner. A node that is slow with all its partners is slow itself; one that is slow
with a single one had that one to wait for. Each pair meets in a group of its own, so that one which fails or is late
takes no other with it. On GPUs each rank of a node does this with the rank of the same place on the other: every one
may have a network card of its own.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

MOST_ROUNDS = 4
LINK_SECONDS = 40.0
"""for one pair, its meeting included"""
GROUP_SECONDS = 90.0
_SMALL = 1 << 20
_LARGE = {"cpu": 1 << 24, "cuda": 1 << 28}
_REPEATS = 4
_WISHED_SECONDS = 0.25
"""for one all-reduce: what takes longer by far is tried with fewer bytes"""


@dataclass(frozen=True)
class Pair:
    """Of two ranks."""

    name: str
    ranks: tuple[int, int]


def rounds(n: int, most: int = MOST_ROUNDS) -> list[list[tuple[int, int]]]:
    """Pairs of 0 ... n - 1, each of them in at most one pair of a round, no pair twice: the circle method of
    tournaments."""
    players: list[int | None] = [*range(n), *([None] if n % 2 else [])]
    found: list[list[tuple[int, int]]] = []
    for _ in range(min(most, len(players) - 1) if n > 1 else 0):
        half = len(players) // 2
        pairs = zip(players[:half], reversed(players[half:]), strict=True)
        found.append([(min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None])
        players = [players[0], players[-1], *players[1:-1]]
    return found


def schedule(nodes: list[list[int]], all_lanes: bool, look: int = 0) -> list[list[Pair]]:
    """For each round, the pairs of ranks. nodes: the ranks of each node; look: each gives the pairs other names."""
    found: list[list[Pair]] = []
    for number, pairs in enumerate(rounds(len(nodes))):
        found.append([])
        for a, b in pairs:
            lanes = list(zip(nodes[a], nodes[b], strict=False))
            for ranks in lanes if all_lanes else lanes[:1]:
                found[-1].append(Pair(f"look-{look}/round-{number}/{ranks[0]}-{ranks[1]}", ranks))
    return found


def longest_seconds() -> float:
    """For all rounds, each of which may have to wait for what the rounds before it waited for."""
    return LINK_SECONDS * sum(range(1, MOST_ROUNDS + 1))


def pair_rates(store: Any, rank: int, plan: list[list[Pair]], device: str) -> dict[str, float | str]:
    """By name of the pairs that this rank is in: bytes per second, or why there are none."""
    found: dict[str, float | str] = {}
    for number, pairs in enumerate(plan, 1):  # a partner may come late, from one who did not come at all
        for pair in pairs:
            if rank in pair.ranks:
                found[pair.name] = rate(store, pair.name, pair.ranks.index(rank), 2, device, number * LINK_SECONDS)
    return found


def rate(store: Any, name: str, rank: int, size: int, device: str, seconds: float) -> float | str:
    """Bytes per second that each rank sends in the best of a few all-reduces, the "bus bandwidth" of nccl-tests: 2 (n -
    1) / n times the bytes, by the time. Or why there are none."""
    try:
        with _group(store, name, rank, size, device, seconds):
            small = _agreed(_reduce(_SMALL, device), device)
            large = min(_LARGE[device[:4].rstrip(":")], max(_SMALL, int(_SMALL * _WISHED_SECONDS / small)))
            _reduce(large, device)
            best = min(_agreed(_reduce(large, device), device) for _ in range(_REPEATS))
            return 2 * (size - 1) / size * large / best
    except (RuntimeError, ValueError) as error:
        return (str(error).splitlines() or ["no word"])[0]


@contextlib.contextmanager
def _group(store: Any, name: str, rank: int, size: int, device: str, seconds: float) -> Iterator[None]:
    dist.init_process_group(
        "gloo" if device == "cpu" else "nccl",
        store=PrefixStore(name, store),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=seconds),
        device_id=None if device == "cpu" else torch.device(device),
    )
    try:
        yield
    finally:
        with contextlib.suppress(RuntimeError, ValueError):
            dist.destroy_process_group()


def _reduce(n_bytes: int, device: str) -> float:
    """Seconds."""
    numbers = torch.ones(n_bytes // 4, device=device)
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    dist.all_reduce(numbers)
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _agreed(seconds: float, device: str) -> float:
    """The longest time of all, so that all go on alike."""
    longest = torch.tensor(seconds, device=device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    return float(longest)
