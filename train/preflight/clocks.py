"""How far the nodes' clocks are apart: pings over the board, each answered with the time there.

Rank 0 asks one node after the other. From one ping the offset is known to half of its round trip (as NTP does it, RFC
5905, section 8); the quickest of a few counts.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from train.preflight.board import Board, LateError

PINGS = 8
ANSWER_SECONDS = 20.0
ROUND_SECONDS = 300.0
"""for the pings of all nodes together"""


@dataclass(frozen=True)
class Offset:
    seconds: float
    """how far this clock is ahead of rank 0's"""
    uncertain: float
    """half of the round trip"""


def now() -> float:
    return time.time()


def ask(board: Board, ranks: Iterable[int]) -> dict[int, Offset]:
    """On rank 0. Those that did not answer in time are missing."""
    found: dict[int, Offset] = {}
    until = time.monotonic() + ROUND_SECONDS
    for rank in ranks:
        try:
            found[rank] = min((_ping(board, rank, i) for i in range(PINGS)), key=lambda offset: offset.uncertain)
        except LateError:
            if time.monotonic() > until:
                break
    return found


def answer(board: Board, rank: int, seconds: float) -> None:
    """On the rank that is asked; `seconds` until the first question. Raises LateError."""
    for i in range(PINGS):
        board.get(f"ping/{rank}/{i}", seconds if i == 0 else ANSWER_SECONDS)
        board.put(f"pong/{rank}/{i}", now())


def _ping(board: Board, rank: int, i: int) -> Offset:
    sent = now()
    board.put(f"ping/{rank}/{i}", sent)
    there = board.get(f"pong/{rank}/{i}", ANSWER_SECONDS)
    back = now()
    return Offset(there - (sent + back) / 2, (back - sent) / 2)
