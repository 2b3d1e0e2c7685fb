"""Folders that appear whole or not at all, and tensors in safetensors files of bounded size.

In: (name, tensor) one after the other. Out: `model.safetensors`, or numbered files when one would grow too large, as
Hugging Face names them.
"""

import contextlib
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from data_prep.files import DataError, sync_folder, write_error

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@contextlib.contextmanager
def finished(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name when the block ends well; on any error nothing is left.

    Raises DataError if `out` exists and is not an empty folder, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"out={out} exists already and is not empty; choose another folder, or remove it")
    temporary = out.with_name(f".{out.name}.tmp-{socket.gethostname()}-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.iterdir():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        sync_folder(temporary)
        os.replace(temporary, out)
        sync_folder(out.parent)
    except OSError as error:
        raise write_error(error, out) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_tensors(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> dict[str, str]:
    """Returns name → file, for an index. A tensor larger than `shard_bytes` gets a file of its own."""
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if pending and size + tensor.nbytes > shard_bytes:
            _save(pending, folder, len(shards))
            shards.append(list(pending))
            pending, size = {}, 0
        pending[name] = tensor
        size += tensor.nbytes
    _save(pending, folder, len(shards))
    shards.append(list(pending))
    return _named(folder, shards)


def _save(tensors: dict[str, Tensor], folder: Path, number: int) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = folder / f"part-{number}"
    try:
        save_file({name: tensor.detach().cpu() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:  # its own error type for a full disk
        raise DataError(f"cannot write {path}: {error}") from None
    path.chmod(folder.stat().st_mode & 0o666)  # safetensors lets only the owner read


def _named(folder: Path, shards: list[list[str]]) -> dict[str, str]:
    """Renames the parts, now that their number is known."""
    held: dict[str, str] = {}
    for i, names in enumerate(shards):
        file = SINGLE if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"part-{i}").rename(folder / file)
        held |= dict.fromkeys(names, file)
    return held


def index_of(held: dict[str, str], total_bytes: int) -> dict[str, Any]:
    return {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(held.items()))}
