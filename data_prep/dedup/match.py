"""From signatures to pairs: exact copies, and candidates for near-duplicates.

In: the signatures of all slices, and a range of hashes, or of the keys of one band. Out: one file of sorted pairs
(see `runs`): for copies (document that goes, the first document of the corpus with that text); for candidates (document
that ranks lower, document that ranks higher). Memory is bounded by the settings: a range with too many rows is halved,
and a single key with too many rows is gone through slice by slice.

Rank: the longer text first, the smaller hash among equals. It depends on content alone, and so do the candidates, so
neither the division into slices nor their order changes which texts stay.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.dedup.columns import writing
from data_prep.dedup.config import MinHashDedup
from data_prep.dedup.plan import Plan
from data_prep.dedup.runs import PAIR_BYTES, PairWriter, ranges, run_of
from data_prep.dedup.sign import Signatures
from data_prep.dedup.words import Hashes, Ints

ROW_BYTES = 128  # held for one row of a table while buckets are formed
BEST = 16  # documents of a large bucket that all others are compared with


def match_copies(plan: Plan, low: int, high: int, path: Path) -> None:
    """Documents of different slices with the same bytes, whose hash begins with a number in [low, high)."""
    table = _Table(plan, None)
    with _pairs_to(path, plan) as pairs:
        for start, stop in ranges(low, high, table.size, plan.config.memory_bytes // ROW_BYTES):
            _, numbers = _shared(*table.rows(start, stop))
            pairs.add(*_copies(numbers, plan.ranks(numbers)[1]))


def match_band(plan: Plan, band: int, low: int, high: int, path: Path) -> None:
    """Pairs of different texts that have the same key of the band, in [low, high)."""
    table = _Table(plan, band)
    limit = plan.config.memory_bytes // ROW_BYTES
    with _pairs_to(path, plan) as pairs:
        for start, stop in ranges(low, high, table.size, limit):
            if stop - start == 1 and table.size(start, stop) > limit:
                _add_huge_bucket(plan, table, start, pairs)
            else:
                _add_buckets(_ranked(plan, *_shared(*table.rows(start, stop))), plan.minhash, pairs)


@contextlib.contextmanager
def _pairs_to(path: Path, plan: Plan) -> Iterator[PairWriter]:
    facts: dict[str, Any] = {}
    with writing(path, facts) as out:
        pairs = PairWriter(out, plan.config.memory_bytes // PAIR_BYTES // 4)
        yield pairs
        pairs.flush()
        facts |= {"runs": pairs.runs, "pairs": pairs.pairs}


@dataclass(frozen=True)
class _Table:
    """The rows (key, document) of one band, or of the hashes, over all slices."""

    plan: Plan
    band: int | None

    def slice(self, position: int, low: int, high: int) -> tuple[Hashes, Ints]:
        """Ascending keys in [low, high) and document numbers."""
        keys, documents = self._opened(position)
        span = run_of(keys, low, high)
        return keys[span], documents[span] + self.plan.firsts[position]

    def rows(self, low: int, high: int) -> tuple[Hashes, Ints]:
        parts = [self.slice(position, low, high) for position in range(len(self.plan.ids))]
        return np.concatenate([keys for keys, _ in parts]), np.concatenate([numbers for _, numbers in parts])

    def size(self, low: int, high: int) -> int:
        spans = (run_of(self._opened(position)[0], low, high) for position in range(len(self.plan.ids)))
        return sum(span.stop - span.start for span in spans)

    def _opened(self, position: int) -> tuple[Hashes, Any]:
        signatures = Signatures(self.plan.signature(position))
        return signatures.by_hash() if self.band is None else signatures.band(self.band)


def _copies(numbers: Ints, hashes: Hashes) -> tuple[Ints, Ints]:
    """(N',) documents with an earlier copy, and the first of each."""
    order = np.lexsort((numbers, hashes[:, 1], hashes[:, 0]))
    numbers, hashes = numbers[order], hashes[order]
    new = np.ones(len(numbers), np.bool_)
    new[1:] = (hashes[1:] != hashes[:-1]).any(axis=1)
    first = numbers[np.flatnonzero(new)[np.cumsum(new) - 1]]
    return numbers[~new], first[~new]


# --- candidates ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ranked:
    """Rows in the order of key, then rank, with the copies of one text left out."""

    keys: Hashes
    numbers: Ints


def _shared(keys: Hashes, numbers: Ints) -> tuple[Hashes, Ints]:
    """The rows whose key occurs more than once: their lengths and hashes alone are looked up."""
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    shared = np.zeros(len(keys), np.bool_)
    shared[order[1:]] |= same
    shared[order[:-1]] |= same
    return keys[shared], numbers[shared]


def _ranked(plan: Plan, keys: Hashes, numbers: Ints) -> _Ranked:
    length, hashes = plan.ranks(numbers)
    order = np.lexsort((numbers, hashes[:, 1], hashes[:, 0], ~length, keys))
    keys, numbers, hashes = keys[order], numbers[order], hashes[order]
    new = np.ones(len(keys), np.bool_)
    new[1:] = (keys[1:] != keys[:-1]) | (hashes[1:] != hashes[:-1]).any(axis=1)
    return _Ranked(keys[new], numbers[new])


def _add_buckets(rows: _Ranked, config: MinHashDedup, pairs: PairWriter) -> None:
    """Each row with those of its bucket that rank higher: all of them in a small bucket, the BEST in a large one."""
    if not len(rows.keys):
        return
    begins = np.flatnonzero(np.concatenate([[True], rows.keys[1:] != rows.keys[:-1]]))
    sizes = np.diff(np.concatenate([begins, [len(rows.keys)]]))
    begin, size = np.repeat(begins, sizes), np.repeat(sizes, sizes)
    higher = np.arange(len(rows.keys)) - begin
    higher = np.where(size > config.max_bucket, np.minimum(higher, BEST), higher)
    total = np.cumsum(higher)
    pieces = int(total[-1]) * PAIR_BYTES * 4 // config.memory_bytes + 1
    cuts = np.searchsorted(total, np.linspace(0, int(total[-1]), pieces + 1)[1:-1])
    for part in np.split(np.arange(len(higher)), cuts):
        count = higher[part]
        within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        pairs.add(rows.numbers[np.repeat(part, count)], rows.numbers[np.repeat(begin[part], count) + within])


def _add_huge_bucket(plan: Plan, table: _Table, key: int, pairs: PairWriter) -> None:
    """The same for one bucket that does not fit into memory: one pass for the BEST, one for the pairs."""
    best = _Ranked(np.empty(0, np.uint64), np.empty(0, np.int64))
    for keys, numbers in (table.slice(i, key, key + 1) for i in range(len(plan.ids))):
        joined = _ranked(plan, np.concatenate([best.keys, keys]), np.concatenate([best.numbers, numbers]))
        best = _Ranked(joined.keys[:BEST], joined.numbers[:BEST])
    length, hashes = plan.ranks(best.numbers)
    for _, numbers in (table.slice(i, key, key + 1) for i in range(len(plan.ids))):
        own_length, own = plan.ranks(numbers)
        for i, hub in enumerate(best.numbers):
            smaller = (hashes[i, 0] < own[:, 0]) | ((hashes[i, 0] == own[:, 0]) & (hashes[i, 1] < own[:, 1]))
            lower = (length[i] > own_length) | ((length[i] == own_length) & smaller)
            pairs.add(numbers[lower], np.full(int(lower.sum()), hub))
