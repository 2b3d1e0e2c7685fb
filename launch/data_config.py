"""What `launch data` can be asked to do: the keys of `data_prep`, and how its job arrays are to be queued.

In: nothing. Out: `LaunchDataConfig`. Only dataclasses.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.config import DataPrepConfig, Stage
from launch.queue_config import QueueConfig


@dataclass
class Rates:
    """MB (10⁶ bytes) of text that one core gets through in a second, a stage; for the time limit only.

    Half of what was measured with one process on a virtual server that did other work besides (November 2026, 26 MB of
    English books): clean=fineweb 4.0, `sign` of dedup=minhash 18, `scan` 37, `encode` 5.1. `shingle` reads the same
    text as `sign` at most.
    """

    clean: float = 2.0
    sign: float = 9.0
    shingle: float = 9.0
    scan: float = 18.0
    encode: float = 2.5

    def problems(self) -> list[str]:
        return [
            f"slurm.rates.{name}={rate} must be above 0: MB of text that a core gets through in a second"
            for name, rate in dataclasses.asdict(self).items()
            if rate <= 0
        ]


@dataclass
class SlurmConfig(QueueConfig):
    """`cpus_per_task`: also the processes of an element, unless `workers` says otherwise. `memory_gib`: training the
    tokenizer takes some 20 times tokenizer.sample_bytes."""

    max_array: int = 1000
    """Elements of an array at most; the cluster's own limits may lower it. Keep it, and cpus_per_task, until the
    dataset is finished: an element sent again then has the jobs that it had."""
    max_parallel: int | None = None
    """Elements of an array that run at once; null: as many as find room."""
    text_per_stored_byte: float | None = None
    """Bytes of text in a byte of the inputs as stored; null: 3 for compressed files, 1 for others."""
    rates: Rates = field(default_factory=Rates)

    def problems(self) -> list[str]:
        found = super().problems()
        for name in ("max_array", "max_parallel"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"slurm.{name}={value} must be at least 1")
        if self.text_per_stored_byte is not None and self.text_per_stored_byte <= 0:
            found.append(f"slurm.text_per_stored_byte={self.text_per_stored_byte} must be above 0, or null")
        return found


@dataclass
class LaunchDataConfig(DataPrepConfig):
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    submit: bool = False
    """Send the jobs; without it they are only shown."""

    def problems(self) -> list[str]:
        found = super().problems()
        for name in ("stage", "task", "n_tasks"):
            default = Stage.all if name == "stage" else None
            if getattr(self, name) != default:
                found.append(f"{name}={getattr(self, name)}: launch data deals out stages and tasks itself; drop it")
        path = str(Path(self.out).absolute())
        if "\\" in path or not path.isprintable():
            found.append(
                f"out={self.out!r}: Slurm cannot name log files below a folder with such signs; choose another"
            )
        return found

    @property
    def data_prep(self) -> DataPrepConfig:
        """The part that an element sees."""
        return DataPrepConfig(**{item.name: getattr(self, item.name) for item in dataclasses.fields(DataPrepConfig)})
