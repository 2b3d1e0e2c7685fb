"""Which checkpoint a run may trust: every byte against its manifest, each rank looking at its share of the files."""

import json
from pathlib import Path
from typing import Any

from data_prep.files import sha256_file
from train.checkpoint.commit import SCHEMA_VERSION
from train.checkpoint.folders import folder_name, steps_found
from train.checkpoint.peers import ALONE, Peers
from train.checkpoint.reader import Checkpoint
from train.errors import CheckpointError, UnreadableError


def newest_valid(folder: Path, peers: Peers = ALONE) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and a message for each newer one that does not. A collective.

    (None, []) if there is none at all. Raises CheckpointError if there are some and none verifies: a run never starts
    again from step 0 unasked; and UnreadableError, rather than going back behind it, for one that may be good.
    """
    messages: list[str] = []
    steps = steps_found(folder) if peers.is_first else []
    for position in range(peers.from_first(len(steps))):
        step = peers.from_first(steps[position] if peers.is_first else 0)
        try:
            return verify(folder / folder_name(step), peers), messages
        except UnreadableError:
            raise
        except CheckpointError as error:
            messages.append(str(error))
    if messages:
        raise CheckpointError(
            "no checkpoint can be trusted, and the run is not started from step 0 unasked:\n  "
            + "\n  ".join(messages)
            + f"\nTo give up this run's progress, remove {folder}; or use another run.name."
        )
    return None, []


def verify(path: Path, peers: Peers = ALONE) -> Checkpoint:
    """Checks every byte of a checkpoint. A collective. Raises CheckpointError, on all ranks, that names the file.

    A file that the manifest does not name is not part of the checkpoint, and is never read.
    """
    checkpoint, problem, may_be_good = None, None, False
    try:
        checkpoint = _opened(path, peers)
    except CheckpointError as error:
        problem, may_be_good = str(error), isinstance(error, UnreadableError)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f"{path / 'manifest.json'} is not a checkpoint's manifest: {error!r}"
    except OSError as error:
        problem, may_be_good = f"{path} cannot be read: {error}", True
    message = peers.first_message(problem)
    if peers.agree([int(may_be_good)])[0]:
        raise UnreadableError(f"{message}. Nothing was changed: it may be good, so an older one is not taken unasked")
    if checkpoint is None or message is not None:
        raise CheckpointError(message or "")
    return checkpoint


def _opened(path: Path, peers: Peers) -> Checkpoint:
    """This rank's view of the checkpoint, after a look at this rank's share of its files."""
    manifest = _read_json(path / "manifest.json")
    version = manifest.get("schema_version")
    if not isinstance(version, int):
        raise CheckpointError(f"{path / 'manifest.json'} is not a checkpoint's manifest: it states no schema_version")
    if version != SCHEMA_VERSION:
        raise UnreadableError(_other_schema(path, version))
    files = manifest["files"]
    for name in ("state.json", "index.jsonl"):
        if name not in files:
            raise CheckpointError(f"{path / 'manifest.json'} does not name {name}")
    for name in sorted(files)[peers.rank :: peers.size]:
        _verify_file(path / name, files[name]["bytes"], files[name]["sha256"])
    return Checkpoint(path, int(manifest["step"]), _read_json(path / "state.json"), dict(manifest["tensor_hashes"]))


def _other_schema(path: Path, version: Any) -> str:
    if version == 1:
        return (
            f"{path} was written by an earlier version of this program (checkpoint schema 1; this one reads schema "
            f"{SCHEMA_VERSION}). Finish the run with the version that began it, or begin it anew under another run.name"
        )
    return f"{path}: checkpoint schema {version}, expected {SCHEMA_VERSION}"


def _verify_file(file: Path, n_bytes: int, sha256: str) -> None:
    if not file.is_file() or file.name.startswith("."):
        raise CheckpointError(f"{file} is missing")
    if (size := file.stat().st_size) != n_bytes:
        raise CheckpointError(f"{file} has {size} bytes, {n_bytes} were written")
    if sha256_file(file) != sha256:
        raise CheckpointError(f"{file} was altered after it was written: its checksum does not match")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise UnreadableError(f"{path} cannot be read: {error}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return content
