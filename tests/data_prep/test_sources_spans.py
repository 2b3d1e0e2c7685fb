"""Spans of one file together give exactly the file's documents, wherever it is cut."""

import json
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow
import pytest

from data_prep.document import Document
from data_prep.inputs import Input, Span, find
from data_prep.sources import stream
from data_prep.sources.config import Jsonl, Parquet, Source, TextFiles
from data_prep.sources.read import read
from data_prep.sources.spans import cuts, spans_of
from data_prep.sources.stored import StoredFile
from data_prep.sources.zstd_frames import frame_starts
from tests.data_prep.reading import rows, zstd

SKIPPABLE = b"\x5a\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"


def the_input(path: Path, content: bytes) -> tuple[Source, Input]:
    path.write_bytes(content)
    source = Jsonl([str(path)])
    return source, find(source)[0]


def read_in_parts(source: Source, item: Input, borders: Sequence[int]) -> list[tuple[str, str]]:
    """(text or reason) of every record, with the number that its name ends in dropped."""
    found: list[tuple[str, str]] = []
    for start, stop in pairwise([0, *borders, item.bytes]):
        for one in read(source, Span(item, start, stop)):
            assert 0 <= one.end_byte <= stop - start
            found.append(("text", one.text) if isinstance(one, Document) else (one.reason, one.detail))
    return found


AWKWARD = [
    rows("a", "b", "c"),
    rows("a", "", "b").rstrip(b"\n"),
    b"\n\n" + rows("a") + b"\n\n\n",
    b"\r\n" + rows("a", "b").replace(b"\n", b"\r\n"),
    b"\xef\xbb\xbf" + rows("with a byte-order mark", "b"),
    rows("a long line, longer than many a span", "é\U0001f600", "b") + b"{broken",
    b"\n",
    b"",
    b"x",
]


@pytest.mark.parametrize("content", AWKWARD, ids=range(len(AWKWARD)))
def test_a_file_cut_at_any_byte_or_at_every_byte_gives_the_same_documents(tmp_path: Path, content: bytes):
    source, item = the_input(tmp_path / "a.jsonl", content)
    whole = read_in_parts(source, item, [])
    assert len(whole) == len(content.splitlines())
    for cut in range(1, len(content)):
        assert read_in_parts(source, item, [cut]) == whole, cut
    assert read_in_parts(source, item, range(1, len(content))) == whole


@pytest.mark.parametrize("block", [1, 3, 16, 1 << 18])
def test_random_files_cut_at_random_give_the_same_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
):
    """With blocks so small that lines, borders and limits meet their edges; against splitting the whole file."""
    monkeypatch.setattr(stream, "BLOCK", block)
    draw, limit = random.Random(block), 13
    pieces = [b"\n", b"\r\n", b'{"text":"x"}', b'{"text":"yy"}\n', b'{"text":""}\n', b"  ", b"{", b"\xef\xbb\xbf"]
    for _ in range(80):
        content = b"".join(draw.choices(pieces, k=draw.randrange(12)))
        source, item = the_input(tmp_path / "a.jsonl", content)
        source.max_document_bytes = limit
        whole = read_in_parts(source, item, [])
        lines = content.removesuffix(b"\n").split(b"\n") if content else []
        assert [len(line) > limit for line in lines] == [reason == "too_long" for reason, _ in whole]
        for _ in range(4):
            inside = range(1, max(1, item.bytes))
            borders = sorted(draw.sample(inside, draw.randrange(min(6, len(inside) + 1))))
            assert read_in_parts(source, item, borders) == whole, (Path(item.url).read_bytes(), borders)


def test_lines_larger_than_a_block_are_whole(tmp_path: Path):
    wanted = ["x" * 700_000, "y", "z" * 300_000, "w" * 1_000_000]
    source, item = the_input(tmp_path / "a.jsonl", rows(*wanted))
    for target in (100_000, 262_144, 500_000, 5_000_000):
        found = read_in_parts(source, item, cuts(source, item, target))
        assert [text for _, text in found] == wanted


def test_documents_of_a_later_span_are_named_by_its_start(tmp_path: Path):
    source, item = the_input(tmp_path / "a.jsonl", rows("a", "b", "c"))
    line = item.bytes // 3
    assert [one.id for one in read(source, Span(item, 0, line - 1))] == ["a/a.jsonl:1"]
    assert [one.id for one in read(source, Span(item, line - 1, item.bytes))] == [
        f"a/a.jsonl@{line - 1}+1",
        f"a/a.jsonl@{line - 1}+2",
    ]


# --- Zstandard frames ------------------------------------------------------------------------------------------------


def in_frames(content: bytes, borders: Sequence[int]) -> tuple[bytes, list[int]]:
    """The content as frames, and where each begins."""
    frames = [zstd(content[start:stop]) for start, stop in pairwise([0, *borders, len(content)])]
    return b"".join(frames), [sum(map(len, frames[:i])) for i in range(len(frames))]


@pytest.mark.parametrize("content", AWKWARD[:-2], ids=range(len(AWKWARD) - 2))
def test_lines_may_straddle_frames_and_spans_of_frames(tmp_path: Path, content: bytes):
    source, plain = the_input(tmp_path / "plain.jsonl", content)
    whole = read_in_parts(source, plain, [])
    every_byte = range(1, len(content))
    for borders in ([len(content) // 2], [1, 2, len(content) - 1], every_byte):
        packed, starts = in_frames(content, sorted({b for b in borders if 0 < b < len(content)}))
        source, item = the_input(tmp_path / "a.jsonl.zst", packed)
        assert cuts(source, item, 1) == starts[1:]
        assert read_in_parts(source, item, starts[1:]) == whole
        assert read_in_parts(source, item, starts[2::3]) == whole


def test_frames_are_found_by_their_headers_alone(tmp_path: Path):
    draw = random.Random(3)
    contents = [b"", b"x", bytes(400_000), draw.randbytes(300_000), b"text " * 60_000, rows("a", "b")]
    packed, starts = b"", [0]
    for content in contents:
        stream = pyarrow.BufferOutputStream()  # the streaming writer leaves out the size and adds other headers
        with pyarrow.CompressedOutputStream(stream, "zstd") as out:
            out.write(content)
        for frame in (zstd(content), stream.getvalue().to_pybytes(), SKIPPABLE):
            packed += frame
            starts.append(len(packed))
    (tmp_path / "a.zst").write_bytes(packed)
    with StoredFile(str(tmp_path / "a.zst")) as file:
        assert list(frame_starts(file, len(packed))) == starts[:-1]
        for cut in (1, len(SKIPPABLE) + 1, len(packed) // 2):
            whole = [start for start, after in pairwise(starts) if after <= len(packed) - cut]
            assert list(frame_starts(file, len(packed) - cut)) == whole


def test_frames_of_the_seekable_format_are_found_by_its_table(tmp_path: Path):
    frames = [zstd(rows(str(i))) for i in range(20)]
    entries = b"".join(len(frame).to_bytes(4, "little") + bytes(4) for frame in frames)
    table = entries + (20).to_bytes(4, "little") + b"\0" + (0x8F92EAB1).to_bytes(4, "little")
    head = (0x184D2A5E).to_bytes(4, "little") + len(table).to_bytes(4, "little")
    source, item = the_input(tmp_path / "a.jsonl.zst", b"".join(frames) + head + table)
    with StoredFile(item.url) as file:
        starts = list(frame_starts(file, item.bytes))
    assert starts == [sum(map(len, frames[:i])) for i in range(21)]
    assert read_in_parts(source, item, starts[1:]) == [("text", str(i)) for i in range(20)]


def test_a_skippable_frame_between_spans_changes_nothing(tmp_path: Path):
    content = rows("a", "b", "c")
    first, second = zstd(content[:30]), zstd(content[30:])
    source, item = the_input(tmp_path / "a.jsonl.zst", SKIPPABLE + first + SKIPPABLE + second + SKIPPABLE)
    borders = cuts(source, item, 1)
    assert len(borders) == 4
    assert read_in_parts(source, item, borders) == [("text", "a"), ("text", "b"), ("text", "c")]


# --- Parquet, and what is not cut ------------------------------------------------------------------------------------


def test_parquet_is_cut_at_its_row_groups(tmp_path: Path):
    import pyarrow.parquet

    wanted = [f"{i} " * 50 for i in range(1000)]
    table = pyarrow.table({"text": wanted, "id": list(range(1000))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=90)
    source = Parquet([str(tmp_path)])
    (item,) = find(source)
    borders = cuts(source, item, 1)
    assert len(borders) == 11
    for some in (borders, borders[::3], cuts(source, item, item.bytes // 3), [1, 5, *borders[4:6]]):
        assert [text for _, text in read_in_parts(source, item, some)] == wanted
    last = spans_of(source, item, 1)[-1]
    assert [one.id for one in read(source, last)][:2] == [f"{item.name}@{last.start}+1", f"{item.name}@{last.start}+2"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.bz2", "a.txt", "a.txt.zst"])
def test_what_cannot_be_cut_is_one_span(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(zstd(b"x" * 500) * 20)
    source = Jsonl([str(tmp_path)]) if "jsonl" in name else TextFiles([str(tmp_path)])
    (item,) = find(source)
    assert spans_of(source, item, 10) == (Span(item, 0, item.bytes),)


def test_small_inputs_are_not_opened_and_large_ones_are_cut_by_arithmetic(tmp_path: Path):
    source = Jsonl(["x"])
    absent = Input(str(tmp_path / "absent.jsonl"), "x", "x", 1000, "1")
    assert cuts(source, absent, 300) == [300, 600, 900]
    assert cuts(source, absent, 500) == [500]
    assert [(span.start, span.stop) for span in spans_of(source, absent, 1000)] == [(0, 1000)]
    packed = Input(str(tmp_path / "absent.zst"), "x", "x", 1000, "1")
    assert cuts(source, packed, 1000) == []


def test_cutting_a_file_that_is_damaged_is_left_to_its_reader(tmp_path: Path):
    source, item = the_input(tmp_path / "a.jsonl.zst", b"garbage" * 100)
    assert cuts(source, item, 10) == []
    (tmp_path / "a.parquet").write_bytes(b"garbage" * 100)
    parquet = Parquet([str(tmp_path)])
    assert cuts(parquet, find(parquet)[0], 10) == []


def test_json_of_any_line_lengths_is_the_same_from_every_cut(tmp_path: Path):
    """One larger random file, against a plain loop over its lines."""
    draw = random.Random(1)
    lines = [json.dumps({"text": "x" * int(draw.expovariate(1 / 3000)) + "."}) for _ in range(300)]
    source, item = the_input(tmp_path / "a.jsonl", "\n".join(lines).encode())
    wanted = [("text", json.loads(line)["text"]) for line in lines]
    for target in (5_000, 40_000, 262_144, 262_145):
        assert read_in_parts(source, item, cuts(source, item, target)) == wanted
