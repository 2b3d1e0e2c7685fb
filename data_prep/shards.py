"""THE on-disk format of tokens: writer and reader. numpy and the standard library only; `train` imports this.

A shard X is four files. `X.bin`: token ids, little-endian, no header, uint16 where the vocabulary fits, else int32.
`X.idx`: Megatron's index, byte for byte: 9 B magic, u64 version 1, u8 dtype code, u64 documents, u64 documents + 1,
int32 lengths in tokens, int64 offsets in bytes, int64 document bounds. `X.crc`: checksums of every block of both, by
which a reader knows that the few kilobytes it reads are what was written (`blocks.py`). `X.json`: the sidecar,
published last: what made the shard, counts, checksums, and which input gave how many documents.

Every document's ids are followed by one end-of-text id, which counts in its length. Boundaries come from the index,
never from looking for that id. Documents do not straddle shards; nothing is shuffled.
"""

import contextlib
import dataclasses
import hashlib
import json
import struct
from array import array
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from data_prep.blocks import BlockFiles, BlockSums, OpenFiles, sums_bytes
from data_prep.files import DataError, publish_json, published

SCHEMA_VERSION = 2
EOS_POLICY = "after_every_document"
MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPE_CODES = {"uint16": 8, "int32": 4}  # Megatron's; it has no uint32
IDX_BYTES_PER_DOCUMENT = 4 + 8 + 8
SUMS = ".crc"
BIN, IDX = 0, 1  # place of each among the files that .crc is about
INDEX_BLOCK = 1 << 20  # documents
LONGEST_DOCUMENT = 2**31 - 1  # the index holds lengths as int32

Ids = npt.NDArray[Any]


def dtype_for(vocab_size: int) -> str:
    """uint16 while every id fits, else int32."""
    return "uint16" if vocab_size <= 65_536 else "int32"


def file_of(stem: Path, ending: str) -> Path:
    """`folder/X` and `.bin` make `folder/X.bin`, whatever dots X holds."""
    return stem.with_name(stem.name + ending)


@dataclass(frozen=True)
class SpanCount:
    """What one span of an input gave to one shard. `documents_in` = documents of all splits + all of `removed`."""

    name: str
    version: str
    start: int
    stop: int
    documents_in: int
    documents: int
    removed: dict[str, int]
    """Documents that are in no shard, by reason: what could not be read, was filtered, or stood twice."""


@dataclass(frozen=True)
class Sidecar:
    """Content of X.json. `text_bytes`: UTF-8 bytes of the documents; `tokens` counts the end-of-text ids too."""

    schema_version: int
    task: str
    source: str
    tokenizer_sha256: str
    vocab_size: int
    dtype: str
    eos_policy: str
    eos_id: int
    documents: int
    tokens: int
    text_bytes: int
    bin_sha256: str
    idx_sha256: str
    spans: tuple[SpanCount, ...]

    @property
    def bin_bytes(self) -> int:
        return self.tokens * np.dtype(self.dtype).itemsize

    @property
    def idx_bytes(self) -> int:
        return HEADER.size + IDX_BYTES_PER_DOCUMENT * self.documents + 8

    @property
    def crc_bytes(self) -> int:
        return sums_bytes((self.bin_bytes, self.idx_bytes))


Record = TypeVar("Record")


def parsed(schema: type[Record], tree: Any, file: Path) -> Record:
    """A flat record from JSON. Raises DataError unless exactly the fields of `schema` are there, each of its type."""
    fields = {item.name: item.type for item in dataclasses.fields(cast(Any, schema))}
    if not isinstance(tree, dict):
        raise DataError(f"{file} does not hold what it should: expected a record of {', '.join(fields)}")
    record = cast(dict[str, Any], tree)
    wrong = sorted(fields.keys() ^ record.keys())
    wrong += [name for name, kind in fields.items() if kind in (int, str) and type(record.get(name)) is not kind]
    if wrong:
        raise DataError(f"{file} is not a {schema.__name__} of schema {SCHEMA_VERSION}; see {', '.join(wrong)}")
    return schema(**record)


def read_json(file: Path) -> dict[str, Any]:
    """Raises DataError when the file is missing, unreadable, not JSON, or of another schema version."""
    try:
        tree: Any = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{file} is not JSON ({error}); it was altered after it was written") from error
    found = cast(dict[str, Any], tree).get("schema_version") if isinstance(tree, dict) else None
    if found != SCHEMA_VERSION:
        raise DataError(f"{file} has schema version {found}, this program reads {SCHEMA_VERSION}")
    return cast(dict[str, Any], tree)


def read_sidecar(stem: Path) -> Sidecar:
    file = file_of(stem, ".json")
    tree = read_json(file)
    spans = tuple(parsed(SpanCount, item, file) for item in cast(list[Any], tree.get("spans") or []))
    sidecar = parsed(Sidecar, tree | {"spans": spans}, file)
    if sidecar.dtype not in DTYPE_CODES:
        raise DataError(f"{file}: unknown dtype {sidecar.dtype!r}; known: {', '.join(DTYPE_CODES)}")
    return sidecar


def size_problems(stem: Path, sidecar: Sidecar) -> dict[Path, str]:
    """One message for each of .bin, .idx and .crc that is missing or not as long as the sidecar says."""
    sizes = {".bin": sidecar.bin_bytes, ".idx": sidecar.idx_bytes, SUMS: sidecar.crc_bytes}
    files = {file_of(stem, ending): size for ending, size in sizes.items()}
    problems = {file: size_problem(file, expected) for file, expected in files.items()}
    return {file: problem for file, problem in problems.items() if problem}


def size_problem(file: Path, expected: int) -> str:
    """Empty when the file has exactly `expected` bytes."""
    try:
        found = file.stat().st_size
    except OSError as error:
        return f"{file} is missing or out of reach: {error.strerror}"
    if found == expected:
        return ""
    return f"{file} is {'truncated' if found < expected else 'too long'}: expected {expected} bytes, found {found}"


# --- writing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShardHead:
    """What every document of a shard has in common."""

    task: str
    source: str
    tokenizer_sha256: str
    vocab_size: int
    eos_id: int


class ShardWriter:
    """Takes documents in lots; made by `shard_writer`, which publishes what was taken.

    Memory: 4 bytes a document, whatever its length.
    """

    def __init__(self, stream: IO[bytes], sums: BlockSums, head: ShardHead):
        self.head = head
        self.dtype = dtype_for(head.vocab_size)
        self.lengths = array("i")
        self.text_bytes = 0
        self.spans: list[SpanCount] = []
        self._stream, self._sums = stream, sums
        self._sha256 = hashlib.sha256()

    def add(self, ids: Ids, lengths: npt.NDArray[np.int64], text_bytes: int) -> None:
        """Appends documents: `ids` (n,) of any integer type, one document after the other, without end-of-text;
        `lengths` (documents,) says how many each has, `text_bytes` counts the UTF-8 of all of them.

        Raises DataError on an id outside the vocabulary: a cast to uint16 would wrap it silently.
        """
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= self.head.vocab_size):
            raise DataError(f"a token id lies outside 0 ... {self.head.vocab_size - 1}: the tokenizer does not match")
        if lengths.size and int(lengths.max()) >= LONGEST_DOCUMENT:
            raise DataError(f"a document of {lengths.max()} tokens does not fit the index ({LONGEST_DOCUMENT - 1})")
        with_ends = np.empty(ids.size + lengths.size, dtype=np.dtype(self.dtype).newbyteorder("<"))
        ends = np.cumsum(lengths + 1) - 1
        is_id = np.ones(with_ends.size, dtype=bool)
        is_id[ends] = False
        with_ends[is_id] = ids
        with_ends[ends] = self.head.eos_id
        content = with_ends.tobytes()
        self._stream.write(content)
        self._sha256.update(content)
        self._sums.update(content)
        self.lengths.frombytes((lengths + 1).astype(np.int32).tobytes())
        self.text_bytes += text_bytes

    def write_index(self, stream: IO[bytes]) -> str:
        """Ends the ids and writes what belongs into X.idx; returns its SHA-256."""
        digest = hashlib.sha256()
        self._sums.end_file()
        for block in megatron_index(np.array(self.lengths, dtype=np.int32), self.dtype):
            stream.write(block)
            digest.update(block)
            self._sums.update(block)
        self._sums.end_file()
        return digest.hexdigest()

    def sidecar(self, idx_sha256: str) -> Sidecar:
        return Sidecar(
            schema_version=SCHEMA_VERSION,
            task=self.head.task,
            source=self.head.source,
            tokenizer_sha256=self.head.tokenizer_sha256,
            vocab_size=self.head.vocab_size,
            dtype=self.dtype,
            eos_policy=EOS_POLICY,
            eos_id=self.head.eos_id,
            documents=len(self.lengths),
            tokens=int(np.array(self.lengths, dtype=np.int32).sum(dtype=np.int64)),
            text_bytes=self.text_bytes,
            bin_sha256=self._sha256.hexdigest(),
            idx_sha256=idx_sha256,
            spans=tuple(self.spans),
        )


@contextlib.contextmanager
def shard_writer(stem: Path, head: ShardHead) -> Generator[ShardWriter, None, None]:
    """A shard that appears, sidecar last, only when the block ends well. On any error none of its files is left.

    Raises DataError for a full disk or missing permission.
    """
    has_published = False  # what fails before has left nothing, and what is there is another's
    try:
        with published(file_of(stem, SUMS)) as sums_stream:
            with published(file_of(stem, ".bin")) as stream:
                writer = ShardWriter(stream, BlockSums(sums_stream), head)
                yield writer
            has_published = True
            with published(file_of(stem, ".idx")) as stream:
                idx_sha256 = writer.write_index(stream)
        publish_json(file_of(stem, ".json"), dataclasses.asdict(writer.sidecar(idx_sha256)))
    except BaseException:
        if has_published:
            remove_shard(stem)
        raise


def remove_shard(stem: Path) -> None:
    """Sidecar first, so that a half-removed shard is never taken for a whole one."""
    for ending in (".json", SUMS, ".idx", ".bin"):
        with contextlib.suppress(OSError):
            file_of(stem, ending).unlink(missing_ok=True)


def megatron_index(lengths: npt.NDArray[np.int32], dtype: str) -> Iterator[bytes]:
    """The .idx bytes for one sequence per document, in blocks. lengths: (documents,) tokens."""
    n, itemsize = len(lengths), np.dtype(dtype).itemsize
    yield HEADER.pack(MAGIC, 1, DTYPE_CODES[dtype], n, n + 1)
    blocks = [lengths[first : first + INDEX_BLOCK] for first in range(0, n, INDEX_BLOCK)]
    for block in blocks:
        yield block.astype("<i4").tobytes()
    start = 0
    for block in blocks:
        ends = start + np.cumsum(block, dtype=np.int64) * itemsize
        yield np.concatenate([[start], ends[:-1]]).astype("<i8").tobytes()
        start = int(ends[-1])
    for first in range(0, n + 1, INDEX_BLOCK):
        yield np.arange(first, min(first + INDEX_BLOCK, n + 1), dtype="<i8").tobytes()


# --- reading ---------------------------------------------------------------------------------------------------------


def block_files(stem: Path, sizes: tuple[int, int], crc_sha256: str | None, opened: OpenFiles) -> BlockFiles:
    """.bin and .idx of a shard, by their sizes; see BIN and IDX."""
    files = [(file_of(stem, ending), size) for ending, size in zip((".bin", ".idx"), sizes, strict=True)]
    return BlockFiles(files, file_of(stem, SUMS), crc_sha256, opened)


class ShardReader:
    """One shard, opened by its stem `folder/X`. Sizes are checked at once, ids and index whenever they are read.

    May be pickled or used after a fork: the other process opens the files anew.
    """

    def __init__(self, stem: Path):
        """Raises DataError when a file is missing, truncated, too long, or not of this format."""
        self.stem = Path(stem)
        self.sidecar = read_sidecar(self.stem)
        problems = size_problems(self.stem, self.sidecar)
        if problems:
            raise DataError("; ".join(problems.values()))
        self._files = block_files(self.stem, (self.sidecar.bin_bytes, self.sidecar.idx_bytes), None, OpenFiles(3))

    def __reduce__(self) -> tuple[Callable[[Path], "ShardReader"], tuple[Path]]:
        return ShardReader, (self.stem,)

    @property
    def n_documents(self) -> int:
        return self.sidecar.documents

    @property
    def n_tokens(self) -> int:
        return self.sidecar.tokens

    @cached_property
    def document_starts(self) -> npt.NDArray[np.int64]:
        """(documents + 1,) token positions where documents begin; the last is `n_tokens`. Raises DataError."""
        head = bytes(self._files.read(IDX, HEADER.size, 0))
        lengths = np.frombuffer(self._files.read(IDX, 4 * self.n_documents, HEADER.size), dtype="<i4")
        expected = HEADER.pack(MAGIC, 1, DTYPE_CODES[self.sidecar.dtype], self.n_documents, self.n_documents + 1)
        starts = np.zeros(self.n_documents + 1, dtype=np.int64)
        np.cumsum(lengths, out=starts[1:])
        if head != expected or starts[-1] != self.n_tokens:
            names = [file_of(self.stem, ending).name for ending in (".idx", ".bin")]
            raise DataError(f"{self.stem.parent / names[0]} does not describe {names[1]}: it was altered or exchanged")
        return starts

    def tokens(self, start: int, stop: int) -> Ids:
        """Ids at positions start ... stop - 1, read-only, (stop - start,). Raises IndexError outside, DataError when
        they are not what was written."""
        if not 0 <= start <= stop <= self.n_tokens:
            raise IndexError(f"{self.stem.name}: tokens {start} ... {stop} of {self.n_tokens}")
        dtype = np.dtype(self.sidecar.dtype).newbyteorder("<")
        content = self._files.read(BIN, (stop - start) * dtype.itemsize, start * dtype.itemsize)
        return np.frombuffer(content, dtype=dtype)

    def document(self, i: int) -> Ids:
        """Ids of document i, its end-of-text id included."""
        if not 0 <= i < self.n_documents:
            raise IndexError(f"{self.stem.name}: document {i} of {self.n_documents}")
        starts = self.document_starts
        return self.tokens(int(starts[i]), int(starts[i + 1]))
