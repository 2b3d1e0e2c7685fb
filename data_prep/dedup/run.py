"""Deduplication as lists of jobs, one list a sub-stage.

In: the configuration and the slices of the corpus in order. Out: for each slice, which documents go and why.

    sign     a job a slice          text → hashes and band keys; done once for a slice, whatever corpora it is in
    catalog  one job                how many documents each slice has
    copies   a job a range of hashes  equal hashes → pairs of copies
    match    a job a range of a band  equal keys → candidate pairs            (near-duplicates only, as the next two)
    shingle  a job a slice          text of candidates → sets of shingles
    compare  a job a slice          candidate pairs → pairs that are similar enough
    resolve  one job                pairs → removals and a report, or the brake

The jobs of a sub-stage are independent; those before it have to be finished before `jobs` can list them. Each writes
one file, whole or not at all, and is finished when it is there.
"""

import enum
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.dedup import report as reports
from data_prep.dedup.columns import writing
from data_prep.dedup.compare import compare, shingle
from data_prep.dedup.config import MinHashDedup
from data_prep.dedup.match import ROW_BYTES, match_band, match_copies
from data_prep.dedup.plan import SIGNATURES, Plan, Slice
from data_prep.dedup.resolve import Removals, decide, write_removals
from data_prep.dedup.sign import Signatures, sign
from data_prep.files import DataError, publish_bytes, publish_json
from data_prep.jobs import Done

KEYS = 1 << 64


class Stage(enum.StrEnum):
    sign = "sign"
    catalog = "catalog"
    copies = "copies"
    match = "match"
    shingle = "shingle"
    compare = "compare"
    resolve = "resolve"


RANGED = (Stage.copies, Stage.match)
BETWEEN = (Stage.copies, Stage.match, Stage.shingle, Stage.compare)


def stages(plan: Plan) -> tuple[Stage, ...]:
    if isinstance(plan.config, MinHashDedup):
        return tuple(Stage)
    return (Stage.sign, Stage.catalog, Stage.copies, Stage.resolve)


@dataclass(frozen=True)
class Job:
    """Can be pickled, and is small: it reads the plan from its file."""

    id: str
    bytes: int
    """weight for a progress bar"""
    stage: Stage
    plan_file: Path
    path: Path
    """what it writes"""
    index: int = 0
    """position of its slice, or its band"""
    low: int = 0
    high: int = 0
    """its range of keys"""
    slices: tuple[Slice, ...] = ()
    """whose text it reads"""

    def finished(self) -> bool:
        """The files between signatures and removals may be gone once these are there."""
        return self.path.exists() or (self.stage in BETWEEN and Plan.load(self.plan_file).report.exists())

    def run(self, advance: Callable[[Done], None]) -> None:
        plan = Plan.load(self.plan_file)
        match self.stage:
            case Stage.sign:
                sign(self.slices[0].texts(), plan.config, self.path, advance)
                return
            case Stage.shingle:
                shingle(plan, self.index, self.slices[0].texts(), _outputs(plan, Stage.match), self.path, advance)
                return
            case Stage.catalog:
                _catalog(plan, self.path)
            case Stage.copies:
                match_copies(plan, self.low, self.high, self.path)
            case Stage.match:
                match_band(plan, self.index, self.low, self.high, self.path)
            case Stage.compare:
                compare(plan, self.index, _outputs(plan, Stage.match), _outputs(plan, Stage.shingle), self.path)
            case Stage.resolve:
                _resolve(plan, self.slices)
        advance(Done(bytes=self.bytes))


def jobs(plan: Plan, stage: Stage, slices: Sequence[Slice]) -> list[Job]:
    """All jobs of the sub-stage, finished or not. `slices` are those that the plan was made of, in the same order."""
    plan.publish()
    file = plan.file
    match stage:
        case Stage.sign:
            return [
                Job(f"sign-{part.id}", part.bytes, stage, file, plan.signature(i), i, slices=(part,))
                for i, part in enumerate(slices)
            ]
        case Stage.shingle:
            return [
                Job(f"shingle-{plan.id}-{part.id}", part.bytes, stage, file, path, i, slices=(part,))
                for i, (part, path) in enumerate(zip(slices, _outputs(plan, stage), strict=True))
            ]
        case Stage.compare:
            return [
                Job(f"compare-{plan.id}-{part.id}", 1, stage, file, path, i)
                for i, (part, path) in enumerate(zip(slices, _outputs(plan, stage), strict=True))
            ]
        case Stage.copies | Stage.match:
            bands = plan.minhash.bands if stage is Stage.match else 1
            parts = _ranges(plan)
            paths = iter(_outputs(plan, stage))
            return [
                Job(f"{stage}-{plan.id}-{band}-{i}", 1, stage, file, next(paths), band, *part)
                for band in range(bands)
                for i, part in enumerate(parts)
            ]
        case Stage.catalog:
            return [Job(f"catalog-{plan.id}", 1, stage, file, plan.path("catalog"))]
        case Stage.resolve:
            return [Job(f"resolve-{plan.id}", 1, stage, file, plan.report, slices=tuple(slices))]


def removals(plan: Plan, slice_id: str) -> Removals:
    """Position of a document in the slice → why it goes; documents that stay are absent. Raises DataError before
    `resolve` has finished.
    """
    if not plan.report.exists():
        raise DataError(f"{plan.path()} holds no finished deduplication; run all its sub-stages first")
    return Removals(plan, slice_id)


def discard_between(plan: Plan) -> None:
    """Removes the pairs and sets of a finished deduplication, which are larger than all the rest, and what earlier
    plans left; signatures stay, for the next crawl."""
    if plan.report.exists():
        for stage in BETWEEN:
            shutil.rmtree(plan.path(stage), ignore_errors=True)
        for folder in plan.folder.iterdir():
            if folder.name not in (plan.id, SIGNATURES):
                shutil.rmtree(folder, ignore_errors=True)


def report_of(plan: Plan) -> str:
    """The table for people that `resolve` left."""
    return plan.path("report.txt").read_text()


def _outputs(plan: Plan, stage: Stage) -> list[Path]:
    """What all jobs of the sub-stage write, in their order."""
    if not isinstance(plan.config, MinHashDedup) and stage in (Stage.match, Stage.shingle, Stage.compare):
        return []
    parts = [f"{i}-of-{len(_ranges(plan))}" for i in range(len(_ranges(plan)))] if stage in RANGED else []
    match stage:
        case Stage.copies:
            return [plan.path(stage, part) for part in parts]
        case Stage.match:
            return [plan.path(stage, f"{band:02d}-{part}") for band in range(plan.minhash.bands) for part in parts]
        case _:
            return [plan.path(stage, name) for name in plan.ids]


def _ranges(plan: Plan) -> list[tuple[int, int]]:
    """The space of keys, divided so that the rows of one part are likely to fit into memory."""
    parts = int(plan.firsts[-1]) * ROW_BYTES * 5 // (plan.config.memory_bytes * 4) + 1
    return [(KEYS * i // parts, KEYS * (i + 1) // parts) for i in range(parts)]


def _catalog(plan: Plan, path: Path) -> None:
    counts = [len(Signatures(plan.signature(i)).length) for i in range(len(plan.ids))]
    with writing(path, {}) as out:
        out.write("first", np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64))


def _resolve(plan: Plan, slices: Sequence[Slice]) -> None:
    copies, edges = _outputs(plan, Stage.copies), _outputs(plan, Stage.compare)
    scratch = plan.path("scratch")
    shutil.rmtree(scratch, ignore_errors=True)  # of a job that was killed
    scratch.mkdir()
    try:
        verdict = decide(plan, copies, edges, scratch)
        found = reports.report(plan, verdict, edges, slices, scratch)
        reports.brake(plan, found)
        write_removals(plan, verdict)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    publish_bytes(plan.path("report.txt"), (reports.table(found) + "\n").encode())
    publish_json(plan.report, found.to_json())
