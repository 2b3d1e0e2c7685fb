"""Every id of a payload, block by block: looked at, and put right where that was asked for.

In: a `PeerFile` and its document ends. Out: `Examined`, or blocks of ids with documents left out and end-of-text ids
written. Documents may be longer than blocks.
"""

import hashlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.blocks import BlockSums
from data_prep.exchange.config import ImportConfig
from data_prep.exchange.indexes import Row
from data_prep.exchange.peer_tokenizer import PeerTokenizer
from data_prep.exchange.peers import PeerFile
from data_prep.files import DataError
from data_prep.shards import Ids


@dataclass(frozen=True)
class Examined:
    """What reading every id of a file told. `bad`: numbers of documents to leave out; `lacking`: how many documents
    do not end with the end-of-text id."""

    sha256: str
    text_bytes: int
    bad: Sequence[int]
    lacking: int


def examine(peer: PeerFile, ends: Row, tokenizer: PeerTokenizer, config: ImportConfig, sums: BlockSums) -> Examined:
    """Reads every id once; the bytes go through `sums`. Raises DataError on the first id outside the vocabulary.

    An id without text is in order at its declared place: `eos_id` as the last of a document, `bos_id` as the first,
    `allow_ids` anywhere.
    """
    textless = tokenizer.token_bytes == 0
    textless[config.allow_ids] = False
    sha256, text_bytes, lacking, position = hashlib.sha256(), 0, 0, 0
    bad = array("q")
    for ids in peer.blocks():
        after = position + len(ids)
        content = ids.tobytes()
        sha256.update(content)
        sums.update(content)
        _check_range(peer, ids, position, tokenizer.vocab_size)
        text_bytes += int(tokenizer.token_bytes[ids].sum(dtype=np.int64))
        first, stop = bisect_right(ends, position), bisect_right(ends, after)
        last_ones = ends[first:stop] - 1 - position
        lacking += int((ids[last_ones] != tokenizer.eos_id).sum())
        places = np.flatnonzero(textless[ids])
        out_of_place = places[~((ids[places] == tokenizer.eos_id) & np.isin(places, last_ones))]
        if len(out_of_place) and config.bos_id is not None:
            openings = np.append(last_ones + 1, 0 if position == 0 or (first and ends[first - 1] == position) else -1)
            out_of_place = out_of_place[~((ids[out_of_place] == config.bos_id) & np.isin(out_of_place, openings))]
        documents = np.unique(first + np.searchsorted(last_ones, out_of_place, side="left")).tolist()
        bad.extend(document for document in documents if not bad or document > bad[-1])
        position = after
    return Examined(sha256.hexdigest(), text_bytes, bad, lacking)


def mended(peer: PeerFile, ends: Row, bad: Sequence[int], eos_id: int) -> Iterator[tuple[Ids, Ids]]:
    """(ids (n,), token positions after the documents that end in them), without the `bad` documents, and with `eos_id`
    after every document that lacks it."""
    position = written = 0
    for ids in peer.blocks():
        after = position + len(ids)
        first, stop = bisect_right(ends, position), bisect_right(ends, after)
        dropped = np.array(bad[bisect_left(bad, first) : bisect_right(bad, stop)], np.int64)
        keep = np.ones(len(ids), bool)
        for document in dropped.tolist():
            start, end = _bounds(ends, document)
            keep[max(0, start - position) : max(0, min(end, after) - position)] = False
        last_ones = (ends[first:stop] - 1 - position)[~np.isin(np.arange(first, stop), dropped)]
        lacking = ids[last_ones] != eos_id
        new_ends = np.cumsum(keep)[last_ones]
        out = np.insert(ids[keep], new_ends[lacking], eos_id)
        yield out, written + new_ends + np.cumsum(lacking)
        position, written = after, written + len(out)


def control_message(
    peer: PeerFile, ends: Row, bad: Sequence[int], tokenizer: PeerTokenizer, config: ImportConfig
) -> str:
    start, stop = _bounds(ends, bad[0])
    ids = Row.of(peer.path, peer.dtype, peer.header_bytes, peer.tokens)[start:stop]
    inner = ids[:-1] if ids[-1] == tokenizer.eos_id else ids
    wrong = sorted({int(id) for id in inner[tokenizer.token_bytes[inner] == 0]} - set(config.allow_ids))
    return (
        f"{peer.path}: {len(bad)} documents hold an id without text where none is declared (first: document {bad[0]}, "
        f"ids {wrong}); name them in peer.allow_ids or peer.bos_id if they belong there, or leave these documents out: "
        "on_bad_document=skip"
    )


def _check_range(peer: PeerFile, ids: Ids, position: int, vocab_size: int) -> None:
    if int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
        at = int(np.flatnonzero((ids < 0) | (ids >= vocab_size))[0])
        raise DataError(
            f"{peer.path}: id {ids[at]} at token {position + at} lies outside the vocabulary 0 ... {vocab_size - 1}: "
            "another tokenizer made it, or the file is damaged"
        )


def _bounds(ends: Row, document: int) -> tuple[int, int]:
    return (ends[document - 1] if document else 0), ends[document]
