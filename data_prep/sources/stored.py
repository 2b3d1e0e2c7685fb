"""A stored file, local or remote: its facts, its bytes, and what it says when it cannot be had.

In: a path, or an fsspec URL (anything with `://`). Out: size and version; an open `StoredFile`. Whatever access to it
can raise leaves as DataError, so that other errors met while reading are faults of the file's content.
"""

import io
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, TypeVar

from data_prep.files import DataError

T = TypeVar("T")
VERSION_KEYS = (
    "ETag", "etag", "e_tag", "blob_id", "mtime", "LastModified", "last_modified", "updated", "created",
)  # fmt: skip
"""What the file systems of fsspec call the thing that changes with a file; the first that is there is taken."""


def is_remote(url: str) -> bool:
    return "://" in url


def facts(url: str) -> tuple[int, str]:
    """(bytes, version) as they are now. Raises DataError."""
    if is_remote(url):
        return accessed(url, lambda: _remote_facts(url))
    status = accessed(url, lambda: os.stat(url))  # noqa: PTH116 a Path for each of 10^6 files costs more than the stat
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{url} is no plain file: a pipe or a device has no size, and can be read once at most")
    return local_facts(status)


def local_facts(status: os.stat_result) -> tuple[int, str]:
    return status.st_size, str(status.st_mtime_ns)


def remote_facts(fs: Any, path: str, info: Mapping[str, Any]) -> tuple[int, str]:
    """`info` as fsspec's `find(detail=True)` or `info` give it."""
    if info.get("size") is None:
        raise DataError(f"{fs.unstrip_protocol(path)} does not say how large it is; copy it to where it does")
    version = next((f"{key}:{_plain(info[key])}" for key in VERSION_KEYS if info.get(key)), None)
    return int(info["size"]), version or f"ukey:{fs.ukey(path)}"


def filesystem(url: str) -> tuple[Any, str]:
    """(fsspec file system, path in it). Raises DataError, naming the package that is missing."""

    def found() -> tuple[Any, str]:
        import fsspec.core

        return fsspec.core.url_to_fs(url)

    return accessed(url, found)


class StoredFile(io.RawIOBase, AbstractContextManager["StoredFile"]):
    """A stored file open for reading; every read asked for is answered in full, except at the end."""

    def __init__(self, url: str):
        self.url = url
        self.furthest = 0
        """One past the last byte read so far."""
        self._file = accessed(url, lambda: _remote_open(url) if is_remote(url) else open(url, "rb"))  # noqa: PTH123, SIM115

    def read(self, size: int = -1, /) -> bytes:
        content = accessed(self.url, lambda: self._file.read(size))
        self.furthest = max(self.furthest, self._file.tell())
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _plain(version: Any) -> str:
    """Some file systems give a time as a number in a listing, and as a date for a single file."""
    return str(version.timestamp() if isinstance(version, datetime) else version)


def _remote_facts(url: str) -> tuple[int, str]:
    fs, path = filesystem(url)
    fs.invalidate_cache()
    return remote_facts(fs, path, fs.info(path))


def _remote_open(url: str) -> Any:
    fs, path = filesystem(url)
    return fs.open(path, "rb")


def accessed(url: str, access: Callable[[], T]) -> T:
    """A remote file system raises what its library raises: all of it means that the file cannot be had."""
    try:
        return access()
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot read {url}: {error.strerror or f'{type(error).__name__}: {error}'}") from error
    except Exception as error:
        if not is_remote(url):
            raise
        raise DataError(f"cannot read {url}: {_advice(url, error)}") from error


def _advice(url: str, error: Exception) -> str:
    protocol = url.split("://")[0]
    if isinstance(error, ImportError):
        return f"{error}. The package that speaks {protocol}:// is missing; install it beside this one"
    if isinstance(error, ValueError) and "rotocol" in str(error):
        return f"no package of fsspec speaks {protocol}://; a local path is written without ://"
    return (
        f"{type(error).__name__}: {error}. Credentials and end points are taken from where the package that speaks "
        f"{protocol}:// looks for them (its environment variables and files), and from ~/.config/fsspec/*.json"
    )
