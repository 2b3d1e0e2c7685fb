"""When a step is not like the others: what is looked for, and what is done. Imports no torch."""

from dataclasses import dataclass, field
from enum import StrEnum


class Policy(StrEnum):
    warn = "warn"
    """apply the step, and tell"""
    skip = "skip"
    """do not apply it; its batch counts as seen"""
    rollback = "rollback"
    """go back to a checkpoint before it, and leave out the batches around it"""
    stop = "stop"
    """end the run with exit code 5"""


@dataclass
class HealthConfig:
    """Every flagged step is computed a second time first: a fault of the machine that does not come again costs one
    step, and the run goes on as if it had not been. The policies are for those that come again."""

    on_nonfinite: Policy = Policy.skip
    """loss or gradient norm is not a number"""
    on_loss_spike: Policy = Policy.warn
    on_norm_spike: Policy = Policy.warn
    window_steps: int = 128
    """steps before a step that its loss and gradient norm are compared with"""
    loss_z: float = 8.0
    """how many robust standard deviations (1.4826 times the median distance from the median) above the window's median
    is a spike"""
    norm_z: float = 16.0
    max_skips_in_a_row: int = 3
    """more than that, and the run ends with exit code 5"""
    max_rollbacks: int = 3
    """in the life of a run; at the next one it ends with exit code 5"""
    rollback_margin_steps: int = 10
    """steps on both sides of the flagged one that are left out after a rollback"""
    skip_steps: list[str] = field(default_factory=list[str])
    """steps to leave out, as FIRST-LAST: their batches count as seen, nothing is learnt from them"""
    replica_check_every_steps: int | None = 1
    """compare the copies of the weights that different ranks hold; null means never. What a value above 1 cannot see: a
    bit that flips in a forward weight between two comparisons, where the next update writes the weight anew from its
    master. The copies are equal again when they are compared, but a gradient of the wrong weights has been learnt."""
    stuck_seconds: float = 60.0
    """a micro-batch, an update or a validation batch that takes longer is stuck: stacks are written, the run ends"""
    start_seconds: float = 1800.0
    """the same for start, first step (compilation) and waiting for a save"""
    slow_ratio: float = 1.5
    """a rank whose own work takes so many times the median of all ranks is reported"""

    def problems(self) -> list[str]:
        found: list[str] = []
        for name in ("window_steps", "max_skips_in_a_row", "rollback_margin_steps"):
            if getattr(self, name) < 1:
                found.append(f"health.{name}={getattr(self, name)} must be at least 1")
        if self.max_rollbacks < 0:
            found.append(f"health.max_rollbacks={self.max_rollbacks} must be 0 or more")
        for name in ("loss_z", "norm_z", "stuck_seconds", "start_seconds"):
            if getattr(self, name) <= 0:
                found.append(f"health.{name}={getattr(self, name)} must be above 0")
        if self.on_nonfinite == Policy.warn:
            found.append("health.on_nonfinite=warn would apply what is no number: use skip, rollback or stop")
        if self.slow_ratio <= 1:
            found.append(f"health.slow_ratio={self.slow_ratio} must be above 1")
        if self.replica_check_every_steps is not None and self.replica_check_every_steps < 1:
            found.append(
                f"health.replica_check_every_steps={self.replica_check_every_steps} must be at least 1, or null"
            )
        for text in self.skip_steps:
            first, dash, last = text.partition("-")
            if not (dash and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
                found.append(
                    f"health.skip_steps holds {text!r}: write FIRST-LAST, two steps counted from 1, as 1200-1300"
                )
        return found
