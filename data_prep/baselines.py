"""How well general compressors do on the held-out text: the yardstick beside a model's bits per byte.

In: the val shards, decoded again, which also proves that the whole way from text to shard lost nothing: every document
must have exactly the bytes that its ids stand for, and must still hash into the held-out split.
"""

import gzip
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.files import DataError
from data_prep.shards import ShardReader
from data_prep.split import is_held_out
from data_prep.tokenizer import Tokenizer

TEXT_BYTES = 16 << 20  # beyond this xz takes minutes and the figure hardly moves


def baselines(
    stems: Iterable[Path], tokenizer: Tokenizer, token_bytes: npt.NDArray[np.uint16], val_fraction: float
) -> dict[str, float]:
    """Bits per byte of `gzip -9` and `xz -9` on the first 16 MiB of held-out text; empty when there is none."""
    text = bytearray()
    for part in _decoded(stems, tokenizer, token_bytes, val_fraction):
        text += part
        if len(text) >= TEXT_BYTES:
            break
    if not text:
        return {}
    content = bytes(text[:TEXT_BYTES])
    sizes = {"gzip": len(gzip.compress(content, 9, mtime=0)), "xz": len(lzma.compress(content, preset=9))}
    return {f"{name}_bits_per_byte": round(8 * size / len(content), 6) for name, size in sizes.items()}


def _decoded(
    stems: Iterable[Path], tokenizer: Tokenizer, token_bytes: npt.NDArray[np.uint16], val_fraction: float
) -> Iterator[bytes]:
    """UTF-8 of each document in order. Raises DataError when one does not come back as it went in."""
    for stem in stems:
        shard = ShardReader(stem)
        for i in range(shard.n_documents):
            ids = shard.document(i)
            text = tokenizer.decode(ids[:-1])
            content = text.encode()
            right_size = len(content) == int(token_bytes[ids].sum(dtype=np.int64))
            if ids[-1] != tokenizer.eos_id or not right_size or not is_held_out(content, val_fraction):
                raise DataError(
                    f"{stem}: document {i} did not survive the way to the shard; remove the shard and rerun"
                )
            yield content
