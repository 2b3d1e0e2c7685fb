"""Web archives: WARC (pages as they were served; the text is extracted here) and WET (texts extracted by Common Crawl).

In: records, read by FastWARC from what we uncompressed. Out: one outcome a record. A page is the answer of a web
server with status 2xx whose type is HTML; its character set is the one it declares, or is detected. Extraction is
resiliparse's, whose rules change with its releases. FastWARC takes a record that is cut short for a whole one, so
lengths are compared with what the records' heads announce.
"""

from collections.abc import Iterator
from typing import Any

from data_prep.document import Outcome, Reason, Rejected, outcome_of_bytes, outcome_of_text, too_long
from data_prep.files import DataError
from data_prep.sources.config import Warc, Wet
from data_prep.sources.part import Part
from data_prep.sources.stream import BlockStream, BrokenFileError

HTML = ("text/html", "application/xhtml+xml")


def read_crawl(source: Warc | Wet, part: Part) -> Iterator[Outcome]:
    """Raises DataError when the packages of the extra `warc` are missing."""
    number = 0
    try:
        for number, record in enumerate(_records(part.blocks(source.max_expansion)), 1):
            yield _outcome(source, record, f"{part.prefix}{number}", part.end_byte)
    except BrokenFileError as error:
        yield part.broken(error, number + 1)


def _records(blocks: Iterator[bytes]) -> Iterator[Any]:
    try:
        import fastwarc.warc as warc  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
        import resiliparse.extract.html2text  # noqa: F401  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
    except ImportError as error:
        raise DataError(f"source=warc and source=wet need packages: pip install 'crisol[warc]' ({error})") from error
    stream: Any = BlockStream(blocks)
    archive = iter(warc.ArchiveIterator(stream, parse_http=False, stream_detect=False))
    while True:
        try:
            record = next(archive)
        except StopIteration:
            return
        except OSError as error:
            raise BrokenFileError(Reason.broken_archive, f"not a WARC record: {error}") from error
        yield record


def _outcome(source: Warc | Wet, record: Any, id: str, end_byte: int) -> Outcome:
    kind, size = (record.headers.get(name) or "" for name in ("WARC-Type", "Content-Length"))
    url = (record.headers.get("WARC-Target-URI") or "").strip("<>")
    if not size.isdecimal():
        raise BrokenFileError(Reason.broken_archive, "the record's head is cut short: it has no Content-Length")
    if int(size) > source.max_document_bytes:
        return too_long(int(size), source.max_document_bytes, id, end_byte)
    block = record.reader.read()
    if len(block) != int(size):
        raise BrokenFileError(Reason.broken_archive, f"the record is cut short: {len(block):,} of {int(size):,} bytes")
    match source:
        case Wet() if kind == "conversion":
            return outcome_of_bytes(block, id, end_byte, url)
        case Warc() if kind == "response":
            return _page(source, block, url, id, end_byte)
        case _:
            return Rejected(Reason.not_a_page, id, end_byte, f"a record of type {kind}")


def _page(source: Warc, block: bytes, url: str, id: str, end_byte: int) -> Outcome:
    from fastwarc.warc import WarcRecord  # pyright: ignore[reportMissingImports, reportMissingModuleSource]

    answer = WarcRecord()  # apart from the archive, whose reading would end with an answer that cannot be parsed
    answer.init_headers(content_length=len(block))
    answer.set_bytes_content(block)
    answer.is_http = True
    try:
        answer.parse_http(auto_decode="all")
        html = answer.reader.read(source.max_document_bytes + 1)
    except OSError as error:
        return Rejected(Reason.not_a_page, id, end_byte, f"the content is not encoded as its head says: {error}")
    status, kind = answer.http_headers.status_code, (answer.http_content_type or "of no type").lower()
    if status is None or not 200 <= status < 300:
        return Rejected(Reason.not_a_page, id, end_byte, f"HTTP status {status}")
    if kind not in HTML:
        return Rejected(Reason.not_html, id, end_byte, f"content {kind}")
    if len(html) > source.max_document_bytes:  # it was packed inside the record
        return too_long(len(html), source.max_document_bytes, id, end_byte, at_least=True)
    text = _text(html, (answer.http_charset or "").strip("\"' "), source.main_content)
    if not text.strip():
        return Rejected(Reason.empty, id, end_byte, "no text in the page")
    return outcome_of_text(text, id, end_byte, url)


def _text(html: bytes, charset: str, main_content: bool) -> str:
    from resiliparse.extract.html2text import extract_plain_text  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding  # pyright: ignore[reportMissingImports, reportMissingModuleSource]

    try:
        page = bytes_to_str(html, charset or detect_encoding(html, from_html_meta=True) or "utf-8")
    except LookupError:  # a charset that nobody knows
        page = bytes_to_str(html, detect_encoding(html, from_html_meta=True) or "utf-8")
    return extract_plain_text(page, main_content=main_content, alt_texts=False)
