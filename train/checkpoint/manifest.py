"""`manifest.json`, by which a checkpoint is trusted: its step, and size and SHA-256 of every file; written last.

Its first line holds the SHA-256 of all that follows, so that damage to the manifest itself is found too. What it says
is believed only as far as it stays inside its folder: names of plain files there, nothing else is ever opened.
"""

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.errors import CheckpointError, UnreadableError

NAME = "manifest.json"
SCHEMA_VERSION = 3
_WITHOUT_CHECKSUM = 2
"""the schema before: the same, but for the first line"""
_LARGEST_BYTES = 2**30
_HEAD = re.compile(rb'\{\n  "sha256": "([0-9a-f]{64})",\n')
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


@dataclass(frozen=True)
class Manifest:
    step: int
    files: dict[str, "FileFacts"]
    tensor_hashes: dict[str, dict[str, str]]
    """kind → parameter name → hash"""


@dataclass(frozen=True)
class FileFacts:
    n_bytes: int
    sha256: str


def manifest_bytes(step: int, files: Mapping[str, FileFacts], tensor_hashes: Mapping[str, Mapping[str, str]]) -> bytes:
    facts = {
        "schema_version": SCHEMA_VERSION,
        "step": step,
        "files": {name: {"bytes": file.n_bytes, "sha256": file.sha256} for name, file in files.items()},
        "tensor_hashes": tensor_hashes,
    }
    rest = (json.dumps(facts, indent=2).removeprefix("{\n") + "\n").encode()
    return f'{{\n  "sha256": "{hashlib.sha256(rest).hexdigest()}",\n'.encode() + rest


def read_manifest(folder: Path) -> Manifest:
    """Raises CheckpointError if it is missing or damaged, or names what is no plain file's name; UnreadableError if
    another version of this program wrote it, or it cannot be looked at."""
    path = folder / NAME
    content = read_bytes(path)
    head = _HEAD.match(content)
    if head and hashlib.sha256(content[head.end() :]).hexdigest() != head[1].decode():
        raise CheckpointError(f"{path} was altered after it was written: its checksum does not match")
    facts = parse(path, content)
    version = facts.get("schema_version")
    if not isinstance(version, int):
        raise CheckpointError(f"{path} is not a checkpoint's manifest: it states no schema_version")
    if version not in (SCHEMA_VERSION, _WITHOUT_CHECKSUM):
        raise UnreadableError(_other_schema(folder, version))
    if version == SCHEMA_VERSION and not head:
        raise CheckpointError(f"{path} was altered after it was written: its first line holds no checksum")
    try:
        return _believed(path, facts)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path} is not a checkpoint's manifest: {error!r}") from None


def read_bytes(path: Path) -> bytes:
    """Of a small file of a checkpoint. Raises CheckpointError if it is missing or cannot be one, UnreadableError if it
    cannot be read."""
    require_plain(path)
    try:
        if (size := path.stat().st_size) > _LARGEST_BYTES:
            raise CheckpointError(f"{path} has {size} bytes; none that this program writes has over {_LARGEST_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise UnreadableError(f"{path} cannot be read: {error}") from None


def parse(path: Path, content: bytes) -> dict[str, Any]:
    """The JSON object in a file's content. Raises CheckpointError."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return found


def require_plain(path: Path) -> None:
    """Raises CheckpointError unless a file of this name is there, and is no link, device, pipe or folder;
    UnreadableError if that cannot be found out. Opens nothing."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise UnreadableError(f"{path} cannot be read: {error}") from None
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path} is a link, a folder or a device, and no file of a checkpoint: it was not opened")


def _believed(path: Path, facts: dict[str, Any]) -> Manifest:
    files = {name: FileFacts(int(file["bytes"]), str(file["sha256"])) for name, file in facts["files"].items()}
    if strange := [name for name in files if not _PLAIN.fullmatch(name)]:
        raise CheckpointError(
            f"{path} names {strange[0]!r}, which is not the name of a file in its folder: nothing was opened"
        )
    if lacking := [name for name in ("state.json", "index.jsonl") if name not in files]:
        raise CheckpointError(f"{path} does not name {lacking[0]}")
    return Manifest(int(facts["step"]), files, dict(facts["tensor_hashes"]))


def _other_schema(folder: Path, version: int) -> str:
    if version == 1:
        return (
            f"{folder} was written by an earlier version of this program (checkpoint schema 1; this one reads schema "
            f"{SCHEMA_VERSION}). Finish the run with the version that began it, or begin it anew under another run.name"
        )
    return f"{folder}: checkpoint schema {version}, expected {SCHEMA_VERSION}"
