"""Settings of the data section: which sources, in which proportions, cut into which rows. Imports no torch."""

from dataclasses import dataclass, field
from enum import StrEnum


class Packing(StrEnum):
    concat = "concat"
    best_fit = "best_fit"


@dataclass
class SourceConfig:
    """One source of a mixture."""

    folder: str
    """a dataset made by data_prep"""
    source: str | None = None
    """label of one source inside the dataset; null means all of it"""
    weight: float | None = None
    """its part in the mixture, against the sum of all; null, then for all sources, means in proportion to its tokens"""
    max_epochs: float | None = None
    """a run that would read it more often is refused before it starts"""


@dataclass
class WeightChange:
    """Other weights from a point of the run on."""

    from_tokens: int
    """tokens of the run, counted from its start"""
    weights: dict[str, float]
    """every source by its name; 0 means none of it"""


@dataclass
class DataConfig:
    folder: str | None = None
    """a dataset made by data_prep: the folder that holds manifest.json; short for a mixture of one source"""
    sources: dict[str, SourceConfig] = field(default_factory=dict[str, SourceConfig])
    """the mixture, by names of your own; instead of `folder`"""
    weight_schedule: list[WeightChange] = field(default_factory=list[WeightChange])
    """in order of from_tokens"""
    seq_len: int = 256
    """T: predictions per training row; T + 1 ids are read for it"""
    unique_tokens: int | None = None
    """the run sees only so many different tokens of the train split, and repeats them: whole rows, drawn at random by
    run.seed, a smaller number of them contained in a larger one. null: all of the split"""
    packing: Packing = Packing.concat
    """rows cut from documents end to end, or whole documents fitted into rows"""
    mask_documents: bool = False
    """attention stays inside a document, and nothing is predicted across its end"""
    pack_folder: str | None = None
    """where best_fit keeps its packs; null means the folder `packs` in each dataset"""
    rebase: bool = False
    """a changed data section or batch size begins a new phase of the run, instead of being refused"""

    @property
    def mixture(self) -> dict[str, SourceConfig]:
        """The sources by name; the shorthand's one is called `data`."""
        return self.sources or {"data": SourceConfig(self.folder or "")}

    def problems(self) -> list[str]:
        found: list[str] = []
        if self.seq_len < 2:
            found.append(f"data.seq_len={self.seq_len} must be at least 2")
        if (self.folder is None) == (not self.sources):
            found.append("data needs one of the two: data.folder, or data.sources (with data.folder=null)")
        if self.folder == "":
            found.append("data.folder is empty: name the folder of a dataset, the one that holds manifest.json")
        return found + self._unique_problems() + self._source_problems() + self._schedule_problems()

    def rows_in(self, tokens: int) -> int:
        """Whole rows of a split of so many tokens; each takes one more id than it has predictions."""
        return max(0, tokens - 1) // self.seq_len

    def too_many(self, train_tokens: int) -> list[str]:
        """What is wrong with unique_tokens where the train split holds `train_tokens`."""
        rows = self.rows_in(train_tokens)
        if self.unique_tokens is None or self.unique_tokens <= rows * self.seq_len:
            return []
        return [
            f"data.unique_tokens={self.unique_tokens:_} is more than there is: the train split holds {train_tokens:_} "
            f"tokens, which are {rows:_} whole rows of data.seq_len={self.seq_len}; the most is "
            f"data.unique_tokens={rows * self.seq_len:_}, and null takes all of the split"
        ]

    def _unique_problems(self) -> list[str]:
        if self.unique_tokens is None or self.seq_len < 2:
            return []
        asked, found = f"data.unique_tokens={self.unique_tokens:_}", list[str]()
        below = self.unique_tokens // self.seq_len * self.seq_len
        if below < self.seq_len:
            found.append(
                f"{asked} is less than one row of data.seq_len={self.seq_len}, which is the least there can be"
            )
        elif below != self.unique_tokens:
            found.append(
                f"{asked} is no whole number of rows of data.seq_len={self.seq_len}; nearest are {below:_} and "
                f"{below + self.seq_len:_}"
            )
        if len(self.mixture) > 1:
            found.append(
                f"{asked} is drawn from one source, and data.sources has {len(self.mixture)}: "
                f"{', '.join(self.mixture)}. Prepare their text as one dataset, or drop unique_tokens (a part of one "
                "of them is a dataset of its own)"
            )
        if self.packing == Packing.best_fit:
            found.append(
                f"{asked} does not go with data.packing=best_fit, whose rows hold different numbers of tokens, and "
                "padding; use data.packing=concat"
            )
        if self.rebase:
            found.append(
                f"{asked} does not go with data.rebase=true: the rows of a draw stay the same for the whole run. Drop "
                "one of the two, or choose another run.name"
            )
        return found

    def _source_problems(self) -> list[str]:
        found: list[str] = []
        for name, source in self.sources.items():
            if not all(c.isascii() and (c.isalnum() or c in "_-") for c in name) or not name:
                found.append(f"data.sources: the name {name!r} may hold letters, digits, '_' and '-' only")
            if source.weight is not None and source.weight < 0:
                found.append(f"data.sources.{name}.weight={source.weight} must be 0 or more")
            if source.max_epochs is not None and source.max_epochs <= 0:
                found.append(f"data.sources.{name}.max_epochs={source.max_epochs} must be above 0, or null")
        weights = [source.weight for source in self.sources.values()]
        if None in weights and any(weight is not None for weight in weights):
            without = [name for name, source in self.sources.items() if source.weight is None]
            found.append(f"data.sources: {', '.join(without)} lack a weight; give one to all of them, or to none")
        elif weights and None not in weights and not any(weights):
            found.append("data.sources: every weight is 0; at least one must be above")
        return found

    def _schedule_problems(self) -> list[str]:
        found: list[str] = []
        starts = [change.from_tokens for change in self.weight_schedule]
        if starts != sorted(set(starts)) or any(start < 1 for start in starts):
            found.append(
                f"data.weight_schedule: from_tokens must be above 0 and grow from entry to entry, got {starts}"
            )
        for change in self.weight_schedule:
            key = f"data.weight_schedule (from_tokens={change.from_tokens})"
            if change.weights.keys() != self.mixture.keys():
                found.append(f"{key} must name every source once: {', '.join(self.mixture)}; 0 means none of it")
            if any(weight < 0 for weight in change.weights.values()) or not any(change.weights.values()):
                found.append(f"{key}: weights must be 0 or more, and one of them above 0")
        return found
