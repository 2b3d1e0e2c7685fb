"""What `launch submit` can be asked to do: the keys of `train`, and the job that trains. Only dataclasses."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from launch.queue_config import QueueConfig
from train.config import Device, TrainConfig


@dataclass
class TrainJobConfig(QueueConfig):
    time_limit_minutes: int = 1440
    """Of the job; started again after it has saved and left, it has as much once more"""
    nodes: int = 1
    ranks_per_node: int = 1
    """One a device"""
    gpus_per_node: int | None = None
    """null: none are asked for, as where a partition gives whole nodes"""
    signal_seconds: int = 300
    """Slurm tells the ranks so long before the end of the job to save and leave; it may be a minute earlier. They look
    at the time themselves as well"""

    def problems(self) -> list[str]:
        found = super().problems()
        for name in ("nodes", "ranks_per_node", "signal_seconds"):
            if getattr(self, name) < 1:
                found.append(f"slurm.{name}={getattr(self, name)} must be at least 1")
        if self.gpus_per_node is not None and self.gpus_per_node != self.ranks_per_node:
            found.append(
                f"slurm.gpus_per_node={self.gpus_per_node} and slurm.ranks_per_node={self.ranks_per_node}: a rank "
                "drives one GPU, so let them be equal"
            )
        if self.signal_seconds + 60 >= self.time_limit_minutes * 60:
            found.append(
                f"slurm.signal_seconds={self.signal_seconds} (Slurm may send it 60 s earlier) leaves nothing of "
                f"slurm.time_limit_minutes={self.time_limit_minutes}: allow more minutes, or be told later"
            )
        return found


@dataclass(kw_only=True)
class SubmitConfig(TrainConfig):
    slurm: TrainJobConfig = field(default_factory=TrainJobConfig)
    submit: bool = False
    """Send the job; without it the script is only shown."""

    def problems(self) -> list[str]:
        found = super().problems()
        ranks = self.slurm.nodes * self.slurm.ranks_per_node
        if self.cluster.n_devices not in (None, ranks):
            found.append(
                f"cluster.n_devices={self.cluster.n_devices}, but slurm.nodes={self.slurm.nodes} x "
                f"slurm.ranks_per_node={self.slurm.ranks_per_node} = {ranks}"
            )
        if self.cluster.device == Device.cpu and self.slurm.gpus_per_node is not None:
            found.append(f"slurm.gpus_per_node={self.slurm.gpus_per_node} and cluster.device=cpu: GPUs would idle")
        path = str(Path(self.run.folder).absolute())
        if "\\" in path or not path.isprintable():
            found.append(f"run.folder={self.run.folder!r}: Slurm cannot name log files below a folder with such signs")
        return found

    @property
    def train(self) -> TrainConfig:
        """The part that the ranks see."""
        return TrainConfig(**{item.name: getattr(self, item.name) for item in dataclasses.fields(TrainConfig)})
