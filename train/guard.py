"""One step, looked after: applied, or flagged, computed again, and then applied, left out, or handed back.

Every step passes the judgement of `train/health.py` before its update. One that does not pass is computed a second time
from the same rows, with the weights of forward taken anew from the masters. What does not come again was a fault of the
machine: the step is applied, and the run is as if nothing had been. What comes again is in the data or the weights, and
the policy decides. Everything here happens on all ranks alike, because all see the same reports.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import Tensor

from train.account import Account
from train.engine.core import Engine, StepResult
from train.engine.look import Findings
from train.health import Finding, Health
from train.health_config import Policy


class Outcome(StrEnum):
    applied = "applied: it did not come again"
    warned = "applied: warning only"
    skipped = "left out"
    rollback = "rolled back"
    stop = "stopped"


@dataclass(frozen=True)
class Incident:
    """A flagged step, and what was found out about it."""

    step: int
    finding: Finding
    outcome: Outcome
    loss: float
    grad_norm: float
    ranks: tuple[int, ...]
    """where it came from, as far as it can be told"""
    parameters: tuple[str, ...]
    """whose copies differed"""
    findings: Findings
    """of the second look"""

    def describe(self, hosts: Sequence[str]) -> str:
        where = ", ".join(f"rank {rank} on {hosts[rank]}" for rank in self.ranks)
        return f"step {self.step}: {self.finding.reason}: {self.finding.detail}" + (f" ({where})" if where else "")

    def to_tree(self, hosts: Sequence[str], documents: Callable[[int], list[str]]) -> dict[str, Any]:
        """For events.jsonl. documents: of a row of the step's batch."""
        return {
            "step": self.step,
            "reason": str(self.finding.reason),
            "detail": self.finding.detail,
            "outcome": str(self.outcome),
            "loss": _plain(self.loss),
            "grad_norm": _plain(self.grad_norm),
            "ranks": [{"rank": rank, "host": hosts[rank]} for rank in self.ranks],
            "parameters": list(self.parameters[:5]),
            "rows": [
                {"row": row, "loss": _plain(loss), "documents": documents(row)} for row, loss in self.findings.rows
            ],
            "layers": [{"name": name, "norm": _plain(norm), "rank": rank} for name, norm, rank in self.findings.layers],
        }


class Guard:
    """Around the engine of one run."""

    def __init__(self, engine: Engine, health: Health, compares_every: int | None, measures_every: int):
        self._engine, self._health = engine, health
        self._compares_every, self._measures_every = compares_every, measures_every

    def step(
        self, step: int, rows: Callable[[], Iterable[tuple[Tensor, ...]]], account: Account, lr: float, *, stop: int
    ) -> tuple[StepResult, Incident | None]:
        """Step number `step`, counted from 1, on the micro-batches that `rows` gives. A collective. account: of them.

        Its outcome is in the incident, if there was one; without, it was applied.
        """
        asked: dict[str, Any] = {
            "compares_replicas": self._compares_every is not None and step % self._compares_every == 0,
            "account": account,
            "measures": step % self._measures_every == 0,
        }
        first = self._engine.train_step(rows(), lr, self._passes, stop=stop, **asked)
        if first.applied:
            self._health.learnt(first.loss, first.grad_norm)
            return first, None
        self._engine.refresh()
        with self._engine.look() as look:
            second = self._engine.train_step(
                rows(), lr, self._may_be_applied, stop=max(stop, first.stop), look=look, **asked
            )
        incident = self._incident(step, first, second, look.findings())
        if second.applied:
            self._health.learnt(second.loss, second.grad_norm)
        return second, incident

    def _passes(self, result: StepResult) -> bool:
        return self._finding(result) is None

    def _may_be_applied(self, result: StepResult) -> bool:
        finding = self._finding(result)
        return finding is None or finding.policy == Policy.warn

    def _finding(self, result: StepResult) -> Finding | None:
        return self._health.finding(result.loss, result.grad_norm, result.odd_ranks)

    def _incident(self, step: int, first: StepResult, second: StepResult, findings: Findings) -> Incident:
        again = self._finding(second)
        finding = again or self._finding(first)
        assert finding is not None
        shown = first if again is None else second
        ranks = first.odd_ranks or _ranks(first, second, findings, came_again=again is not None)
        return Incident(
            step, finding, self._outcome(again), shown.loss, shown.grad_norm, ranks, first.odd_parameters, findings
        )

    def _outcome(self, again: Finding | None) -> Outcome:
        if again is None:
            return Outcome.applied
        match again.policy:
            case Policy.warn:
                return Outcome.warned
            case Policy.skip:
                return Outcome.stop if self._health.skipped() else Outcome.skipped
            case Policy.rollback:
                return Outcome.rollback
            case Policy.stop:
                return Outcome.stop


def _ranks(first: StepResult, second: StepResult, findings: Findings, *, came_again: bool) -> tuple[int, ...]:
    """Where a fault came from: ranks whose own loss is no number, or was another the second time; else, if it came
    again, the one with the largest gradient. () if that cannot be told."""
    pairs = list(enumerate(zip(first.reports, second.reports, strict=True)))
    if broken := [rank for rank, (before, _) in pairs if not math.isfinite(before.nats)]:
        return tuple(broken)
    if changed := [rank for rank, (before, after) in pairs if before.nats != after.nats]:
        return tuple(changed)
    return (findings.layers[0][2],) if came_again and findings.layers else ()


def _plain(number: float) -> float | str:
    """JSON has no infinities."""
    return number if math.isfinite(number) else str(number)
