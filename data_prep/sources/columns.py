"""Batches of Arrow columns to documents, without turning a text into a Python string: what Parquet, Arrow and Hugging
Face datasets have in common.

In: the schema once, then record batches that hold the text column and perhaps that of the addresses. Out: an outcome a
row. Bytes are cut out of the column's buffer; one pass over it proves that all of it is UTF-8.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from data_prep.document import Document, Outcome, Reason, Rejected, outcome_of_bytes, too_long
from data_prep.sources.config import Arrow, HuggingFace, Parquet
from data_prep.sources.stream import BrokenFileError

Columns = Parquet | Arrow | HuggingFace


def names_of(source: Columns) -> list[str]:
    return [source.text_field] if source.url_field is None else [source.text_field, source.url_field]


def check_columns(schema: Any, source: Columns) -> None:
    """Raises BrokenFileError when a column that was asked for is not there, or is not of text."""
    for name in names_of(source):
        found = schema.get_all_field_indices(name)
        if len(found) != 1:
            problem = "is missing" if not found else f"is there {len(found)} times"
            present = ", ".join(schema.names)
            raise BrokenFileError(Reason.no_text, f"the column `{name}` {problem}; present: {present}")
        if not _holds_text(schema.field(found[0]).type):
            kind = schema.field(found[0]).type
            raise BrokenFileError(Reason.no_text, f"the column `{name}` is of type {kind}, not text")


def outcomes_of(batch: Any, source: Columns, prefix: str, number: int, end_byte: int) -> Iterator[Outcome]:
    """`number` is that of the row before the first."""
    texts = _flat(batch.column(source.text_field))
    urls = _urls(batch, source.url_field)
    nulls = texts.is_null().to_numpy(zero_copy_only=False).tolist() if texts.null_count else None
    content, bounds = _buffers(texts)
    is_utf8, limit = _is_utf8(texts), source.max_document_bytes
    start = bounds[0]
    for i, stop in enumerate(bounds[1:]):
        id = f"{prefix}{number + i + 1}"
        url = urls[i] or "" if urls else ""
        if nulls and nulls[i]:
            yield Rejected(Reason.no_text, id, end_byte, f"the column `{source.text_field}` is null in this row")
        elif stop - start > limit:
            yield too_long(stop - start, limit, id, end_byte)
        elif is_utf8 and stop > start:
            yield Document(bytes(content[start:stop]), id, end_byte, url)
        else:
            yield outcome_of_bytes(bytes(content[start:stop]), id, end_byte, url)
        start = stop


def text_bytes(batch: Any, source: Columns) -> int:
    """Bytes of the batch's texts; a row counts as one at least."""
    bounds = _buffers(_flat(batch.column(source.text_field)))[1]
    return bounds[-1] - bounds[0] + batch.num_rows


def _holds_text(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_null(kind)
    )


def _flat(column: Any) -> Any:
    """As an array of (large) strings or binaries."""
    import pyarrow
    import pyarrow.types as types

    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if types.is_string_view(column.type) or types.is_null(column.type):
        column = column.cast(pyarrow.large_string())
    return column


def _buffers(texts: Any) -> tuple[memoryview, list[int]]:
    """(bytes of all rows, n + 1 borders between them)."""
    import pyarrow.types as types

    _, offsets, content = texts.buffers()
    wide = types.is_large_string(texts.type) or types.is_large_binary(texts.type)
    if offsets is None or len(texts) == 0:
        return memoryview(b""), [0] * (len(texts) + 1)
    bounds = np.frombuffer(offsets, np.int64 if wide else np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(content or b""), bounds.tolist()


def _is_utf8(texts: Any) -> bool:
    import pyarrow
    import pyarrow.types as types

    if types.is_binary(texts.type):
        texts = texts.view(pyarrow.string())
    elif types.is_large_binary(texts.type):
        texts = texts.view(pyarrow.large_string())
    try:
        texts.validate(full=True)
    except pyarrow.ArrowInvalid:
        return False
    return True


def _urls(batch: Any, field: str | None) -> list[str | None] | None:
    import pyarrow

    if field is None:
        return None
    try:
        return _flat(batch.column(field)).cast(pyarrow.large_string()).to_pylist()
    except pyarrow.ArrowInvalid:  # binary that is not UTF-8
        found = _flat(batch.column(field)).cast(pyarrow.large_binary()).to_pylist()
        return [None if url is None else url.decode(errors="replace") for url in found]
