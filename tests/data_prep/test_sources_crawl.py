"""Web archives: which records are pages, and what their text is."""

import gzip
from pathlib import Path

import pytest

from data_prep.config import OnBad
from data_prep.document import Document, Reason, refusing
from data_prep.files import DataError
from data_prep.sources.config import Source, Warc, Wet
from tests.data_prep.reading import outcomes, rejects, texts, the_reject

pytest.importorskip("fastwarc", reason="needs the extra `warc`")
pytest.importorskip("resiliparse", reason="needs the extra `warc`")


def record(kind: str, content: bytes, url: str = "http://a/") -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nContent-Length: {len(content)}\r\n"
    head += "Content-Type: " + ("application/http; msgtype=response" if kind == "response" else "text/plain")
    return f"{head}\r\n\r\n".encode() + content + b"\r\n\r\n"


def answer(body: bytes, kind: str = "text/html; charset=utf-8", status: int = 200, more: str = "") -> bytes:
    head = f"HTTP/1.1 {status} Fine\r\nContent-Type: {kind}\r\n{more}\r\n"
    return record("response", head.encode() + body)


def html(text: str) -> str:
    return f"<html><head><title>T</title></head><body><nav>menu</nav><p>{text}</p><script>no</script></body></html>"


def written(path: Path, *records: bytes, ending: str = ".warc") -> Warc:
    (path / f"a{ending}").write_bytes(b"".join(records))
    return Warc([f"crawl={path}"])


PAGES = [answer(html("Grüße").encode()), answer(html("zwei").encode())]


@pytest.mark.parametrize("gzipped", [False, True], ids=["plain", "a gzip member a record"])
def test_the_text_of_html_answers_is_taken_and_every_other_record_is_counted(tmp_path: Path, gzipped: bool):
    records = [
        record("warcinfo", b"software: x"),
        record("request", b"GET / HTTP/1.1\r\n\r\n"),
        PAGES[0],
        answer(b"%PDF", "application/pdf"),
        answer(html("gone").encode(), status=404),
        answer(b"<html><script>x()</script></html>"),
        answer(b"not gzip", more="Content-Encoding: gzip\r\n"),
        record("response", b"garbage"),
        PAGES[1],
    ]
    if gzipped:
        source = written(tmp_path, *map(gzip.compress, records), ending=".warc.gz")
    else:
        source = written(tmp_path, *records)
    assert texts(source) == ["Grüße", "zwei"]
    assert [one.reason for one in rejects(source)] == [
        *[Reason.not_a_page] * 2, Reason.not_html, Reason.not_a_page, Reason.empty, *[Reason.not_a_page] * 2,
    ]  # fmt: skip
    first = next(one for one in outcomes(source) if isinstance(one, Document))
    assert (first.id, first.url) == (f"crawl/a.warc{'.gz' if gzipped else ''}:3", "http://a/")
    assert len(list(refusing(outcomes(source), OnBad.error))) == 9, "none of these stops a job"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (html("Grüße").encode("latin-1"), "text/html; charset=iso-8859-1"),
        (html("Grüße").replace("<title>", '<meta charset="iso-8859-1"><title>').encode("latin-1"), "text/html"),
        (html("Grüße").encode(), "text/html; charset=klingon"),
        (html("Grüße").encode(), 'TEXT/HTML; charset="UTF-8"'),
        (html("Grüße").encode(), "application/xhtml+xml"),
    ],
    ids=["declared by the server", "declared in the page", "unknown", "quoted", "XHTML"],
)
def test_the_character_set_is_the_declared_one_or_detected(tmp_path: Path, body: bytes, kind: str):
    assert texts(written(tmp_path, answer(body, kind))) == ["Grüße"]


def test_an_answer_packed_for_the_way_is_unpacked_within_the_limit(tmp_path: Path):
    packed = answer(gzip.compress(html("x" * 5000).encode()), more="Content-Encoding: gzip\r\n")
    source = written(tmp_path, packed)
    assert texts(source) == ["x" * 5000]
    source.max_document_bytes = 1000
    assert the_reject(source).reason is Reason.too_long


def test_a_record_above_the_limit_is_left_out_and_the_next_is_read(tmp_path: Path):
    source = written(tmp_path, answer(html("x" * 5000).encode()), PAGES[1])
    source.max_document_bytes = 1000
    assert the_reject(source).reason is Reason.too_long
    assert texts(source) == ["zwei"]


def test_menus_are_left_out_unless_asked_for(tmp_path: Path):
    source = written(tmp_path, PAGES[1])
    source.main_content = False
    assert "menu" in texts(source)[0]


def test_wet_gives_the_extracted_texts_as_they_are(tmp_path: Path):
    content = [
        record("warcinfo", b"x"),
        record("conversion", "Zeile\r\nzwei ü\n".encode()),
        record("conversion", b"\xff"),
    ]
    (tmp_path / "a.warc.wet.gz").write_bytes(b"".join(map(gzip.compress, content)))
    source = Wet([str(tmp_path)])
    assert texts(source) == ["Zeile\r\nzwei ü\n"]
    assert [one.reason for one in rejects(source)] == [Reason.not_a_page, Reason.not_utf8]


@pytest.mark.parametrize("gzipped", [False, True])
def test_an_archive_cut_short_anywhere_ends_with_one_reject(tmp_path: Path, gzipped: bool):
    last = gzip.compress(PAGES[1]) if gzipped else PAGES[1]
    whole = (gzip.compress(PAGES[0]) if gzipped else PAGES[0]) + last
    for cut in (*range(6 if not gzipped else 1, len(last) - 4, 17), len(last) - 4):
        source: Source = written(tmp_path, whole[:-cut], ending=".warc.gz" if gzipped else ".warc")
        assert texts(source)[0] == "Grüße"
        assert rejects(source)[-1].reason is Reason.broken_archive, cut


@pytest.mark.parametrize("content", [b"garbage " * 100, PAGES[0] + b"garbage " * 100, b"<html>x</html>\n" * 50])
def test_what_is_no_archive_is_named(tmp_path: Path, content: bytes):
    assert rejects(written(tmp_path, content))[-1].reason is Reason.broken_archive


def test_a_missing_package_is_named_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    source = written(tmp_path, *PAGES)
    monkeypatch.setitem(sys.modules, "fastwarc.warc", None)
    with pytest.raises(DataError, match=r"pip install 'crisol\[warc\]'"):
        texts(source)
