"""What the time limit of a run's jobs means for it: refused where a job would end before its first checkpoint, and how
many jobs the run will take.

In: the plan of the run and what Slurm's queue is asked for. Out: a problem, notes for the console, a line. The time of
a step is predicted only for a machine that the configuration describes; for any other it is a guess, on which nothing
is refused.
"""

import math

from launch.submit_config import SubmitConfig, TrainJobConfig
from train.plan import Plan, size

START_SECONDS = 300
"""from the start of a job to its first step: Python and its libraries from a shared disk, the preflight, the meeting of
the ranks, the checkpoint. Of the order of what large runs report; small ones need less"""
FASTER = 1.35
"""a run may be so many times faster than predicted: nine of ten predictions are closer (tests/launch/performance)"""
LONG_MINUTES = 30 * 24 * 60


def too_short(config: SubmitConfig, plan: Plan, is_described: bool) -> str | None:
    """Why no job of this time limit would come to a checkpoint; None where it may. is_described: the configuration
    says what the machine can do."""
    if not is_described or plan.mfu_is != "predicted":
        return None
    if _needed(config, plan, FASTER) <= config.slurm.time_limit_minutes * 60:
        return None
    return _explained(config, plan)


def notes(config: SubmitConfig, plan: Plan, problem: str | None) -> list[str]:
    """What should be said before the job is sent, though it is not refused."""
    queue, found = config.slurm, list[str]()
    if plan.fits is False and plan.machine.memory_bytes is not None:
        found.append(
            f"a rank is planned to need {size(plan.memory.total)} of its device's {size(plan.machine.memory_bytes)}: "
            "`launch plan` with these words says which part needs it, and the smallest changes that make it fit"
        )
    if problem is None and _needed(config, plan) > queue.time_limit_minutes * 60:
        found.append(_explained(config, plan))
    if queue.time_limit_minutes > LONG_MINUTES:
        found.append(
            f"slurm.time_limit_minutes={queue.time_limit_minutes} is {queue.time_limit_minutes / 1440:.0f} days. "
            f"24:00:00, which YAML may read as 86400, is slurm.time_limit_minutes=1440"
        )
    jobs = n_jobs(queue, plan)
    if 1 < queue.chain < (jobs or 0):
        found.append(f"slurm.chain={queue.chain} will hardly do: {jobs} jobs are needed, by {_source(plan)}")
    return found


def n_jobs(queue: TrainJobConfig, plan: Plan) -> int | None:
    """That the run takes; None where a job has no time for training."""
    useful = queue.time_limit_minutes * 60 - START_SECONDS - queue.lead_seconds
    return math.ceil(plan.seconds / useful) if useful > 0 else None


def forecast(queue: TrainJobConfig, plan: Plan) -> str:
    """As "about 31 h (predicted) at 24 h a job: 2 jobs"."""
    jobs = n_jobs(queue, plan)
    what = f"about {duration(plan.seconds)} ({_source(plan)}) at {duration(queue.time_limit_minutes * 60)} a job"
    if jobs is None:
        return f"{what}, most of which a start and an orderly end take"
    if jobs == 1 or queue.chain > 1:
        return f"{what}: {jobs} {'job' if jobs == 1 else 'jobs'}"
    return f"{what}: {jobs} jobs' time, which one job takes in turns: it puts itself back into the queue"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.0f} h"


def _step_seconds(plan: Plan) -> float:
    return plan.seconds / plan.total_steps


def _needed(config: SubmitConfig, plan: Plan, faster: float = 1.0) -> float:
    """Seconds from the start of a job to the end that leaves room for one checkpoint by the way."""
    steps = min(config.checkpoint.every_steps, plan.total_steps)  # the last step is always saved
    return START_SECONDS + steps * _step_seconds(plan) / faster + config.slurm.lead_seconds


def _explained(config: SubmitConfig, plan: Plan) -> str:
    queue, step = config.slurm, _step_seconds(plan)
    every = min(config.checkpoint.every_steps, plan.total_steps)
    needed = math.ceil(_needed(config, plan) / 60)
    fitting = int((queue.time_limit_minutes * 60 - START_SECONDS - queue.lead_seconds) / step)
    fewer = f", or checkpoint.every_steps={fitting}" if fitting >= 1 else ""
    return (
        f"slurm.time_limit_minutes={queue.time_limit_minutes} ends a job before its first checkpoint, after {every} "
        f"steps (checkpoint.every_steps={config.checkpoint.every_steps}): {step:.3g} s each ({_source(plan)}) make "
        f"{duration(every * step)}, the start takes about {duration(START_SECONDS)}, and Slurm may tell of the end "
        f"{duration(queue.lead_seconds)} before it (slurm.signal_seconds={queue.signal_seconds}): {needed:,} minutes. "
        f"A node that is lost would cost all of it. Allow slurm.time_limit_minutes={needed}{fewer}"
    )


def _source(plan: Plan) -> str:
    return "predicted" if plan.mfu_is == "predicted" else "a guess: this machine is not described"
