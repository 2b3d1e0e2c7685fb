"""What `launch ledger` can be asked. Only dataclasses."""

from dataclasses import dataclass

ENDINGS = (".jsonl", ".csv", ".parquet")


@dataclass
class LedgerConfig:
    runs: str
    """folder of runs: every run's folder below it is a row"""
    to: str | None = None
    """the ledger's name without ending, such as sweeps/demo/ledger; null means `ledger` in the sweep's folder where
    `runs` lies in one (beside its plan.json), else in `runs`"""

    def problems(self) -> list[str]:
        found: list[str] = []
        if not self.runs:
            found.append("runs is empty: name the folder that holds the runs' folders")
        if self.to is not None and (not self.to or self.to.endswith(("/", *ENDINGS))):
            found.append(
                f"to={self.to!r} is the name of three files without their endings ({', '.join(ENDINGS)}): "
                "sweeps/demo/ledger, for example"
            )
        return found
