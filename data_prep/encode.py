"""Documents to ids to shards: the stage `encode`, and the gate before it.

In: one slice and the numbers of its documents that are removed. Out: one shard of each split, published whole. Every
document is proved on the way: its ids stand for exactly as many bytes as its text has, and of every lot the beginning
of one document is encoded again by SentencePiece alone. Counts balance per span, or the task fails: documents in =
written to train + written to val + removed by reason.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.curation import Removals
from data_prep.document import Document, Rejected
from data_prep.files import DataError
from data_prep.jobs import Done, content_id
from data_prep.manifest import TOKENIZER
from data_prep.parts import CleanJob
from data_prep.shards import (
    EOS_POLICY,
    SCHEMA_VERSION,
    ShardHead,
    ShardWriter,
    SpanCount,
    read_sidecar,
    shard_writer,
    size_problems,
)
from data_prep.slices import Slice
from data_prep.split import is_held_out
from data_prep.tokenizer import Tokenizer

BATCH_BYTES = 1 << 20
GATE_DOCUMENTS = 64
GATE_BYTES = 1 << 18
PROBES = (
    "</s><s><unk><pad> <0x41>",
    "  leading, trailing  \n\n\t",
    "\r\n\x00 \u2581\u2581 \u2585",
    "e\u0301 \ufb01 \u00a0\u3000\ufeff 12345 \U0001f600\u200d\U0001f525",
)


@dataclass(frozen=True)
class Vocabulary:
    """Which tokenizer a dataset is made with, small enough to be handed to another process."""

    folder: Path
    sha256: str

    def load(self) -> Tokenizer:
        """Raises DataError when the file is not the one that this dataset is made with."""
        tokenizer = Tokenizer.load(self.folder / TOKENIZER)
        if tokenizer.sha256 != self.sha256:
            raise DataError(f"{self.folder / TOKENIZER} was exchanged: {tokenizer.sha256}, expected {self.sha256}")
        return tokenizer


@dataclass(frozen=True)
class EncodeJob:
    slice: Slice
    removals: Removals
    """Which documents of the slice are not written."""
    cleaned: CleanJob | None
    """Who made the slice's part and has counted what it removed."""
    vocabulary: Vocabulary
    val_fraction: float
    folder: Path

    @property
    def id(self) -> str:
        return self._id

    @cached_property
    def _id(self) -> str:
        return content_id(
            {
                "schema_version": SCHEMA_VERSION,
                "eos_policy": EOS_POLICY,
                "slice": self.slice.id,
                "removed": sorted(self.removals.load().items()),
                "tokenizer_sha256": self.vocabulary.sha256,
                "val_fraction": self.val_fraction,
            }
        )

    @property
    def bytes(self) -> int:
        return self.slice.bytes

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "val") if self.val_fraction > 0 else ("train",)

    def stem(self, split: str) -> Path:
        return self.folder / f"{split}-{self.id}"

    def finished(self) -> bool:
        """True when all shards lie there with the sizes their sidecars say, and were made under rules as strict."""
        for split in self.splits:
            try:
                sidecar = read_sidecar(self.stem(split))
            except DataError:
                return False
            known = (sidecar.task, sidecar.tokenizer_sha256) == (self.id, self.vocabulary.sha256)
            laxer = any(self.slice.reading.refuses(reason) for span in sidecar.spans for reason in span.removed)
            if not known or laxer or size_problems(self.stem(split), sidecar):
                return False
        return True

    def run(self, advance: Callable[[Done], None]) -> None:
        """Writes `train-<id>` and, unless nothing is held out, `val-<id>`."""
        tokenizer = self.vocabulary.load()
        token_bytes = tokenizer.token_bytes()
        head = ShardHead(self.id, self.slice.source, tokenizer.sha256, tokenizer.vocab_size, tokenizer.eos_id)
        tallies = self._tallies()
        with contextlib.ExitStack() as stack:
            writers = {split: stack.enter_context(shard_writer(self.stem(split), head)) for split in self.splits}
            read = 0
            for lot in self._lots(tallies):
                done = _write(lot, tokenizer, token_bytes, writers, tallies, self.val_fraction)
                before, read = read, max(read, self._stored_bytes(lot[-1]))
                advance(dataclasses.replace(done, bytes=read - before))
            for i, tally in enumerate(tallies):
                for split, writer in writers.items():
                    writer.spans.append(self._count(i, tally, split))

    def _stored_bytes(self, last: tuple[int, Document]) -> int:
        """How much of the task is read when this document is."""
        span, document = last
        return sum(whole.stop - whole.start for whole in self.slice.task.spans[:span]) + document.end_byte

    def _tallies(self) -> list["Tally"]:
        """Empty ones, or what `clean` counted; its kept documents are the ones that come."""
        if self.cleaned is None:
            return [Tally() for _ in self.slice.task.spans]
        return [Tally(came.documents_in - came.kept, dict(came.removed)) for came in self.cleaned.tallies()]

    def _lots(self, tallies: Sequence["Tally"]) -> Iterator[list[tuple[int, Document]]]:
        """Documents with the number of their span, about BATCH_BYTES together; removed ones are only counted."""
        removed = self.removals.load()
        lot: list[tuple[int, Document]] = []
        size = number = 0
        for span, outcome in self.slice.outcomes():
            tally = tallies[span]
            tally.documents_in += 1
            if isinstance(outcome, Rejected):
                tally.remove(outcome.reason)
                continue
            reason = removed.get(number)
            number += 1
            if reason is not None:
                tally.remove(reason)
                continue
            lot.append((span, outcome))
            size += len(outcome.utf8)
            if size >= BATCH_BYTES:
                yield lot
                lot, size = [], 0
        if lot:
            yield lot
        if removed and max(removed) >= number:
            raise DataError(f"task {self.slice.id} has {number} documents, but number {max(removed)} is to be removed")

    def _count(self, i: int, tally: "Tally", split: str) -> SpanCount:
        span = self.slice.task.spans[i]
        if tally.documents_in != sum(tally.written.values()) + sum(tally.removed.values()):
            raise DataError(
                f"the counts of {span.input.name} do not balance: {tally}; nothing of this task was published"
            )
        return SpanCount(
            name=span.input.name,
            version=span.input.version,
            start=span.start,
            stop=span.stop,
            documents_in=tally.documents_in,
            documents=tally.written[split],
            removed=dict(sorted(tally.removed.items())),
        )


@dataclass
class Tally:
    """What became of one span's documents so far."""

    documents_in: int = 0
    removed: dict[str, int] = field(default_factory=dict[str, int])
    written: dict[str, int] = field(default_factory=lambda: {"train": 0, "val": 0})

    def remove(self, reason: str) -> None:
        self.removed[reason] = self.removed.get(reason, 0) + 1


def _write(
    lot: list[tuple[int, Document]],
    tokenizer: Tokenizer,
    token_bytes: npt.NDArray[np.uint16],
    writers: dict[str, ShardWriter],
    tallies: Sequence[Tally],
    val_fraction: float,
) -> Done:
    texts = [document.utf8 for _, document in lot]
    ids, lengths = tokenizer.encode_batch(texts)
    sizes = np.array([len(text) for text in texts], dtype=np.int64)
    _prove([document for _, document in lot], sizes, ids, lengths, token_bytes)
    tokenizer.compare_with_reference(texts[0])
    held_out = np.array([is_held_out(text, val_fraction) for text in texts])
    for split, mine in (("train", ~held_out), ("val", held_out)):
        if mine.any():
            writers[split].add(ids[np.repeat(mine, lengths)], lengths[mine], int(sizes[mine].sum()))
    for (span, _), is_val in zip(lot, held_out.tolist(), strict=True):
        tallies[span].written["val" if is_val else "train"] += 1
    return Done(documents=len(lot), text_bytes=int(sizes.sum()), tokens=int(lengths.sum()))


def _prove(
    documents: Sequence[Document],
    sizes: npt.NDArray[np.int64],
    ids: npt.NDArray[np.int32],
    lengths: npt.NDArray[np.int64],
    token_bytes: npt.NDArray[np.uint16],
) -> None:
    """Raises DataError when the ids of a document do not stand for exactly the bytes of its text."""
    ends = np.cumsum(lengths)
    so_far = np.concatenate([np.zeros(1, np.int64), np.cumsum(token_bytes[ids], dtype=np.int64)])
    found = so_far[ends] - so_far[ends - lengths]
    for i in np.flatnonzero(found != sizes)[:1]:
        raise DataError(
            f"the tokenizer is not lossless: {documents[i].id} has {sizes[i]} bytes, its ids stand for {found[i]}; "
            "train one here (tokenizer.model=null), or use one without normalisation and dummy prefix and with "
            "byte_fallback"
        )


def gate(vocabulary: Vocabulary, slices: Sequence[Slice]) -> None:
    """Raises DataError unless decode(encode(x)) == x for some awkward texts and for a sample of the corpus, and the
    quick way of encoding gives SentencePiece's own ids."""
    tokenizer = vocabulary.load()
    for text in (*(probe.encode() for probe in PROBES), *_sample(slices)):
        ids, _ = tokenizer.encode_batch([text])
        back = tokenizer.decode(ids)
        if back != text.decode():
            raise DataError(
                f"the tokenizer alters text: {_difference(text.decode(), back)}; use one without normalisation and "
                "dummy prefix and with byte_fallback, or train one here (tokenizer.model=null)"
            )
        tokenizer.compare_with_reference(text, len(text))


def _sample(slices: Sequence[Slice]) -> Iterator[bytes]:
    """First documents of tasks evenly spread over the corpus."""
    chosen = slices[:: max(1, -(-len(slices) // GATE_DOCUMENTS))]
    each = -(-GATE_DOCUMENTS // max(1, len(chosen)))
    left = GATE_BYTES
    for slice in chosen:
        for text in islice(slice.texts(), each):
            yield text[:GATE_BYTES].decode(errors="ignore").encode()
            left -= len(text)
            if left <= 0:
                return


def _difference(text: str, back: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
    return f"character {at} on, {text[at : at + 20]!r} came back as {back[at : at + 20]!r}"
