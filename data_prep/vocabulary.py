"""The tokenizer stage: a bounded sample of the corpus in, `tokenizer.model` and `tokenizer.json` in the dataset out.

The sample is drawn by a seeded hash of each text, so it depends neither on the order nor on the names of the inputs;
held-out documents never enter it. A tokenizer that lies there already is used again when `tokenizer.json` says that it
came from the same settings and the same corpus.
"""

import hashlib
import heapq
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_prep.config import DataPrepConfig
from data_prep.document import Document, Outcome
from data_prep.files import DataError, publish_bytes, publish_json
from data_prep.manifest import TOKENIZER
from data_prep.shards import SCHEMA_VERSION, read_json
from data_prep.split import is_held_out
from data_prep.tokenizer import LOSSLESS, Tokenizer, train

ORIGIN = "tokenizer.json"


def wanted_origin(config: DataPrepConfig, corpus_fingerprint: str) -> dict[str, Any]:
    """All that decides the content of a trained model."""
    settings = config.tokenizer
    return {
        "model_type": settings.model_type.value,
        "vocab_size": settings.vocab_size,
        "sample_bytes": settings.sample_bytes,
        "seed": settings.seed,
        "val_fraction": config.val_fraction,
        "lossless_settings": LOSSLESS,
        "corpus_fingerprint": corpus_fingerprint,
    }


def existing(config: DataPrepConfig, corpus_fingerprint: str) -> Tokenizer | None:
    """The tokenizer to use if no training is needed: the given model, or what an earlier run left in `out`."""
    if config.tokenizer.model is not None:
        return Tokenizer.load(Path(config.tokenizer.model))
    folder = Path(config.out)
    try:
        record = read_json(folder / ORIGIN)
        tokenizer = Tokenizer.load(folder / TOKENIZER)
    except DataError:
        return None  # absent or unreadable: it is made anew
    same = record.get("origin") == wanted_origin(config, corpus_fingerprint)
    return tokenizer if same and record.get("sha256") == tokenizer.sha256 else None


def make(config: DataPrepConfig, corpus_fingerprint: str, outcomes: Iterable[Outcome]) -> Tokenizer:
    """Draws the sample and trains. Raises DataError as `tokenizer.train` does."""
    sample = draw(outcomes, config.tokenizer.sample_bytes, config.tokenizer.seed, config.val_fraction)
    return Tokenizer(train(sample, config.tokenizer), TOKENIZER)


def publish(config: DataPrepConfig, tokenizer: Tokenizer, corpus_fingerprint: str) -> None:
    """The record last: a model without a record that matches it is not used again."""
    origin = wanted_origin(config, corpus_fingerprint) if config.tokenizer.model is None else "given"
    record = {"schema_version": SCHEMA_VERSION, "sha256": tokenizer.sha256, "origin": origin}
    publish_bytes(Path(config.out) / TOKENIZER, tokenizer.content)
    publish_json(Path(config.out) / ORIGIN, record)


def draw(outcomes: Iterable[Outcome], limit_bytes: int, seed: int, val_fraction: float) -> list[str]:
    """Training documents with the smallest hashes, together at most `limit_bytes` of UTF-8 (one longer text is cut).

    Memory: `limit_bytes` and one document. The result is sorted, so the order of the inputs does not matter.
    """
    heap: list[tuple[int, str]] = []
    total = 0
    for outcome in outcomes:
        if not isinstance(outcome, Document) or is_held_out(outcome.text, val_fraction):
            continue
        heapq.heappush(heap, (-_rank(outcome.text, seed), outcome.text))
        total += len(outcome.text.encode())
        while total > limit_bytes and len(heap) > 1:
            total -= len(heapq.heappop(heap)[1].encode())
    texts = [text for _, text in sorted(heap, reverse=True)]
    if total > limit_bytes:
        texts = [texts[0].encode()[:limit_bytes].decode(errors="ignore")]
    return texts


def _rank(text: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8])
