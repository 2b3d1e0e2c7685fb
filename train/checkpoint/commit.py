"""Rank 0's last part of a save: from all ranks' files to a checkpoint, or to nothing.

The reports become `index.jsonl` (a line per tensor: shape, dtype, and where each of its fragments lies) and
`manifest.json` (size and SHA-256 of every file, the index and state.json among them, and the hash of every tensor). The
manifest is written last, and then the folder gets its name: a folder called step-N is complete. An attempt that a later
one has taken the run from does not get that far. Runs in a background thread.
"""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.files import publish_bytes, sha256_file, sync_folder
from train.checkpoint import cuts, index, manifest
from train.checkpoint.folders import doomed_name, folder_name, hidden_name, remove
from train.checkpoint.manifest import FileFacts, manifest_bytes
from train.checkpoint.share import report_name
from train.checkpoint.tensor_hash import hex_of
from train.errors import CheckpointError
from train.fragment import Fragment

Tensors = dict[tuple[str, str], dict[str, Any]]
"""(kind, name) → shape, dtype, hash and fragments"""


def nobody_else() -> None:
    """What insists in a run that is nobody else's."""


def commit(
    folder: Path, step: int, n_ranks: int, state: str, attempt: int = 0, insist: Callable[[], None] = nobody_else
) -> None:
    """Makes the files that `n_ranks` ranks have written the checkpoint of `step`; `state` is the text of state.json.

    insist: raises FencedError if a later attempt owns the run; asked last, right before the folder gets its name. Also
    raises CheckpointError if something is missing or does not fit together, OSError or DataError if it cannot be
    written.
    """
    temporary = folder / hidden_name(step, attempt)
    files: dict[str, FileFacts] = {}
    tensors: Tensors = {}
    for rank in range(n_ranks):
        report = _report(temporary, rank)
        of_rank = {name: FileFacts(facts["bytes"], facts["sha256"]) for name, facts in report["files"].items()}
        _check_files(temporary, rank, of_rank)
        files |= of_rank
        for row in report["fragments"]:
            _merge(tensors, row)
    _check_cover(tensors)
    publish_bytes(temporary / "state.json", state.encode())
    publish_bytes(temporary / index.NAME, "".join(_line(*item) for item in tensors.items()).encode())
    for name in ("state.json", index.NAME):
        files[name] = FileFacts((temporary / name).stat().st_size, sha256_file(temporary / name))
    for rank in range(n_ranks):
        (temporary / report_name(rank)).unlink()
    publish_bytes(temporary / manifest.NAME, manifest_bytes(step, files, _hashes(tensors)))
    _put_in_place(temporary, folder, step, attempt, insist)


def _report(folder: Path, rank: int) -> dict[str, Any]:
    try:
        return json.loads((folder / report_name(rank)).read_text())
    except FileNotFoundError:
        raise CheckpointError(_not_shared(folder / report_name(rank), rank)) from None


def _check_files(folder: Path, rank: int, files: dict[str, FileFacts]) -> None:
    for name, facts in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(_not_shared(path, rank))
        if (size := path.stat().st_size) != facts.n_bytes:
            raise CheckpointError(f"{path} has {size} bytes right after rank {rank} wrote {facts.n_bytes}")


def _not_shared(path: Path, rank: int) -> str:
    return (
        f"rank {rank} has written {path}, but rank 0 does not see it. All nodes of a run need one common file system: "
        "set run.folder to a folder that all of them share."
    )


def _merge(tensors: Tensors, row: dict[str, Any]) -> None:
    kind, name = row["kind"], row["name"]
    entry = tensors.setdefault(
        (kind, name), {"shape": row["shape"], "dtype": row["dtype"], "hash": 0, "n": 0, "fragments": []}
    )
    for fact in ("shape", "dtype"):
        if entry[fact] != row[fact]:
            raise CheckpointError(f"ranks disagree about {kind} of {name}: {fact} {entry[fact]} and {row[fact]}")
    entry["hash"] += row["hash"]
    entry["n"] += row["fragment"][-1] - row["fragment"][-2]
    entry["fragments"].append(row["fragment"])


def _check_cover(tensors: Tensors) -> None:
    """A save that lacks numbers must fail now, not when it is needed."""
    for (kind, name), entry in tensors.items():
        if entry["n"] != (n := math.prod(entry["shape"])):
            raise CheckpointError(f"the ranks gave {entry['n']} numbers of {kind} of {name}, which has {n}")
        shape = tuple(entry["shape"])
        fragments = (Fragment(name, shape, *place) for _, _, *place in entry["fragments"])
        if problem := cuts.uncovered(shape, fragments):
            raise CheckpointError(f"the ranks gave other parts of {kind} of {name} than it has: {problem}")


def _line(key: tuple[str, str], entry: dict[str, Any]) -> str:
    facts = {"kind": key[0], "name": key[1], **{fact: entry[fact] for fact in ("shape", "dtype", "fragments")}}
    return json.dumps(facts) + "\n"


def _hashes(tensors: Tensors) -> dict[str, dict[str, str]]:
    hashes: dict[str, dict[str, str]] = {}
    for (kind, name), entry in tensors.items():
        hashes.setdefault(kind, {})[name] = hex_of(entry["hash"])
    return hashes


def _put_in_place(temporary: Path, folder: Path, step: int, attempt: int, insist: Callable[[], None]) -> None:
    final, doomed = folder / folder_name(step), folder / doomed_name(step, attempt)
    insist()
    if final.exists():  # of this step, from before the run went back behind it
        remove(doomed)
        os.replace(final, doomed)
    os.replace(temporary, final)
    sync_folder(folder)
    remove(doomed)
