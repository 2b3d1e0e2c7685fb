"""The learning rate as a pure function of tokens seen. No torch, no state: a resumed run cannot lose its place."""

import math

from train.batch import BatchPlan
from train.config import TrainConfig
from train.optimizer_config import ConstantSchedule, CosineSchedule, LinearSchedule, Schedule, WsdSchedule


def lr_of(step: int, config: TrainConfig, batch: BatchPlan) -> float:
    """Learning rate of step number `step`, counted from 1."""
    return lr_at(
        config.schedule,
        batch.tokens_seen(step),
        peak_lr=config.optimizer.peak_lr,
        total_tokens=batch.total_tokens,
    )


def lr_at(schedule: Schedule, tokens_seen: int, *, peak_lr: float, total_tokens: int) -> float:
    """Learning rate of the step after which `tokens_seen` tokens have been seen (so it is never 0 at the first step).

    Linear warm-up to the peak, then the schedule's own shape, which ends at min_lr_ratio x peak_lr at `total_tokens`.
    """
    warmup = schedule.warmup_tokens
    if tokens_seen < warmup:
        return peak_lr * tokens_seen / warmup
    progress = (tokens_seen - warmup) / max(1, total_tokens - warmup)
    return peak_lr * _ratio(schedule, min(1.0, progress), tokens_seen, total_tokens)


def _ratio(schedule: Schedule, progress: float, tokens_seen: int, total_tokens: int) -> float:
    match schedule:
        case ConstantSchedule():
            return 1.0
        case LinearSchedule(min_lr_ratio=floor):
            return floor + (1 - floor) * (1 - progress)
        case CosineSchedule(min_lr_ratio=floor):
            return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2
        case WsdSchedule(min_lr_ratio=floor, decay_fraction=fraction):
            decay_tokens = fraction * total_tokens
            left = max(0, total_tokens - tokens_seen)
            return 1.0 if left >= decay_tokens else floor + (1 - floor) * left / decay_tokens
