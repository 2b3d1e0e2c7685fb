"""One payload under two names: a hard link where the file system allows it, a copy, said aloud, where it does not.

Also the folder that appears whole or not at all.
"""

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from data_prep.files import DataError, exclusive, published, sync_folder, write_error

NO_LINK = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EACCES, errno.ENOSYS)
COPY_BYTES = 1 << 24


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def link_or_copy(source: Path, target: Path) -> bool:
    """Publishes `target` with the content of `source`; True when linked. Raises DataError as `published` does."""
    temporary = target.with_name(f".{target.name}.tmp{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        os.link(source.resolve(), temporary)
        os.replace(temporary, target)
        sync_folder(target.parent)
        return True
    except OSError as error:
        if error.errno not in NO_LINK:
            raise write_error(error, target) from error
        say(f"{target.name}: cannot be a hard link ({error.strerror}), so its content is copied")
        copy(source, target)
        return False
    finally:
        with contextlib.suppress(OSError):  # also after a rename between two names of one file, which does nothing
            temporary.unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    with source.open("rb") as content, published(target) as stream:
        shutil.copyfileobj(content, stream, COPY_BYTES)


@contextlib.contextmanager
def folder_published(target: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when the block ends well. What a killed run left of it is cleared.

    Raises DataError when `target` exists already or another process fills it.
    """
    if target.exists():
        raise DataError(f"{target} exists already; an export makes its folder itself: choose another export.to")
    partial = target.with_name(f".{target.name}.partial")
    with exclusive(partial, "wait for it, or choose another export.to"):
        try:
            _clear(partial)
            yield partial
            (partial / ".lock").unlink()
            sync_folder(partial)
            partial.rename(target)
            sync_folder(target.parent)
        except OSError as error:
            raise write_error(error, target) from error
        finally:
            if partial.exists():
                shutil.rmtree(partial, ignore_errors=True)


def _clear(partial: Path) -> None:
    for item in partial.iterdir():
        if item.is_dir():
            shutil.rmtree(item)
        elif item.name != ".lock":
            item.unlink()
