"""The evaluation files as a sorted table of n-gram hashes.

In: evaluation files. Out: one file, and from it an `Index` that finds, among the n-grams of documents, those of
evaluation items, and the words and items behind them. Its size follows the evaluation files, which are small.

An item has one text for each field, or element of a list. A text of `ngram` words or more is searched for by all its
n-grams, one of `min_words` or more as a whole; a shorter one is not, and the item is counted as not searched if it has
no other. Items that are malformed, or lack every field, are refused: nothing is left out silently.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.decontaminate.config import TEXT_SUFFIX, DecontaminateConfig
from data_prep.dedup.columns import Columns, writing
from data_prep.dedup.words import Hashes, Ints, grams, word_blocks, word_strings
from data_prep.files import DataError

SIEVE_BITS = range(16, 27)
SPARSE = 16  # entries of the sieve for one n-gram: so few other n-grams pass


@dataclass(frozen=True)
class Item:
    file: str
    id: str
    searched: bool


def build_index(config: DecontaminateConfig, path: Path) -> None:
    """Raises DataError for an evaluation file that cannot be read, or in which nothing can be searched for."""
    names: list[tuple[str, str]] = []
    texts: list[bytes] = []
    owners: list[int] = []
    for name in config.files:
        for item_id, found in _items(Path(name), config.fields):
            owners += [len(names)] * len(found)
            texts += found
            names.append((PurePath(name).name, item_id))
    lengths = _lengths(texts, config)
    searched = {owner for owner, length in zip(owners, lengths.tolist(), strict=True) if length}
    _refuse_idle_files(config, names, searched)
    facts = {
        "items": [[*name, number in searched] for number, name in enumerate(names)],
        "lengths": sorted({length for length in lengths.tolist() if length}),
    }
    with writing(path, facts) as out:
        out.write("item", np.array(owners, np.int64))
        out.write("end", np.cumsum([len(text) for text in texts]).astype(np.int64))
        out.write("utf8", np.frombuffer(b"".join(texts), np.uint8))
        for n in facts["lengths"]:
            hashes, text, at = _gram_table(texts, np.flatnonzero(lengths == n), n)
            out.write(f"hash{n}", hashes)
            out.write(f"text{n}", text)
            out.write(f"at{n}", at)


class Index:
    def __init__(self, path: Path):
        self._columns = Columns(path)
        self.items = [Item(*item) for item in self._columns.facts["items"]]
        self.lengths: list[int] = self._columns.facts["lengths"]
        self._sieves = {n: _sieve(self._columns[f"hash{n}"]) for n in self.lengths}

    def among(self, hashes: Hashes, n: int) -> NDArray[np.bool_]:
        """(N,) which of these hashes of n words are those of some evaluation text."""
        sieve, shift = self._sieves[n]
        passed = sieve[(hashes >> shift).astype(np.int64)]
        rows = np.flatnonzero(passed)
        known = self._columns[f"hash{n}"]
        at = np.searchsorted(known, hashes[rows])
        passed[rows] = known.take(at, mode="clip") == hashes[rows]
        return passed

    def words(self, gram: int, n: int) -> list[str]:
        """The n words behind a hash of the index."""
        row = int(np.searchsorted(self._columns[f"hash{n}"], np.uint64(gram)))
        at = int(self._columns[f"at{n}"][row])
        return self._words_of(int(self._columns[f"text{n}"][row]))[at : at + n]

    def items_of(self, gram: int, n: int) -> list[int]:
        """Positions in `items` of those that hold it."""
        known = self._columns[f"hash{n}"]
        low, high = np.searchsorted(known, np.uint64(gram)), np.searchsorted(known, np.uint64(gram), side="right")
        return np.unique(self._columns["item"][self._columns[f"text{n}"][low:high]]).tolist()

    @functools.lru_cache(maxsize=256)  # noqa: B019  an index lives as long as its process
    def _words_of(self, text: int) -> list[str]:
        start, stop = int(self._columns["end"][text - 1]) if text else 0, int(self._columns["end"][text])
        utf8 = self._columns["utf8"][start:stop].tobytes()
        return [word for piece in word_strings(utf8) for word in piece]


# --- evaluation files ------------------------------------------------------------------------------------------------


def _items(file: Path, fields: Sequence[str]) -> Iterator[tuple[str, list[bytes]]]:
    """(name of the item, its texts)."""
    try:
        content = file.read_bytes().decode()
    except OSError as error:
        raise DataError(f"cannot read the evaluation file {file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the evaluation file {file} is not UTF-8: {error.reason} at byte {error.start}") from error
    if file.suffix == TEXT_SUFFIX:
        yield file.name, [content.encode()]
        return
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            where = f"{file.name}:{number}"
            yield where, [text.encode("utf-8", "replace") for text in _texts(line, where, fields)]


def _texts(line: str, where: str, fields: Sequence[str]) -> list[str]:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"evaluation item {where} is not JSON: {error}") from None
    present = [item[name] for name in fields if name in item] if isinstance(item, dict) else []
    texts = [text for value in present for text in (value if isinstance(value, list) else [value])]
    if not texts or not all(isinstance(text, str) for text in texts):
        has = ", ".join(sorted(item)) if isinstance(item, dict) else f"a {type(item).__name__}"
        raise DataError(
            f"evaluation item {where} has no text, or something else, in decontaminate.fields=[{', '.join(fields)}]; "
            f"it has: {has}"
        )
    return texts


def _refuse_idle_files(config: DecontaminateConfig, names: Sequence[tuple[str, str]], searched: set[int]) -> None:
    busy = {names[number][0] for number in searched}
    for name in config.files:
        if PurePath(name).name not in busy:
            raise DataError(
                f"no item of {name} has a text of decontaminate.min_words={config.min_words} words or more, so nothing "
                "would be searched for; name other decontaminate.fields, or leave the file out"
            )


# --- n-grams ---------------------------------------------------------------------------------------------------------


def _lengths(texts: Sequence[bytes], config: DecontaminateConfig) -> Ints:
    """(texts,) the length of the n-grams by which each is searched for, 0 for too few words."""
    counts = np.zeros(len(texts), np.int64)
    for block in word_blocks(texts):
        np.add.at(counts, block.documents, block.counts)
    return np.where(counts < config.min_words, 0, np.minimum(counts, config.ngram))


def _gram_table(texts: Sequence[bytes], chosen: Ints, n: int) -> tuple[Hashes, Ints, Ints]:
    """Hashes, ascending, with text and position of the first word; once for a text that repeats itself."""
    hashes: list[Hashes] = []
    owners: list[Ints] = []
    for block in grams((texts[i] for i in chosen), n):
        hashes.append(block.hashes)
        owners.append(np.repeat(chosen[block.documents], block.counts))
    table, owner = np.concatenate(hashes), np.concatenate(owners)
    begins = np.searchsorted(owner, owner)  # texts come in order, so a gram's position is its distance from the first
    at = np.arange(len(owner)) - begins
    order = np.lexsort((at, owner, table))
    table, owner, at = table[order], owner[order], at[order]
    new = np.ones(len(table), np.bool_)
    new[1:] = (table[1:] != table[:-1]) | (owner[1:] != owner[:-1])
    return table[new], owner[new], at[new]


def _sieve(hashes: Any) -> tuple[NDArray[np.bool_], np.uint64]:
    """A table by the highest bits of a hash: false where no such hash is known. Answers most questions by one look."""
    bits = min(max((len(hashes) * SPARSE).bit_length(), SIEVE_BITS.start), SIEVE_BITS[-1])
    shift = np.uint64(64 - bits)
    sieve = np.zeros(1 << bits, np.bool_)
    sieve[(hashes >> shift).astype(np.int64)] = True
    return sieve, shift
