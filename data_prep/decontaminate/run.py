"""Removes documents that contain evaluation data, found by word n-grams and verified word by word.

In: evaluation files and the slices of the corpus. Out: for each slice which documents go, and a report of which
evaluation items were found where.

    index  one job        evaluation items → the hashes of their n-grams
    scan   a job a slice  documents that share n-grams with an item; used again when other slices join the corpus
    judge  one job        the report, or the brake

The rule: a document goes when it shares `min_matches` different n-grams with the evaluation files. n = 13 words and one
match are those of GPT-3 (Brown et al. 2020, appendix C); the Pile and lm-evaluation-harness follow it. There, 200
characters around a match go; here the whole document. Words are those of `dedup.words`: lower case, no punctuation. A
text of fewer than n words is searched for as a whole if it has `min_words`: 8 is the least n of that appendix.
"""

import enum
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from data_prep.decontaminate.config import DecontaminateConfig
from data_prep.decontaminate.index import Index, build_index
from data_prep.decontaminate.scan import scan
from data_prep.dedup.columns import Columns
from data_prep.dedup.plan import Slice
from data_prep.dedup.words import Ints
from data_prep.files import DataError, publish_json, sha256_file
from data_prep.jobs import Done

REASON = "contaminated"
VERSION = 1
ID_DIGITS = 16
N_LISTED = 20


class Stage(enum.StrEnum):
    index = "index"  # pyright: ignore[reportAssignmentType]  hides str.index, which no stage needs
    scan = "scan"
    judge = "judge"


@dataclass(frozen=True)
class Plan:
    folder: Path
    """named by the settings and the content of the evaluation files"""
    config: DecontaminateConfig
    slices: tuple[Slice, ...]

    @property
    def index(self) -> Path:
        return self.folder / "index"

    def hits(self, slice_id: str) -> Path:
        return self.folder / "hits" / slice_id

    @property
    def report(self) -> Path:
        """Written last: once it is there, these slices have passed this limit."""
        facts = [[part.id for part in self.slices], self.config.max_source_loss]
        return self.folder / f"report-{_digest(facts)}.json"


@dataclass(frozen=True)
class Job:
    """Can be pickled. Writes one file, whole or not at all."""

    id: str
    bytes: int
    """weight for a progress bar"""
    stage: Stage
    plan: Plan
    """with the slices that the job reads, and no others"""
    path: Path

    def finished(self) -> bool:
        return self.path.exists()

    def run(self, advance: Callable[[Done], None]) -> None:
        match self.stage:
            case Stage.index:
                build_index(self.plan.config, self.path)
                advance(Done(bytes=self.bytes))
            case Stage.scan:
                (part,) = self.plan.slices
                scan(part.texts, Index(self.plan.index), self.plan.config.min_matches, self.path, advance)
            case Stage.judge:
                judge(self.plan)
                advance(Done(bytes=self.bytes))


def plan(config: DecontaminateConfig, slices: Sequence[Slice], folder: Path) -> Plan:
    """Raises DataError when an evaluation file cannot be read."""
    try:
        contents = [[PurePath(name).name, sha256_file(Path(name))] for name in config.files]
    except OSError as error:
        raise DataError(f"cannot read the evaluation file {error.filename}: {error.strerror}") from error
    settings = {k: v for k, v in asdict(config).items() if k not in ("files", "max_source_loss")}
    return Plan(folder / _digest([VERSION, settings, contents]), config, tuple(slices))


def jobs(plan: Plan, stage: Stage) -> list[Job]:
    """All jobs of the sub-stage, finished or not; they are independent, and need those of the sub-stage before."""
    match stage:
        case Stage.index:
            return [Job(f"index-{plan.folder.name}", 1, stage, _with(plan, ()), plan.index)]
        case Stage.scan:
            return [
                Job(f"scan-{plan.folder.name}-{part.id}", part.bytes, stage, _with(plan, (part,)), plan.hits(part.id))
                for part in plan.slices
            ]
        case Stage.judge:
            return [Job(f"judge-{plan.folder.name}-{plan.report.stem}", 1, stage, plan, plan.report)]


def removals(plan: Plan, slice_id: str) -> Mapping[int, int]:
    """Position of a document in the slice → how many n-grams it shares with the evaluation files. Raises DataError
    before `judge` has finished.
    """
    require_judged(plan)
    hits = Columns(plan.hits(slice_id), check=True)
    return dict(zip(hits["document"].tolist(), hits["matches"].tolist(), strict=True))


def require_judged(plan: Plan) -> None:
    if not plan.report.exists():
        raise DataError(f"{plan.folder} holds no finished decontamination; run all its sub-stages first")


def judge(plan: Plan) -> None:
    """Publishes the report. Raises DataError when a source loses more than the settings allow."""
    index = Index(plan.index)
    names = [PurePath(file).name for file in plan.config.files]
    file_of = np.array([names.index(item.file) for item in index.items])
    sources: dict[str, dict[str, int]] = {}
    documents_of_item, documents_of_file = np.zeros(len(file_of), np.int64), np.zeros(len(names), np.int64)
    listed: dict[int, list[dict[str, Any]]] = {}
    for part in plan.slices:
        hits = Columns(plan.hits(part.id), check=True)
        count = sources.setdefault(part.source, {"documents": 0, "removed": 0})
        count["documents"] += hits.facts["documents"]
        count["removed"] += len(hits["document"])
        items, documents = hits["hit_item"].astype(np.int64), hits["hit_document"].astype(np.int64)
        documents_of_item += np.bincount(items, minlength=len(file_of))
        pairs = np.unique(np.stack([file_of[items], documents]), axis=1)
        documents_of_file += np.bincount(pairs[0], minlength=len(names))
        _list_some(listed, part, hits)
    files = {name: _file_report(name, index, documents_of_item, listed) for name in names}
    for name, n in zip(names, documents_of_file.tolist(), strict=True):
        files[name]["documents"] = n
    found = {"sources": sources, "files": files}
    _brake(plan.config, found)
    publish_json(plan.report, found)


def table(report: dict[str, Any]) -> str:
    """The report for a person."""
    lines = [f"{'source':<32}{'documents':>14}{'contaminated':>14}"]
    lines += [f"{name:<32}{n['documents']:>14,}{n['removed']:>14,}" for name, n in report["sources"].items()]
    lines.append(f"{'evaluation file':<32}{'items':>10}{'searched':>10}{'too short':>10}{'found':>10}{'documents':>10}")
    for name, n in report["files"].items():
        short, found = len(n["not_searched"]), len(n["found"])
        lines.append(f"{name:<32}{n['items']:>10,}{n['searched']:>10,}{short:>10,}{found:>10,}{n['documents']:>10,}")
    return "\n".join(lines)


def _list_some(listed: dict[int, list[dict[str, Any]]], part: Slice, hits: Columns) -> None:
    """Adds where items were found, up to N_LISTED documents for each."""
    removed = np.isin(hits["hit_document"], hits["document"]).tolist()
    rows = zip(*(hits[name].tolist() for name in ("hit_item", "hit_document", "hit_grams")), removed, strict=True)
    for item, document, grams, goes in rows:
        some = listed.setdefault(item, [])
        if len(some) < N_LISTED:
            where = {"source": part.source, "slice": part.id, "document": document}
            some.append({**where, "grams": grams, "removed": goes})


def _file_report(
    name: str, index: Index, documents_of_item: Ints, listed: dict[int, list[dict[str, Any]]]
) -> dict[str, Any]:
    """An evaluation file's items: those that could not be searched for, and where others were found, the most frequent
    first.
    """
    own = [number for number, item in enumerate(index.items) if item.file == name]
    found = sorted((number for number in own if number in listed), key=lambda number: -documents_of_item[number])
    return {
        "items": len(own),
        "searched": sum(index.items[number].searched for number in own),
        "not_searched": [index.items[number].id for number in own if not index.items[number].searched],
        "found": [
            {"item": index.items[number].id, "documents": int(documents_of_item[number]), "in": listed[number]}
            for number in found
        ],
    }


def _brake(config: DecontaminateConfig, found: dict[str, Any]) -> None:
    for name, count in found["sources"].items():
        if count["removed"] > config.max_source_loss * count["documents"]:
            most = [(entry["documents"], entry["item"]) for file in found["files"].values() for entry in file["found"]]
            items = ", ".join(f"{item} in {n:,}" for n, item in sorted(most, reverse=True)[:5])
            raise DataError(
                f"decontamination stopped, and published nothing: source {name} would lose {count['removed']:,} of "
                f"{count['documents']:,} documents, more than decontaminate.max_source_loss={config.max_source_loss:g} "
                f"allows. Items found most often: {items}. If these are phrases that everybody uses, leave the items "
                f"out or raise decontaminate.min_matches or .ngram; if it is right so, raise the limit.\n{table(found)}"
            )


def _with(plan: Plan, slices: tuple[Slice, ...]) -> Plan:
    return Plan(plan.folder, plan.config, slices)


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:ID_DIGITS]
