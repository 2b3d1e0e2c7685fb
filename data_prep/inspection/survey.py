"""What is in a dataset: counts, lengths, extremes, token frequencies, documents to read.

In: a `Corpus`. Out: a `Survey`, which the console table and the page are drawn from. Lengths come from the indexes, a
block at a time; frequencies from a bounded, seeded sample of the train split; so memory does not grow with the corpus.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.inspection.config import InspectConfig
from data_prep.inspection.corpus import Corpus, Excerpt
from data_prep.inspection.tokenizer_report import BYTE_PIECE
from data_prep.manifest import Manifest, ShardEntry

EDGES = np.unique(np.round(2.0 ** (np.arange(4 * 31 + 1) / 4)).astype(np.int64))
"""Borders of the length bins: four an octave, 1 ... 2^31 tokens."""
CHUNK_TOKENS = 4096
COUNTED_AT_ONCE = 256  # chunks
MOST_FREQUENT = 24
EXTREMES = 3


@dataclass(frozen=True)
class Part:
    """One source in one split. `histogram`, `token_histogram`: documents and their tokens in each bin of EDGES."""

    source: str
    split: str
    shards: int
    documents: int
    tokens: int
    text_bytes: int
    histogram: npt.NDArray[np.int64]
    token_histogram: npt.NDArray[np.int64]

    @property
    def bytes_per_token(self) -> float:
        """End-of-text ids stand for no text and do not count."""
        return self.text_bytes / max(1, self.tokens - self.documents)

    def length_at(self, share: float) -> int:
        """Tokens that this share of the documents do not exceed; interpolated in its bin, so right to about 19 %."""
        return quantile(self.histogram, share)


@dataclass(frozen=True)
class Use:
    """One id of the vocabulary in the sample."""

    id: int
    piece: str
    count: int


@dataclass(frozen=True)
class Vocabulary:
    """`counts`: (V,) in the sample, largest first; `half`: how many ids make up half of all tokens."""

    sampled_tokens: int
    is_whole: bool
    counts: npt.NDArray[np.int64]
    half: int
    top: tuple[Use, ...]
    unused: int
    """Ids that stand for text and are not in the sample; single-byte pieces, which are there for emergencies, apart."""
    unused_bytes: int
    unused_examples: tuple[str, ...]
    textless: int
    """Control ids and the unknown piece."""


@dataclass(frozen=True)
class Survey:
    name: str
    manifest: Manifest
    parts: tuple[Part, ...]
    losses: Mapping[str, Mapping[str, int]]
    """Documents left out: source → reason → how many."""
    vocabulary: Vocabulary
    shortest: tuple[Excerpt, ...]
    longest: tuple[Excerpt, ...]
    drawn: tuple[Excerpt, ...]
    found: tuple[Excerpt, ...]
    """What `document` and `offset` asked for."""

    @property
    def sources(self) -> tuple[str, ...]:
        """By tokens, largest first; those of which nothing is left come last."""
        tokens: dict[str, int] = dict.fromkeys(self.losses, 0)
        for part in self.parts:
            tokens[part.source] = tokens.get(part.source, 0) + part.tokens
        return tuple(sorted(tokens, key=lambda source: (-tokens[source], source)))

    def total(self, what: str, source: str | None = None, split: str | None = None) -> int:
        """Sum of `documents`, `tokens` or `text_bytes` over the parts of a source or a split."""
        return sum(
            getattr(part, what) for part in self.parts if source in (None, part.source) and split in (None, part.split)
        )

    def histogram(self, source: str | None = None, what: str = "histogram") -> npt.NDArray[np.int64]:
        """Documents (or, for `token_histogram`, their tokens) in each bin of EDGES."""
        rows = [getattr(part, what) for part in self.parts if source in (None, part.source)]
        return np.sum(rows, axis=0) if rows else np.zeros(len(EDGES), np.int64)

    def left_out(self, source: str) -> int:
        return sum(self.losses.get(source, {}).values())


def survey(corpus: Corpus, config: InspectConfig) -> Survey:
    """Raises DataError for a document or offset that is not there, and for a damaged index."""
    parts, shortest, longest = _parts(corpus, config.excerpt_tokens)
    found = [corpus.at_document(config.document, config.excerpt_tokens)] if config.document else []
    found += [corpus.at_offset(config.offset, config.excerpt_tokens)] if config.offset else []
    return Survey(
        name=corpus.folder.resolve().name,
        manifest=corpus.manifest,
        parts=parts,
        losses={entry.name: entry.removed for entry in corpus.manifest.sources if entry.removed},
        vocabulary=vocabulary(corpus, config.sample_tokens, config.seed),
        shortest=shortest,
        longest=longest,
        drawn=tuple(corpus.drawn(config.documents, config.seed, config.excerpt_tokens)),
        found=tuple(found),
    )


def quantile(histogram: npt.NDArray[np.int64], share: float) -> int:
    total = int(histogram.sum())
    if total == 0:
        return 0
    wanted = share * total
    upto = np.cumsum(histogram)
    bin = int(np.searchsorted(upto, wanted, side="left"))
    before = int(upto[bin - 1]) if bin else 0
    low, high = int(EDGES[bin]), int(EDGES[min(bin + 1, len(EDGES) - 1)])
    inside = (wanted - before) / max(1, int(histogram[bin]))
    return round(low * (max(low, high - 1) / low) ** inside)


# --- lengths ---------------------------------------------------------------------------------------------------------

_Place = tuple[int, ShardEntry, int]  # length, shard, document


def _parts(corpus: Corpus, n_tokens: int) -> tuple[tuple[Part, ...], tuple[Excerpt, ...], tuple[Excerpt, ...]]:
    groups: dict[tuple[str, str], list[ShardEntry]] = {}
    for shard in corpus.shards:
        groups.setdefault((shard.source, shard.split), []).append(shard)
    parts: list[Part] = []
    low: list[_Place] = []
    high: list[_Place] = []
    for (source, split), shards in groups.items():
        documents, tokens = np.zeros(len(EDGES), np.int64), np.zeros(len(EDGES), np.int64)
        for shard in shards:
            for first, lengths in corpus.shard(shard.name).index.lengths.blocks():
                bins = np.searchsorted(EDGES, lengths, side="right") - 1
                documents += np.bincount(bins, minlength=len(EDGES))
                tokens += np.bincount(bins, weights=lengths, minlength=len(EDGES)).astype(np.int64)
                low = sorted([*low, *_smallest(lengths, shard, first)], key=_order)[:EXTREMES]
                high = sorted([*high, *_smallest(-lengths, shard, first)], key=_order)[:EXTREMES]
        parts.append(_part(source, split, shards, documents, tokens))
    shortest, longest = (
        tuple(corpus.excerpt(shard, document, n_tokens) for _, shard, document in places) for places in (low, high)
    )
    return tuple(parts), shortest, longest


def _smallest(values: npt.NDArray[np.int32], shard: ShardEntry, first: int) -> Iterator[_Place]:
    """The EXTREMES smallest of a block."""
    n = min(EXTREMES, len(values))
    for place in np.argpartition(values, n - 1)[:n]:
        yield int(values[place]), shard, first + int(place)


def _order(place: _Place) -> tuple[int, str, int]:
    return place[0], place[1].name, place[2]


def _part(
    source: str,
    split: str,
    shards: list[ShardEntry],
    histogram: npt.NDArray[np.int64],
    token_histogram: npt.NDArray[np.int64],
) -> Part:
    return Part(
        source=source,
        split=split,
        shards=len(shards),
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        text_bytes=sum(shard.text_bytes for shard in shards),
        histogram=histogram,
        token_histogram=token_histogram,
    )


# --- frequencies -----------------------------------------------------------------------------------------------------


def vocabulary(corpus: Corpus, sample_tokens: int, seed: int) -> Vocabulary:
    """Counts ids on the train split, or on chunks of it drawn without replacement."""
    counts = np.zeros(corpus.tokenizer.vocab_size, np.int64)
    for ids in _sample(corpus, sample_tokens, seed):
        counts += np.bincount(ids, minlength=len(counts))
    order = np.argsort(-counts, kind="stable")
    sampled = int(counts.sum())
    textless = corpus.tokenizer.token_bytes == 0
    piece = corpus.tokenizer.piece
    absent = [int(id) for id in np.flatnonzero((counts == 0) & ~textless)]
    unused = [id for id in absent if not BYTE_PIECE.fullmatch(piece(id))]
    return Vocabulary(
        sampled_tokens=sampled,
        is_whole=sampled == corpus.manifest.tokens("train"),
        counts=counts[order],
        half=int(np.searchsorted(np.cumsum(counts[order]), sampled / 2, side="left")) + 1,
        top=tuple(Use(int(id), piece(int(id)), int(counts[id])) for id in order[:MOST_FREQUENT] if counts[id]),
        unused=len(unused),
        unused_bytes=len(absent) - len(unused),
        unused_examples=tuple(map(piece, unused[:: max(1, len(unused) // MOST_FREQUENT)][:MOST_FREQUENT])),
        textless=int(textless.sum()),
    )


def _sample(corpus: Corpus, sample_tokens: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Chunks of the train split, some hundred at a time; all of them when they are no more than asked for."""
    shards = corpus.manifest.shards_of("train")
    ends = np.cumsum([-(-shard.tokens // CHUNK_TOKENS) for shard in shards], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    wanted = max(1, sample_tokens // CHUNK_TOKENS)
    if corpus.manifest.tokens("train") <= sample_tokens:
        chunks = np.arange(total)
    else:
        rng, chosen = np.random.default_rng(seed), np.empty(0, np.int64)
        while len(chosen) < min(wanted, total):
            chosen = np.unique(np.concatenate([chosen, rng.integers(total, size=wanted)]))
        chunks = np.sort(rng.permutation(chosen)[:wanted])
    for first in range(0, len(chunks), COUNTED_AT_ONCE):
        rows: list[npt.NDArray[np.int64]] = []
        for chunk in chunks[first : first + COUNTED_AT_ONCE]:
            at = int(np.searchsorted(ends, chunk, side="right"))
            start = (int(chunk) - (int(ends[at - 1]) if at else 0)) * CHUNK_TOKENS
            rows.append(corpus.shard(shards[at].name).ids[start : start + CHUNK_TOKENS])
        yield np.concatenate(rows)
