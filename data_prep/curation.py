"""Which readable documents are left out all the same: those that hold evaluation data, and duplicates of what is left.

In: the configuration and the slices. Out: the jobs of the stages that find them, and for each slice the numbers of its
documents that go, with the reason. Slices and their texts stay as they are; `encode` passes over what was removed.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data_prep.config import DECONTAMINATE_STAGES, DEDUP_STAGES, DataPrepConfig, Stage
from data_prep.decontaminate import run as decontaminate
from data_prep.dedup import run as dedup
from data_prep.dedup.columns import Columns
from data_prep.dedup.config import NoDedup
from data_prep.dedup.plan import Plan as DedupPlan
from data_prep.dedup.plan import plan as dedup_plan
from data_prep.files import DataError
from data_prep.jobs import Job
from data_prep.slices import Slice


@dataclass(frozen=True)
class Removals:
    """Where it stands which documents of a slice go; small, so that it can be handed to another process."""

    slice_id: str
    duplicates: Path | None = None
    """the plan of the deduplication"""
    contaminated: Path | None = None

    def load(self) -> dict[int, str]:
        """Number of a document of the slice → reason."""
        removed: dict[int, str] = {}
        if self.contaminated is not None:
            removed |= dict.fromkeys(Columns(self.contaminated, check=True)["document"].tolist(), decontaminate.REASON)
        if self.duplicates is not None:
            found = dedup.removals(DedupPlan.load(self.duplicates), self.slice_id)
            removed |= {number: str(removal.reason) for number, removal in found.items()}
        return removed


class Curation:
    def __init__(self, config: DataPrepConfig, slices: Sequence[Slice], work: Path):
        self._config, self._slices, self._work = config, slices, work

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Those that the configuration asks for."""
        found: list[Stage] = []
        if self._decontamination is not None:
            found += DECONTAMINATE_STAGES
        if self._dedup is not None:
            found += [Stage(stage.value) for stage in dedup.stages(self._dedup)]
        return tuple(found)

    def jobs(self, stage: Stage) -> Sequence[Job]:
        """Raises DataError while the stages before it are not finished."""
        if self._dedup is not None and stage in DEDUP_STAGES:
            return dedup.jobs(self._dedup, dedup.Stage(stage.value), self._slices)
        if self._decontamination is not None and stage in DECONTAMINATE_STAGES:
            return decontaminate.jobs(self._decontamination, decontaminate.Stage(stage.value))
        raise DataError(f"stage={stage} has nothing to do with this configuration; see dedup= and decontaminate.files")

    def report(self, stage: Stage) -> str:
        """What a person should see once `resolve` or `judge` is finished; empty for other stages."""
        if stage is Stage.resolve and self._dedup is not None:
            return dedup.report_of(self._dedup).rstrip()
        if stage is Stage.judge and self._decontamination is not None:
            return decontaminate.table(json.loads(self._decontamination.report.read_bytes()))
        return ""

    def removals(self, slice: Slice) -> Removals:
        duplicates = self._dedup.file if self._dedup is not None else None
        contaminated = None
        if self._decontamination is not None:
            decontaminate.require_judged(self._decontamination)
            contaminated = self._decontamination.hits(slice.id)
        return Removals(slice.id, duplicates, contaminated)

    def reports(self) -> Iterator[tuple[str, bytes]]:
        """(name, content) of what the dataset keeps about the documents that went."""
        if self._dedup is not None:
            yield "dedup.json", self._dedup.report.read_bytes()
        if self._decontamination is not None:
            yield "decontaminate.json", self._decontamination.report.read_bytes()

    def discard(self) -> None:
        """Gives back the disk that only finding duplicates needed."""
        if self._dedup is not None:
            dedup.discard_between(self._dedup)

    @cached_property
    def _dedup(self) -> DedupPlan | None:
        config, gone = self._config.dedup, self._decontamination
        if isinstance(config, NoDedup):
            return None
        return dedup_plan(config, self._slices, self._work / "dedup", gone.folder / "hits" if gone else None)

    @cached_property
    def _decontamination(self) -> decontaminate.Plan | None:
        config = self._config.decontaminate
        return decontaminate.plan(config, self._slices, self._work / "decontaminate") if config.files else None
