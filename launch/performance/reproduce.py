"""How far predictions are from published training speeds: rows in, their errors and what they come to out.

A source seldom states everything. Where the micro-batch or the interleaving of pipeline stages is not stated, its
authors are taken to have tuned it: of all that fit the row, the fastest that fits the memory is predicted.
"""

from dataclasses import dataclass

from launch.performance.constants import Constants
from launch.performance.hardware import Hardware, hardware_named
from launch.performance.layout import Job
from launch.performance.memory import memory
from launch.performance.published import Row
from launch.performance.step import step_time


@dataclass(frozen=True)
class Scored:
    row: Row
    job: Job
    predicted_seconds: float
    published_seconds: float
    """of a step of that layout"""

    @property
    def error(self) -> float:
        """Of the step time; 0.1 means predicted 10 % too slow."""
        return self.predicted_seconds / self.published_seconds - 1


def tuned(row: Row, hardware: Hardware, constants: Constants) -> Job:
    """The job that the row is taken to mean."""
    jobs = [Job(layout, row.stack) for layout in row.layouts]
    if len(jobs) == 1:
        return jobs[0]
    fitting = [job for job in jobs if memory(job).fits(hardware)]
    return max(fitting or jobs, key=lambda job: tokens_per_second(job, hardware, constants))


def tokens_per_second(job: Job, hardware: Hardware, constants: Constants) -> float:
    """Per GPU."""
    return job.layout.tokens_per_step / job.layout.n_gpus / step_time(job, hardware, constants).total


def score(row: Row, constants: Constants) -> Scored | None:
    """None for a row without a speed. Raises ConfigError for a GPU that is not known."""
    if row.tokens_per_second is None:
        return None
    hardware = hardware_named(row.hardware)
    job = tuned(row, hardware, constants)
    published = job.layout.tokens_per_step / job.layout.n_gpus / row.tokens_per_second
    return Scored(row, job, step_time(job, hardware, constants).total, published)
