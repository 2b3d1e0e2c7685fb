"""The documents of one slice that share n-grams with evaluation items.

In: the texts of a slice, and the index. Out: one file: the documents that go (`document`, and how many different
n-grams each shares, `matches`), and for every document with a match which items it shares how many with
(`hit_document`, `hit_item`, `hit_grams`). The texts are read twice if anything is found: for hashes, then for words.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from data_prep.decontaminate.index import Index
from data_prep.dedup.columns import writing
from data_prep.dedup.words import Hashes, Windows, grams, word_blocks, word_strings
from data_prep.jobs import Done

Gram = tuple[int, int]  # hash, number of words


def scan(
    texts: Callable[[], Iterable[bytes]], index: Index, min_matches: int, path: Path, advance: Callable[[Done], None]
) -> None:
    n_documents = 0

    def counted() -> Iterator[bytes]:
        nonlocal n_documents
        for text in texts():
            yield text
            n_documents += 1
            advance(Done(documents=1, text_bytes=len(text)))

    suspects = _suspects(counted(), index)
    removed: list[tuple[int, int]] = []
    hits: list[tuple[int, int, int]] = []
    for document, found in _verified(texts, suspects, index):
        if len(found) >= min_matches:
            removed.append((document, len(found)))
        shared = Counter(item for gram in found for item in index.items_of(*gram))
        hits += [(document, item, count) for item, count in sorted(shared.items())]
    columns = {"document": 0, "matches": 1}, {"hit_document": 0, "hit_item": 1, "hit_grams": 2}
    with writing(path, {"documents": n_documents}) as out:
        for names, rows in zip(columns, (removed, hits), strict=True):
            table = np.array(rows, np.uint32).reshape(-1, len(names))
            for name, column in names.items():
                out.write(name, table[:, column])


def _suspects(texts: Iterable[bytes], index: Index) -> dict[int, set[Gram]]:
    """Document → n-grams whose hash is in the index."""
    windows = {n: Windows(n) for n in index.lengths}
    found: dict[int, set[Gram]] = {}
    for block in word_blocks(texts):
        for n, window in windows.items():
            seen = window.over(block)
            rows = np.flatnonzero(index.among(seen.hashes, n))
            owners = np.searchsorted(np.cumsum(seen.counts), rows, side="right")
            for document, gram in zip(seen.documents[owners].tolist(), seen.hashes[rows].tolist(), strict=True):
                found.setdefault(document, set()).add((gram, n))
    return found


def _verified(
    texts: Callable[[], Iterable[bytes]], suspects: dict[int, set[Gram]], index: Index
) -> Iterator[tuple[int, list[Gram]]]:
    """The documents in which the words agree too, and their n-grams."""
    if not suspects:
        return
    last = max(suspects)
    for document, text in enumerate(texts()):
        if document in suspects:
            places = _places(text, suspects[document])
            words = _words_at(text, {at + i for (_, n), at in places.items() for i in range(n)})
            found = [
                gram
                for gram, at in sorted(places.items())
                if [words[at + i] for i in range(gram[1])] == index.words(*gram)
            ]
            if found:
                yield document, found
        if document == last:
            return


def _places(text: bytes, wanted: set[Gram]) -> dict[Gram, int]:
    """Position of the first word of the first occurrence of each n-gram."""
    places: dict[Gram, int] = {}
    for n in {n for _, n in wanted}:
        of_length = np.array(sorted(gram for gram, length in wanted if length == n), np.uint64)
        start = 0
        for block in grams([text], n):
            for row in _rows_among(block.hashes, of_length):
                places.setdefault((int(block.hashes[row]), n), start + row)
            start += len(block.hashes)
    return places


def _rows_among(hashes: Hashes, wanted: Hashes) -> list[int]:
    at = np.searchsorted(wanted, hashes)
    return np.flatnonzero(wanted.take(at, mode="clip") == hashes).tolist()


def _words_at(text: bytes, positions: set[int]) -> dict[int, str]:
    words: dict[int, str] = {}
    start = 0
    for piece in word_strings(text):
        words |= {start + i: word for i, word in enumerate(piece) if start + i in positions}
        start += len(piece)
    return words
