"""Other programs' token files: which there are, how their ids are stored, and where their documents end.

In: `ImportConfig`. Out: `PeerFile`s, and for each the row of document ends, block by block, so that an
index of any length costs no memory. A file that contradicts its own index is refused by name.
"""

import csv
import gzip
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.exchange.config import ImportConfig, PeerFormat
from data_prep.exchange.indexes import BLOCK_DOCUMENTS, Row
from data_prep.files import DataError
from data_prep.shards import HEADER, MAGIC, file_of

# megatron/core/datasets/indexed_dataset.py, class DType; 6 and 7 are floats, which are no ids
MEGATRON_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
ENDINGS = {
    PeerFormat.megatron: ".bin",
    PeerFormat.datatrove: ".ds",
    PeerFormat.olmo: ".npy",
    PeerFormat.nanogpt: ".bin",
}
LLM_C_HEADER_BYTES = 256 * 4
LLM_C_DTYPES = {(20240520, 1): "<u2", (20240801, 7): "<u4"}  # llm.c dev/data/data_common.py: magic, version
BLOCK_TOKENS = 1 << 20
Ends = npt.NDArray[np.int64]  # token positions after consecutive documents


@dataclass(frozen=True)
class PeerFile:
    """One payload. `name` is what records call it; ids begin after `header_bytes`."""

    name: str
    path: Path
    format: PeerFormat
    dtype: str
    header_bytes: int
    tokens: int

    def blocks(self) -> Iterator[npt.NDArray[Any]]:
        """All ids in order, at most BLOCK_TOKENS at a time."""
        with self.path.open("rb") as stream:
            stream.seek(self.header_bytes)
            while content := stream.read(BLOCK_TOKENS * np.dtype(self.dtype).itemsize):
                yield np.frombuffer(content, self.dtype)


def find(config: ImportConfig) -> list[PeerFile]:
    """Every token file, sorted by name. Raises DataError: nothing there, or a file that is not what it should be."""
    files: dict[str, Path] = {}
    for name, path in _named(config):
        if name in files:
            raise DataError(f"{files[name]} and {path} would both be called {name}; import them into two datasets")
        files[name] = path
    if not files:
        raise DataError(f"no {ENDINGS[config.format]} file of {config.format.value} in {', '.join(config.paths)}")
    return [_opened(name, path, config.format) for name, path in sorted(files.items())]


def _named(config: ImportConfig) -> Iterator[tuple[str, Path]]:
    ending = ENDINGS[config.format]
    for asked in map(Path, config.paths):
        if asked.is_dir():
            for path in asked.rglob(f"*{ending}"):
                name = Path(asked.resolve().name, path.relative_to(asked))
                if not any(part.startswith(".") for part in name.parts[1:]):
                    yield name.as_posix(), path
            if config.format is PeerFormat.megatron:
                _refuse_lonely_indexes(asked)
        elif not asked.is_file():
            raise DataError(f"peer.paths names {asked}, which does not exist")
        elif asked.name.endswith(ending):
            yield asked.name, asked
        else:
            raise DataError(f"{asked} does not end in {ending}, as token files of {config.format.value} do")


def _refuse_lonely_indexes(folder: Path) -> None:
    for file in folder.rglob("*.idx"):
        if not file.with_suffix(".bin").exists():
            raise DataError(f"{file} has no {file.with_suffix('.bin').name} beside it: its payload is missing")


def _opened(name: str, path: Path, format: PeerFormat) -> PeerFile:
    """Dtype and length from the files themselves. Raises DataError when they disagree."""
    header_bytes = 0
    match format:
        case PeerFormat.megatron:
            dtype = _Megatron(path).dtype
        case PeerFormat.datatrove:
            dtype = _datatrove_dtype(path)
        case PeerFormat.olmo:
            dtype = _olmo_dtype(path)
        case _:
            dtype, header_bytes = _nanogpt_dtype(path)
    n_bytes, itemsize = _size(path) - header_bytes, np.dtype(dtype).itemsize
    if n_bytes % itemsize:
        raise DataError(f"{path} is damaged: {n_bytes} bytes are no whole number of {itemsize}-byte ids")
    return PeerFile(name, path, format, dtype, header_bytes, n_bytes // itemsize)


def ends_of(peer: PeerFile, eos_id: int) -> Iterator[Ends]:
    """Blocks of token positions after each document, up to the last token. Raises DataError on an index that does not
    divide exactly this payload into documents."""
    match peer.format:
        case PeerFormat.megatron:
            blocks = _Megatron(peer.path).ends()
        case PeerFormat.datatrove:
            blocks = _datatrove_ends(peer.path)
        case PeerFormat.olmo:
            blocks = _olmo_ends(peer.path)
        case _:
            blocks = _scanned_ends(peer, eos_id)
    last = 0
    for block in blocks:
        if len(block) and (block[0] < last or (np.diff(block) < 0).any()):
            raise DataError(f"the index of {peer.path} goes backwards: a document would end before it begins")
        last = int(block[-1]) if len(block) else last
        yield block
    if last != peer.tokens:
        raise DataError(f"{peer.path} holds {peer.tokens} ids, its index ends at {last}: one of the two was truncated")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} is missing or out of reach: {error.strerror}") from error


# --- Megatron --------------------------------------------------------------------------------------------------------


class _Megatron:
    """An .idx: 9 B magic, u64 version, u8 dtype code, u64 S, u64 D; int32[S] lengths, int64[S] byte offsets, int64[D]
    first sequence of each document and S at the end; in multimodal files int8[S] modes."""

    def __init__(self, path: Path):
        self.file = file_of(path.with_suffix(""), ".idx")
        self.payload_bytes = _size(path)
        self.dtype, self.n_sequences, self.n_bounds = self._head()
        lengths, offsets, bounds = HEADER.size, 4 * self.n_sequences, 8 * self.n_sequences
        n_bytes = lengths + offsets + bounds + 8 * self.n_bounds
        found = _size(self.file)
        if found not in (n_bytes, n_bytes + self.n_sequences):
            raise DataError(f"{self.file} is damaged: {self.n_sequences} sequences need {n_bytes} bytes, found {found}")
        self.lengths = Row.of(self.file, "<i4", lengths, self.n_sequences)
        self.offsets = Row.of(self.file, "<i8", lengths + offsets, self.n_sequences)
        self.bounds = Row.of(self.file, "<i8", lengths + offsets + bounds, self.n_bounds)
        self.modes = Row.of(self.file, "i1", n_bytes, found - n_bytes)

    def _head(self) -> tuple[str, int, int]:
        try:
            with self.file.open("rb") as stream:
                content = stream.read(HEADER.size)
        except OSError as error:
            raise DataError(f"{self.file} is missing or out of reach: {error.strerror}") from error
        if len(content) < HEADER.size or not content.startswith(MAGIC):
            raise DataError(f"{self.file} is no Megatron index: it does not begin with MMIDIDX")
        _, version, code, n_sequences, n_bounds = HEADER.unpack(content)
        if version != 1:
            raise DataError(f"{self.file} has version {version}; only version 1 is known")
        if code not in MEGATRON_DTYPES:
            raise DataError(f"{self.file} has dtype code {code}, which is no integer type of Megatron's")
        return MEGATRON_DTYPES[code], n_sequences, n_bounds

    def ends(self) -> Iterator[Ends]:
        """Sequences of one document are joined: they lie behind each other in the payload, or the file is refused."""
        if self.n_bounds < 1 or self.bounds[0] != 0 or self.bounds[self.n_bounds - 1] != self.n_sequences:
            raise DataError(f"{self.file} is damaged: its documents do not cover its {self.n_sequences} sequences")
        position, next_bound = 0, 1
        for first in range(0, max(1, self.n_sequences), BLOCK_DOCUMENTS):
            borders = np.concatenate([[position], position + self._sequence_ends(first, position)])
            stop = bisect_right(self.bounds, first + len(borders) - 1, next_bound)
            for bound in range(next_bound, stop, BLOCK_DOCUMENTS):
                sequences = self.bounds[bound : min(bound + BLOCK_DOCUMENTS, stop)] - first
                if (sequences < 0).any() or (sequences >= len(borders)).any():
                    raise DataError(f"{self.file} is damaged: the sequences of its documents go backwards")
                yield borders[sequences]
            position, next_bound = int(borders[-1]), stop
        n_tokens = self.payload_bytes // np.dtype(self.dtype).itemsize
        if next_bound != self.n_bounds or position != n_tokens:
            problem = "truncated" if position > n_tokens else "too long"
            raise DataError(
                f"{self.file.with_suffix('.bin')} is {problem}: its index describes {position} ids, found {n_tokens}"
            )

    def _sequence_ends(self, first: int, position: int) -> Ends:
        """Of a block of sequences, in tokens from `position`. Raises DataError unless each begins where the one before
        it ended, and all are text."""
        lengths = self.lengths[first : first + BLOCK_DOCUMENTS].astype(np.int64)
        ends = np.cumsum(lengths)
        starts = (position + ends - lengths) * np.dtype(self.dtype).itemsize
        if (lengths < 0).any() or not np.array_equal(self.offsets[first : first + len(lengths)], starts):
            raise DataError(f"{self.file}: its sequences do not lie behind each other in the .bin; rewrite the pair")
        if len(self.modes) and self.modes[first : first + len(lengths)].any():
            raise DataError(f"{self.file} has sequences of another mode than text (multimodal data)")
        return ends


# --- datatrove -------------------------------------------------------------------------------------------------------


def _datatrove_dtype(path: Path) -> str:
    """From .ds.metadata (`tokenizer|token size`, then the count); else from the last end in .ds.index."""
    if file_of(path, ".loss").exists():
        raise DataError(
            f"{path}.loss masks tokens out of the loss, which a Crisol dataset cannot keep; move it away to import "
            "without it"
        )
    n_bytes, last = _size(path), _last_end(path)
    try:
        lines = file_of(path, ".metadata").read_text().splitlines()
        itemsize, tokens = int(lines[0].rpartition("|")[2]), int(lines[1])
    except FileNotFoundError:
        return _inferred(path, n_bytes, last)
    except (ValueError, IndexError, OSError) as error:
        raise DataError(
            f"{path}.metadata is not datatrove's (`tokenizer|token size`, then the count): {error}"
        ) from error
    if itemsize not in (2, 4):
        raise DataError(f"{path}.metadata gives a token size of {itemsize} bytes; datatrove writes 2 or 4")
    if tokens * itemsize != n_bytes or tokens != last:
        raise DataError(
            f"{path} does not fit its records: {tokens} tokens of {itemsize} bytes in .metadata, the last document "
            f"ends at {last} in .index, and the file has {n_bytes} bytes"
        )
    return f"<u{itemsize}"


def _last_end(path: Path) -> int:
    file = file_of(path, ".index")
    n_bytes = _size(file)
    if n_bytes % 8:
        raise DataError(f"{file} is damaged: {n_bytes} bytes are no whole number of 8-byte ends")
    return Row.of(file, "<u8", n_bytes - 8, 1)[0] if n_bytes else 0


def _inferred(path: Path, n_bytes: int, tokens: int) -> str:
    """A payload of so many bytes for so many tokens can have one width only."""
    if not tokens and not n_bytes:
        return "<u2"
    for itemsize in (1, 2, 4, 8):
        if tokens * itemsize == n_bytes:
            return f"<u{itemsize}"
    raise DataError(f"{path} has {n_bytes} bytes for {tokens} tokens in its index: truncated, or another file's index")


def _datatrove_ends(path: Path) -> Iterator[Ends]:
    file = file_of(path, ".index")
    for _, ends in Row.of(file, "<i8", 0, _size(file) // 8).blocks():
        yield ends


# --- OLMo ------------------------------------------------------------------------------------------------------------


def _olmo_dtype(path: Path) -> str:
    """Nothing in the file tells its width; the last end in the .csv.gz does."""
    with path.open("rb") as stream:
        if stream.read(6) == b"\x93NUMPY":
            raise DataError(f"{path} is a NumPy file with a header; OLMo's .npy are raw ids without one")
    last = 0
    for block in _olmo_ends(path):
        last = int(block[-1]) if len(block) else last
    return _inferred(path, _size(path), last)


def _olmo_ends(path: Path) -> Iterator[Ends]:
    """Rows start,end,... without a heading; each starts where the one before ended."""
    file = file_of(path.with_suffix(""), ".csv.gz")
    if not file.is_file():
        raise DataError(f"{file} is missing: without it {path.name} has no document boundaries")
    ends: list[int] = []
    last = 0
    try:
        with gzip.open(file, "rt", encoding="utf-8", newline="") as stream:
            for number, row in enumerate(csv.reader(stream), 1):
                start, end = int(row[0]), int(row[1])
                if start != last:
                    raise DataError(f"{file}, row {number}: starts at {start}, the document before ended at {last}")
                ends.append(end)
                last = end
                if len(ends) == BLOCK_DOCUMENTS:
                    yield np.array(ends, np.int64)
                    ends = []
    except (OSError, EOFError, zlib.error, ValueError, IndexError, csv.Error) as error:
        raise DataError(f"{file} is damaged ({error}); expected gzipped rows start,end,id,src,line") from error
    yield np.array(ends, np.int64)


# --- nanoGPT ---------------------------------------------------------------------------------------------------------


def _nanogpt_dtype(path: Path) -> tuple[str, int]:
    """uint16 without a header (nanoGPT), or what the 256 int32 of an llm.c header say."""
    with path.open("rb") as stream:
        head = np.frombuffer(stream.read(LLM_C_HEADER_BYTES), "<i4") if _size(path) >= LLM_C_HEADER_BYTES else []
    dtype = LLM_C_DTYPES.get((int(head[0]), int(head[1]))) if len(head) else None
    if dtype is None:
        return "<u2", 0
    expected = LLM_C_HEADER_BYTES + int(head[2]) * np.dtype(dtype).itemsize
    if (found := _size(path)) != expected:
        raise DataError(f"{path} is damaged: its llm.c header promises {expected} bytes, found {found}")
    return dtype, LLM_C_HEADER_BYTES


def _scanned_ends(peer: PeerFile, eos_id: int) -> Iterator[Ends]:
    """After every `eos_id`, and after the last token."""
    position, last = 0, 0
    for ids in peer.blocks():
        ends = position + np.flatnonzero(ids == eos_id) + 1
        position += len(ids)
        last = int(ends[-1]) if len(ends) else last
        yield ends.astype(np.int64)
    if last < position:
        yield np.array([position], np.int64)
