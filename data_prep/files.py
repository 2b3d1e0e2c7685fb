"""Files that are either whole or absent: temporary name, fsync, rename. Stdlib only; used by every package that writes.

Also the checksums by which a file is recognised later, and the error that a user's data can cause.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

BLOCK_BYTES = 1 << 20


class DataError(Exception):
    """The data on disk cannot be used, or cannot be written. The message names the file and what to do."""

    exit_code = 3


class HeldError(DataError):
    """Another process holds the folder; it may be free later."""


@contextlib.contextmanager
def published(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path` only when the block ends well; on any error nothing is left behind.

    The temporary file lies beside its target (rename is atomic only inside one file system) and its content reaches
    the disk before the name does. Raises DataError for a full disk or missing permission.
    """
    temporary = path.with_name(f".{path.name}.tmp-{socket.gethostname()}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb", opener=_no_link) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(error, path, _size(temporary)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def publish_bytes(path: Path, content: bytes) -> None:
    with published(path) as stream:
        stream.write(content)


def publish_json(path: Path, content: Any) -> None:
    """NaN and infinity are refused: they are not JSON, and a summary that holds them is a mistake of ours."""
    publish_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


@contextlib.contextmanager
def exclusive(folder: Path, advice: str, *, name: str = ".lock", shared: bool = False) -> Iterator[None]:
    """Makes the folder and holds it for this process alone, until the block or the process ends; with `shared`, it may
    be held by several such, but by none alone. `name` is that of the lock file.

    Raises HeldError, with `advice`, when another process holds it; DataError when it cannot be made or written. On a
    file system without locks it says so, and nothing is held.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / name).open("a+")  # NFS wants it open for writing to hold it alone, for reading to share it
    except OSError as error:
        raise write_error(error, folder) from error
    with lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HeldError(f"another process is writing to {folder}; {advice}") from None
        except OSError as error:
            print(
                f"warning: {folder} cannot be locked ({error.strerror}): start no second process on it", file=sys.stderr
            )
        yield


def sync_folder(folder: Path) -> None:
    """Makes names created or renamed in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(error: OSError, path: Path, written: int | None = None) -> DataError:
    """The four errors a writer meets, in words a person can act on. `path` is what was being written, `written` how
    many bytes of it there was room for."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        after = "" if written is None else f" after {written:,} bytes"
        return DataError(
            f"no room to write {path}: {error.strerror}{after}{_free_space(path)}. Nothing half-written is left "
            "under that name; free some space or choose another folder, then run the same command again."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DataError(f"no permission to write {path}: {error.strerror}. Choose a folder that you may write to.")
    return DataError(f"cannot write {path}: {error.strerror or error}")


def _no_link(path: str, flags: int) -> int:
    """A temporary name can be guessed: a link that somebody has put there is not followed."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _size(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return None


def _free_space(path: Path) -> str:
    for folder in path.parents:
        if folder.is_dir():
            return f" ({shutil.disk_usage(folder).free / 2**20:,.1f} MiB free on its disk)"
    return ""


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
