"""Parquet: one row a document. Only the columns asked for are read, a row group after another, in small batches."""

from collections.abc import Iterator
from typing import Any

from data_prep.document import Outcome, Reason
from data_prep.sources.columns import check_columns, names_of, outcomes_of, text_bytes
from data_prep.sources.config import Parquet
from data_prep.sources.part import Part
from data_prep.sources.stored import StoredFile
from data_prep.sources.stream import EXPANSION_FLOOR, BrokenFileError

BATCH_ROWS = 512


def read_parquet(source: Parquet, part: Part) -> Iterator[Outcome]:
    import pyarrow

    try:
        table = _opened(part.file)
        check_columns(table.schema_arrow, source)
        starts = _starts(table.metadata)
    except BrokenFileError as error:
        yield part.broken(error, 1)
        return
    except (pyarrow.ArrowException, OSError) as error:
        yield part.broken(BrokenFileError(Reason.broken_archive, f"not a whole Parquet file: {error}"), 1)
        return
    number = 0
    for group, start in enumerate(starts):
        if part.span.start <= start < part.span.stop:
            yield from _group(table, source, part, group, start, number)
            number += table.metadata.row_group(group).num_rows


def _group(table: Any, source: Parquet, part: Part, group: int, start: int, number: int) -> Iterator[Outcome]:
    """The rows of one group, `number` rows of the span before them. Damage costs this group's remaining rows, each of
    them counted, and no other's, so what is lost does not depend on how the file was cut."""
    import pyarrow

    given = 0
    try:
        for batch, end_byte in _batches(table, source, group, start):
            end_byte = min(end_byte, part.span.stop) - part.span.start
            yield from outcomes_of(batch, source, part.prefix, number + given, end_byte)
            given += batch.num_rows
        return
    except BrokenFileError as error:
        damage = error
    except (pyarrow.ArrowException, OSError) as error:
        damage = BrokenFileError(Reason.broken_archive, f"row group {group} of the Parquet file is damaged: {error}")
    for lost in range(given, table.metadata.row_group(group).num_rows):
        yield part.broken(damage, number + lost + 1)


def row_group_starts(file: StoredFile) -> list[int]:
    """Ascending offsets; empty where the footer cannot be read (reading will tell)."""
    import pyarrow

    try:
        return _starts(_opened(file).metadata)
    except (pyarrow.ArrowException, OSError):
        return []


def _opened(file: StoredFile) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(file, pre_buffer=False)


def _starts(metadata: Any) -> list[int]:
    """Where the first page of each row group lies. The footer's own `file_offset` is wrong in files of some writers."""
    starts: list[int] = []
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        columns = [group.column(i) for i in range(group.num_columns)]
        pages = [min(c.dictionary_page_offset or c.data_page_offset, c.data_page_offset) for c in columns]
        starts.append(min(pages, default=4))
    return starts


def _batches(table: Any, source: Parquet, group: int, start: int) -> Iterator[tuple[Any, int]]:
    """(record batch, offset in the file that it reaches to). Raises BrokenFileError for a zip bomb: pages compress like
    any file, and a dictionary lets one text stand for a million rows."""
    metadata = table.metadata.row_group(group)
    columns = [metadata.column(i) for i in range(metadata.num_columns)]
    size = sum(column.total_compressed_size for column in columns)
    texts = [c for c in columns if c.path_in_schema == source.text_field]
    packed, unpacked = (
        sum(c.total_compressed_size for c in texts),
        sum(c.total_uncompressed_size for c in texts),
    )
    _refuse_bomb(packed, unpacked, source)
    given = rows = 0
    for batch in table.iter_batches(BATCH_ROWS, row_groups=[group], columns=names_of(source), use_threads=False):
        given, rows = given + text_bytes(batch, source), rows + batch.num_rows
        _refuse_bomb(packed, given, source)
        yield batch, start + size * rows // max(1, metadata.num_rows)


def _refuse_bomb(packed: int, unpacked: int, source: Parquet) -> None:
    if unpacked > EXPANSION_FLOOR and unpacked > source.max_expansion * packed:
        raise BrokenFileError(
            Reason.zip_bomb,
            f"{packed:,} stored bytes of one row group become {unpacked:,} or more, more than source.max_expansion="
            f"{source.max_expansion} times as many",
        )
