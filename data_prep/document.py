"""The unit of raw text, and what becomes of one that cannot be used.

In: a decoded text, or the reason why there is none. Out: a `Document`, or a `Rejected` with a counted reason.
Nothing is altered on the way: a byte-order mark, CRLF, NUL and blanks at either end are part of the text.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from data_prep.config import OnBad
from data_prep.files import DataError


class Reason(StrEnum):
    empty = "empty"
    not_utf8 = "not_utf8"
    bad_json = "bad_json"
    no_text = "no_text"
    lone_surrogate = "lone_surrogate"
    broken_archive = "broken_archive"


@dataclass(frozen=True, slots=True)
class Document:
    text: str
    id: str
    """Names the document for a person: the file, or file:line."""
    source: str
    """Name of the input file that holds it; counts are kept under this name."""
    end_byte: int
    """Bytes of that file (as stored) read so far: what progress is measured by."""


@dataclass(frozen=True, slots=True)
class Rejected:
    reason: Reason
    id: str
    source: str
    end_byte: int
    detail: str


Outcome = Document | Rejected


def outcome_of(text: str, id: str, source: str, end_byte: int) -> Outcome:
    """A document, unless the text is empty or holds half a surrogate pair (which no UTF-8 can express)."""
    if not text:
        return Rejected(Reason.empty, id, source, end_byte, "the text is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        detail = f"character {error.start} is U+{ord(text[error.start]):04X}, half of a surrogate pair"
        return Rejected(Reason.lone_surrogate, id, source, end_byte, detail)
    return Document(text, id, source, end_byte)


def refusing(outcomes: Iterable[Outcome], on_bad: OnBad) -> Iterator[Outcome]:
    """Passes everything on; under `error` the first bad document raises DataError. An empty one is never bad."""
    for outcome in outcomes:
        if on_bad is OnBad.error and isinstance(outcome, Rejected) and outcome.reason is not Reason.empty:
            raise DataError(
                f"bad document ({outcome.reason}) at {outcome.id}: {outcome.detail}. Mend it, or leave such documents "
                "out and have them counted with on_bad_document=skip."
            )
        yield outcome
