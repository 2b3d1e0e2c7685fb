"""Which files make up the corpus, and by what each is recognised.

In: the source section of the configuration. Out: a tuple of `Input` sorted by name, each with size and SHA-256 of its
content, so that the same corpus is the same wherever and whenever it was copied; `fingerprint` makes one digest of all.
Reading everything once to know it costs about 1 s per GB, against some 250 s for encoding it.
"""

import glob
import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.config import Jsonl, PythonSite, PythonStdlib, Source, TextFiles
from data_prep.files import DataError, sha256_file

NOT_STDLIB = {"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages"}
JSONL_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")


@dataclass(frozen=True)
class Input:
    path: Path
    name: str
    """What the records call it: relative to the library's root, or the path as it was asked for."""
    bytes: int
    modified_ns: int
    """Time of last change; only to notice a change between planning and reading, never part of a digest."""
    sha256: str


def find(source: Source) -> tuple[Input, ...]:
    """The input files sorted by name. Raises DataError: none found, missing or unreadable, named twice."""
    match source:
        case PythonStdlib():
            found = _below(Path(sysconfig.get_path("stdlib")), (".py",), without=NOT_STDLIB)
        case PythonSite():
            found = _site_packages()
        case TextFiles():
            found = _asked_for(source.paths, ("",))
        case Jsonl():
            found = _asked_for(source.paths, JSONL_ENDINGS)
    files = sorted(found, key=lambda pair: pair[0])
    _refuse_twice(files)
    if not files:
        raise DataError(f"the corpus is empty: source={source.kind} found no file")
    return tuple(_recognised(name, path) for name, path in files)


def fingerprint(inputs: Sequence[Input]) -> str:
    """SHA-256 over names, sizes and contents."""
    digest = hashlib.sha256()
    for item in inputs:
        digest.update(f"{item.sha256} {item.bytes} {item.name}\n".encode())
    return digest.hexdigest()


Named = tuple[str, Path]


def _site_packages() -> Iterator[Named]:
    roots = {Path(sysconfig.get_path(kind)): kind for kind in ("platlib", "purelib")}
    for root, kind in roots.items():
        for name, path in _below(root, (".py",), without={"__pycache__"}):
            yield f"{kind}/{name}", path


def _asked_for(patterns: Sequence[str], endings: tuple[str, ...]) -> Iterator[Named]:
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            yield from ((f"{path.as_posix()}/{name}", file) for name, file in _below(path, endings, without=set()))
        elif path.exists():
            yield path.as_posix(), path
        elif glob.has_magic(pattern):
            yield from _matching(pattern)
        else:
            raise DataError(f"source.paths: {pattern} does not exist (looked from {Path.cwd()})")


def _matching(pattern: str) -> Iterator[Named]:
    files = [path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file()]  # noqa: PTH207 Path.glob refuses absolute ones
    if not files:
        raise DataError(f"source.paths: the pattern {pattern} matches no file (looked from {Path.cwd()})")
    yield from ((path.as_posix(), path) for path in files)


def _below(root: Path, endings: tuple[str, ...], without: set[str]) -> Iterator[Named]:
    """Files below `root` by these endings; hidden files and folders are left out, links to folders are not followed."""

    def unreadable(error: OSError) -> None:
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    for folder, folders, files in os.walk(root, onerror=unreadable):
        folders[:] = [name for name in folders if name not in without and not name.startswith(".")]
        for name in files:
            if name.endswith(endings) and not name.startswith("."):
                path = Path(folder, name)
                yield path.relative_to(root).as_posix(), path


def _refuse_twice(files: Sequence[Named]) -> None:
    """The same file under two entries would enter the corpus twice, unnoticed."""
    seen: dict[str, str] = {}
    for name, path in files:
        real = os.path.realpath(path)
        if real in seen:
            raise DataError(f"the file {real} is in the corpus twice, as {seen[real]} and as {name}; name it once")
        seen[real] = name


def _recognised(name: str, path: Path) -> Input:
    try:
        name.encode()
        status = path.stat()
        return Input(path, name, status.st_size, status.st_mtime_ns, sha256_file(path))
    except UnicodeEncodeError:
        raise DataError(f"the file name {name!r} is not UTF-8; rename it") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
