"""What a dataset is: its shards, counts, checksums, tokenizer, and where it came from. numpy-free; `train` imports this.

A dataset is a folder whose `manifest.json` was written last, so a folder with a manifest is complete. `Manifest.load`
reads it, `check` compares the folder with it in the time of a few file look-ups, `verify` reads every byte.
"""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from data_prep.files import DataError, publish_json, sha256_file
from data_prep.shards import SCHEMA_VERSION, file_of, parsed, read_json, read_sidecar, size_problems

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"
TOKEN_BYTES = "token_bytes.npy"
SPLITS = ("train", "val")
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
OUR_SHARD = re.compile(r"(train|val)-[0-9a-f]{16}")
REPAIR = "To mend it, remove manifest.json and the named files, then run the same command again: the rest is re-used."


@dataclass(frozen=True)
class ShardEntry:
    name: str
    split: str
    task: str
    documents: int
    tokens: int
    text_bytes: int
    bin_bytes: int
    idx_bytes: int
    json_bytes: int
    bin_sha256: str
    idx_sha256: str
    json_sha256: str


@dataclass(frozen=True)
class FileEntry:
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class InputEntry:
    """One input file. `documents_in` = train + val + all of `rejected`."""

    path: str
    bytes: int
    sha256: str
    documents_in: int
    train: int
    val: int
    rejected: dict[str, int]


@dataclass(frozen=True)
class Manifest:
    schema_version: int
    fingerprint: str
    """Digest of the corpus, the tokenizer and the options: two datasets with the same one hold the same shards."""
    corpus_fingerprint: str
    tokenizer_sha256: str
    vocab_size: int
    dtype: str
    eos_id: int
    options: dict[str, Any]
    """The configuration's keys, flat, without `out` and `stage`."""
    documents_in: int
    rejected: dict[str, int]
    baselines: dict[str, float]
    """Bits per byte of general compressors on the validation text; empty when nothing was held out."""
    shards: tuple[ShardEntry, ...]
    files: tuple[FileEntry, ...]
    inputs: tuple[InputEntry, ...]
    sha256: str = ""
    """Digest of manifest.json itself; known once it lies on disk."""

    @staticmethod
    def load(folder: Path) -> "Manifest":
        """Raises DataError: no manifest there, not JSON, another schema, or a name that leaves the folder."""
        file = Path(folder) / MANIFEST
        if not file.is_file():
            raise DataError(
                f"{folder} holds no finished dataset ({MANIFEST} is missing, and it is written last); "
                f"make one with: python -m data_prep out={folder}"
            )
        tree = read_json(file)
        shards = _entries(ShardEntry, tree, "shards", file)
        files = _entries(FileEntry, tree, "files", file)
        inputs = _entries(InputEntry, tree, "inputs", file)
        manifest = parsed(
            Manifest, tree | {"shards": shards, "files": files, "inputs": inputs, "sha256": sha256_file(file)}, file
        )
        for name in [entry.name for entry in (*manifest.shards, *manifest.files)]:
            if not PLAIN_NAME.fullmatch(name):
                raise DataError(f"{file} names {name!r}, which is not a plain file name of its own folder")
        return manifest

    def publish(self, folder: Path) -> "Manifest":
        tree = dataclasses.asdict(self)
        del tree["sha256"]
        publish_json(folder / MANIFEST, tree)
        return Manifest.load(folder)

    def shards_of(self, split: str) -> tuple[ShardEntry, ...]:
        """The shards of this split that hold tokens, in the order of the corpus."""
        return tuple(entry for entry in self.shards if entry.split == split and entry.tokens)

    def documents(self, split: str) -> int:
        return sum(entry.documents for entry in self.shards_of(split))

    def tokens(self, split: str) -> int:
        """End-of-text ids included."""
        return sum(entry.tokens for entry in self.shards_of(split))

    def text_bytes(self, split: str) -> int:
        return sum(entry.text_bytes for entry in self.shards_of(split))

    def check(self, folder: Path) -> None:
        """The cheap part: every file there with its exact size, one tokenizer, no stranger. Raises DataError with
        every problem; reads no shard payload."""
        _raise_if(self._cheap_problems(Path(folder)), folder)

    def verify(self, folder: Path) -> int:
        """Reads every byte; returns how many. Raises DataError naming every file whose checksum differs."""
        folder = Path(folder)
        problems = self._cheap_problems(folder)
        named = " ".join(problems)
        n_bytes = 0
        for name, size, sha256 in self._all_files():
            file = folder / name
            if str(file) in named:
                continue  # already reported
            n_bytes += size
            if sha256_file(file) != sha256:
                problems.append(f"{file}: checksum differs from the manifest; its content was altered")
        _raise_if(problems, folder)
        return n_bytes

    def _all_files(self) -> Iterator[tuple[str, int, str]]:
        for entry in self.files:
            yield entry.name, entry.bytes, entry.sha256
        for entry in self.shards:
            yield f"{entry.name}.bin", entry.bin_bytes, entry.bin_sha256
            yield f"{entry.name}.idx", entry.idx_bytes, entry.idx_sha256
            yield f"{entry.name}.json", entry.json_bytes, entry.json_sha256

    def _cheap_problems(self, folder: Path) -> list[str]:
        problems = self._tokenizer_problems(folder)
        for entry in self.shards:
            problems += self._shard_problems(folder, entry)
        for entry in self.files:
            problems += _size_problem(folder / entry.name, entry.bytes)
        problems += [
            f"{folder / name}: a shard that the manifest does not know; remove it or move it away"
            for name in sorted(shard_stems(folder) - {entry.name for entry in self.shards})
        ]
        return problems

    def _tokenizer_problems(self, folder: Path) -> list[str]:
        file = folder / TOKENIZER
        if not file.is_file():
            return []  # named with the other files
        found = sha256_file(file)
        if found == self.tokenizer_sha256:
            return []
        return [f"{file} is not the tokenizer of this dataset: {found} instead of {self.tokenizer_sha256}"]

    def _shard_problems(self, folder: Path, entry: ShardEntry) -> list[str]:
        stem = folder / entry.name
        try:
            sidecar = read_sidecar(stem)
        except DataError as error:
            return [str(error)]
        if sidecar.tokenizer_sha256 != self.tokenizer_sha256:
            return [
                f"{stem}: a shard made with another tokenizer: {sidecar.tokenizer_sha256}, "
                f"the dataset's is {self.tokenizer_sha256}"
            ]
        theirs = (sidecar.documents, sidecar.tokens, sidecar.text_bytes, sidecar.bin_sha256, sidecar.idx_sha256)
        ours = (entry.documents, entry.tokens, entry.text_bytes, entry.bin_sha256, entry.idx_sha256)
        if theirs != ours:
            return [f"{file_of(stem, '.json')} tells of another shard than the manifest does"]
        return size_problems(stem, sidecar)


def shard_stems(folder: Path) -> set[str]:
    """Names of all shards in a folder, whole or partial: ours by their name, others by having .bin and .idx."""
    stems: dict[str, set[str]] = {}
    for file in folder.iterdir():
        if file.suffix in (".bin", ".idx", ".json"):
            stems.setdefault(file.stem, set()).add(file.suffix)
    return {stem for stem, endings in stems.items() if OUR_SHARD.fullmatch(stem) or {".bin", ".idx"} <= endings}


def _entries(schema: type[Any], tree: dict[str, Any], key: str, file: Path) -> tuple[Any, ...]:
    return tuple(parsed(schema, item, file) for item in cast(list[Any], tree.get(key) or []))


def _size_problem(file: Path, expected: int) -> list[str]:
    found = file.stat().st_size if file.is_file() else None
    if found == expected:
        return []
    return [f"{file} is missing" if found is None else f"{file}: expected {expected} bytes, found {found}"]


def _raise_if(problems: list[str], folder: Path) -> None:
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise DataError(f"the dataset in {folder} is damaged ({len(problems)} found):\n{lines}\n{REPAIR}")


__all__ = ["MANIFEST", "SCHEMA_VERSION", "SPLITS", "FileEntry", "InputEntry", "Manifest", "ShardEntry"]
