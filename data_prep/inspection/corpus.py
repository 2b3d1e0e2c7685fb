"""A finished dataset, opened for questions: which shards, which document, what text, from which input.

In: a dataset's folder. Out: `Corpus`. Nothing is held but the manifest; shards are opened when asked for.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_prep.exchange.indexes import Index, Row, ids_of
from data_prep.exchange.peer_tokenizer import PeerTokenizer, of_dataset
from data_prep.files import DataError
from data_prep.inspection.config import PLACE
from data_prep.manifest import SPLITS, Manifest, ShardEntry
from data_prep.shards import Sidecar, read_sidecar


@dataclass(frozen=True)
class Excerpt:
    """Part of a document, decoded. `marked` is the token asked for, empty when the document itself was."""

    shard: str
    split: str
    source: str
    document: int
    tokens: int
    """Of the whole document, end-of-text included."""
    offset: int
    """Position of its first token in the split."""
    position: int
    """Of the marked token inside the document; 0 when the document itself was asked for."""
    before: str
    marked: str
    after: str
    cut_before: bool
    cut_after: bool
    """Whether more of the document lies before and after what is shown."""
    origins: tuple[str, ...]
    """Inputs that the document can come from."""


@dataclass(frozen=True)
class OpenShard:
    sidecar: Sidecar
    index: Index
    ids: Row


class Corpus:
    def __init__(self, folder: Path):
        """Raises DataError when there is no finished dataset, or one that is damaged at a glance."""
        self.folder = Path(folder)
        self.manifest = Manifest.load(self.folder)
        self.manifest.check(self.folder)
        self.tokenizer: PeerTokenizer = of_dataset(self.folder, self.manifest)
        self.shards = tuple(shard for split in SPLITS for shard in self.manifest.shards_of(split))
        self.shard = lru_cache(maxsize=8)(self._open)

    def _open(self, name: str) -> "OpenShard":
        sidecar = read_sidecar(self.folder / name)
        return OpenShard(sidecar, Index(self.folder / name, sidecar), ids_of(self.folder / name, sidecar))

    def at_document(self, place: str, n_tokens: int) -> Excerpt:
        """`SHARD:N` → the beginning of that document. Raises DataError when there is none."""
        name, number = _parsed(place)
        shard = next((shard for shard in self.shards if shard.name == name), None)
        if shard is None:
            names = ", ".join(shard.name for shard in self.shards[:3])
            raise DataError(
                f"no shard {name} with documents in {self.folder}; there are {len(self.shards)}: {names} ..."
            )
        if number >= shard.documents:
            raise DataError(f"{name} has documents 0 ... {shard.documents - 1}; {number} was asked for")
        return self.excerpt(shard, number, n_tokens)

    def at_offset(self, place: str, n_tokens: int) -> Excerpt:
        """`SPLIT:POSITION` → the document around that token. Raises DataError when there is none."""
        split, position = _parsed(place)
        if position >= self.manifest.tokens(split):
            raise DataError(
                f"the {split} split of {self.folder} has {self.manifest.tokens(split)} tokens; position {position} "
                f"was asked for (splits: {', '.join(SPLITS)})"
            )
        for shard in self.manifest.shards_of(split):
            if position < shard.tokens:
                index = self.shard(shard.name).index
                document = index.document_at(position)
                return self.excerpt(shard, document, n_tokens, position - index.bounds(document)[0])
            position -= shard.tokens
        raise AssertionError("unreachable: the position lies inside the split")

    def excerpt(self, shard: ShardEntry, document: int, n_tokens: int, position: int | None = None) -> Excerpt:
        """`n_tokens` of a document from its beginning, or around a token of it."""
        opened = self.shard(shard.name)
        ids = opened.ids
        start, stop = opened.index.bounds(document)
        at = start if position is None else start + position
        first = max(start, min(at - n_tokens // 2, stop - n_tokens))
        last = min(stop, first + n_tokens)
        marked = 0 if position is None else 1
        decode = self.tokenizer.decode
        return Excerpt(
            shard=shard.name,
            split=shard.split,
            source=shard.source,
            document=document,
            tokens=stop - start,
            offset=self._offset_of(shard) + start,
            position=position or 0,
            before=decode(ids[first:at]),
            marked=self.tokenizer.piece(ids[at]) if marked else "",
            after=decode(ids[at + marked : last]),
            cut_before=first > start,
            cut_after=last < stop,
            origins=origins(opened.sidecar, document),
        )

    def drawn(self, n: int, seed: int, n_tokens: int) -> list[Excerpt]:
        """`n` different documents, each as likely as any other, in the order of the dataset."""
        ends = np.cumsum([shard.documents for shard in self.shards], dtype=np.int64)
        total = int(ends[-1]) if len(ends) else 0
        rng, chosen = np.random.default_rng(seed), set[int]()
        while len(chosen) < min(n, total):
            chosen.add(int(rng.integers(total)))
        return [self.excerpt(*self._document(ends, number), n_tokens) for number in sorted(chosen)]

    def _document(self, ends: np.ndarray, number: int) -> tuple[ShardEntry, int]:
        shard = int(np.searchsorted(ends, number, side="right"))
        return self.shards[shard], number - (int(ends[shard - 1]) if shard else 0)

    def _offset_of(self, shard: ShardEntry) -> int:
        """Tokens of the split before this shard."""
        before = 0
        for other in self.manifest.shards_of(shard.split):
            if other.name == shard.name:
                break
            before += other.tokens
        return before


def origins(sidecar: Sidecar, document: int) -> tuple[str, ...]:
    """The input behind a document: inputs give their documents to a shard in order, so counting finds it."""
    for name, n in _counts(sidecar):
        if document < n:
            return (name,)
        document -= n
    return ()


def _counts(sidecar: Sidecar) -> Iterator[tuple[str, int]]:
    """(input, how many documents of it are in this shard), in order."""
    for span in sidecar.spans:
        yield span.name, span.documents


def _parsed(place: str) -> tuple[str, int]:
    found = PLACE.fullmatch(place)
    if not found:
        raise DataError(f"{place!r} is not NAME:NUMBER")
    return found[1], int(found[2])
