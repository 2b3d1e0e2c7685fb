"""What is deduplicated, under which settings, and where everything about it lies.

In: the configuration and the slices in corpus order. Out: a `Plan`, a small file in a folder that is
named by its content, from which every job reads what it needs:

    FOLDER/signatures/<16 digits>      one file a slice, named by the slice and the settings of signing; for all plans
    FOLDER/<16 digits>/plan-*.json     the settings, and the slices in order
    FOLDER/<16 digits>/<stage>/...     one file a job
    FOLDER/<16 digits>/report-*.json   written last: the removals beside it are valid

A document's number is its position in the whole corpus: the first number of its slice plus its position there.
"""

import dataclasses
import functools
import hashlib
import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_prep.dedup.columns import Columns
from data_prep.dedup.config import ExactDedup, MinHashDedup
from data_prep.dedup.sign import Signatures
from data_prep.dedup.words import Ints
from data_prep.files import publish_json

VERSION = 1  # raised when the same text and settings would give other files
ID_DIGITS = 16
SIGNATURES = "signatures"
SIGNING = ("kind", "ngram", "bands", "rows", "seed")  # the settings that a signature depends on
COMPARING = ("min_jaccard", "max_bucket")  # and what the pairs and removals depend on besides


class Slice(Protocol):
    """Some documents of one source; can be pickled."""

    def texts(self) -> Iterator[bytes]:
        """Its documents in order, as UTF-8; can be called again."""
        ...

    @property
    def id(self) -> str:
        """16 hexadecimal digits that stand for its content."""
        ...

    @property
    def source(self) -> str: ...

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of its documents, or an estimate: progress only."""
        ...


@dataclass(frozen=True)
class Plan:
    folder: Path
    """FOLDER of all plans"""
    config: ExactDedup | MinHashDedup
    ids: tuple[str, ...]
    """of the slices, in corpus order"""
    sources: tuple[str, ...]
    """of the same slices"""
    contaminated: Path | None = None
    """folder with a file a slice: documents that go in any case, so that no other may go in favour of them"""

    @functools.cached_property
    def id(self) -> str:
        gone = self.contaminated.parent.name if self.contaminated else ""
        return _digest([self._settings(SIGNING + COMPARING), self.ids, self.sources, gone])

    def signature(self, position: int) -> Path:
        return self.folder / SIGNATURES / _digest([self._settings(SIGNING), self.ids[position]])

    def path(self, *names: str) -> Path:
        return self.folder.joinpath(self.id, *names)

    @property
    def minhash(self) -> MinHashDedup:
        assert isinstance(self.config, MinHashDedup), "only near-duplicates have bands and shingles"
        return self.config

    @property
    def report(self) -> Path:
        """Written last: once it is there, the removals beside it are valid and have passed these limits."""
        limits = (self.config.max_source_loss, self.config.max_cluster_share)
        return self.path(f"report-{_digest(limits)}.json")

    @property
    def file(self) -> Path:
        return self.path(f"plan-{_digest(dataclasses.asdict(self.config))}.json")

    def publish(self) -> None:
        content = {
            "settings": dataclasses.asdict(self.config),
            "ids": self.ids,
            "sources": self.sources,
            "contaminated": str(self.contaminated or ""),
        }
        if not self.file.exists():
            publish_json(self.file, content)

    @staticmethod
    def load(file: Path) -> "Plan":
        """Parsed once as long as the file stays: each of thousands of jobs asks for it, and it names all slices."""
        state = file.stat()
        return _loaded(file, state.st_ino, state.st_mtime_ns)

    @functools.cached_property
    def firsts(self) -> Ints:
        """(slices + 1,) the number of each slice's first document, and the number of all documents."""
        return Columns(self.path("catalog"), check=True)["first"].astype(np.int64)

    def located(self, number: int) -> tuple[int, int]:
        """(position of the slice, position of the document in it)."""
        position = int(np.searchsorted(self.firsts, number, "right")) - 1
        return position, number - int(self.firsts[position])

    def ranks(self, numbers: Ints) -> tuple[Any, Any]:
        """(length (N,), hash (N, 2)) of the documents: what decides which of two duplicates stays."""
        length, hashes = np.empty(len(numbers), np.uint64), np.empty((len(numbers), 2), np.uint64)
        for position, chosen in self.by_slice(numbers):
            signatures = Signatures(self.signature(position))
            inside = numbers[chosen] - self.firsts[position]
            length[chosen], hashes[chosen] = signatures.length[inside], signatures.hash[inside]
        return length, hashes

    def by_slice(self, numbers: Ints) -> Iterator[tuple[int, Ints]]:
        """(position of a slice, indices of the numbers that lie in it), for each slice that has any."""
        positions = np.searchsorted(self.firsts, numbers, "right") - 1
        order = np.argsort(positions, kind="stable")
        found, begins = np.unique(positions[order], return_index=True)
        yield from zip(found.tolist(), np.split(order, begins[1:]), strict=bool(len(found)))

    def _settings(self, names: tuple[str, ...]) -> list[Any]:
        """Which characters are letters changes with Unicode's version, and with it the words."""
        chosen = {name: value for name, value in dataclasses.asdict(self.config).items() if name in names}
        return [VERSION, chosen, unicodedata.unidata_version if "ngram" in chosen else ""]


def plan(
    config: ExactDedup | MinHashDedup, slices: Sequence[Slice], folder: Path, contaminated: Path | None = None
) -> Plan:
    """Raises ValueError when two slices have one id: their signatures would be one file."""
    ids = tuple(part.id for part in slices)
    if len(set(ids)) < len(ids):
        raise ValueError("two slices have the same id")
    return Plan(folder, config, ids, tuple(part.source for part in slices), contaminated)


@functools.lru_cache(maxsize=2)
def _loaded(file: Path, _inode: int, _mtime_ns: int) -> Plan:
    stored = json.loads(file.read_text())
    kind = {"exact": ExactDedup, "minhash": MinHashDedup}[stored["settings"]["kind"]]
    contaminated = Path(stored["contaminated"]) if stored["contaminated"] else None
    settings = kind(**stored["settings"])
    return Plan(file.parent.parent, settings, tuple(stored["ids"]), tuple(stored["sources"]), contaminated)


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:ID_DIGITS]
