"""One rank's share of a checkpoint: a safetensors file per state kind, and a report for rank 0's manifest.

Runs in a background thread and touches nothing but the copies it is given. Tensors in the files are flat; a key names
the parameter and the range, `NAME|SLICE_START:SLICE_STOP|START:STOP`, and what it means (shape, cut dimension) is in
the checkpoint's index. Checksums and hashes are made of what is in memory, while it is written.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import torch

from data_prep.files import publish_bytes
from train.checkpoint import cuts
from train.checkpoint.host import Part
from train.checkpoint.tensor_hash import TensorHash
from train.fragment import Fragment

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""names of the safetensors format"""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def file_name(kind: str, rank: int) -> str:
    return f"{kind}-{rank:05d}.safetensors"


def report_name(rank: int) -> str:
    return f"rank-{rank:05d}.json"


def write_share(folder: Path, rank: int, parts: list[Part]) -> None:
    """Writes and syncs this rank's files and report into `folder`. Raises OSError or DataError."""
    folder.mkdir(parents=True, exist_ok=True)
    hasher = TensorHash()
    files: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for kind in dict.fromkeys(part.kind for part in parts):
        name = file_name(kind, rank)
        of_kind = sorted((part for part in parts if part.kind == kind), key=lambda part: -part.dtype.itemsize)
        offsets, files[name] = _write_file(folder / name, of_kind)
        rows += [_row(part, name, offset, hasher) for part, offset in zip(of_kind, offsets, strict=True)]
    publish_bytes(folder / report_name(rank), json.dumps({"files": files, "fragments": rows}).encode())


def _row(part: Part, file: str, offset: int, hasher: TensorHash) -> dict[str, Any]:
    return {
        "kind": part.kind,
        "name": part.fragment.name,
        "shape": part.fragment.shape,
        "dtype": _NAMES[part.dtype],
        "hash": sum(hasher(fragment, numbers) for fragment, numbers in part.pieces),
        "fragment": [file, offset, *cuts.place(part.fragment)],
    }


def _write_file(path: Path, parts: list[Part]) -> tuple[list[int], dict[str, Any]]:
    """Returns the byte at which each part begins in the file, and the file's size and checksum."""
    header = _header(parts)
    offsets, end = [], len(header)
    with path.open("wb") as stream:
        digest = hashlib.sha256()
        _write(stream, digest, [header])
        for part in parts:
            offsets.append(end)
            end += part.n_bytes
            _write(stream, digest, (numbers.data for _, numbers in part.pieces))
        stream.flush()
        os.fsync(stream.fileno())
    return offsets, {"bytes": end, "sha256": digest.hexdigest()}


def _write(stream: IO[bytes], digest: Any, blocks: Iterable[bytes | memoryview]) -> None:
    for block in blocks:
        digest.update(block)
        stream.write(block)


def _header(parts: list[Part]) -> bytes:
    """Of the safetensors format: its own length, then JSON, padded so that the numbers begin at a multiple of 8."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for part in parts:
        key, end = _key(part.fragment), begin + part.n_bytes
        if key in entries:
            raise ValueError(f"{part.kind} of {key} was given twice")
        entries[key] = {
            "dtype": _NAMES[part.dtype],
            "shape": [cuts.size(part.fragment)],
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return len(text).to_bytes(8, "little") + text


def _key(fragment: Fragment) -> str:
    return f"{fragment.name}|{fragment.tp_start}:{fragment.tp_stop}|{fragment.start}:{fragment.stop}"
