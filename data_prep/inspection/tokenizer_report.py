"""How well a tokenizer fits a corpus: bytes per token, tokens per word, and whether it can be trusted.

In: a tokenizer, and for each source any number of documents. Out: a `TokenizerReport` on a bounded, seeded sample of
them. It is made before the tokenizer has cost anything, so that two candidates can be laid side by side.
"""

import hashlib
import heapq
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.tokenizer import Tokenizer

SAMPLE_BYTES = 4 << 20
BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Fit:
    """One source's sample. `words`: runs of characters that are not white space, which says little where a script
    does not part words; `byte_tokens`: tokens that stand for one byte of a character that has no piece."""

    source: str
    documents: int
    bytes: int
    characters: int
    words: int
    tokens: int
    byte_tokens: int
    altered: int
    """Documents that do not come back from their ids as they were."""

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(1, self.tokens)

    @property
    def fertility(self) -> float:
        """Tokens per word (Rust et al. 2021, arXiv 2012.15613, section 3.1)."""
        return self.tokens / max(1, self.words)

    @property
    def byte_share(self) -> float:
        return self.byte_tokens / max(1, self.tokens)


@dataclass(frozen=True)
class TokenizerReport:
    name: str
    vocab_size: int
    fits: tuple[Fit, ...]
    controls: int
    """Control symbols whose spelling was tried as text."""
    leaking: tuple[str, ...]
    """Those whose spelling became a control id."""

    @property
    def is_safe(self) -> bool:
        return not self.leaking and not any(fit.altered for fit in self.fits)


def tokenizer_report(
    tokenizer: Tokenizer,
    samples: Mapping[str, Iterable[bytes]],
    *,
    name: str = "",
    sample_bytes: int = SAMPLE_BYTES,
    seed: int = 0,
) -> TokenizerReport:
    """`samples`: source → UTF-8 of documents; of each at most `sample_bytes` are used, chosen by a seeded hash of the
    text, so neither order nor repetition matters. Memory: `sample_bytes` and one document."""
    controls = np.flatnonzero(tokenizer.token_bytes() == 0)
    spellings = [tokenizer.piece(int(id)) for id in controls]
    leaking = [text for text in spellings if np.isin(tokenizer.encode(text), controls).any()]
    is_byte = np.array([bool(BYTE_PIECE.fullmatch(tokenizer.piece(id))) for id in range(tokenizer.vocab_size)])
    return TokenizerReport(
        name=name or tokenizer.sha256[:12],
        vocab_size=tokenizer.vocab_size,
        fits=tuple(
            _fit(tokenizer, source, drawn(texts, sample_bytes, seed), is_byte) for source, texts in samples.items()
        ),
        controls=len(spellings),
        leaking=tuple(leaking),
    )


def drawn(texts: Iterable[bytes], limit_bytes: int, seed: int) -> list[str]:
    """The texts with the smallest hashes, each once, together at most `limit_bytes`; a single longer one is cut.

    Kept on the way is the shortest beginning of the list by hash that fills `limit_bytes`: what was once dropped can
    never belong to it, so the result does not depend on the order.
    """
    heap: list[tuple[int, bytes]] = []
    kept: set[int] = set()
    total = 0
    for text in texts:
        rank = int.from_bytes(hashlib.blake2b(text, digest_size=8, salt=seed.to_bytes(16, "little")).digest())
        if rank in kept:
            continue
        heapq.heappush(heap, (-rank, text))
        kept.add(rank)
        total += len(text)
        while total - len(heap[0][1]) >= limit_bytes:
            last, dropped = heapq.heappop(heap)
            kept.discard(-last)
            total -= len(dropped)
    chosen = [text for _, text in sorted(heap, reverse=True)]
    if total > limit_bytes and len(chosen) > 1:
        chosen.pop()
    return [text[:limit_bytes].decode(errors="ignore") for text in chosen]


def _fit(tokenizer: Tokenizer, source: str, texts: list[str], is_byte: npt.NDArray[np.bool_]) -> Fit:
    rows = tokenizer.encode_each([text.encode() for text in texts])
    return Fit(
        source=source,
        documents=len(texts),
        bytes=sum(len(text.encode()) for text in texts),
        characters=sum(map(len, texts)),
        words=sum(len(text.split()) for text in texts),
        tokens=sum(map(len, rows)),
        byte_tokens=sum(int(is_byte[ids].sum()) for ids in rows),
        altered=sum(tokenizer.decode(ids) != text for ids, text in zip(rows, texts, strict=True)),
    )
