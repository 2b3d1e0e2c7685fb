"""From text to 64-bit hashes of words and of word n-grams, many documents at a time, without a Python object a word.

In: UTF-8 documents in order. Out: blocks of hashes, each with the documents that they belong to.

What a word is: after NFKC and simple lower-casing, a run of letters, marks and digits (Unicode categories L, M, N).
Characters of scripts that are written without spaces (Han, kana, Thai, Lao, Khmer, Burmese) are words by themselves,
as ideographs are in UAX #29; else a whole Chinese sentence would be one word. All else, the underscore too, separates.

Blocks are cut at white space, about every 256 KiB, so a document of any length costs the memory of a block. A run
without white space that is longer than a block is cut where the block ends, counted from the document's beginning.
"""

import functools
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Ints = NDArray[np.int64]

BLOCK_BYTES = 1 << 18
LAST_ASSIGNED = 0x323B0  # beyond it Unicode 15.1 has no letters, only variation selectors
ALONE = (  # [first, last] code points of scripts without spaces
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # ideographic marks
    (0x3041, 0x30FF),  # hiragana, katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, LAST_ASSIGNED - 1),
)
BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64
MASK = (1 << 64) - 1
ADVANCE = np.uint64(0xD6E8FEB86659FD93)
SHORT = 0xA0761D6478BD642F


@dataclass(frozen=True)
class Words:
    """A block: the words of some pieces of text, one piece after the other."""

    documents: Ints
    """(P,) which text each piece belongs to: positions in the input, ascending"""
    counts: Ints
    """(P,) words of each piece"""
    hashes: Hashes
    """(sum of counts,)"""
    is_last: NDArray[np.bool_]
    """(P,) whether the piece ends its text; only the last piece of a block may go on, in the next"""


@dataclass(frozen=True)
class Grams:
    """The n-grams of some documents, or of parts of them: the last one may go on in the next block."""

    documents: Ints
    """(D,) positions in the input, ascending, each with at least one n-gram here"""
    counts: Ints
    """(D,) n-grams of each, at least 1"""
    hashes: Hashes
    """(sum of counts,) in the order of the text"""


def grams(texts: Iterable[bytes], n: int) -> Iterator[Grams]:
    """All n-grams of n consecutive words of each text. A text of fewer than n words has one n-gram, all its words; a
    text without words has none.
    """
    windows = Windows(n)
    for block in word_blocks(texts):
        found = windows.over(block)
        if len(found.hashes):
            yield found


def word_blocks(texts: Iterable[bytes]) -> Iterator[Words]:
    for documents, pieces, is_last in _blocks(texts):
        hashes, counts = _words(pieces)
        yield Words(np.array(documents), counts, hashes, np.array(is_last))


class Windows:
    """Windows of n words over consecutive blocks. Keeps the last n - 1 words of a text that goes on."""

    def __init__(self, n: int):
        self._n = n
        self._goes_on = False
        self._tail = np.empty(0, np.uint64)
        self._has_grams = False  # whether the text that goes on had any so far

    def over(self, block: Words) -> Grams:
        n, counts, words = self._n, block.counts.copy(), block.hashes
        had = self._goes_on and self._has_grams
        if self._goes_on:
            words = np.concatenate([self._tail, words])
            counts[0] += len(self._tail)
        hashes, per_piece = _hashes(words, counts, n, had, block.is_last)
        self._goes_on = not block.is_last[-1]
        self._tail = words[len(words) - min(int(counts[-1]), n - 1) :].copy()
        self._has_grams = bool(counts[-1] >= n) or (len(counts) == 1 and had)
        some = per_piece > 0
        return Grams(block.documents[some], per_piece[some], hashes)


def word_strings(text: bytes) -> Iterator[list[str]]:
    """The words themselves, as `grams` sees them, some at a time. Slow: for the few documents where it matters."""
    for piece, _ in _pieces(text):
        values = _values([piece])[0].astype("<u4")
        starts, ends = _borders(values, ascii_only=False)
        line = values.tobytes().decode("utf-32-le")
        yield [line[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def mixed(hashes: Hashes) -> Hashes:
    """Bijection of 64-bit integers after which every bit depends on every bit (MurmurHash3's finaliser, Appleby)."""
    hashes = hashes ^ (hashes >> np.uint64(33))
    hashes *= np.uint64(0xFF51AFD7ED558CCD)
    hashes ^= hashes >> np.uint64(33)
    hashes *= np.uint64(0xC4CEB9FE1A85EC53)
    hashes ^= hashes >> np.uint64(33)
    return hashes


# --- blocks of text --------------------------------------------------------------------------------------------------


def _blocks(texts: Iterable[bytes]) -> Iterator[tuple[list[int], list[bytes], list[bool]]]:
    """(text, piece, whether it is the text's last), about BLOCK_BYTES of pieces at a time."""
    documents: list[int] = []
    pieces: list[bytes] = []
    lasts: list[bool] = []
    size = 0
    for document, text in enumerate(texts):
        for piece, last in _pieces(text):
            documents.append(document)
            pieces.append(piece)
            lasts.append(last)
            size += len(piece) + 1
            if size >= BLOCK_BYTES or not last:  # so that two pieces of a block are never of one text
                yield documents, pieces, lasts
                documents, pieces, lasts, size = [], [], [], 0
    if pieces:
        yield documents, pieces, lasts


def _pieces(text: bytes) -> Iterator[tuple[bytes, bool]]:
    start = 0
    while len(text) - start > BLOCK_BYTES:
        stop = start + BLOCK_BYTES
        border = max(text.rfind(b" ", start, stop), text.rfind(b"\n", start, stop))
        if border <= start:
            border = stop
            while text[border] & 0xC0 == 0x80:  # never inside a character
                border -= 1
        yield text[start:border], False
        start = border
    yield text[start:], True


# --- words -----------------------------------------------------------------------------------------------------------


def _words(pieces: list[bytes]) -> tuple[Hashes, Ints]:
    """Hashes of all words (W,), and how many each piece has (P,).

    A word's hash is the polynomial of its code points in BASE modulo 2^64, mixed. It comes from prefix sums: the sum
    over [start, end) of value · BASE^i, divided by BASE^start.
    """
    values, borders = _values(pieces)
    starts, ends = _borders(values, ascii_only=values.dtype == np.uint8)
    powers, inverses = _powers(len(values) + 1)
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * powers[: len(values)], out=sums[1:])
    hashes = mixed((sums[ends] - sums[starts]) * inverses[starts])
    return hashes, np.diff(np.searchsorted(starts, borders))


def _values(pieces: list[bytes]) -> tuple[NDArray[Any], Ints]:
    """For each character of all pieces, one after the other with a separator between them: its folded code point, or 0
    for a separator; and where each piece begins, with the end (P + 1,).
    """
    letters = _tables()[0]
    joined = b"\n".join(pieces)
    if joined.isascii():
        values = letters[:128].astype(np.uint8)[np.frombuffer(joined, np.uint8)]
        lengths = [len(piece) + 1 for piece in pieces]
    else:
        texts = [_compatible(piece) for piece in pieces]
        points = np.frombuffer("\n".join(texts).encode("utf-32-le"), "<u4")
        values = letters[np.minimum(points, LAST_ASSIGNED)]
        lengths = [len(text) + 1 for text in texts]
    return values, np.concatenate([[0], np.cumsum(lengths)])


def _compatible(piece: bytes) -> str:
    text = piece.decode()
    if piece.isascii() or unicodedata.is_normalized("NFKC", text):
        return text
    return unicodedata.normalize("NFKC", text)


def _borders(values: NDArray[Any], ascii_only: bool) -> tuple[Ints, Ints]:
    """Where each word starts and ends."""
    inside = np.zeros(len(values) + 2, np.bool_)
    np.not_equal(values, 0, out=inside[1:-1])
    change = inside[1:] != inside[:-1]
    if not ascii_only:  # a border on both sides of each character that stands alone
        alone = _tables()[1][values]
        if alone.any():
            return _borders_around(inside, alone)
    edges = np.flatnonzero(change)
    return edges[0::2], edges[1::2]


def _borders_around(inside: NDArray[np.bool_], alone: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    padded = np.zeros(len(inside), np.bool_)
    padded[1:-1] = alone
    cut = padded[1:] | padded[:-1]
    starts = np.flatnonzero(inside[1:] & (~inside[:-1] | cut))
    ends = np.flatnonzero(inside[:-1] & (~inside[1:] | cut))
    return starts, ends


@functools.cache
def _tables() -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """(LAST_ASSIGNED + 1,) the lower case of each letter, mark and digit, 0 for all else; and which stand alone."""
    folded = np.zeros(LAST_ASSIGNED + 1, np.uint32)
    for point in range(LAST_ASSIGNED):
        character = chr(point)
        if unicodedata.category(character)[0] in "LMN":
            folded[point] = ord(character.lower()[0])
    alone = np.zeros(LAST_ASSIGNED + 1, np.bool_)
    for first, last in ALONE:
        alone[first : last + 1] = True
    return folded, alone & (folded > 0)


@functools.cache
def _powers_of(base: int, size: int) -> Hashes:
    powers = np.full(size, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers)


def _powers(size: int) -> tuple[Hashes, Hashes]:
    """BASE^i and BASE^-i modulo 2^64 for i < size."""
    stored = 1 << max(20, (size - 1).bit_length())  # NFKC may lengthen a block
    return _powers_of(BASE, stored)[:size], _powers_of(pow(BASE, -1, 1 << 64), stored)[:size]


# --- n-grams ---------------------------------------------------------------------------------------------------------


def _hashes(
    words: Hashes, counts: Ints, n: int, first_goes_on: bool, is_last: NDArray[np.bool_]
) -> tuple[Hashes, Ints]:
    """n-gram hashes of all pieces, and how many each has."""
    per_piece = np.maximum(counts - n + 1, 0)
    short = is_last & (counts > 0) & (counts < n)
    if first_goes_on:
        short[0] = False
    ends = np.cumsum(counts)
    valid = np.arange(len(words)) + n <= np.repeat(ends, counts)
    hashes = np.zeros(len(words), np.uint64)
    if len(words) >= n:
        hashes[: len(words) - n + 1] = _combined(words[i : len(words) - n + 1 + i] for i in range(n))
    for k in np.unique(counts[short]).tolist():
        starts = (ends - counts)[short & (counts == k)]
        hashes[starts] = _combined(words[starts + i] for i in range(k)) + _short_mark(n - k)
        valid[starts] = True
    per_piece[short] = 1
    return mixed(hashes[valid]), per_piece


def _short_mark(missing: int) -> np.uint64:
    """Sets a gram of all words of a short text apart from one whose other words happen to hash to zero."""
    return np.uint64(SHORT * missing & MASK)


def _combined(words: Iterable[Hashes]) -> Hashes:
    """Horner's rule: the first, second ... word of each n-gram in, one number for each n-gram out."""
    first, *others = words
    total = first.copy()
    for word in others:
        total *= ADVANCE
        total += word
    return total
