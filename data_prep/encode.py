"""Documents to ids to shards: the inner loop of a task, and the gate before it.

In: one task's input files. Out: one shard of each split, published whole. Every document is proved on the way: its ids
stand for exactly as many bytes as its text has. Counts balance per input file, or the task fails: documents in =
written to train + written to val + rejected by reason.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.config import OnBad, Source
from data_prep.document import Document, Outcome, Rejected, refusing
from data_prep.files import DataError
from data_prep.inputs import Input
from data_prep.progress import Progress
from data_prep.shards import InputCount, ShardHead, ShardWriter, shard_writer
from data_prep.sources import read
from data_prep.split import is_held_out
from data_prep.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 20
GATE_DOCUMENTS = 64
GATE_CHARACTERS = 1 << 20
PROBES = (
    "</s><s><unk><pad> <0x41>",
    "  leading, trailing  \n\n\t",
    "\r\n\x00 \u2581\u2581 \u2585",
    "e\u0301 \ufb01 \u00a0\u3000\ufeff 12345 \U0001f600\u200d\U0001f525",
)


@dataclass
class Counts:
    """What became of one input's documents so far."""

    documents_in: int = 0
    written: dict[str, int] = field(default_factory=lambda: {"train": 0, "val": 0})
    rejected: dict[str, int] = field(default_factory=dict[str, int])

    def balance(self, name: str) -> None:
        if self.documents_in != sum(self.written.values()) + sum(self.rejected.values()):
            raise DataError(f"the counts of {name} do not balance: {self}; nothing of this task was published")


@dataclass(frozen=True)
class Encoder:
    """All that the documents of a dataset have in common on their way into shards."""

    source: Source
    tokenizer: Tokenizer
    token_bytes: npt.NDArray[np.uint16]
    val_fraction: float
    on_bad: OnBad

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "val") if self.val_fraction > 0 else ("train",)

    def outcomes(self, item: Input) -> Iterator[Outcome]:
        return refusing(read(self.source, item), self.on_bad)

    def ids_of(self, documents: list[Document]) -> list[npt.NDArray[np.int32]]:
        """Encodes and proves. Raises DataError when ids do not stand for exactly the text's bytes."""
        rows = self.tokenizer.encode_batch([document.text for document in documents])
        for document, ids in zip(documents, rows, strict=True):
            n_text, n_ids = len(document.text.encode()), int(self.token_bytes[ids].sum(dtype=np.int64))
            if n_text != n_ids:
                raise DataError(
                    f"the tokenizer is not lossless: {document.id} has {n_text} bytes, its ids stand for {n_ids}; "
                    "train one here (tokenizer.model=null), or use one without normalisation and dummy prefix and "
                    "with byte fallback"
                )
        return rows


def gate(encoder: Encoder, inputs: Iterable[Input]) -> None:
    """Before the long job: decode(encode(x)) == x on awkward texts and on the first documents of inputs spread over
    the corpus. Raises DataError with the first difference."""
    documents = [Document(text, f"built-in probe {text!r}", "", 0) for text in PROBES]
    for item in inputs:
        documents += islice((x for x in encoder.outcomes(item) if isinstance(x, Document)), 4)
    for document in documents:
        document = Document(document.text[:GATE_CHARACTERS], document.id, document.source, 0)
        (ids,) = encoder.ids_of([document])
        back = encoder.tokenizer.decode(ids)
        if back != document.text:
            raise DataError(
                f"the tokenizer does not give back the text of {document.id}: {_difference(document.text, back)}"
            )


def spread(inputs: tuple[Input, ...]) -> list[Input]:
    """At most GATE_DOCUMENTS inputs at equal distances."""
    return list(inputs[:: -(-len(inputs) // GATE_DOCUMENTS)])


def encode_task(encoder: Encoder, task: str, inputs: Iterable[Input], folder: Path, progress: Progress) -> None:
    """Writes `train-<task>` and, unless nothing is held out, `val-<task>`."""
    head = ShardHead(task, encoder.tokenizer.sha256, encoder.tokenizer.vocab_size, encoder.tokenizer.eos_id)
    with contextlib.ExitStack() as stack:
        writers = {
            split: stack.enter_context(shard_writer(folder / f"{split}-{task}", head)) for split in encoder.splits
        }
        for item in inputs:
            counts = _encode_input(encoder, item, writers, progress)
            counts.balance(item.name)
            for split, writer in writers.items():
                writer.inputs.append(_record(item, counts, split))
            progress.file_done(item.bytes)


def _encode_input(encoder: Encoder, item: Input, writers: dict[str, ShardWriter], progress: Progress) -> Counts:
    counts = Counts()
    for batch in _batches(encoder.outcomes(item), counts):
        rows = encoder.ids_of(batch)
        n_bytes = 0
        for document, ids in zip(batch, rows, strict=True):
            split = "val" if is_held_out(document.text, encoder.val_fraction) else "train"
            size = len(document.text.encode())
            writers[split].add(ids, size)
            counts.written[split] += 1
            n_bytes += size
        progress.advance(batch[-1].end_byte, n_bytes, sum(len(ids) for ids in rows))
    return counts


def _batches(outcomes: Iterable[Outcome], counts: Counts) -> Iterator[list[Document]]:
    """Documents in lots of about BATCH_CHARACTERS; rejected ones are counted and stay behind."""
    batch: list[Document] = []
    size = 0
    for outcome in outcomes:
        counts.documents_in += 1
        if isinstance(outcome, Rejected):
            counts.rejected[outcome.reason] = counts.rejected.get(outcome.reason, 0) + 1
            continue
        batch.append(outcome)
        size += len(outcome.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _record(item: Input, counts: Counts, split: str) -> InputCount:
    rejected: dict[str, Any] = dict(sorted(counts.rejected.items()))
    return InputCount(item.name, item.bytes, item.sha256, counts.documents_in, counts.written[split], rejected)


def _difference(text: str, back: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
    return f"character {at} on, {text[at : at + 20]!r} came back as {back[at : at + 20]!r}"
