"""From candidates to verified edges: the true Jaccard similarity of each pair.

In: the candidate pairs, and the texts of the slice. Out, `shingle`: the sorted set of shingles of each document of the
slice that is in some pair. Out, `compare`: of the slice's pairs (a pair belongs to the slice of its lower rank) those
that are at least `min_jaccard` similar. Sets are of 64-bit hashes: among the 10^10 pairs of shingles of two documents
of 10^5 words, one collides by chance with probability 10^-9.

A document of any size costs a bounded amount of memory beside its text: its shingles are sorted a range at a time.
"""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.dedup.columns import Columns, Writer, writing
from data_prep.dedup.plan import Plan
from data_prep.dedup.runs import PAIR_BYTES, ascending, members_in, pairs_in
from data_prep.dedup.sign import Advance
from data_prep.dedup.words import Grams, Hashes, Ints, grams
from data_prep.jobs import Done

SORT_BYTES = 40  # held for one shingle while it is sorted
PIECE = 1 << 18  # shingles looked up at a time
BINS = 20  # of the histogram of similarities, each 1 / BINS wide; the last holds 1 too


def shingle(
    plan: Plan, position: int, texts: Iterable[bytes], matches: Sequence[Path], path: Path, advance: Advance
) -> None:
    n, memory = plan.minhash.ngram, plan.config.memory_bytes
    wanted = members_in(matches, int(plan.firsts[position]), int(plan.firsts[position + 1]))
    with writing(path, {}) as out:
        sets = _Sets(out)
        documents: list[int] = []

        def usual() -> Iterator[bytes]:
            for i, text in enumerate(texts):
                if wanted[i] and len(text) // 2 * SORT_BYTES > memory:  # a word and its separator: two bytes at least
                    sets.add_one(i, _large_set(text, n, memory, path.parent))
                elif wanted[i]:
                    documents.append(i)
                    yield text
                advance(Done(documents=1, text_bytes=len(text)))

        for found, counts, hashes in _small_sets(grams(usual(), n)):
            sets.add(np.array(documents)[found], counts, hashes)
        sets.close()


def compare(plan: Plan, position: int, matches: Sequence[Path], shingles: Sequence[Path], path: Path) -> None:
    """`shingles`: the files that `shingle` made, one a slice."""
    low, high = int(plan.firsts[position]), int(plan.firsts[position + 1])
    own = ShingleSets(shingles[position])
    histogram = np.zeros(BINS, np.int64)
    facts: dict[str, Any] = {"runs": 0, "pairs": 0, "edges": 0}
    with writing(path, facts) as out:
        for lower, higher in pairs_in(matches, low, high, plan.config.memory_bytes // PAIR_BYTES):
            similar = np.zeros(len(lower))
            for other, chosen in plan.by_slice(higher):
                sets = own if other == position else ShingleSets(shingles[other])
                rows = own.rows(lower[chosen] - low), sets.rows(higher[chosen] - plan.firsts[other])
                similar[chosen] = _similarities(own, sets, *rows, plan.minhash.min_jaccard)
            histogram += np.bincount(np.minimum((similar * BINS).astype(np.int64), BINS - 1), minlength=BINS)
            edges = similar >= plan.minhash.min_jaccard
            run = facts["runs"]
            out.write(f"lower{run}", lower[edges])
            out.write(f"higher{run}", higher[edges])
            out.write(f"jaccard{run}", similar[edges])
            facts |= {"runs": run + 1, "pairs": facts["pairs"] + len(lower), "edges": facts["edges"] + int(edges.sum())}
        facts["histogram"] = histogram.tolist()


def jaccard(a: Hashes, b: Hashes) -> float:
    """|A ∩ B| / |A ∪ B| of two ascending arrays of distinct hashes, neither empty."""
    if len(a) > len(b):
        a, b = b, a
    common = 0
    for start in range(0, len(a), PIECE):
        piece = a[start : start + PIECE]
        at = np.searchsorted(b, piece)
        common += int(np.count_nonzero(b.take(at, mode="clip") == piece))
    return common / (len(a) + len(b) - common)


class ShingleSets:
    """One slice's file, opened."""

    def __init__(self, path: Path):
        columns = Columns(path)
        self._documents, self._spans = columns["documents"], columns["spans"]
        self._shingles = columns["shingles"]

    def rows(self, documents: Ints) -> NDArray[Any]:
        """(N, 2) where the sets of these documents begin and end."""
        return self._spans[np.searchsorted(self._documents, documents)].astype(np.int64)

    def set_at(self, start: int, stop: int) -> Hashes:
        return self._shingles[start:stop]


def _similarities(
    own: ShingleSets, others: ShingleSets, a: NDArray[Any], b: NDArray[Any], least: float
) -> NDArray[np.float64]:
    """(N,); 0 where the sizes alone rule `least` out, for J is at most the smaller size over the larger."""
    size_a, size_b = a[:, 1] - a[:, 0], b[:, 1] - b[:, 0]
    similar = np.zeros(len(a))
    for i in np.flatnonzero(np.minimum(size_a, size_b) >= least * np.maximum(size_a, size_b)).tolist():
        similar[i] = jaccard(own.set_at(*a[i].tolist()), others.set_at(*b[i].tolist()))
    return similar


# --- sets ------------------------------------------------------------------------------------------------------------


class _Sets:
    """Writes the columns of `ShingleSets`: shingles one after the other, then whose they are."""

    def __init__(self, out: Writer):
        self._out = out
        self._documents = [np.empty(0, np.int64)]
        self._spans = [np.empty((0, 2), np.int64)]
        self._end = 0
        out.write("shingles", np.empty(0, np.uint64))

    def add(self, documents: Ints, counts: Ints, hashes: Hashes) -> None:
        self._out.write("shingles", hashes)
        ends = self._end + np.cumsum(counts)
        self._documents.append(documents)
        self._spans.append(np.stack([ends - counts, ends], axis=1))
        self._end = int(ends[-1])

    def add_one(self, document: int, pieces: Iterable[Hashes]) -> None:
        start = self._end
        for piece in pieces:
            self._out.write("shingles", piece)
            self._end += len(piece)
        self._documents.append(np.array([document]))
        self._spans.append(np.array([[start, self._end]]))

    def close(self) -> None:
        documents, spans = np.concatenate(self._documents), np.concatenate(self._spans)
        order = np.argsort(documents)
        self._out.write("documents", documents[order].astype(np.uint32))
        self._out.write("spans", spans[order].astype(np.uint64))


def _small_sets(blocks: Iterable[Grams]) -> Iterator[tuple[Ints, Ints, Hashes]]:
    """(documents, sizes, ascending distinct hashes of one document after the other), of whole documents."""
    waiting: list[Hashes] = []  # of the last document seen, which may go on
    last = -1
    for block in blocks:
        own = np.repeat(block.documents, block.counts)
        if len(block.documents) == 1 and block.documents[0] == last:  # joined once, not once a block
            waiting.append(block.hashes)
            continue
        own = np.concatenate([np.full(sum(map(len, waiting)), last), own])
        hashes = np.concatenate([*waiting, block.hashes])
        last = int(block.documents[-1])
        done = int(np.searchsorted(own, last))
        if done:
            yield _as_sets(own[:done], hashes[:done])
        waiting = [hashes[done:]]
    if waiting:
        hashes = np.concatenate(waiting)
        yield _as_sets(np.full(len(hashes), last), hashes)


def _as_sets(own: Ints, hashes: Hashes) -> tuple[Ints, Ints, Hashes]:
    order = np.lexsort((hashes, own))
    own, hashes = own[order], hashes[order]
    new = np.ones(len(own), np.bool_)
    new[1:] = (own[1:] != own[:-1]) | (hashes[1:] != hashes[:-1])
    documents, counts = np.unique(own[new], return_counts=True)
    return documents, counts, hashes[new]


def _large_set(text: bytes, n: int, memory: int, folder: Path) -> Iterator[Hashes]:
    """The distinct hashes of one text, ascending, a range at a time: dealt to one temporary file for each range first,
    then sorted one after the other.
    """
    parts = len(text) // 2 * SORT_BYTES // memory + 1
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(parts)]
        for block in grams([text], n):
            part = (block.hashes >> np.uint64(32)) * np.uint64(parts) >> np.uint64(32)
            order = np.argsort(part, kind="stable")
            found, begins = np.unique(part[order], return_index=True)
            for number, hashes in zip(found.tolist(), np.split(block.hashes[order], begins[1:]), strict=True):
                files[number].write(hashes.data)
        for file in files:
            file.seek(0)
            yield ascending(np.fromfile(file, np.uint64))
