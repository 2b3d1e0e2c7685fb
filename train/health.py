"""Is a step like those before it? Loss and gradient norm of each step in; a finding, or none, out. No torch.

A spike is judged by a robust z-score: how many robust standard deviations (1.4826 times the median absolute deviation,
which is the standard deviation of a normal distribution; Rousseeuw and Croux 1993) the value lies above the median of
the window. The window holds the steps that were learnt from; it travels in the checkpoint, so a continued run judges as
one that was never stopped.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from train.health_config import HealthConfig, Policy

MIN_WINDOW = 16
"""with fewer steps to compare with, nothing is a spike"""
_LEAST_DEVIATION = {"loss": 0.01, "grad_norm": 0.05}
"""of the median: where all steps of a window are nearly equal, a hair's breadth is no spike"""


class Reason(StrEnum):
    nonfinite = "non-finite"
    loss_spike = "loss spike"
    norm_spike = "gradient norm spike"
    odd_replicas = "replicas differ"


@dataclass(frozen=True)
class Finding:
    reason: Reason
    policy: Policy
    detail: str
    """the figures, in words"""


class Health:
    """The window of one run, and what counts against it. Equal on all ranks, because it sees equal numbers."""

    def __init__(self, config: HealthConfig):
        self._config = config
        self._losses: deque[float] = deque(maxlen=config.window_steps)
        self._norms: deque[float] = deque(maxlen=config.window_steps)
        self.skips_in_a_row = 0

    def finding(self, loss: float, grad_norm: float, odd_ranks: Iterable[int] = ()) -> Finding | None:
        """What is wrong with a step of this loss and norm; the gravest only."""
        if odd := list(odd_ranks):
            detail = f"ranks {', '.join(map(str, odd))} hold weights that are not those of the others"
            return Finding(Reason.odd_replicas, Policy.rollback, detail)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            detail = f"loss {loss}, gradient norm {grad_norm}"
            return Finding(Reason.nonfinite, self._config.on_nonfinite, detail)
        if text := _spike("loss", loss, self._losses, self._config.loss_z):
            return Finding(Reason.loss_spike, self._config.on_loss_spike, text)
        if text := _spike("grad_norm", grad_norm, self._norms, self._config.norm_z):
            return Finding(Reason.norm_spike, self._config.on_norm_spike, text)
        return None

    def learnt(self, loss: float, grad_norm: float) -> None:
        """A step was applied."""
        self._losses.append(loss)
        self._norms.append(grad_norm)
        self.skips_in_a_row = 0

    def skipped(self) -> bool:
        """A step was flagged and left out; True if that is once too often."""
        self.skips_in_a_row += 1
        return self.skips_in_a_row > self._config.max_skips_in_a_row

    def to_tree(self) -> dict[str, Any]:
        return {"losses": list(self._losses), "norms": list(self._norms), "skips_in_a_row": self.skips_in_a_row}

    def take_up(self, tree: Mapping[str, Any]) -> None:
        """Goes on from what `to_tree` gave, as far as the window reaches; nothing is known of an empty one."""
        self._losses = deque(tree.get("losses", ()), maxlen=self._config.window_steps)
        self._norms = deque(tree.get("norms", ()), maxlen=self._config.window_steps)
        self.skips_in_a_row = tree.get("skips_in_a_row", 0)


def robust_z(value: float, window: Iterable[float], least: float) -> tuple[float, float]:
    """(z of `value`, median of the window). least: the smallest standard deviation, as a share of the median."""
    values = list(window)
    median = statistics.median(values)
    deviation = 1.4826 * statistics.median(abs(each - median) for each in values)
    return (value - median) / max(deviation, least * abs(median), 1e-12), median


def _spike(name: str, value: float, window: deque[float], limit: float) -> str | None:
    if len(window) < MIN_WINDOW:
        return None
    z, median = robust_z(value, window, _LEAST_DEVIATION[name])
    if z <= limit:
        return None
    return f"{name} {value:.4g} is {z:.1f} robust deviations above the median {median:.4g} of {len(window)} steps"
