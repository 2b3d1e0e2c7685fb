"""Is one rank slower than the others? The times that ranks report, step by step, in; a slow rank, named once, out. No
torch.

What counts is a rank's own work, without its time in collectives: there all wait for the slowest, and look alike.
"""

import statistics
from collections import deque
from collections.abc import Sequence

WINDOW_STEPS = 20
_LEAST_SECONDS = 0.02
"""more than the others; below that it is noise of the machine"""


class Stragglers:
    def __init__(self, slow_ratio: float):
        self._slow_ratio = slow_ratio
        self._steps: deque[Sequence[float]] = deque(maxlen=WINDOW_STEPS)
        self._named: int | None = None

    def slow_rank(self, work_seconds: Sequence[float]) -> tuple[int, float] | None:
        """(rank, how many times the median of all ranks) if one has become slow since it was last asked.

        work_seconds: of each rank in one step. By the median of the last steps of each rank; of an even number of ranks
        the lower middle one is the yardstick.
        """
        self._steps.append(work_seconds)
        if len(self._steps) < WINDOW_STEPS or len(work_seconds) < 2:
            return None
        usual = [statistics.median(of_rank) for of_rank in zip(*self._steps, strict=True)]
        middle, worst = statistics.median_low(usual), max(usual)
        rank = usual.index(worst)
        is_slow = worst > self._slow_ratio * middle and worst > middle + _LEAST_SECONDS
        is_new = is_slow and rank != self._named
        self._named = rank if is_slow else None
        return (rank, worst / max(middle, 1e-9)) if is_new else None
