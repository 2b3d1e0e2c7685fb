"""How much of a run's time went into steps that count, and how often it should save. Plain arithmetic, no torch."""

import math


def effective_time_ratio(step_seconds: float, first_start: float | None, now: float) -> float | None:
    """The share of the time since the run was first started, gaps between attempts included, that went into steps of
    its curve, each counted once. None before the first step, and where nobody noted when the run was started.

    step_seconds: of those steps. first_start, now: seconds since 1970, perhaps of two machines, and a clock may have
    been set in between: the result is in (0, 1] whatever they say.
    """
    if step_seconds <= 0 or first_start is None:
        return None
    return step_seconds / max(step_seconds, now - first_start)


def device_time_ratio(train_seconds: float, all_seconds: float) -> float | None:
    """The same of the time of all devices, in which gaps cost nothing. None before the first step."""
    return train_seconds / max(train_seconds, all_seconds) if train_seconds > 0 else None


def best_interval(save_seconds: float, seconds_between_failures: float) -> float:
    """Seconds of training from one checkpoint to the next that lose the least in all, to saves and to steps done again:
    sqrt(2 x save x time between failures) (Young 1974; Daly 2006 adds terms that are small while a save is short).

    save_seconds: those for which training stands still.
    """
    return math.sqrt(2 * save_seconds * seconds_between_failures)


def time_lost(interval: float, save_seconds: float, seconds_between_failures: float) -> float:
    """The share of time that goes to saves and to steps done again, to first order: half an interval for a failure."""
    return save_seconds / interval + interval / (2 * seconds_between_failures)
