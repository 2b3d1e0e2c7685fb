"""Arrow IPC: one row a document; the file layout (Feather, version 2) and the streaming one (`save_to_disk`)."""

from collections.abc import Iterator
from typing import Any

from data_prep.document import Outcome, Reason
from data_prep.sources.columns import check_columns, outcomes_of
from data_prep.sources.config import Arrow
from data_prep.sources.part import Part
from data_prep.sources.stored import StoredFile
from data_prep.sources.stream import BrokenFileError

FILE_LAYOUT = b"ARROW1"


def read_arrow(source: Arrow, part: Part) -> Iterator[Outcome]:
    import pyarrow

    number = 0
    try:
        schema, batches = _opened(part.file)
        check_columns(schema, source)
        for batch in batches:
            yield from outcomes_of(batch, source, part.prefix, number, part.file.furthest)
            number += batch.num_rows
    except BrokenFileError as error:
        yield part.broken(error, number + 1)
    except (pyarrow.ArrowException, OSError) as error:
        yield part.broken(BrokenFileError(Reason.broken_archive, f"not a whole Arrow file: {error}"), number + 1)


def _opened(file: StoredFile) -> tuple[Any, Iterator[Any]]:
    import pyarrow.ipc

    head = file.read(len(FILE_LAYOUT))
    file.seek(0)
    if head != FILE_LAYOUT:
        stream = pyarrow.ipc.open_stream(file)
        return stream.schema, iter(stream)
    table = pyarrow.ipc.open_file(file)
    return table.schema, (table.get_batch(i) for i in range(table.num_record_batches))
