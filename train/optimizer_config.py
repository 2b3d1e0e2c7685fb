"""Settings of the update: the optimizer, and the schedule of its learning rate. Imports no torch."""

from dataclasses import dataclass
from enum import StrEnum


class OptimizerKind(StrEnum):
    adamw = "adamw"
    muon = "muon"


@dataclass
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101). Matrices decay, norms do not."""

    kind: OptimizerKind = OptimizerKind.adamw
    """adamw for all parameters, or muon for the matrices inside blocks and adamw for the rest; peak_lr and weight_decay
    serve both (Liu et al., arXiv 2502.16982)"""
    peak_lr: float = 3e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    """gradients are scaled down to this global norm; 0 means no clipping"""
    muon_momentum: float = 0.95
    """share of the last step's momentum that is kept, for matrices of kind=muon"""
    ns_steps: int = 5
    """Newton-Schulz steps that make an update of kind=muon nearly orthogonal"""

    def problems(self) -> list[str]:
        found: list[str] = []
        if self.peak_lr <= 0:
            found.append(f"optimizer.peak_lr={self.peak_lr} must be above 0")
        for name in ("beta1", "beta2", "muon_momentum"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"optimizer.{name}={getattr(self, name)} must lie in [0, 1)")
        if self.eps <= 0:
            found.append(f"optimizer.eps={self.eps} must be above 0")
        for name in ("weight_decay", "max_grad_norm"):
            if getattr(self, name) < 0:
                found.append(f"optimizer.{name}={getattr(self, name)} must be 0 or more")
        if self.ns_steps < 1:
            found.append(f"optimizer.ns_steps={self.ns_steps} must be at least 1")
        if self.kind != OptimizerKind.muon and (self.muon_momentum, self.ns_steps) != (0.95, 5):
            found.append(
                f"optimizer.muon_momentum={self.muon_momentum} and optimizer.ns_steps={self.ns_steps} do nothing with "
                f"optimizer.kind={self.kind}: leave them at 0.95 and 5, or set optimizer.kind=muon"
            )
        return found


@dataclass
class CosineSchedule:
    kind: str = "cosine"
    warmup_tokens: int = 0
    """tokens over which the learning rate rises linearly from 0 to its peak"""
    min_lr_ratio: float = 0.1
    """learning rate at the last step, as a share of the peak"""

    def problems(self) -> list[str]:
        return _schedule_problems(self.warmup_tokens, self.min_lr_ratio)


@dataclass
class LinearSchedule:
    kind: str = "linear"
    warmup_tokens: int = 0
    min_lr_ratio: float = 0.0

    def problems(self) -> list[str]:
        return _schedule_problems(self.warmup_tokens, self.min_lr_ratio)


@dataclass
class ConstantSchedule:
    kind: str = "constant"
    warmup_tokens: int = 0

    def problems(self) -> list[str]:
        return _schedule_problems(self.warmup_tokens, 1.0)


@dataclass
class WsdSchedule:
    """Warmup, stable, decay (Hu et al., MiniCPM, arXiv 2404.06395, section 4)."""

    kind: str = "wsd"
    warmup_tokens: int = 0
    decay_fraction: float = 0.2
    """share of all tokens spent in the linear decay at the end"""
    min_lr_ratio: float = 0.0

    def problems(self) -> list[str]:
        found = _schedule_problems(self.warmup_tokens, self.min_lr_ratio)
        if not 0 <= self.decay_fraction <= 1:
            found.append(f"schedule.decay_fraction={self.decay_fraction} must lie in [0, 1]")
        return found


Schedule = CosineSchedule | LinearSchedule | ConstantSchedule | WsdSchedule

OPTIONS: dict[str, dict[str, type]] = {
    "schedule": {
        "cosine": CosineSchedule,
        "linear": LinearSchedule,
        "constant": ConstantSchedule,
        "wsd": WsdSchedule,
    }
}
"""groups whose options differ in kind: see conf/app.py"""


def _schedule_problems(warmup_tokens: int, min_lr_ratio: float) -> list[str]:
    found: list[str] = []
    if warmup_tokens < 0:
        found.append(f"schedule.warmup_tokens={warmup_tokens} must be 0 or more")
    if not 0 <= min_lr_ratio <= 1:
        found.append(f"schedule.min_lr_ratio={min_lr_ratio} must lie in [0, 1]")
    return found
