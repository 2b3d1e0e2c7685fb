"""Where the ranks of a preflight leave word for each other: small facts under names, in the store of their launcher or
of rank 0. Every wait has a limit.
"""

import json
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import HashStore, PrefixStore, TCPStore

from train.parallel import RankGrid, has_launchers_store, meeting_place


class LateError(Exception):
    """Somebody did not leave word in time, or cannot be reached."""


class Board:
    def __init__(self, store: Any, rank: int):
        self.store, self._rank = store, rank

    @staticmethod
    def open(grid: RankGrid, seconds: float) -> "Board":
        """Raises LateError where it cannot be reached. A process alone keeps its own, and opens no port."""
        if grid.world_size == 1:
            return Board(HashStore(), 0)
        host, port = meeting_place()
        keeps = grid.is_first and not has_launchers_store()
        try:
            store = TCPStore(host, port, is_master=keeps, timeout=timedelta(seconds=seconds), wait_for_workers=False)
        except (RuntimeError, ValueError) as error:  # torch's DistError is one
            raise LateError(f"{host}:{port} (MASTER_ADDR, MASTER_PORT): {str(error).splitlines()[0]}") from None
        return Board(PrefixStore("preflight", store), grid.rank)

    def put(self, name: str, fact: Any) -> None:
        self._asked(lambda: self.store.set(name, json.dumps(fact)))

    def get(self, name: str, seconds: float) -> Any:
        """Waits for it. Raises LateError."""

        def answer() -> bytes:
            self.store.wait([name], timedelta(seconds=seconds))
            return self.store.get(name)

        return json.loads(self._asked(answer))

    def put_mine(self, name: str, fact: Any) -> None:
        """This rank's own, for `gather`."""
        self.put(f"{name}/{self._rank}", fact)
        self._asked(lambda: self.store.add(f"{name}/n", 1))

    def gather(self, name: str, ranks: Iterable[int], seconds: float) -> dict[int, Any]:
        """What these ranks have put under the name, by rank: all of them, or those that did in time."""
        wanted, until = list(ranks), time.monotonic() + seconds
        while self._asked(lambda: self.store.add(f"{name}/n", 0)) < len(wanted) and time.monotonic() < until:
            time.sleep(0.02)
        there = [rank for rank in wanted if self._asked(lambda rank=rank: self.store.check([f"{name}/{rank}"]))]
        return {rank: self.get(f"{name}/{rank}", seconds) for rank in there}

    def _asked(self, question: Any) -> Any:
        try:
            return question()
        except RuntimeError as error:
            raise LateError(str(error).splitlines()[0]) from None
