"""From copies and verified edges to removals: which documents go, and for which one that stays.

In: the pairs of copies, and the edges (lower rank, higher rank, similarity) of all slices. Out: one file a slice with
the documents that go.

**A document goes only if it is a copy of, or at least `min_jaccard` similar to, a document that stays.** There are no
chains: in the order of rank, a document goes exactly if a document before it that stays is its neighbour. That greedy
set is found in rounds over the edges, as Blelloch, Fineman and Shun (SPAA 2012) show: whoever has a neighbour that
stays, goes; whoever has no undecided neighbour of higher rank left, stays; the result is that of the sequential order.
So a false cluster cannot grow along a chain of half-similar pages.

Tables of one entry a document are memory-mapped files, removed at the end; edges are read in bounded pieces.
"""

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.dedup.columns import Columns, writing
from data_prep.dedup.plan import Plan
from data_prep.dedup.runs import pairs_in
from data_prep.dedup.sign import Signatures
from data_prep.dedup.words import Ints

PIECE = 1 << 20  # edges, or documents, handled at a time


class Reason(enum.StrEnum):
    exact = "exact_duplicate"
    near = "near_duplicate"


class State(enum.IntEnum):
    kept = 0
    exact = 1
    near = 2
    undecided = 3
    gone = 4  # for another reason: it neither stays nor is a duplicate


class Removal(NamedTuple):
    reason: Reason
    slice: str
    """id of the slice of the document that stays"""
    document: int
    """its position there"""
    jaccard: float
    """similarity to it; 1 for a copy of it"""


@dataclass(frozen=True)
class Verdict:
    """For every document of the corpus, memory-mapped: (N,) each."""

    state: NDArray[np.uint8]
    survivor: NDArray[np.uint64]
    """number of the document that stays, where one goes"""
    jaccard: NDArray[np.float32]


def decide(plan: Plan, copies: Sequence[Path], edges: Sequence[Path], scratch: Path) -> Verdict:
    n = int(plan.firsts[-1])
    verdict = Verdict(
        _table(scratch / "state", np.uint8, n),
        _table(scratch / "survivor", np.uint64, n),
        _table(scratch / "jaccard", np.float32, n),
    )
    _mark_copies(plan, copies, verdict)
    _mark_gone(plan, verdict)
    mark_neighbours(edges, verdict.state, scratch)
    _choose_survivors(edges, verdict)
    _follow_copies(verdict)
    return verdict


def write_removals(plan: Plan, verdict: Verdict) -> None:
    for position in range(len(plan.ids)):
        low, high = int(plan.firsts[position]), int(plan.firsts[position + 1])
        state = verdict.state[low:high]
        gone = np.flatnonzero((state == State.exact) | (state == State.near)) + low
        with writing(plan.path("removed", plan.ids[position]), {}) as out:
            out.write("document", (gone - low).astype(np.uint32))
            out.write("state", verdict.state[gone])
            out.write("survivor", verdict.survivor[gone])
            out.write("jaccard", verdict.jaccard[gone])


class Removals(Mapping[int, Removal]):
    """The documents of one slice that go: position → why. Holds arrays, not an object a document."""

    def __init__(self, plan: Plan, slice_id: str):
        self._plan = plan
        columns = Columns(plan.path("removed", slice_id), check=True)
        self._documents, self._state = np.array(columns["document"]), np.array(columns["state"])
        self._survivor, self._jaccard = columns["survivor"], columns["jaccard"]

    def __contains__(self, document: object) -> bool:
        return isinstance(document, int) and self._row(document) is not None

    def __getitem__(self, document: int) -> Removal:
        row = self._row(document)
        if row is None:
            raise KeyError(document)
        position, inside = self._plan.located(int(self._survivor[row]))
        reason = Reason.exact if self._state[row] == State.exact else Reason.near
        return Removal(reason, self._plan.ids[position], inside, float(self._jaccard[row]))

    def __iter__(self) -> Iterator[int]:
        return iter(self._documents.tolist())

    def __len__(self) -> int:
        return len(self._documents)

    def _row(self, document: int) -> int | None:
        row = int(np.searchsorted(self._documents, document))
        return row if row < len(self._documents) and self._documents[row] == document else None


# --- copies ----------------------------------------------------------------------------------------------------------


def _mark_copies(plan: Plan, copies: Sequence[Path], verdict: Verdict) -> None:
    """Between slices first, then inside each: the first of a slice may itself be a copy of one before."""
    for position in range(len(plan.ids)):
        low, high = int(plan.firsts[position]), int(plan.firsts[position + 1])
        for document, first in pairs_in(copies, low, high, PIECE):
            _remove(verdict, document, first)
        inside = Signatures(plan.signature(position)).copies.astype(np.int64) + low
        document, first = inside[:, 0], inside[:, 1]
        is_copy = verdict.state[first] == State.exact
        _remove(verdict, document, np.where(is_copy, verdict.survivor[first].astype(np.int64), first))


def _mark_gone(plan: Plan, verdict: Verdict) -> None:
    """Documents removed for another reason; their copies are removed for it, too."""
    if plan.contaminated is not None:
        for position, name in enumerate(plan.ids):
            documents = Columns(plan.contaminated / name, check=True)["document"].astype(np.int64)
            verdict.state[int(plan.firsts[position]) + documents] = State.gone


def _remove(verdict: Verdict, document: Ints, survivor: Ints) -> None:
    verdict.state[document] = State.exact
    verdict.survivor[document] = survivor
    verdict.jaccard[document] = 1


# --- near-duplicates -------------------------------------------------------------------------------------------------


class _Edges(NamedTuple):
    lower: Ints
    higher: Ints
    jaccard: NDArray[np.float64]


def mark_neighbours(edges: Sequence[Path], state: NDArray[np.uint8], scratch: Path) -> None:
    """The greedy set, in rounds. `state` (N,) comes with the copies marked and all else kept."""
    for piece in _edges_of(edges):
        alive = piece.lower[state[piece.lower] == State.kept]
        state[alive] = State.undecided
    blocked = _table(scratch / "blocked", np.uint8, len(state))
    left = scratch / "undecided-0"
    n_left = _round(((piece.lower, piece.higher) for piece in _edges_of(edges)), state, left)
    turn = 0
    while n_left:
        _keep_the_free(left, state, blocked)
        turn += 1
        after = scratch / f"undecided-{turn}"
        n_left = _round(_pieces(left), state, after)
        left.unlink()
        left = after
    left.unlink()


def _round(pieces: Iterator[tuple[Ints, Ints]], state: NDArray[np.uint8], left: Path) -> int:
    """Removes every document with a neighbour that stays; writes the edges between undecided documents, and from them
    to documents that were not looked at yet; says how many.
    """
    n = 0
    with left.open("wb") as stream:
        for lower, higher in pieces:
            undecided = state[lower] == State.undecided
            state[lower[undecided & (state[higher] == State.kept)]] = State.near
            open_ = state[lower] == State.undecided
            np.stack([lower[open_], higher[open_]], axis=1).tofile(stream)
            n += int(open_.sum())
    return n


def _keep_the_free(left: Path, state: NDArray[np.uint8], blocked: NDArray[np.uint8]) -> None:
    """Whoever is undecided and has no undecided neighbour of higher rank, and none that stays, stays."""
    for lower, higher in _pieces(left):
        blocked[lower[(state[higher] == State.undecided) | (state[higher] == State.kept)]] = 1
    for lower, _ in _pieces(left):
        free = lower[(state[lower] == State.undecided) & (blocked[lower] == 0)]
        state[free] = State.kept
    for lower, _ in _pieces(left):
        blocked[lower] = 0


def _pieces(file: Path) -> Iterator[tuple[Ints, Ints]]:
    with file.open("rb") as stream:
        while len(flat := np.fromfile(stream, np.int64, 2 * PIECE)):
            yield flat[0::2], flat[1::2]


def _edges_of(paths: Sequence[Path]) -> Iterator[_Edges]:
    for path in paths:
        columns = Columns(path, check=True)
        for run in range(columns.facts["runs"]):
            lower, higher, similar = (columns[f"{name}{run}"] for name in ("lower", "higher", "jaccard"))
            for start in range(0, len(lower), PIECE):
                part = slice(start, start + PIECE)
                yield _Edges(np.array(lower[part]), np.array(higher[part]), np.array(similar[part]))


def _choose_survivors(edges: Sequence[Path], verdict: Verdict) -> None:
    """Of the neighbours that stay, the most similar one; of equals, the first in corpus order."""
    state, survivor, jaccard = verdict.state, verdict.survivor, verdict.jaccard
    for piece in _edges_of(edges):
        counts = (state[piece.lower] == State.near) & (state[piece.higher] == State.kept)
        lower, higher, similar = piece.lower[counts], piece.higher[counts], piece.jaccard[counts].astype(np.float32)
        order = np.lexsort((higher, -similar, lower))
        lower, higher, similar = lower[order], higher[order], similar[order]
        best = np.ones(len(lower), np.bool_)
        best[1:] = lower[1:] != lower[:-1]
        lower, higher, similar = lower[best], higher[best], similar[best]
        better = similar > jaccard[lower]
        survivor[lower[better]], jaccard[lower[better]] = higher[better], similar[better]


def _follow_copies(verdict: Verdict) -> None:
    """A copy of a document that went as a near-duplicate is as similar as that one to the document that stays."""
    for start in range(0, len(verdict.state), PIECE):
        copies = start + np.flatnonzero(verdict.state[start : start + PIECE] == State.exact)
        first = verdict.survivor[copies].astype(np.int64)
        gone = verdict.state[first] == State.near
        verdict.survivor[copies[gone]] = verdict.survivor[first[gone]]
        verdict.jaccard[copies[gone]] = verdict.jaccard[first[gone]]


def _table(path: Path, dtype: Any, n: int) -> NDArray[Any]:
    """Zeros; pages that are never written to take no room."""
    return np.memmap(path, dtype, "w+", shape=(max(n, 1),))[:n]
