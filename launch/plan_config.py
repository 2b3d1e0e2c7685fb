"""What `launch plan` can be asked: the keys of `train`, and what else to work out. Only dataclasses."""

import dataclasses
from dataclasses import dataclass

from train.config import TrainConfig


@dataclass(kw_only=True)
class PlanConfig(TrainConfig):
    reproduce: str | None = None
    """a folder of published training speeds, or one table of them: predictions are compared with it, nothing is
    planned"""
    search: bool = False
    """other layouts are tried on the cluster's devices, and the ten fastest that fit are shown"""

    def problems(self) -> list[str]:
        both = "reproduce=PATH and search=true: one compares predictions with tables, the other plans a run; ask one"
        return super().problems() + ([both] if self.search and self.reproduce is not None else [])

    @property
    def train(self) -> TrainConfig:
        """The part that a run has."""
        return TrainConfig(**{item.name: getattr(self, item.name) for item in dataclasses.fields(TrainConfig)})
