"""Seconds that a rank spends in collectives: its own work is the rest of a step, and a slow rank is one whose rest is
long, while all others wait for it in theirs.

`watch_collectives` puts a clock around the functions of torch.distributed that this project and DeepSpeed call. Where
collectives run on a device of their own, events on its stream mark begin and end, so nothing waits for the clock. A
call that returns before its collective is done (async_op) is not counted.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist

_NAMES = (
    "all_reduce",
    "all_reduce_coalesced",
    "reduce",
    "broadcast",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_single",
    "all_gather_coalesced",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "reduce_scatter_single",
    "all_to_all",
    "all_to_all_single",
    "barrier",
)


class CollectiveClock:
    """Adds up until it is read."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []
        self._depth = 0
        self.device: str | None = None

    def read(self) -> float:
        """Seconds since the last reading. On a device, waits until what was begun there is done."""
        for begin, end in self._events:
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1000
        self._events.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def around(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        """Counts what is called by itself: one collective of torch may call another."""

        @wraps(collective)
        def timed(*arguments: Any, **named: Any) -> Any:
            if torch.compiler.is_compiling() or self._depth or named.get("async_op"):
                return collective(*arguments, **named)
            self._depth += 1
            try:
                return self._timed(collective, arguments, named)
            finally:
                self._depth -= 1

        return timed

    def _timed(self, collective: Callable[..., Any], arguments: Any, named: Any) -> Any:
        if self.device == "cpu":
            started = time.perf_counter()
            result = collective(*arguments, **named)
            self._seconds += time.perf_counter() - started
            return result
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        result = collective(*arguments, **named)
        end.record()
        self._events.append((begin, end))
        return result


CLOCK = CollectiveClock()
"""of this process"""


class StepClock:
    """Seconds from one reading to the next, and those of them in collectives, without what goes on aside."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._before = 0.0

    def read(self) -> tuple[float, float]:
        """(seconds in collectives, all seconds). Waits as `CollectiveClock.read` does."""
        in_collectives, now = self._before + CLOCK.read(), time.perf_counter()
        seconds, self._since, self._before = now - self._since, now, 0.0
        return in_collectives, seconds

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is done within is no part of a step."""
        self._before += CLOCK.read()
        began = time.perf_counter()
        try:
            yield
        finally:
            CLOCK.read()
            self._since += time.perf_counter() - began


def watch_collectives(device: str) -> None:
    """Before DeepSpeed looks for the functions that it will call; a second time does nothing."""
    if CLOCK.device is not None:
        return
    CLOCK.device = device.partition(":")[0]
    for name in _NAMES:
        if hasattr(dist, name):  # names differ between versions of torch
            setattr(dist, name, CLOCK.around(getattr(dist, name)))
