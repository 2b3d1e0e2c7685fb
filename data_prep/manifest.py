"""What a dataset is: its shards, counts, checksums, tokenizer, and where it came from. `train` imports this.

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
from data_prep.shards import file_of, parsed, read_json, read_sidecar, size_problem

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
        """Reads every byte; returns how many. Raises DataError naming every file whose content was altered."""
        folder = Path(folder)
        problems = self._cheap_problems(folder)
        n_bytes = 0
        for entry in self.all_files():
            file = folder / entry.name
            if file in problems:
                continue
            n_bytes += entry.bytes
            if sha256_file(file) != entry.sha256:
                problems[file] = f"{file}: its checksum differs from the manifest's, so its content was altered"
        _raise_if(problems, folder)
        return n_bytes

    def all_files(self) -> Iterator[FileEntry]:
        """Every file of the dataset but the manifest."""
        yield from self.files
        for shard in self.shards:
            yield FileEntry(f"{shard.name}.bin", shard.bin_bytes, shard.bin_sha256)
            yield FileEntry(f"{shard.name}.idx", shard.idx_bytes, shard.idx_sha256)
            yield FileEntry(f"{shard.name}.json", shard.json_bytes, shard.json_sha256)

    def _cheap_problems(self, folder: Path) -> dict[Path, str]:
        """At most one message for each file."""
        sizes = {folder / entry.name: size_problem(folder / entry.name, entry.bytes) for entry in self.all_files()}
        problems = {file: problem for file, problem in sizes.items() if problem}
        tokenizer = folder / TOKENIZER
        if tokenizer.is_file() and (found := sha256_file(tokenizer)) != self.tokenizer_sha256:
            problems[tokenizer] = f"{tokenizer} is another tokenizer: {found}, the dataset's is {self.tokenizer_sha256}"
        for shard in self.shards:
            problems |= self._sidecar_problem(folder / shard.name, shard)
        for name in sorted(shard_stems(folder) - {shard.name for shard in self.shards}):
            problems[folder / name] = f"{folder / name}: a shard that the manifest does not know; move it away"
        return problems

    def _sidecar_problem(self, stem: Path, shard: ShardEntry) -> dict[Path, str]:
        file = file_of(stem, ".json")
        try:
            found = read_sidecar(stem)
        except DataError as error:
            return {file: str(error)}
        if found.tokenizer_sha256 != self.tokenizer_sha256:
            digests = f"{found.tokenizer_sha256}, the dataset's is {self.tokenizer_sha256}"
            return {file: f"{stem} is a shard made with another tokenizer: {digests}"}
        theirs = (found.task, found.documents, found.tokens, found.text_bytes, found.bin_sha256, found.idx_sha256)
        if theirs != (shard.task, shard.documents, shard.tokens, shard.text_bytes, shard.bin_sha256, shard.idx_sha256):
            return {file: f"{file} tells of another shard than the manifest does"}
        return {}


def shard_stems(folder: Path) -> set[str]:
    """Names of all shards in a folder, whole or partial: ours by their name, others by having .bin and .idx."""
    stems: dict[str, set[str]] = {}
    for file in folder.iterdir():
        if file.suffix in (".bin", ".idx", ".json"):
            stems.setdefault(file.stem, set()).add(file.suffix)
    return {stem for stem, endings in stems.items() if OUR_SHARD.fullmatch(stem) or {".bin", ".idx"} <= endings}


def _entries(schema: type[Any], tree: dict[str, Any], key: str, file: Path) -> tuple[Any, ...]:
    return tuple(parsed(schema, item, file) for item in cast(list[Any], tree.get(key) or []))


def _raise_if(problems: dict[Path, str], folder: Path) -> None:
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems.values())
        raise DataError(f"the dataset in {folder} is damaged ({len(problems)} found):\n{lines}\n{REPAIR}")
