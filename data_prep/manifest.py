"""What a dataset is: its shards, counts, checksums, tokenizer, and where it came from. `train` imports this.

A dataset is a folder whose `manifest.json` was written last, so a folder with a manifest is complete. `Manifest.load`
reads it, `check` compares the folder with it in the time of a few file look-ups, `verify` reads every byte. In between,
whoever reads a part of a shard compares that part: the manifest knows the sums (`blocks.py`) by their SHA-256.
"""

import dataclasses
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from data_prep.blocks import BlockSums, sha256_through
from data_prep.files import DataError, publish_bytes, publish_json, sha256_file
from data_prep.shards import SUMS, file_of, parsed, read_json, read_sidecar, size_problem

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"
TOKEN_BYTES = "token_bytes.npy"
INPUTS = "inputs.jsonl"
OF_TOKENIZER = ("tokenizer.", "token_bytes.")
"""beginnings of the names of small files that are compared byte for byte whenever a dataset is opened"""
SPLITS = ("train", "val")
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
OUR_SHARD = re.compile(r"(train|val)-[0-9a-f]{16}")
SHARED_FIELDS = ("task", "source", "documents", "tokens", "text_bytes", "bin_sha256", "idx_sha256")
REPAIR = "To mend it, remove manifest.json and the named files, then run the same command again: the rest is re-used."


@dataclass(frozen=True)
class ShardEntry:
    name: str
    split: str
    task: str
    source: str
    """Label of the part of the corpus it holds; a shard holds one only."""
    documents: int
    tokens: int
    text_bytes: int
    bin_bytes: int
    idx_bytes: int
    json_bytes: int
    bin_sha256: str
    idx_sha256: str
    json_sha256: str

    def files(self) -> tuple["FileEntry", "FileEntry", "FileEntry"]:
        return (
            FileEntry(f"{self.name}.bin", self.bin_bytes, self.bin_sha256),
            FileEntry(f"{self.name}.idx", self.idx_bytes, self.idx_sha256),
            FileEntry(f"{self.name}.json", self.json_bytes, self.json_sha256),
        )


@dataclass(frozen=True)
class FileEntry:
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SourceEntry:
    """One source's balance. `documents_in` = train + val + all of `removed`."""

    name: str
    inputs: int
    documents_in: int
    train: int
    val: int
    removed: dict[str, int]
    """Documents that are in no shard, by reason."""
    changed: dict[str, int]
    """What `clean` altered inside documents that were kept, by rule."""


@dataclass(frozen=True)
class Manifest:
    schema_version: int
    fingerprint: str
    """Digest of the tokenizer and of the shards' contents: two datasets with the same one hold the same tokens."""
    plan: str
    """Digest of the inputs (names, sizes, versions) and options it was made from."""
    tokenizer_sha256: str
    vocab_size: int
    dtype: str
    eos_id: int
    options: dict[str, Any]
    """The configuration's keys that decide what the dataset is, flat."""
    baselines: dict[str, float]
    """Bits per byte of general compressors on the validation text; empty when nothing was held out."""
    sources: tuple[SourceEntry, ...]
    shards: tuple[ShardEntry, ...]
    files: tuple[FileEntry, ...]
    """All other files of the dataset; among them the shards' block checksums, SHARD.crc, and `inputs.jsonl`, one line a
    span of an input with its counts."""
    own_sha256: str = ""
    """Digest of all the above, by which `load` sees that nothing of it was altered."""
    sha256: str = ""
    """Digest of manifest.json itself; known once it lies on disk."""

    @property
    def documents_in(self) -> int:
        return sum(entry.documents_in for entry in self.sources)

    @property
    def removed(self) -> dict[str, int]:
        """Documents that are in no shard, by reason, over all sources."""
        return sum_by_key(entry.removed for entry in self.sources)

    @staticmethod
    def load(folder: Path) -> "Manifest":
        """Raises DataError: no manifest there, not JSON, another schema, altered, or a name that leaves the folder."""
        file = Path(folder) / MANIFEST
        if not file.is_file():
            raise DataError(
                f"{folder} holds no finished dataset ({MANIFEST} is missing, and it is written last); "
                f"make one with: python -m data_prep out={folder}"
            )
        tree = read_json(file)
        lists = {
            "sources": _entries(SourceEntry, tree, "sources", file),
            "shards": _entries(ShardEntry, tree, "shards", file),
            "files": _entries(FileEntry, tree, "files", file),
        }
        manifest = parsed(Manifest, tree | lists | {"sha256": sha256_file(file)}, file)
        for name in [entry.name for entry in (*manifest.shards, *manifest.files)]:
            if not PLAIN_NAME.fullmatch(name):
                raise DataError(f"{file} names {name!r}, which is not a plain file name of its own folder")
        if _digest(tree) != manifest.own_sha256:
            raise DataError(f"{file}: its own checksum differs, so it was altered after it was written")
        return manifest

    def publish(self, folder: Path) -> "Manifest":
        tree = dataclasses.asdict(self)
        publish_json(folder / MANIFEST, _signed(tree) | {"own_sha256": _digest(tree)})
        return Manifest.load(folder)

    def shards_of(self, split: str, source: str | None = None) -> tuple[ShardEntry, ...]:
        """The shards of this split (of one source, or of all) that hold tokens, in the order of the corpus."""
        return tuple(
            entry for entry in self.shards if entry.split == split and entry.tokens and source in (None, entry.source)
        )

    def documents(self, split: str) -> int:
        return sum(entry.documents for entry in self.shards_of(split))

    def tokens(self, split: str) -> int:
        """End-of-text ids included."""
        return sum(entry.tokens for entry in self.shards_of(split))

    def text_bytes(self, split: str) -> int:
        return sum(entry.text_bytes for entry in self.shards_of(split))

    def read(self, folder: Path, name: str) -> bytes:
        """Content of one of `files`. Raises DataError when it is not what was written."""
        entry = next(entry for entry in self.files if entry.name == name)
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {folder / name}: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise DataError(f"{folder / name}: its checksum differs from the manifest's, so its content was altered")
        return content

    def check(self, folder: Path) -> None:
        """The cheap part: every file there with its exact size, the right tokenizer, no stranger. Raises DataError with
        every problem; reads no shard, so 10 000 of them take a fraction of a second."""
        sums_sha256(folder, self)
        _raise_if(self._cheap_problems(Path(folder)), folder)

    def verify(self, folder: Path) -> int:
        """Reads every byte; returns how many. Raises DataError naming every file whose content was altered."""
        known = sums_sha256(folder, self)

        def compare(shard: ShardEntry, sums: bytes) -> str:
            fits = hashlib.sha256(sums).hexdigest() == known[shard.name]
            return (
                ""
                if fits
                else f"{shard.name}{SUMS} was made of other bytes than {shard.name}.bin has; {_resealed(folder)}"
            )

        return self._verify(Path(folder), compare)

    def seal(self, folder: Path) -> "Manifest":
        """Verifies all but the block checksums and makes those anew: for a dataset of before there were any, or where
        they alone are damaged. Tokens, names and fingerprint stay. Raises DataError as `verify` does."""
        folder, sealed = Path(folder), list[FileEntry]()

        def write(shard: ShardEntry, sums: bytes) -> str:
            publish_bytes(folder / f"{shard.name}{SUMS}", sums)
            sealed.append(FileEntry(f"{shard.name}{SUMS}", len(sums), hashlib.sha256(sums).hexdigest()))
            return ""

        bare = dataclasses.replace(self, files=tuple(e for e in self.files if not e.name.endswith(SUMS)))
        bare._verify(folder, write)
        return dataclasses.replace(self, files=(*bare.files, *sealed)).publish(folder)

    def _verify(self, folder: Path, of_shard: Callable[[ShardEntry, bytes], str]) -> int:
        """of_shard: is given the sums of every shard whose files are in order; returns what is wrong with them."""
        problems = self._cheap_problems(folder)
        for shard in self.shards:
            problems |= self._sidecar_problem(folder / shard.name, shard)
        problems |= self._own_problems(folder)
        for entry in self.files:
            problems |= _altered(folder, entry, problems)
        for shard in self.shards:
            sums = io.BytesIO()
            found = _shard_altered(folder, shard, problems, BlockSums(sums))
            if not found and (problem := of_shard(shard, sums.getvalue())):
                found = {folder / f"{shard.name}{SUMS}": problem}
            problems |= found
        _raise_if(problems, folder)
        return sum(entry.bytes for entry in self.all_files())

    def _own_problems(self, folder: Path) -> dict[Path, str]:
        """What the manifest says of itself, against its shards and the balance of the inputs."""
        file = folder / MANIFEST
        if content_fingerprint(self.tokenizer_sha256, self.shards) != self.fingerprint:
            return {file: f"{file}: its fingerprint is not that of its shards"}
        for entry in self.sources:
            held = [sum(s.documents for s in self.shards_of(split, entry.name)) for split in SPLITS]
            if held != [entry.train, entry.val] or sum(held) + sum(entry.removed.values()) != entry.documents_in:
                return {file: f"{file}: the counts of source {entry.name} do not balance"}
        return {}

    def all_files(self) -> Iterator[FileEntry]:
        """Every file of the dataset but the manifest."""
        yield from self.files
        for shard in self.shards:
            yield from shard.files()

    def _cheap_problems(self, folder: Path) -> dict[Path, str]:
        """At most one message for each file."""
        found = sizes_in(folder)
        suspects = [entry for entry in self.all_files() if found.get(entry.name) != entry.bytes]
        problems = {folder / entry.name: size_problem(folder / entry.name, entry.bytes) for entry in suspects}
        for entry in self.files:
            if entry.name.startswith(OF_TOKENIZER):
                problems |= _altered(folder, entry, problems)
        tokenizer = folder / TOKENIZER
        if tokenizer.is_file() and (its := sha256_file(tokenizer)) != self.tokenizer_sha256:
            problems[tokenizer] = f"{tokenizer} is another tokenizer: {its}, the dataset's is {self.tokenizer_sha256}"
        for name in sorted(shard_stems(found) - {shard.name for shard in self.shards}):
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
        if any(getattr(found, name) != getattr(shard, name) for name in SHARED_FIELDS):
            return {file: f"{file} tells of another shard than the manifest does"}
        return {}


def sums_sha256(folder: Path, manifest: Manifest) -> dict[str, str]:
    """SHA-256 of the block checksums of each shard, by its name. Raises DataError for a dataset that has none."""
    found = {entry.name.removesuffix(SUMS): entry.sha256 for entry in manifest.files if entry.name.endswith(SUMS)}
    missing = [shard.name for shard in manifest.shards if shard.name not in found]
    if missing:
        raise DataError(
            f"{folder} has no block checksums for {len(missing)} of its shards ({missing[0]} ...): it was made by an "
            f"earlier version; {_resealed(folder)}"
        )
    return found


def shard_stems(file_names: Iterable[str]) -> set[str]:
    """Names of all shards among these files, whole or partial: ours by their name, others by having .bin and .idx."""
    stems: dict[str, set[str]] = {}
    for stem, ending in map(os.path.splitext, file_names):
        if ending in (".bin", ".idx", SUMS, ".json"):
            stems.setdefault(stem, set()).add(ending)
    return {stem for stem, endings in stems.items() if OUR_SHARD.fullmatch(stem) or {".bin", ".idx"} <= endings}


def content_fingerprint(tokenizer_sha256: str, shards: Iterable[ShardEntry]) -> str:
    """SHA-256 over the tokenizer and, shard by shard, split, source and checksums; no names, times or places."""
    facts = [[entry.split, entry.source, entry.bin_sha256, entry.idx_sha256] for entry in shards]
    return hashlib.sha256(json.dumps([tokenizer_sha256, facts]).encode()).hexdigest()


def sum_by_key(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for count in counts:
        for key, n in count.items():
            total[key] = total.get(key, 0) + n
    return dict(sorted(total.items()))


def sizes_in(folder: Path) -> dict[str, int]:
    """Size of every file in the folder, with one pass over it."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error


def _resealed(folder: Path) -> str:
    return f"python -m data_prep stage=seal out={folder} verifies the dataset and makes its block checksums."


def _signed(tree: dict[str, Any]) -> dict[str, Any]:
    """What of a manifest its own digest is about."""
    return {key: value for key, value in tree.items() if key not in ("sha256", "own_sha256")}


def _digest(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(_signed(tree), sort_keys=True).encode()).hexdigest()


def _altered(folder: Path, entry: FileEntry, known: Container[Path], sums: BlockSums | None = None) -> dict[Path, str]:
    """Reads the file, unless it is `known` to be damaged: empty if its content is what was written."""
    file = folder / entry.name
    if file in known or (sha256_through(file, sums) if sums else sha256_file(file)) == entry.sha256:
        return {}
    return {file: f"{file}: its checksum differs from the manifest's, so its content was altered"}


def _shard_altered(folder: Path, shard: ShardEntry, known: Container[Path], sums: BlockSums) -> dict[Path, str]:
    ids, index, sidecar = shard.files()
    return _altered(folder, ids, known, sums) | _altered(folder, index, known, sums) | _altered(folder, sidecar, known)


def _entries(schema: type[Any], tree: dict[str, Any], key: str, file: Path) -> tuple[Any, ...]:
    found = tree.get(key)
    if not isinstance(found, list):
        raise DataError(f"{file} does not hold what it should: {key} is no list; it was altered after it was written")
    return tuple(parsed(schema, item, file) for item in cast(list[Any], found))


def _raise_if(problems: dict[Path, str], folder: Path) -> None:
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems.values())
        raise DataError(f"the dataset in {folder} is damaged ({len(problems)} found):\n{lines}\n{REPAIR}")
