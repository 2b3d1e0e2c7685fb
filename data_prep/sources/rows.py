"""CSV: a header line, then one row a document, quoted as in RFC 4180 (a text may hold newlines and delimiters).

Read with the standard library, not through `datasets`: its reader (pandas) takes the words NA, null and None for
missing values, and gives up a whole file at the first broken row.
"""

import csv
from collections.abc import Iterator, Sequence
from typing import Any

from data_prep.document import Outcome, Reason, Rejected, outcome_of_bytes, too_long
from data_prep.sources.config import Csv, Delimiter
from data_prep.sources.jsonl import BYTE_ORDER_MARK
from data_prep.sources.part import Part
from data_prep.sources.stream import BrokenFileError

CHARACTERS = {Delimiter.comma: ",", Delimiter.semicolon: ";", Delimiter.tab: "\t", Delimiter.pipe: "|"}


def read_rows(source: Csv, part: Part) -> Iterator[Outcome]:
    csv.field_size_limit(source.max_document_bytes)  # characters; an open quote would swallow the rest of the file
    number = 0
    try:
        rows = csv.reader(_lines(source, part), delimiter=CHARACTERS[source.delimiter], strict=True)
        header: Sequence[str] = next(rows, ())
        if not header:
            yield Rejected(Reason.empty, part.span.input.name, part.end_byte, "there is no header line")
            return
        text_column, url_column = _column(source.text_field, header), _column(source.url_field, header)
        while True:
            number += 1
            id, first_line = f"{part.prefix}{number}", rows.line_num + 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield Rejected(Reason.bad_row, id, part.end_byte, f"{_lines_named(first_line, rows.line_num)}: {error}")
                continue
            if row:
                yield _outcome(row, header, text_column, url_column, source, id, part.end_byte)
            else:
                yield Rejected(Reason.empty, id, part.end_byte, "the line is blank")
    except BrokenFileError as error:
        yield part.broken(error, number)
    except csv.Error as error:
        yield part.broken(BrokenFileError(Reason.bad_row, f"the header line: {error}"), number)


def _lines(source: Csv, part: Part) -> Iterator[str]:
    """Bytes that are not UTF-8 become half surrogate pairs, and are found where they matter."""
    for number, line in enumerate(part.lines(source.max_expansion, source.max_document_bytes), 1):
        if isinstance(line, int):
            raise BrokenFileError(
                Reason.too_long,
                f"line {number} has {line:,} bytes; source.max_document_bytes={source.max_document_bytes}",
            )
        line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
        yield line.decode(errors="surrogateescape")


def _lines_named(first: int, last: int) -> str:
    return f"line {first}" if first == last else f"lines {first} to {last}"


def _column(name: str | None, header: Sequence[str]) -> int | None:
    if name is None:
        return None
    if header.count(name) != 1:
        problem = "is missing" if name not in header else f"is there {header.count(name)} times"
        present = ", ".join(header) or "-"
        raise BrokenFileError(Reason.no_text, f"the column `{name}` {problem}; present: {present}")
    return header.index(name)


def _outcome(
    row: list[str], header: Sequence[str], text_column: Any, url_column: int | None, source: Csv, id: str, end_byte: int
) -> Outcome:
    if len(row) != len(header):
        detail = f"the row has {len(row)} columns, the header {len(header)}"
        return Rejected(Reason.bad_row, id, end_byte, detail)
    text = row[text_column].encode(errors="surrogateescape")
    if len(text) > source.max_document_bytes:
        return too_long(len(text), source.max_document_bytes, id, end_byte)
    url = "" if url_column is None else row[url_column].encode(errors="replace").decode()
    return outcome_of_bytes(text, id, end_byte, url)
