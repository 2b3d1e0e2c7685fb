"""The signatures of one slice: everything about its documents that finding duplicates needs, without their text.

In: a slice's texts. Out: one file that depends on nothing but these texts and the settings that it is named by, so it
is used again when other slices join the corpus. Its columns, for n documents of which m differ:

    length   (n,)   u8  bytes of the document
    hash     (n, 2) u8  BLAKE2b-128 of its bytes; cryptographic, so equal hashes are equal texts
    copies   (c, 2) u4  document, first document of this slice with the same bytes; c = n - m, ascending
    hash keys (m,)  u8  first halves of the m distinct hashes, ascending
    hash documents (m,) u4  the documents they belong to
    band keys, band documents (bands, m')  the same for the keys of each band; m' of the m have words
So any range of hashes, or of keys of a band, is a contiguous run of each file.
"""

import functools
import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.dedup.columns import Columns, Writer, writing
from data_prep.dedup.config import ExactDedup, MinHashDedup
from data_prep.dedup.words import Grams, Hashes, Ints, grams, mixed
from data_prep.jobs import Done

Advance = Callable[[Done], None]

HASH_BYTES = 16


def sign(texts: Iterable[bytes], config: ExactDedup | MinHashDedup, path: Path, advance: Advance) -> None:
    """Memory: about 8 · bands bytes a document of the slice, and some blocks of text."""
    length, digest = array("Q"), bytearray()

    def seen() -> Iterator[bytes]:
        for text in texts:
            length.append(len(text))
            digest.extend(hashlib.blake2b(text, digest_size=HASH_BYTES).digest())
            yield text
            advance(Done(documents=1, text_bytes=len(text)))

    match config:
        case ExactDedup():
            for _ in seen():
                pass
            documents, keys = np.empty(0, np.int64), np.empty((0, 0), np.uint64)
        case MinHashDedup():
            documents, keys = band_keys(grams(seen(), config.ngram), config)
    hashes = np.frombuffer(bytes(digest), ">u8").astype(np.uint64).reshape(-1, 2)
    first = _firsts(hashes)
    with writing(path, {"documents": len(length), "bytes": sum(length)}) as out:
        out.write("length", np.array(length, np.uint64))
        out.write("hash", hashes)
        copies = np.flatnonzero(first != np.arange(len(first)))
        out.write("copies", np.stack([copies, first[copies]], axis=1).astype(np.uint32))
        distinct = np.flatnonzero(first == np.arange(len(first)))
        _write_tables(out, "hash", distinct, hashes[distinct, :1])
        kept = first[documents] == documents
        _write_tables(out, "band", documents[kept], keys[kept])


def band_keys(blocks: Iterable[Grams], config: MinHashDedup) -> tuple[Ints, Hashes]:
    """(m',) documents with words, ascending, and their band keys (m', bands)."""
    documents: list[Ints] = []
    keys: list[Hashes] = []
    for found, minima in _whole(blocks, config):
        documents.append(found)
        keys.append(_keys(minima, config))
    if not keys:
        return np.empty(0, np.int64), np.empty((0, config.bands), np.uint64)
    return np.concatenate(documents), np.concatenate(keys)


def minima_of(block: Grams, factors: Hashes) -> Hashes:
    """(D, F) for each document the least of (factor · shingle mod 2^64) over its shingles, for each odd factor.

    Shingles are mixed hashes, so uniform; a fixed bijection of uniform values has its minimum at each of them with
    equal probability, and the addend of the usual a·x + b would only shift all of them.
    """
    starts = np.cumsum(block.counts) - block.counts
    minima = np.empty((len(factors), len(starts)), np.uint64)
    product = np.empty_like(block.hashes)
    for i, factor in enumerate(factors):
        np.multiply(block.hashes, factor, out=product)
        np.minimum.reduceat(product, starts, out=minima[i])
    return minima.T


@functools.cache
def factors_of(seed: int, size: int) -> Hashes:
    """Odd numbers that depend on nothing but the seed: NumPy's generators may change with its version."""
    draws = [hashlib.blake2b(f"{seed}:{i}".encode(), digest_size=8).digest() for i in range(size)]
    return np.frombuffer(b"".join(draws), "<u8").astype(np.uint64) | np.uint64(1)


def _whole(blocks: Iterable[Grams], config: MinHashDedup) -> Iterator[tuple[Ints, Hashes]]:
    """Minima of whole documents: the last of a block waits for the next, where it may go on."""
    factors = factors_of(config.seed, config.bands * config.rows)
    waiting, least = np.empty(0, np.int64), np.empty((0, len(factors)), np.uint64)
    for block in blocks:
        documents, minima = block.documents, minima_of(block, factors)
        if len(waiting) and waiting[0] == documents[0]:
            minima[0] = np.minimum(minima[0], least[0])
        elif len(waiting):
            documents, minima = np.concatenate([waiting, documents]), np.concatenate([least, minima])
        yield documents[:-1], minima[:-1]
        waiting, least = documents[-1:], minima[-1:].copy()
    yield waiting, least


def _keys(minima: Hashes, config: MinHashDedup) -> Hashes:
    """(D, bands): the rows of each band as one number. The band is part of it, so that keys differ between bands."""
    rows = minima.reshape(-1, config.bands, config.rows)
    keys = np.repeat(np.arange(config.bands, dtype=np.uint64)[None], len(rows), axis=0)
    for row in range(config.rows):
        keys = mixed(keys + rows[:, :, row])
    return keys


def _firsts(hashes: Hashes) -> Ints:
    """(n,) for each document the first one with the same hash."""
    order = np.lexsort(hashes.T[::-1])  # stable, so that the first of equals comes first
    ordered = hashes[order]
    begins = np.ones(len(order), np.bool_)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.empty(len(order), np.int64)
    first[order] = order[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    return first


def _write_tables(out: Writer, name: str, documents: Ints, keys: Hashes) -> None:
    """For each column of keys (m, tables): the keys in ascending order, and their documents."""
    orders: list[NDArray[np.uint32]] = []
    for table in range(keys.shape[1]):
        order = np.argsort(keys[:, table], kind="stable")
        out.write(f"{name} keys", keys[order, table][None])
        orders.append(documents[order].astype(np.uint32))
    for order in orders:
        out.write(f"{name} documents", order[None])


class Signatures:
    """One slice's file, opened."""

    def __init__(self, path: Path):
        self._columns = Columns(path)
        self.length: Hashes = self._columns["length"]
        self.hash: Hashes = self._columns["hash"]
        self.copies: NDArray[np.uint32] = self._columns["copies"]

    def by_hash(self) -> tuple[Hashes, NDArray[np.uint32]]:
        """First halves of the hashes, ascending, and their documents."""
        return self._columns["hash keys"][0], self._columns["hash documents"][0]

    def band(self, band: int) -> tuple[Hashes, NDArray[np.uint32]]:
        """Keys of the band, ascending, and their documents."""
        return self._columns["band keys"][band], self._columns["band documents"][band]
