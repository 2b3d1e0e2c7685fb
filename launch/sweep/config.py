"""What `launch sweep` can be asked: the keys of `train` as the base of every cell, the axes that cells differ in, how
rows become a law, and what the whole may cost. Only dataclasses.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from launch.fit_config import FitChoice
from launch.submit_config import SubmitConfig, Target
from train.config import Device

CELL = "cell"
"""stands for the name of a run, which each cell has of its own"""


class Rule(StrEnum):
    fixed = "fixed"
    mup = "mup"
    porian = "porian"
    step_law = "step_law"


@dataclass
class Shape:
    """A size. What it leaves out is in proportion to the base model."""

    d_model: int
    n_layers: int
    n_heads: int | None = None
    """null: heads as wide as those of the base model"""
    n_kv_heads: int | None = None
    """null: as large a part of n_heads as in the base model, or what is next below it and divides them"""
    d_ff: int | None = None
    """null: as many times d_model as in the base model, to the nearest multiple of 8"""
    seeds: list[int] = field(default_factory=list[int])
    """of this size; none here means sweep.seeds"""

    def problems(self) -> list[str]:
        sizes = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff")
        where = f"the shape {self.d_model} x {self.n_layers}"
        found = [
            f"{where}: {name}={getattr(self, name)} must be at least 1"
            for name in sizes
            if getattr(self, name) is not None and getattr(self, name) < 1
        ]
        return found + _seed_problems(self.seeds, where)


@dataclass
class HeldOut(Shape):
    """A larger run that no law is fitted to: its loss is foretold before it may start."""

    tokens: int = 0

    def problems(self) -> list[str]:
        lacks = [f"the held-out run {self.d_model} x {self.n_layers} needs tokens: its length, at least 1"]
        return super().problems() + (lacks if self.tokens < 1 else [])


@dataclass
class AxesConfig:
    """Cells are all combinations of families, shapes, budgets, seeds, and whatever else has several values."""

    name: str = ""
    """the sweep's folder below `folder`; the same name again goes on with it"""
    folder: str = "sweeps"
    shapes: list[Shape] = field(default_factory=list[Shape])
    families: dict[str, list[str]] = field(default_factory=lambda: {"transformer": list[str]()})
    """name → words of `train` that make a network of that family from the base; each family has a law of its own"""
    tokens: list[int] = field(default_factory=list[int])
    """lengths of the runs; or instead"""
    tokens_per_param: list[float] = field(default_factory=list[float])
    """lengths as multiples of the parameters that matrices hold; or instead"""
    flops: list[float] = field(default_factory=list[float])
    """budgets of compute (causal): every shape is trained for as many tokens as each pays for (isoFLOP)"""
    steps_at_least: int = 100
    """cells of fewer steps are no part of the plan, and named; so with the next two"""
    least_tokens_per_param: float | None = None
    most_tokens_per_param: float | None = None
    unique_tokens: list[int] = field(default_factory=lambda: [0])
    """a cell sees only so many different tokens, and repeats them; 0 means all there are"""
    lr_factors: list[float] = field(default_factory=lambda: [1.0])
    """times the learning rate of the rule"""
    batch_factors: list[float] = field(default_factory=lambda: [1.0])
    """times the batch of the rule"""
    seeds: list[int] = field(default_factory=lambda: [0])
    held_out: list[HeldOut] = field(default_factory=list[HeldOut])
    rule: Rule = Rule.fixed
    """how learning rate and batch follow from the size: see launch/sweep/rules.py"""
    warmup_tokens_per_param: float | None = None
    """warm-up by size (Porian et al. 2024 take 1); null means schedule.warmup_tokens for all"""
    max_warmup_ratio: float = 0.2
    """of the shortest run of a size: a warm-up longer than that is cut to it"""
    branch: bool = True
    """runs that differ in length only share their beginning (schedule=wsd): the longer goes on from a checkpoint of the
    shorter, and ends as it would have alone"""
    jobs: int | None = None
    """cells that run side by side on this computer, null: one; or elements of the Slurm array at once, null: as many
    as find room"""
    max_device_hours: float | None = None
    """cells that would go beyond it are left out, dearest last; so with the next"""
    max_usd: float | None = None

    def problems(self) -> list[str]:
        found = _name_problems(self.name) + self._budget_problems()
        for name in ("shapes", "families", "unique_tokens", "lr_factors", "batch_factors", "seeds"):
            if not getattr(self, name):
                found.append(f"sweep.{name} is empty: a sweep needs at least one")
        for name in ("lr_factors", "batch_factors"):
            if any(value <= 0 for value in getattr(self, name)):
                found.append(f"sweep.{name}={getattr(self, name)} must be above 0")
        if any(value < 0 for value in self.unique_tokens):
            found.append(f"sweep.unique_tokens={self.unique_tokens} must be 0 (all there are) or more")
        found += _seed_problems(self.seeds, "sweep")
        if self.warmup_tokens_per_param is not None and self.warmup_tokens_per_param < 0:
            found.append(f"sweep.warmup_tokens_per_param={self.warmup_tokens_per_param} must be 0 or more, or null")
        if not 0 < self.max_warmup_ratio <= 1:
            found.append(f"sweep.max_warmup_ratio={self.max_warmup_ratio} must lie in (0, 1]")
        for name in ("jobs", "steps_at_least"):
            if (value := getattr(self, name)) is not None and value < 1:
                found.append(f"sweep.{name}={value} must be at least 1")
        for name in ("max_device_hours", "max_usd", "least_tokens_per_param", "most_tokens_per_param"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                found.append(f"sweep.{name}={getattr(self, name)} must be above 0, or null")
        return found

    @property
    def places(self) -> int:
        """On this computer."""
        return self.jobs or 1

    def _budget_problems(self) -> list[str]:
        kinds = ("tokens", "tokens_per_param", "flops")
        given = [f"sweep.{name}" for name in kinds if getattr(self, name)]
        found = [
            f"sweep.{name}={getattr(self, name)} must be above 0"
            for name in kinds
            if any(value <= 0 for value in getattr(self, name))
        ]
        if len(given) != 1:
            named = " and ".join(given) or "none of them"
            found.append(f"give one of sweep.tokens, sweep.tokens_per_param and sweep.flops; given: {named}")
        return found


@dataclass(kw_only=True)
class SweepConfig(SubmitConfig):
    sweep: AxesConfig = field(default_factory=AxesConfig)
    fit: FitChoice = field(default_factory=FitChoice)
    """how rows become the law that a held-out run is foretold by: settled before it starts"""
    start: bool = False
    """Run the cells on this computer; without it, and without submit=true, the plan is only shown."""

    def problems(self) -> list[str]:
        found = super().problems()
        if self.start and self.submit:
            found.append("start=true runs the cells here, submit=true sends them to Slurm: ask one")
        if self.job.target != Target.slurm:
            found.append(f"job.target={self.job.target}: a sweep runs here (start=true) or under Slurm (submit=true)")
        if self.start and self.job.nodes > 1:
            found.append(f"job.nodes={self.job.nodes} with start=true: this is one computer; submit=true goes to Slurm")
        if self.start and self.sweep.places > 1 and self.cluster.device == Device.cuda and not self.job.gpus_per_node:
            found.append(
                f"sweep.jobs={self.sweep.jobs} cells would share one GPU: say how many each has by job.gpus_per_node"
            )
        if self.slurm.chain > 1:
            found.append(f"slurm.chain={self.slurm.chain}: elements of an array go back into the queue by themselves")
        return found + self._run_problems()

    def _run_problems(self) -> list[str]:
        """What a sweep decides for each cell."""
        taken = [f"run.labels.{name}" for name in ("family", "sweep") if name in self.run.labels]
        own = {"name": CELL, "folder": "runs", "seed": 0, "start_from": None, "branch_from": None, "stop_at_step": None}
        changed = [
            f"run.{name}={getattr(self.run, name)}" for name, usual in own.items() if getattr(self.run, name) != usual
        ]
        changed += taken
        if not changed:
            return []
        return [
            f"{', '.join(changed)}: cells get theirs from the sweep (sweep.name, sweep.folder, sweep.seeds, "
            "sweep.families); leave it out"
        ]


def _name_problems(name: str) -> list[str]:
    plain = all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
    if plain and 1 <= len(name) <= 40 and not name.startswith("."):
        return []
    return [f"sweep.name={name!r} names a folder: 1 to 40 of letters, digits, '.', '_', '-', not '.' first"]


def _seed_problems(seeds: list[int], where: str) -> list[str]:
    if len(set(seeds)) == len(seeds) and all(seed >= 0 for seed in seeds):
        return []
    return [f"{where}: seeds={seeds} must be different, and 0 or more"]
