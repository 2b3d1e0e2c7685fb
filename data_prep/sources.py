"""Formats: one input file in, its documents out, in the order of the file, each a `Document` or a counted `Rejected`.

Text: the whole file is one document, its bytes taken as UTF-8 and nothing else touched (no newline translation, a
byte-order mark stays). JSONL: one object a line, plain, gzip (also several members) or Zstandard (also several frames).
A file whose content is not what was planned raises DataError: it changed while we were reading.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.config import Jsonl, Source
from data_prep.document import Outcome, Reason, Rejected, outcome_of
from data_prep.files import BLOCK_BYTES, DataError
from data_prep.inputs import Input


def read(source: Source, item: Input) -> Iterator[Outcome]:
    try:
        with item.path.open("rb") as file:
            if isinstance(source, Jsonl):
                yield from _jsonl(file, item, source.text_field)
            else:
                yield _whole_file(file, item)
        status = item.path.stat()
        if (status.st_size, status.st_mtime_ns) != (item.bytes, item.modified_ns):
            raise DataError(f"{item.path} changed while it was being read; run the same command again")
    except OSError as error:
        raise DataError(f"cannot read {item.path}: {error.strerror or error}") from error


def _whole_file(file: BinaryIO, item: Input) -> Outcome:
    content = file.read()
    try:
        return outcome_of(content.decode(), item.name, item.name, item.bytes)
    except UnicodeDecodeError as error:
        return Rejected(Reason.not_utf8, item.name, item.name, item.bytes, _not_utf8(error, "the file"))


def _jsonl(file: BinaryIO, item: Input, text_field: str) -> Iterator[Outcome]:
    number = 0
    try:
        for number, line in enumerate(_uncompressed(file, item.path), 1):
            yield _json_line(line, number, item.name, file.tell(), text_field)
    except _BrokenArchiveError as error:
        yield Rejected(Reason.broken_archive, f"{item.name}:{number + 1}", item.name, item.bytes, str(error))


def _json_line(line: bytes, number: int, source: str, end_byte: int, text_field: str) -> Outcome:
    where = f"{source}:{number}"

    def rejected(reason: Reason, detail: str) -> Rejected:
        return Rejected(reason, where, source, end_byte, detail)

    if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")  # a signature of the file; the texts are inside the JSON strings
    if not line.strip():
        return rejected(Reason.empty, "the line is blank")
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return rejected(Reason.not_utf8, _not_utf8(error, "the line"))
    except (ValueError, RecursionError) as error:
        return rejected(Reason.bad_json, f"not JSON: {error}")
    if not isinstance(row, dict):
        return rejected(Reason.no_text, f"the line is not an object but a {type(row).__name__}")
    text: Any = row.get(text_field)
    if not isinstance(text, str):
        problem = f"is a {type(text).__name__}, not text" if text_field in row else "is missing"
        return rejected(Reason.no_text, f"the field `{text_field}` {problem}; present: {', '.join(sorted(row)) or '-'}")
    return outcome_of(text, where, source, end_byte)


def _not_utf8(error: UnicodeDecodeError, what: str) -> str:
    return f"byte {error.start} of {what} (0x{error.object[error.start]:02X}) is not UTF-8: {error.reason}"


class _BrokenArchiveError(Exception):
    pass


def _uncompressed(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Lines of the file, uncompressed by its ending. Raises _BrokenArchiveError when it is cut short or damaged."""
    match path.suffix:
        case ".gz":
            yield from _lines(gzip.GzipFile(fileobj=file))
        case ".zst":
            import pyarrow  # in the dependencies anyway through `datasets`; reads several frames as one stream

            stream: Any = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")
            yield from _lines(io.BufferedReader(stream, BLOCK_BYTES))
        case _:
            yield from file


def _lines(stream: BinaryIO | io.BufferedReader | gzip.GzipFile) -> Iterator[bytes]:
    try:
        yield from stream
    except (OSError, EOFError, zlib.error) as error:
        raise _BrokenArchiveError(f"the compressed file is damaged or cut short ({error})") from error
