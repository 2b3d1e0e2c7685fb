"""What is known of a run at a moment, in one value: what every display of runs is made from. No torch."""

import dataclasses
import math
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from launch.squeue import QueuedJob


class State(StrEnum):
    queued = "queued"
    """its job waits in Slurm's queue"""
    starting = "starting"
    """an attempt has begun, and has made no step yet"""
    running = "running"
    saving = "saving"
    """a checkpoint is being written, while training goes on"""
    stopped = "stopped"
    """it saved and left; the same command goes on"""
    finished = "finished"
    failed = "failed"
    diverged = "diverged"
    """loss or gradients were no longer numbers, or a policy said stop"""
    lost = "lost"
    """it ended without a word, or has given no sign of life for long"""
    damaged = "damaged"
    """the folder is a run's, but its files cannot be read"""
    foreign = "foreign"
    """the folder is not a run's"""


ALIVE = (State.starting, State.running, State.saving)
STEPPING = (State.running, State.saving)
"""the last rows tell of now"""
NEEDS_A_PERSON = (State.failed, State.diverged, State.lost, State.damaged)


@dataclass(frozen=True)
class RunView:
    name: str
    path: Path
    state: State
    concern: str | None = None
    """why a person should look, in a line"""
    step: int | None = None
    total_steps: int | None = None
    tokens: int | None = None
    total_tokens: int | None = None
    loss: float | None = None
    recent_losses: list[float] = field(default_factory=list[float])
    curve: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    """(tokens seen, loss), evenly over the run"""
    val_loss: float | None = None
    bits_per_byte: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    memory_gib: float | None = None
    eta_seconds: float | None = None
    device_hours: float | None = None
    cost_usd: float | None = None
    attempt: int | None = None
    restarts: int = 0
    host: str | None = None
    world_size: int | None = None
    event: str | None = None
    event_time: float | None = None
    """seconds since 1970"""
    activity: float = 0.0
    """the newest sign of anything: seconds since 1970"""
    jobs: list[QueuedJob] = field(default_factory=list[QueuedJob])
    """of Slurm, those that are not over first"""
    problems: list[str] = field(default_factory=list[str])
    """of its files"""

    @property
    def done(self) -> float | None:
        if self.step is None or not self.total_steps:
            return None
        return min(1.0, self.step / self.total_steps)

    @property
    def needs_a_person(self) -> bool:
        return self.concern is not None

    def to_tree(self) -> dict[str, Any]:
        """For JSON, which has no NaN: null stands for it."""
        tree = dataclasses.asdict(self) | {"path": str(self.path), "state": str(self.state), "done": self.done}
        return finite(tree)


def finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {str(key): finite(item) for key, item in value.items()}
        case list() | tuple():
            return [finite(item) for item in value]
        case _:
            return value
