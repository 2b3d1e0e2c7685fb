"""The unit of raw text, and what becomes of one that cannot be used.

In: a text, or the reason why there is none. Out: a `Document`, or a `Rejected` with a counted reason.
Nothing is altered on the way: a byte-order mark, CRLF, NUL and blanks at either end are part of the text.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from data_prep.config import OnBad
from data_prep.files import DataError


class Reason(StrEnum):
    """Why a record gave no document."""

    empty = "empty"
    """No text in it: a blank line, an empty file, an empty string."""
    not_a_page = "not_a_page"
    """A record of a crawl that is no answer of a web server with status 2xx: a request, a redirection, metadata."""
    not_html = "not_html"
    """The answer of a web server, but a picture, a PDF, ..."""
    not_utf8 = "not_utf8"
    lone_surrogate = "lone_surrogate"
    bad_json = "bad_json"
    bad_row = "bad_row"
    """A CSV row that breaks the quoting, or has more or fewer columns than the header."""
    no_text = "no_text"
    """The field or column is missing, null, or not text."""
    too_long = "too_long"
    """More bytes than `source.max_document_bytes`."""
    broken_archive = "broken_archive"
    """The file is cut short or damaged; what came before that place was read. Ends the file."""
    zip_bomb = "zip_bomb"
    """The file expands more than `source.max_expansion` times. Ends the file."""


HARMLESS = frozenset({Reason.empty, Reason.not_a_page, Reason.not_html})
"""What every crawl is full of: counted, and never a reason to stop."""


@dataclass(frozen=True, slots=True)
class Document:
    utf8: bytes
    """Valid UTF-8, never empty."""
    id: str
    """Names the document for a person: `name:line`, or `name@START+line` in a span that does not begin its file."""
    end_byte: int
    """Stored bytes of the span read so far: what progress is measured by."""
    url: str = ""
    """Where the page came from, if the format says."""

    @property
    def text(self) -> str:
        return self.utf8.decode()


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that gave no document: counted by reason, never silent."""

    reason: str
    id: str
    end_byte: int
    detail: str


Outcome = Document | Rejected


def outcome_of_text(text: str, id: str, end_byte: int, url: str = "") -> Outcome:
    """A document, unless the text is empty or holds half a surrogate pair (which no UTF-8 can express)."""
    if not text:
        return Rejected(Reason.empty, id, end_byte, "the text is empty")
    try:
        return Document(text.encode(), id, end_byte, url)
    except UnicodeEncodeError as error:
        detail = f"character {error.start} is U+{ord(text[error.start]):04X}, half of a surrogate pair"
        return Rejected(Reason.lone_surrogate, id, end_byte, detail)


def outcome_of_bytes(content: bytes, id: str, end_byte: int, url: str = "") -> Outcome:
    """A document, unless the bytes are none or not UTF-8."""
    if not content:
        return Rejected(Reason.empty, id, end_byte, "the text is empty")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return Rejected(Reason.not_utf8, id, end_byte, not_utf8(error, "the text"))
    return Document(content, id, end_byte, url)


def not_utf8(error: UnicodeDecodeError, what: str) -> str:
    return f"byte {error.start} of {what} (0x{error.object[error.start]:02X}) is not UTF-8: {error.reason}"


def too_long(n_bytes: int, limit: int, id: str, end_byte: int, at_least: bool = False) -> Rejected:
    size = f"at least {n_bytes:,}" if at_least else f"{n_bytes:,}"
    return Rejected(Reason.too_long, id, end_byte, f"{size} bytes; source.max_document_bytes={limit} allows {limit:,}")


def refusing(outcomes: Iterable[Outcome], on_bad: OnBad) -> Iterator[Outcome]:
    """Passes everything on; under `error` the first bad document raises DataError. HARMLESS ones are never bad."""
    for outcome in outcomes:
        if on_bad is OnBad.error and isinstance(outcome, Rejected) and outcome.reason not in HARMLESS:
            raise DataError(
                f"bad document ({outcome.reason}) at {outcome.id}: {outcome.detail}. Mend it, or leave such documents "
                "out and have them counted with on_bad_document=skip."
            )
        yield outcome
