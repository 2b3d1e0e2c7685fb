"""What `launch advise` can be asked: the keys of `train` for what is the same at every size, the rows of a sweep, and a
budget or a loss to be reached. Only dataclasses.
"""

import dataclasses
from dataclasses import dataclass, field

from launch.fit_config import FitChoice
from train.config import TrainConfig

ASKS = ("flops", "device_hours", "usd", "loss")
_ANY_LENGTH = 2**62


@dataclass
class BudgetConfig:
    """What may be spent on training, or the loss that is to be bought. One of them."""

    flops: float | None = None
    """in the convention of fit.flops"""
    device_hours: float | None = None
    """of all devices together"""
    usd: float | None = None
    """at cluster.usd_per_device_hour"""
    loss: float | None = None
    """to be reached, in the unit of fit.loss: what it takes is worked out"""

    @property
    def asked(self) -> list[str]:
        return [name for name in ASKS if getattr(self, name) is not None]

    def problems(self) -> list[str]:
        found = [
            f"budget.{name}={getattr(self, name)} must be above 0" for name in self.asked if getattr(self, name) <= 0
        ]
        if len(self.asked) != 1:
            given = " and ".join(f"budget.{name}=" for name in self.asked) or "none of them"
            found.append(
                "give one of budget.flops=, budget.device_hours= and budget.usd=, or budget.loss= for what it takes to "
                f"reach a loss; given: {given}"
            )
        return found


@dataclass
class ShapeConfig:
    aspect: float | None = None
    """d_model / n_layers of the shapes that are advised; null means as the shapes of the rows have it"""

    def problems(self) -> list[str]:
        return (
            [] if self.aspect is None or self.aspect > 0 else [f"shape.aspect={self.aspect} must be above 0, or null"]
        )


@dataclass(kw_only=True)
class AdviseConfig(TrainConfig):
    runs: str | None = None
    """folder of runs that carry the law: every summary.json below it is a row"""
    ledger: str | None = None
    """instead: their ledger"""
    fit: FitChoice = field(default_factory=FitChoice)
    """how rows become a law: the keys of `launch fit`"""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    shape: ShapeConfig = field(default_factory=ShapeConfig)
    supply: int | None = None
    """unique tokens there are to train on; null means those of the data's train split"""
    extrapolate: float = 1.0
    """the farthest that the advice may lie outside of what the rows sampled, as a factor: 10 allows ten times their
    compute; 1 allows nothing outside"""
    search: bool = False
    """the fastest layout that fits is looked for, instead of taking parallel and batch.micro_batch_size as given"""

    def problems(self) -> list[str]:
        found = dataclasses.replace(self.train, total_tokens=_ANY_LENGTH).problems()  # the length is what is advised
        asked = [f"{name}=" for name in ("runs", "ledger") if getattr(self, name) is not None]
        if len(asked) != 1:
            found.append(f"give one of runs=FOLDER and ledger=FILE; given: {' and '.join(asked) or 'none of them'}")
        if self.budget.usd is not None and self.cluster.usd_per_device_hour is None:
            found.append(
                f"budget.usd={self.budget.usd:g} needs a price: set cluster.usd_per_device_hour, cluster.price_rule "
                "and cluster.price_date, or ask with budget.device_hours"
            )
        if self.budget.usd is not None and self.cluster.usd_per_device_hour == 0:
            found.append("budget.usd at cluster.usd_per_device_hour=0 buys anything: ask with budget.device_hours")
        if self.supply is not None and self.supply < 1:
            found.append(f"supply={self.supply} must be at least 1 token, or null")
        if self.extrapolate < 1:
            found.append(f"extrapolate={self.extrapolate} is a factor of at least 1")
        return found

    @property
    def train(self) -> TrainConfig:
        """The part that a run has."""
        return TrainConfig(**{item.name: getattr(self, item.name) for item in dataclasses.fields(TrainConfig)})
