"""Text and JSONL: what is a document, and what becomes of everything else."""

import bz2
import gzip
import json
import os
import random
import tracemalloc
from pathlib import Path

import pytest

from data_prep.config import OnBad
from data_prep.document import Document, Outcome, Reason, refusing
from data_prep.files import DataError
from data_prep.inputs import Span, find
from data_prep.sources.config import SOURCES, Jsonl, PythonStdlib, Source, TextFiles
from data_prep.sources.read import read
from tests.data_prep.reading import outcomes, rejects, rows, texts, the_reject, zstd

# --- text ------------------------------------------------------------------------------------------------------------


def test_a_text_file_is_one_document_and_nothing_in_it_is_touched(tmp_path: Path):
    text = "\ufeff  a\r\nb\rc\x00\n\n "
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert texts(TextFiles([str(tmp_path)])) == [text]


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".zst", zstd)])
def test_a_packed_text_file_is_uncompressed(tmp_path: Path, ending: str, pack: object):
    (tmp_path / f"a.txt{ending}").write_bytes(pack(b"x\ny" * 300_000))  # pyright: ignore[reportCallIssue]
    assert texts(TextFiles([str(tmp_path)])) == ["x\ny" * 300_000]


def test_a_file_that_is_not_utf8_is_named_with_its_byte(tmp_path: Path):
    (tmp_path / "latin.txt").write_bytes("abc é".encode("latin-1"))
    reject = the_reject(TextFiles([str(tmp_path)]))
    assert reject.reason is Reason.not_utf8
    assert reject.id.endswith("latin.txt")
    assert "byte 4 of the text (0xE9)" in reject.detail


def test_an_empty_file_is_counted_and_never_an_error(tmp_path: Path):
    (tmp_path / "empty.txt").touch()
    source = TextFiles([str(tmp_path)])
    assert the_reject(source).reason is Reason.empty
    assert len(list(refusing(outcomes(source), OnBad.error))) == 1


def test_a_bad_document_stops_or_is_counted_as_asked(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    source = TextFiles([str(tmp_path)])
    assert len(list(refusing(outcomes(source), OnBad.skip))) == 1
    with pytest.raises(DataError, match=r"bad document \(not_utf8\) at .*a\.txt: .*on_bad_document=skip"):
        list(refusing(outcomes(source), OnBad.error))


def test_the_standard_library_can_be_read():
    (code,) = [item for item in find(PythonStdlib()) if item.name == "python_stdlib/this.py"]
    (document,) = read(PythonStdlib(), Span(code, 0, code.bytes))
    assert isinstance(document, Document)
    assert document.utf8 == Path(code.url).read_bytes()


# --- JSONL -----------------------------------------------------------------------------------------------------------

THREE = ["one", "two\n\u2581", "drei \U0001f600"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", rows(*THREE)),
        ("a.jsonl", rows(*THREE).rstrip(b"\n")),
        ("a.jsonl", rows(*THREE).replace(b"\n", b"\r\n")),
        ("a.jsonl", b"\xef\xbb\xbf" + rows(*THREE)),
        ("a.jsonl.gz", gzip.compress(rows(*THREE))),
        ("a.jsonl.gz", gzip.compress(rows(*THREE[:1])) + gzip.compress(rows(*THREE[1:]))),
        ("a.jsonl.gz", gzip.compress(rows(*THREE)) + bytes(512)),
        ("a.jsonl.zst", zstd(rows(*THREE))),
        ("a.jsonl.zst", zstd(rows(*THREE[:2])) + zstd(rows(*THREE[2:]))),
        ("a.json.bz2", bz2.compress(rows(*THREE[:2])) + bz2.compress(rows(*THREE[2:]))),
    ],
    ids=["plain", "no last newline", "CRLF", "BOM",
         "gzip", "gzip members", "gzip padded", "zstd", "zstd frames", "bzip2"],
)  # fmt: skip
def test_jsonl_gives_a_document_a_line(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    assert texts(Jsonl([str(tmp_path)])) == THREE


def test_jsonl_documents_are_named_by_line_and_other_fields_hold_text_and_address(tmp_path: Path):
    lines = ['{"body": "x", "at": "http://a"}', '{"body": "y"}', '{"body": "z", "at": "\\ud800"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = outcomes(Jsonl([f"web={tmp_path}"], text_field="body", url_field="at"))
    assert [(one.id, one.url) for one in found if isinstance(one, Document)] == [
        ("web/a.jsonl:1", "http://a"),
        ("web/a.jsonl:2", ""),
        ("web/a.jsonl:3", "?"),
    ]


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b'{"text": "cut', Reason.bad_json, "not JSON"),
        (b"[" * 100_000, Reason.bad_json, "not JSON"),
        (b'{"text": "a\x00b"}', Reason.bad_json, "control character"),
        (b'{"text": "\xff"}', Reason.not_utf8, "byte 10 of the line"),
        (b'{"txt": "x", "id": 3}', Reason.no_text, "`text` is missing; present: id, txt"),
        (b'{"text": null}', Reason.no_text, "`text` is a NoneType"),
        (b'{"text": ["x"]}', Reason.no_text, "`text` is a list"),
        (b'"x"', Reason.no_text, "not an object but a str"),
        (b"7", Reason.no_text, "not an object but a int"),
        (b'{"text": "a\\ud800b"}', Reason.lone_surrogate, "character 1 is U+D800"),
        (b'{"text": ""}', Reason.empty, "empty"),
        (b"   ", Reason.empty, "blank"),
        (b"", Reason.empty, "blank"),
        (b'\xef\xbb\xbf{"text": "x"}', Reason.bad_json, "BOM"),
    ],
)
def test_a_bad_line_is_a_counted_reason_with_file_and_line(tmp_path: Path, line: bytes, reason: Reason, detail: str):
    (tmp_path / "a.jsonl").write_bytes(rows("before") + line + b"\n" + rows("after"))
    source = Jsonl([f"web={tmp_path}"])
    reject = the_reject(source)
    assert (reject.reason, reject.id) == (reason, "web/a.jsonl:2")
    assert detail in reject.detail
    assert texts(source) == ["before", "after"]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"text": "\\ud83d\\ude00"}', "\U0001f600"),
        (b'{"text": "a\\u0000b"}', "a\0b"),
        (b'{"text": "x", "score": NaN, "other": "\\ud800", "large": 1e999}', "x"),
    ],
    ids=["a surrogate pair", "NUL", "what orjson refuses beside the text"],
)
def test_unusual_lines_that_hold_a_text_are_kept(tmp_path: Path, line: bytes, text: str):
    (tmp_path / "a.jsonl").write_bytes(line)
    assert texts(Jsonl([str(tmp_path)])) == [text]


def test_texts_are_those_the_standard_library_reads(tmp_path: Path):
    draw = random.Random(5)
    alphabet = ["a", "\\", '"', "\n", "\r", "\t", "\0", "\u2028", "\x85", "é", "\u4e00", "\U0001f600", "\x7f", "/"]
    wanted = ["".join(draw.choices(alphabet, k=draw.randrange(1, 40))) for _ in range(2000)]
    lines = [json.dumps({"n": 1, "text": text}, ensure_ascii=draw.random() < 0.5) for text in wanted]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), newline="")
    assert texts(Jsonl([str(tmp_path)])) == wanted


# --- damage and excess -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("zst", zstd)])
def test_a_compressed_file_cut_short_gives_what_came_before_and_one_reject(tmp_path: Path, ending: str, pack: object):
    wanted = [f"document {i * i} {i:b}" for i in range(20_000)]
    packed: bytes = pack(rows(*wanted))  # pyright: ignore[reportCallIssue]
    file = tmp_path / f"a.jsonl.{ending}"
    source = Jsonl([str(tmp_path)])
    for cut in (9, len(packed) // 2, 3):
        file.write_bytes(packed[:-cut])
        found = texts(source)
        assert found == wanted[: len(found)]
        assert the_reject(source).reason is Reason.broken_archive
        assert the_reject(source).id.endswith(f":{len(found) + 1}")
        if ending != "bz2":  # whose blocks of 900 kB are only given whole
            assert len(found) >= len(wanted) * (len(packed) - cut) // len(packed) * 0.8


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("zst", zstd)])
@pytest.mark.parametrize("damage", ["garbage after", "garbage instead", "garbage inside"])
def test_damage_in_a_compressed_file_is_not_taken_for_its_end(tmp_path: Path, ending: str, pack: object, damage: str):
    packed: bytes = pack(rows(*(f"document {i * i} {i:b}" for i in range(5000))))  # pyright: ignore[reportCallIssue]
    broken = {
        "garbage after": packed + b"garbage",
        "garbage instead": b"garbage",
        "garbage inside": packed[:-2000] + b"\x55" * 2000,
    }
    (tmp_path / f"a.jsonl.{ending}").write_bytes(broken[damage])
    assert outcomes(Jsonl([str(tmp_path)]))[-1].reason is Reason.broken_archive  # pyright: ignore[reportAttributeAccessIssue]
    if damage == "garbage after":
        assert len(texts(Jsonl([str(tmp_path)]))) == 5000


def with_peak(source: Source) -> tuple[list[Outcome], int]:
    """And the most bytes of Python's own memory; the buffers of the decompressors are below a megabyte each."""
    tracemalloc.start()
    found = outcomes(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found, peak


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("zst", zstd), ("bz2", bz2.compress)])
def test_a_zip_bomb_is_left_before_it_fills_memory(tmp_path: Path, ending: str, pack: object):
    (tmp_path / f"a.jsonl.{ending}").write_bytes(pack(bytes(70 << 20)))  # pyright: ignore[reportCallIssue]
    source = Jsonl([str(tmp_path)], max_document_bytes=1 << 20)
    found, peak = with_peak(source)
    assert [one.reason for one in found] == [Reason.zip_bomb]  # pyright: ignore[reportAttributeAccessIssue]
    assert "source.max_expansion=200" in found[0].detail  # pyright: ignore[reportAttributeAccessIssue]
    assert peak < 8 << 20


def test_a_small_file_may_expand_as_it_likes(tmp_path: Path):
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(b"\n" * 50_000))
    assert {one.reason for one in rejects(Jsonl([str(tmp_path)], max_expansion=2))} == {Reason.empty}


def test_a_line_above_the_limit_is_passed_over_without_being_held(tmp_path: Path):
    long = b'{"text": "' + b"x" * (40 << 20) + b'"}\n'
    (tmp_path / "a.jsonl").write_bytes(rows("before") + long + rows("after"))
    source = Jsonl([str(tmp_path)], max_document_bytes=1 << 20)
    found, peak = with_peak(source)
    assert texts(source) == ["before", "after"]
    assert f"{len(long) - 1:,} bytes; source.max_document_bytes=1048576" in found[1].detail  # pyright: ignore[reportAttributeAccessIssue]
    assert found[1].reason is Reason.too_long  # pyright: ignore[reportAttributeAccessIssue]
    assert peak < 8 << 20


def test_a_text_file_above_the_limit_is_left_out(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"x" * 1001)
    assert texts(TextFiles([str(tmp_path)], max_document_bytes=1001)) == ["x" * 1001]
    assert the_reject(TextFiles([str(tmp_path)], max_document_bytes=1000)).reason is Reason.too_long


def test_a_million_empty_lines_are_counted_one_by_one(tmp_path: Path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"\n" * 1_000_000))
    (item,) = find(source := Jsonl([str(tmp_path)]))
    assert sum(1 for one in read(source, Span(item, 0, item.bytes)) if not isinstance(one, Document)) == 1_000_000


def test_a_file_that_changes_between_planning_and_reading_stops_the_job(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(rows("before"))
    source = Jsonl([str(file)])
    (item,) = find(source)
    file.write_bytes(rows("afterwards"))
    with pytest.raises(DataError, match="changed since it was listed"):
        list(read(source, Span(item, 0, item.bytes)))


def test_a_file_that_changes_while_it_is_read_stops_the_job(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(rows("one", "two"))
    source = Jsonl([str(file)])
    (item,) = find(source)
    reading = read(source, Span(item, 0, item.bytes))
    next(reading)
    file.write_bytes(rows("one", "two", "three"))
    with pytest.raises(DataError, match="while it was being read"):
        list(reading)


def test_a_file_that_vanishes_is_named(tmp_path: Path):
    file = tmp_path / "a.txt"
    file.write_text("x")
    source = TextFiles([str(file)])
    (item,) = find(source)
    file.unlink()
    with pytest.raises(DataError, match=r"cannot read .*a\.txt: No such file"):
        list(read(source, Span(item, 0, item.bytes)))


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path):
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(DataError, match=r"cannot read .*a\.txt: Permission denied"):
        outcomes(TextFiles([str(tmp_path)]))


def test_each_limit_is_checked_and_said_to_whom_it_matters():
    assert Jsonl([]).problems()[0].startswith("source.paths names nothing")
    assert "source.max_document_bytes=0" in PythonStdlib(max_document_bytes=0).problems()[0]
    both = Jsonl(["x"], max_expansion=1, text_field="").problems()
    assert [problem.split()[0] for problem in both] == ["source.text_field", "source.max_expansion=1"]


def test_every_source_is_named_by_its_kind():
    for kind, schema in SOURCES.items():
        assert schema.__dataclass_fields__["kind"].default == kind
        assert (Path(__file__).parents[2] / "conf" / "source" / f"{kind}.yaml").read_text().endswith(f"base_{kind}\n")
