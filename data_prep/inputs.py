"""Which files make up the corpus, what each is called, and how to tell that one has changed.

In: the source section of the configuration. Out: a tuple of `Input` sorted by name. A name is `label/path below what
was asked for`: it is the same wherever the corpus lies, so moving it changes nothing. Nothing is read but the folders
and one status a file (about 10 µs each); remote places are listed with as few requests as fsspec needs.
"""

import functools
import glob
import itertools
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.files import DataError
from data_prep.sources import stored
from data_prep.sources.config import (
    Arrow,
    Csv,
    Files,
    HuggingFace,
    Jsonl,
    Parquet,
    PythonSite,
    PythonStdlib,
    Source,
    Warc,
    Wet,
)

NOT_STDLIB = frozenset({"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages"})
PACKED = ("", ".gz", ".zst", ".bz2")


@dataclass(frozen=True, slots=True)
class Input:
    """One stored file, or one shard of a Hugging Face dataset."""

    url: str
    """Local path or fsspec URL: what is opened."""
    name: str
    """`<source>/<path below what was asked for>`: what records and messages call it."""
    source: str
    """Label of the source it belongs to: counts and shares are kept per source."""
    bytes: int
    """Size as stored."""
    version: str
    """Time of last change in ns, ETag, ...: changes when the file does; never part of a dataset's digest."""


@dataclass(frozen=True, slots=True)
class Span:
    """A slice [start, stop) of an input, in stored bytes. A unit (line, Zstandard frame, Parquet row group) belongs to
    the span in which it begins; a line that begins right at `stop` to the span before."""

    input: Input
    start: int
    stop: int


def find(source: Source) -> tuple[Input, ...]:
    """The inputs sorted by name. Raises DataError: none found, missing or unreadable, two of one name or label."""
    match source:
        case PythonStdlib():
            found = _below(Path(sysconfig.get_path("stdlib")), "python_stdlib", (".py",), without=NOT_STDLIB)
        case PythonSite():
            found = _site_packages()
        case HuggingFace():
            from data_prep.sources.hugging_face import shards

            found = shards(source)
        case _:
            found = _asked_for(source)
    inputs = tuple(sorted(found, key=lambda item: item.name))
    if not inputs:
        raise DataError(f"the corpus is empty: source={source.kind} found no file")
    _refuse_unreadable_names(inputs)
    _refuse_twice(inputs)
    return inputs


def _endings(source: Files) -> tuple[str, ...]:
    """What a file below a folder must end in; a file or glob that is named is taken whatever its ending."""
    match source:
        case Jsonl():
            endings = (".jsonl", ".ndjson", ".json")
        case Csv():
            endings = (".csv", ".tsv")
        case Warc():
            endings = (".warc",)
        case Wet():
            endings = (".wet",)
        case Parquet():
            return (".parquet",)
        case Arrow():
            return (".arrow", ".feather")
        case _:
            return ("",)
    return tuple(ending + packed for ending in endings for packed in PACKED)


def _site_packages() -> Iterator[Input]:
    roots = {Path(sysconfig.get_path(kind)): kind for kind in ("platlib", "purelib")}
    for root, kind in roots.items():
        yield from _below(root, kind, (".py",), without=frozenset({"__pycache__"}))


# --- what was asked for ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    """One of `source.paths`."""

    where: str
    label: str
    is_given: bool
    """The label was written in front, not made from the path."""


def _asked_for(source: Files) -> Iterator[Input]:
    entries = [_entry(text) for text in source.paths]
    _refuse_same_label(entries)
    for entry in entries:
        found = list((_remote if stored.is_remote(entry.where) else _local)(entry, _endings(source)))
        if not found:
            endings = ", ".join(ending for ending in _endings(source) if ending)
            raise DataError(f"source.paths: {entry.where} holds no file{f' that ends in {endings}' if endings else ''}")
        yield from found


def _entry(text: str) -> _Entry:
    """`label=path`, or a path. What stands before the first `=` is a label unless it holds a `/` or a wildcard."""
    label, equals, where = text.partition("=")
    if equals and label and where and "/" not in label and not glob.has_magic(label):
        return _Entry(where, label, True)
    return _Entry(text, _default_label(text), False)


def _default_label(where: str) -> str:
    """The folder's name, of a glob that of the folder before its first wildcard, of a file its name without
    endings."""
    if stored.is_remote(where):
        root = _root_of_glob(where).rstrip("/") if glob.has_magic(where) else where.rstrip("/")
        last = root.rpartition("/")[2]
        return (last if glob.has_magic(where) else _stem(last)) or "files"
    if glob.has_magic(where) and not os.path.lexists(where):
        return Path(_root_of_glob(where)).absolute().name or "files"
    path = Path(os.path.abspath(where))  # noqa: PTH100 folds `..`, and leaves links as they are named
    return (path.name if _is_folder(path) else _stem(path.name)) or "files"


def _stem(name: str) -> str:
    """`part-0.1` of part-0.1.jsonl.gz."""
    path = Path(name)
    return path.with_suffix("").stem if path.suffix in PACKED else path.stem


def _root_of_glob(pattern: str) -> str:
    """Up to and including the slash before the first component with a wildcard; empty if there is none."""
    literal = pattern[: re.search(r"[*?\[]", pattern).start()]  # pyright: ignore[reportOptionalMemberAccess]
    return literal[: literal.rfind("/") + 1]


def _refuse_same_label(entries: list[_Entry]) -> None:
    seen: dict[str, _Entry] = {}
    for entry in entries:
        other = seen.setdefault(entry.label, entry)
        if other is not entry and not (other.is_given and entry.is_given):
            raise DataError(
                f"source.paths: {other.where} and {entry.where} would both be the source `{entry.label}`. Name them "
                f"apart, as {entry.label}_2={entry.where}; or make them one source by giving both the same label, "
                f"{entry.label}={other.where} and {entry.label}={entry.where}"
            )


def _local(entry: _Entry, endings: tuple[str, ...]) -> Iterator[Input]:
    path = Path(entry.where)
    if _is_folder(path):
        yield from _below(path, entry.label, endings)
    elif os.path.lexists(path):
        yield _input(entry, path.name, entry.where)
    elif glob.has_magic(entry.where):
        yield from _matching(entry, endings)
    else:
        hint = f"; a path that has = in its first part is written ./{entry.label}={entry.where}"
        raise DataError(
            f"source.paths: {entry.where} does not exist (looked from {Path.cwd()}){hint if entry.is_given else ''}"
        )


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long, say; it does not exist then
        return False


def _input(entry: _Entry, below: str, url: str) -> Input:
    return Input(url, f"{entry.label}/{below}", entry.label, *stored.facts(url))


def _matching(entry: _Entry, endings: tuple[str, ...]) -> Iterator[Input]:
    """Files that match, and what lies below folders that match, unless `**` has named that already."""
    root = _root_of_glob(entry.where)
    matches = glob.glob(entry.where, recursive=True)  # noqa: PTH207 Path.glob refuses absolute ones
    if not matches:
        raise DataError(f"source.paths: the pattern {entry.where} matches no file (looked from {Path.cwd()})")
    for match in matches:
        below = match[len(root) :]
        if not os.path.isdir(match):  # noqa: PTH112
            yield _input(entry, below, match)
        elif "**" not in entry.where:
            yield from _below(Path(match), entry.label, endings, prefix=f"{below}/")


def _below(
    root: Path, label: str, endings: tuple[str, ...], without: frozenset[str] = frozenset(), prefix: str = ""
) -> Iterator[Input]:
    """Files below `root` by these endings; hidden files and folders are left out, links to folders are not followed."""
    folders = [(str(root), f"{label}/{prefix}")]
    while folders:
        folder, name = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        if entry.name not in without:
                            folders.append((entry.path, f"{name}{entry.name}/"))
                    elif entry.name.endswith(endings) and entry.is_file():
                        yield Input(entry.path, name + entry.name, label, *stored.local_facts(entry.stat()))
                    elif entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110
                        raise DataError(f"{entry.path} is a link to nothing; mend or remove it")
        except OSError as error:
            raise DataError(f"cannot read {error.filename or folder}: {error.strerror}") from error


# --- remote ----------------------------------------------------------------------------------------------------------


def _remote(entry: _Entry, endings: tuple[str, ...]) -> Iterator[Input]:
    if "::" in entry.where:
        raise DataError(f"source.paths: {entry.where} chains file systems with `::`; unpack it, or name its parts")
    fs, path = stored.filesystem(entry.where)
    yield from stored.accessed(entry.where, lambda: list(_remote_files(fs, path, entry, endings)))


def _remote_files(fs: Any, path: str, entry: _Entry, endings: tuple[str, ...]) -> Iterator[Input]:
    if glob.has_magic(path) and not fs.exists(path):
        root = _root_of_glob(path)
        matches: dict[str, Any] = fs.glob(path, detail=True)
        for match, info in matches.items():
            below = match.removeprefix(root)
            if info["type"] == "file":
                yield _remote_input(fs, match, info, entry, below)
            elif "**" not in path:
                yield from _remote_below(fs, match, entry, endings, prefix=f"{below}/")
    elif fs.isdir(path):
        yield from _remote_below(fs, path, entry, endings)
    else:
        yield _remote_input(fs, path, fs.info(path), entry, path.rpartition("/")[2])


def _remote_below(fs: Any, root: str, entry: _Entry, endings: tuple[str, ...], prefix: str = "") -> Iterator[Input]:
    files: dict[str, Any] = fs.find(root, detail=True)
    for path, info in files.items():
        below = path.removeprefix(root).lstrip("/")
        if below.endswith(endings) and not any(part.startswith(".") for part in below.split("/")):
            yield _remote_input(fs, path, info, entry, prefix + below)


def _remote_input(fs: Any, path: str, info: Any, entry: _Entry, below: str) -> Input:
    return Input(fs.unstrip_protocol(path), f"{entry.label}/{below}", entry.label, *stored.remote_facts(fs, path, info))


# --- what is refused -------------------------------------------------------------------------------------------------


def _refuse_unreadable_names(inputs: Iterable[Input]) -> None:
    for item in inputs:
        if not item.name.isascii():
            try:
                item.name.encode()
            except UnicodeEncodeError:
                raise DataError(f"the file name {item.name!r} is not UTF-8; rename it") from None


def _refuse_twice(inputs: tuple[Input, ...]) -> None:
    """The same file under two entries would enter the corpus twice, unnoticed; two files under one name would be one in
    every message and count."""
    for one, two in itertools.pairwise(inputs):
        if one.name == two.name and one.url != two.url:
            raise DataError(
                f"{one.url} and {two.url} are both called {one.name}; give their entries in source.paths different "
                "labels, label=path"
            )
    seen: dict[str, str] = {}
    for item in inputs:
        real = item.url if stored.is_remote(item.url) else _real_path(item.url)
        if real in seen:
            raise DataError(f"the file {real} is in the corpus twice, as {seen[real]} and as {item.name}; name it once")
        seen[real] = item.name


def _real_path(path: str) -> str:
    if os.path.islink(path):  # noqa: PTH114
        return os.path.realpath(path)
    folder, name = os.path.split(path)
    return f"{_real_folder(folder)}/{name}"


@functools.lru_cache(maxsize=1024)
def _real_folder(folder: str) -> str:
    """Kept, since resolving the whole path of each file would cost 20 µs."""
    return os.path.realpath(folder)
