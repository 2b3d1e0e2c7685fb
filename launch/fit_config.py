"""What `launch fit` can be asked. Only dataclasses."""

from dataclasses import dataclass, field

from launch.scaling.rows import Convention, Counting, RowRule


@dataclass
class At:
    """Where a loss is predicted: at the best size for `flops`, or at `n_params` and `tokens`."""

    flops: float | None = None
    n_params: float | None = None
    """in the counting of the fit"""
    tokens: float | None = None

    @property
    def asked(self) -> bool:
        return self.flops is not None or self.n_params is not None or self.tokens is not None

    def problems(self) -> list[str]:
        found = [
            f"at.{name}={value} must be above 0"
            for name, value in vars(self).items()
            if value is not None and value <= 0
        ]
        if (self.n_params is None) != (self.tokens is None):
            found.append("at.n_params and at.tokens go together; or give at.flops alone")
        if self.flops is not None and self.n_params is not None:
            found.append("at.flops asks for the best size, at.n_params and at.tokens state one: give one or the other")
        return found


@dataclass
class FitChoice:
    """How rows become a law: to be settled before a held-out run is looked at."""

    loss: str = "val_loss"
    """val_loss (nats per token) or bits_per_byte"""
    counting: Counting = Counting.matmul
    flops: Convention = Convention.causal
    """which FLOPs are the budget: attention as attended (causal) or its full square"""
    delta: float = 1e-3
    """where Huber's square turns into a line, of log losses"""
    resamples: int = 500
    """laws that intervals are made of: of resampled runs, or of how the runs scatter about the law"""
    seed: int = 0
    """of the resamples"""
    family: str = "transformer"
    """the one whose law is shown; others are compared with it"""
    rows: RowRule = field(default_factory=RowRule)

    def problems(self) -> list[str]:
        found: list[str] = []
        if self.loss not in ("val_loss", "bits_per_byte"):
            found.append(f"loss={self.loss}: val_loss or bits_per_byte")
        if self.delta <= 0:
            found.append(f"delta={self.delta} must be above 0; 1e-3 is usual, 1 means squares of log losses")
        if not 40 <= self.resamples <= 20_000:
            found.append(f"resamples={self.resamples} must be 40 to 20000: the ends of a 95 % interval need 40")
        return found


@dataclass
class FitConfig(FitChoice):
    runs: str | None = None
    """folder of runs: every summary.json below it is a row"""
    ledger: str | None = None
    """what `launch ledger` wrote: its .jsonl, .csv or .parquet"""
    reproduce: str | None = None
    """refit published tables instead: `all` of those in `tables`, or a folder or a file of them"""
    tables: str = "../shared/data/scaling"
    """where `reproduce=all` looks"""
    at: At = field(default_factory=At)

    def problems(self) -> list[str]:
        found = super().problems()
        asked = [f"{name}=" for name in ("runs", "ledger", "reproduce") if getattr(self, name) is not None]
        if len(asked) != 1:
            given = " and ".join(asked) or "none of them"
            found.append(f"give one of runs=FOLDER, ledger=FILE and reproduce=all; given: {given}")
        return found
