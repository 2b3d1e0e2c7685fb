"""The stage `tokenizer`: a bounded sample of the corpus in, `tokenizer.model` and `tokenizer.json` in the dataset out.

The sample is drawn by seeded hashes, first of tasks, until several times the wanted bytes have been read, then of their
documents; it does not depend on the order in which anything runs, and held-out or removed documents never enter it. A
tokenizer that was made with the same settings is kept when its dataset is brought up to date: another vocabulary would
make every shard anew. `tokenizer.json` says what it was trained on.
"""

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.config import TokenizerConfig
from data_prep.curation import Removals
from data_prep.files import DataError, publish_bytes, publish_json
from data_prep.jobs import Done
from data_prep.manifest import TOKENIZER
from data_prep.progress import Progress
from data_prep.shards import SCHEMA_VERSION, read_json
from data_prep.slices import Slice
from data_prep.split import is_held_out
from data_prep.tokenizer import LOSSLESS, Tokenizer, train

ORIGIN = "tokenizer.json"
REPORT_BYTES, REPORT_PLACES = 1 << 20, 8  # of each source, for the report on a tokenizer
READ_FACTOR = 4  # how many times the wanted bytes are read before the draw of documents


def existing(folder: Path, settings: TokenizerConfig, wanted: dict[str, Any], plan: str | None) -> Tokenizer | None:
    """The tokenizer to use if no training is needed: the given model, or what an earlier run left in `folder`, made
    with the same settings and, unless `plan` is None, from this plan."""
    if settings.model is not None:
        return Tokenizer.load(Path(settings.model))
    try:
        record = read_json(folder / ORIGIN)
        tokenizer = Tokenizer.load(folder / TOKENIZER)
    except DataError:
        return None  # absent or unreadable: it is made anew
    same = record.get("settings") == wanted and record.get("sha256") == tokenizer.sha256
    from_plan = plan is None or (record.get("trained_on") or {}).get("plan") == plan
    return tokenizer if same and from_plan else None


def published_sha256(folder: Path) -> str:
    """Of the tokenizer that lies in `folder`. Raises DataError when there is none with a record that matches it."""
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    if read_json(folder / ORIGIN).get("sha256") != tokenizer.sha256:
        raise DataError(f"{folder / ORIGIN} does not tell of {folder / TOKENIZER}")
    return tokenizer.sha256


def wanted_settings(
    settings: TokenizerConfig, val_fraction: float, rules: str, corpus: dict[str, Any]
) -> dict[str, Any]:
    """All that decides the content of a trained model, but for the inputs. `rules`: digest of those of `clean`;
    `corpus`: the options of reading and curating."""
    return {
        "model_type": settings.model_type.value,
        "vocab_size": settings.vocab_size,
        "sample_bytes": settings.sample_bytes,
        "seed": settings.seed,
        "val_fraction": val_fraction,
        "clean": rules,
        "corpus": corpus,
        "lossless_settings": LOSSLESS,
    }


def publish(folder: Path, tokenizer: Tokenizer, settings: Any, trained_on: dict[str, Any] | None) -> None:
    """The record last: a model without a record that matches it is not used again."""
    record = {
        "schema_version": SCHEMA_VERSION,
        "sha256": tokenizer.sha256,
        "settings": settings,
        "trained_on": trained_on,
    }
    publish_bytes(folder / TOKENIZER, tokenizer.content)
    publish_json(folder / ORIGIN, record)


def make(
    slices: Sequence[Slice],
    removals: Callable[[Slice], Removals],
    settings: TokenizerConfig,
    val_fraction: float,
) -> tuple[Tokenizer, dict[str, Any]]:
    """Draws the sample and trains. `removals`: which documents of a slice to leave out.

    Returns the tokenizer and what it was trained on. Raises DataError as `tokenizer.train` does.
    """
    chosen = sorted(slices, key=lambda slice: _rank(_place(slice), settings.seed))
    progress = Progress("sampling", sum(slice.bytes for slice in chosen), len(chosen))
    reader = _Reader(chosen, removals, READ_FACTOR * settings.sample_bytes, progress)
    texts = draw(reader.texts(), settings.sample_bytes, settings.seed, val_fraction)
    progress.note(f"training the tokenizer on {len(texts):,} documents, {sum(map(len, texts)) / 1e6:,.1f} MB")
    content = train((text.decode() for text in texts), settings)
    trained_on = {
        "documents": len(texts),
        "bytes": sum(map(len, texts)),
        "tasks_read": reader.n_slices,
        "tasks": len(slices),
    }
    return Tokenizer(content, TOKENIZER), trained_on


def samples(
    slices: Sequence[Slice], removals: Callable[[Slice], Removals], sample_bytes: int = REPORT_BYTES
) -> dict[str, Iterator[bytes]]:
    """Source → some of its texts, from a few places of it, about `sample_bytes` in all: what a report is made on."""
    by_source: dict[str, list[Slice]] = {}
    for slice in sorted(slices, key=lambda slice: _rank(_place(slice), 0)):
        by_source.setdefault(slice.source, []).append(slice)
    return {source: _some_of(its[:REPORT_PLACES], removals, sample_bytes) for source, its in sorted(by_source.items())}


def _some_of(slices: Sequence[Slice], removals: Callable[[Slice], Removals], sample_bytes: int) -> Iterator[bytes]:
    for slice in slices:
        removed, left = removals(slice).load(), sample_bytes / len(slices)
        for number, text in enumerate(slice.texts()):
            if number not in removed:
                yield text[:sample_bytes].decode(errors="ignore").encode()
                left -= len(text)
            if left <= 0:
                break


class _Reader:
    """The texts of slices, one slice after the other, until enough of them was read."""

    def __init__(
        self,
        slices: Sequence[Slice],
        removals: Callable[[Slice], Removals],
        enough_bytes: int,
        progress: Progress,
    ):
        self._slices, self._removals, self._enough, self._progress = slices, removals, enough_bytes, progress
        self.n_slices = 0

    def texts(self) -> Iterator[bytes]:
        read = 0
        for slice in self._slices:
            if read >= self._enough:
                return
            self.n_slices += 1
            removed = self._removals(slice).load()
            for number, text in enumerate(slice.texts()):
                read += len(text)
                self._progress.advance(Done(documents=1, text_bytes=len(text)))
                if number not in removed:
                    yield text
            self._progress.job_done(slice.bytes)


def draw(texts: Iterable[bytes], limit_bytes: int, seed: int, val_fraction: float) -> list[bytes]:
    """Training documents in the order of their seeded hashes, `limit_bytes` of UTF-8; the last one may be cut.

    Kept on the way is the shortest beginning of that order that fills the limit: what was once dropped can never belong
    to it, so the result does not depend on the order of the texts. Memory: the limit and two documents.
    """
    heap: list[tuple[int, bytes]] = []
    total = 0
    for text in texts:
        if is_held_out(text, val_fraction):
            continue
        heapq.heappush(heap, (-_rank(text, seed), text))
        total += len(text)
        while total - len(heap[0][1]) >= limit_bytes:
            total -= len(heapq.heappop(heap)[1])
    drawn = [text for _, text in sorted(heap, reverse=True)]
    if total > limit_bytes:
        left = limit_bytes - sum(map(len, drawn[:-1]))
        drawn[-1] = drawn[-1][:left].decode(errors="ignore").encode()
    return drawn


def _place(slice: Slice) -> bytes:
    """Where the slice lies in the corpus: names and ranges, no times."""
    return "\n".join(f"{span.input.name} {span.start} {span.stop}" for span in slice.task.spans).encode()


def _rank(content: bytes, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:".encode() + content).digest()[:8])
