"""What deduplication removed, as a report, and the brake that stops it when that cannot be right.

In: the verdict over all documents. Out: a `Report`, as JSON or as a table. Near-duplicate detection that has gone wrong
shows as one enormous cluster, or as a source that all but vanishes (a published case: sources that lost 36 to 99.9998 %
of their documents to false clusters), so both shares are limited.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.dedup.columns import Columns
from data_prep.dedup.compare import BINS
from data_prep.dedup.plan import Plan, Slice
from data_prep.dedup.resolve import PIECE, State, Verdict
from data_prep.dedup.sign import Signatures
from data_prep.files import DataError

N_CLUSTERS = 10
SMALL_CLUSTER = 100  # documents; smaller clusters never stop anything
EXCERPT_BYTES = 160


@dataclass
class SourceCount:
    documents: int = 0
    bytes: int = 0
    exact: int = 0
    exact_bytes: int = 0
    near: int = 0
    near_bytes: int = 0

    @property
    def kept(self) -> int:
        return self.documents - self.exact - self.near

    @property
    def loss(self) -> float:
        """The larger of the shares of documents and of bytes that go."""
        shares = ((self.exact + self.near, self.documents), (self.exact_bytes + self.near_bytes, self.bytes))
        return max(part / whole if whole else 0.0 for part, whole in shares)


@dataclass
class Cluster:
    slice: str
    document: int
    """the one that stays, by its position in the slice"""
    source: str
    removed: int
    """documents removed in its favour"""
    excerpt: str


@dataclass
class Report:
    documents: int
    sources: dict[str, SourceCount]
    clusters: list[Cluster]
    """the largest, largest first"""
    candidates: int
    """pairs that were compared"""
    edges: int
    """pairs that were found similar enough"""
    jaccard_histogram: list[int]
    """candidates by similarity, in 20 equal bins; pairs whose sizes alone rule them out are in the first"""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def report(plan: Plan, verdict: Verdict, edges: Sequence[Path], slices: Sequence[Slice], scratch: Path) -> Report:
    facts = [Columns(path).facts for path in edges]
    return Report(
        documents=int(plan.firsts[-1]),
        sources=_count_sources(plan, verdict),
        clusters=_largest_clusters(plan, verdict, slices, scratch),
        candidates=sum(fact["pairs"] for fact in facts),
        edges=sum(fact["edges"] for fact in facts),
        jaccard_histogram=np.sum([fact["histogram"] for fact in facts] or [[0] * BINS], axis=0).tolist(),
    )


def brake(plan: Plan, found: Report) -> None:
    """Raises DataError when a source or a cluster is beyond what the settings allow."""
    config = plan.config
    broken: list[str] = []
    for name, count in found.sources.items():
        if count.loss > config.max_source_loss:
            broken.append(
                f"source {name} would lose {count.loss:.1%}, more than dedup.max_source_loss="
                f"{config.max_source_loss:g} allows"
            )
    largest = found.clusters[0] if found.clusters else None
    if largest and largest.removed >= SMALL_CLUSTER and largest.removed > config.max_cluster_share * found.documents:
        broken.append(
            f"{largest.removed:,} of {found.documents:,} documents would go in favour of one, more than "
            f"dedup.max_cluster_share={config.max_cluster_share:g} allows"
        )
    if broken:
        raise DataError(
            "deduplication stopped, and published nothing:\n  "
            + "\n  ".join(broken)
            + f"\n{table(found)}\nLook at the texts above. If they are duplicates, raise the key that is named; if "
            "not, what made them is at fault (an error page, a header on every page), or dedup.min_jaccard is too low."
        )


def table(found: Report) -> str:
    lines = [f"{'source':<24}{'documents':>14}{'exact':>12}{'near':>12}{'kept':>14}{'lost':>8}"]
    for name, count in found.sources.items():
        lines.append(
            f"{name:<24}{count.documents:>14,}{count.exact:>12,}{count.near:>12,}{count.kept:>14,}{count.loss:>8.1%}"
        )
    if found.clusters:
        lines.append("largest clusters (documents removed in favour of one that stays)")
    for cluster in found.clusters:
        where = f"{cluster.source} {cluster.slice} document {cluster.document}"
        lines.append(f"{cluster.removed:>12,}  {where}: {cluster.excerpt!r}")
    return "\n".join(lines)


def _count_sources(plan: Plan, verdict: Verdict) -> dict[str, SourceCount]:
    counts: dict[str, SourceCount] = {source: SourceCount() for source in plan.sources}
    for position, source in enumerate(plan.sources):
        state = verdict.state[plan.firsts[position] : plan.firsts[position + 1]]
        length = Signatures(plan.signature(position)).length
        count = counts[source]
        count.documents += len(state)
        count.bytes += int(length.sum())
        count.exact += int((state == State.exact).sum())
        count.exact_bytes += int(length[state == State.exact].sum())
        count.near += int((state == State.near).sum())
        count.near_bytes += int(length[state == State.near].sum())
    return counts


def _largest_clusters(plan: Plan, verdict: Verdict, slices: Sequence[Slice], scratch: Path) -> list[Cluster]:
    n = len(verdict.state)
    sizes = np.memmap(scratch / "sizes", np.uint32, "w+", shape=(max(n, 1),))
    for start in range(0, n, PIECE):
        state = verdict.state[start : start + PIECE]
        gone = start + np.flatnonzero((state == State.exact) | (state == State.near))
        survivors, removed = np.unique(verdict.survivor[gone], return_counts=True)
        sizes[survivors] += removed.astype(np.uint32)
    best: list[tuple[int, int]] = []
    for start in range(0, n, PIECE):
        part = sizes[start : start + PIECE]
        top = np.argsort(part)[::-1][:N_CLUSTERS]
        best = sorted([*best, *((-int(part[i]), start + int(i)) for i in top if part[i])])[:N_CLUSTERS]
    return [_cluster(plan, slices, number, -negative) for negative, number in best]


def _cluster(plan: Plan, slices: Sequence[Slice], number: int, removed: int) -> Cluster:
    position, document = plan.located(number)
    text = next(islice(slices[position].texts(), document, None))
    excerpt = " ".join(text[:EXCERPT_BYTES].decode(errors="ignore").split())
    return Cluster(plan.ids[position], document, plan.sources[position], removed, excerpt)
