"""JSONL: one object a line, one field of it the text. A byte-order mark before the first line is passed over.

orjson reads what is in order. What it refuses is looked at again with the standard library, which says what is wrong
with it, and takes two things that other writers produce: NaN and infinite numbers, and half surrogate pairs in fields
that are not the text.
"""

import json
from collections.abc import Iterator
from typing import Any

from data_prep.document import Document, Outcome, Reason, Rejected, not_utf8, outcome_of_text, too_long
from data_prep.sources.config import Jsonl
from data_prep.sources.part import Part
from data_prep.sources.stream import BrokenFileError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_jsonl(source: Jsonl, part: Part) -> Iterator[Outcome]:
    import orjson

    loads = orjson.loads
    text_field, url_field, limit, prefix = source.text_field, source.url_field, source.max_document_bytes, part.prefix
    number = 0
    try:
        for number, line in enumerate(part.lines(source.max_expansion, limit), 1):
            id = f"{prefix}{number}"
            if isinstance(line, int):
                yield too_long(line, limit, id, part.end_byte)
                continue
            if len(line) < 4:
                yield _looked_at(line, source, id, part.end_byte)
                continue
            try:
                row = loads(line)
                utf8 = row[text_field].encode()
            except (ValueError, KeyError, TypeError, AttributeError):
                if number == 1 and part.begins_file:
                    line = line.removeprefix(BYTE_ORDER_MARK)
                yield _looked_at(line, source, id, part.end_byte)
                continue
            if utf8:
                yield Document(utf8, id, part.end_byte, _url(row, url_field) if url_field else "")
            else:
                yield outcome_of_text("", id, part.end_byte)
    except BrokenFileError as error:
        yield part.broken(error, number + 1)


def _looked_at(line: bytes, source: Jsonl, id: str, end_byte: int) -> Outcome:
    """What a line is that orjson would not take, or whose text was not where it should be."""
    if not line.strip():
        return Rejected(Reason.empty, id, end_byte, "the line is blank")
    try:
        row: Any = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Rejected(Reason.not_utf8, id, end_byte, not_utf8(error, "the line"))
    except (ValueError, RecursionError) as error:
        return Rejected(Reason.bad_json, id, end_byte, f"not JSON: {error}")
    if not isinstance(row, dict):
        return Rejected(Reason.no_text, id, end_byte, f"the line is not an object but a {type(row).__name__}")
    text: Any = row.get(source.text_field)
    if not isinstance(text, str):
        problem = f"is a {type(text).__name__}, not text" if source.text_field in row else "is missing"
        present = ", ".join(sorted(row)) or "-"
        return Rejected(Reason.no_text, id, end_byte, f"the field `{source.text_field}` {problem}; present: {present}")
    return outcome_of_text(text, id, end_byte, _url(row, source.url_field) if source.url_field else "")


def _url(row: dict[str, Any], field: str) -> str:
    """Empty where there is none; half a surrogate pair, which no file could hold, becomes a question mark."""
    url = row.get(field)
    return url.encode(errors="replace").decode() if isinstance(url, str) else ""
