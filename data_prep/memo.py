"""Encodes each distinct part of the text once: words repeat, and BPE is slow.

In: texts whose parts may be encoded on their own (`tokenizer` says when). Out: the ids of the texts, flat. A
text is cut where no piece of the model reaches across (`cut_for`); a dictionary knows the number of every part met so
far, a table the ids of that number, and the ids of a batch are then one gather in numpy. No Python object per token.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from data_prep.files import DataError


@dataclass(frozen=True)
class Cut:
    """A way to cut a text. Every border between two parts lies inside a match of `border`, so a piece in which it does
    not occur is cut in no text."""

    part: re.Pattern[bytes]
    border: re.Pattern[bytes]


SIGNS = rb"!-/:-@\[-`{-\x7f\x00-\x09\x0b-\x1f"
CUTS = (
    Cut(
        re.compile(
            rb"[ \n]*+(?:[A-Za-z]++(?![\x80-\xff])|[" + SIGNS + rb"]++(?![\x80-\xff])|[0-9](?![\x80-\xff])|[^ \n]+)"
            rb"|[ \n]+"
        ),
        re.compile(rb"[A-Za-z][^A-Za-z\x80-\xff]|[0-9][\x00-\x7f]|[" + SIGNS + rb"][A-Za-z0-9 \n]|[\x80-\xff][ \n]"),
    ),
    Cut(re.compile(rb"[ \n]*[^ \n]+|[ \n]+"), re.compile(rb"[^ \n][ \n]")),
)
"""The finest first: before blanks and newlines; also between letters, digits and signs of ASCII that touch."""
BORDER = re.compile(rb"[^ \n](?=[ \n])")
LINES = 256  # parts that are encoded as one text
PIECE_BYTES = 1 << 23  # of a text are cut into parts at a time
MAX_PARTS = 1 << 20  # with their ids some 200 MB; beyond that everything is forgotten and learnt anew
MAX_PART_BYTES = 1 << 26  # bytes of all parts together, for texts that have no blanks

Ids = npt.NDArray[np.int32]
Array = TypeVar("Array", bound=npt.NDArray[Any])


def cut_for(pieces: Iterable[bytes]) -> Cut | None:
    """The finest way to cut a text that leaves each of these pieces of text whole; None if there is none."""
    pieces = list(pieces)
    return next((cut for cut in CUTS if not any(cut.border.search(piece) for piece in pieces)), None)


class Memo:
    """`cut` says where texts may be cut; `encode` gives a row of ids for each text it is shown, and `token_bytes`
    (V,) how many bytes of text each id stands for. Newline must be an id of its own in every text."""

    def __init__(
        self,
        cut: Cut,
        encode: Callable[[Sequence[bytes]], list[Ids]],
        token_bytes: npt.NDArray[np.uint16],
    ):
        self.cut = cut
        self._encode, self._token_bytes = encode, token_bytes
        self._forget()

    def encode(self, texts: Sequence[bytes]) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Ids of all texts one after the other, (n,) int32, and how many each text has, (texts,)."""
        if not any(len(text) > 2 * PIECE_BYTES for text in texts):
            return self._encode_lot(texts)
        rows = [np.concatenate([self._encode_lot([piece])[0] for piece in _pieces(text)]) for text in texts]
        return np.concatenate(rows), np.array([len(row) for row in rows], dtype=np.int64)

    def _encode_lot(self, texts: Sequence[bytes]) -> tuple[Ids, npt.NDArray[np.int64]]:
        parts: list[bytes] = []
        last_part = np.empty(len(texts), dtype=np.int64)
        for i, text in enumerate(texts):
            parts += self.cut.part.findall(text)
            last_part[i] = len(parts)
        numbers = self._numbers_of(parts)
        lengths = self._lengths[numbers]
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        at = np.repeat(self._starts[numbers] - ends[:-1], lengths)
        at += np.arange(ends[-1])
        return self._ids[at], np.diff(ends[last_part], prepend=0)

    def _numbers_of(self, parts: list[bytes]) -> npt.NDArray[np.int64]:
        if len(self._known) > MAX_PARTS or self._known.n_bytes > MAX_PART_BYTES:
            self._forget()
        known = self._known
        numbers = np.fromiter(map(known.__getitem__, parts), dtype=np.int64, count=len(parts))
        if known.new:
            try:
                self._learn(known.new)
            except BaseException:
                self._forget()  # numbers without ids must not stay
                raise
            known.new = []
        return numbers

    def _learn(self, new: list[bytes]) -> None:
        """The new parts are encoded as lines of a few texts: an array for each part would take longer than its ids."""
        lots = [b"\n".join(new[i : i + LINES]) + b"\n" for i in range(0, len(new), LINES)]
        ids = np.concatenate(self._encode(lots))
        bytes_so_far = np.cumsum(self._token_bytes[ids], dtype=np.int64)
        newlines = np.searchsorted(bytes_so_far, np.cumsum([len(part) + 1 for part in new]))
        if bytes_so_far[-1] != sum(map(len, lots)):
            raise DataError("the tokenizer is not lossless: the ids of some words do not stand for their bytes")
        lengths = np.diff(newlines, prepend=-1) - 1
        first, last, n_ids = self._n_learnt, self._n_learnt + len(new), self._n_ids + len(ids)
        self._lengths, self._starts = _with_room(self._lengths, last), _with_room(self._starts, last)
        self._lengths[first:last], self._starts[first:last] = lengths, self._n_ids + newlines - lengths
        self._ids = _with_room(self._ids, n_ids)
        self._ids[self._n_ids : n_ids] = ids
        self._n_learnt, self._n_ids = last, n_ids

    def _forget(self) -> None:
        self._known = _Known()
        self._ids = np.empty(1 << 16, dtype=np.int32)
        self._starts = np.empty(1 << 14, dtype=np.int64)
        self._lengths = np.empty(1 << 14, dtype=np.int64)
        self._n_learnt = self._n_ids = 0


class _Known(dict[bytes, int]):
    """Part → its number; a part never met gets the next number and is noted as new."""

    def __init__(self):
        super().__init__()
        self.new: list[bytes] = []
        self.n_bytes = 0

    def __missing__(self, part: bytes) -> int:
        number = self[part] = len(self)
        self.new.append(part)
        self.n_bytes += len(part)
        return number


def _pieces(text: bytes) -> Iterator[bytes]:
    """The text cut at borders between parts, into pieces of PIECE_BYTES or one longer part. Empty text: one piece."""
    start = 0
    while len(text) - start > PIECE_BYTES and (border := BORDER.search(text, start + PIECE_BYTES - 1)):
        yield text[start : border.end()]
        start = border.end()
    yield text[start:]


def _with_room(array: Array, size: int) -> Array:
    """The same array, or a copy at least twice as long that holds `size` items."""
    if size <= len(array):
        return array
    larger: Any = np.empty(max(size, 2 * len(array)), dtype=array.dtype)
    larger[: len(array)] = array
    return larger
