"""Parquet, Arrow, CSV and Hugging Face datasets: one row a document, and what breaks."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from data_prep.document import Document, Reason
from data_prep.files import DataError
from data_prep.inputs import Span, find
from data_prep.sources.config import Arrow, Csv, Delimiter, HuggingFace, Parquet, Source
from data_prep.sources.read import read
from data_prep.sources.spans import spans_of
from tests.data_prep.reading import outcomes, rejects, rows, texts, the_reject, zstd

AWKWARD = ["one", "two\r\n\u2581", "drei \U0001f600", "\0", "a,b", '"quoted"', " NA", "NA", "null", "'", "x" * 100_000]


def write_parquet(path: Path, table: Any, **options: Any) -> None:
    pyarrow.parquet.write_table(table, path / "a.parquet", **options)


def write_file(path: Path, table: Any) -> None:
    pyarrow.feather.write_feather(table, str(path / "a.feather"), compression="zstd")


def write_stream(path: Path, table: Any) -> None:
    with pyarrow.ipc.new_stream(path / "a.arrow", table.schema) as out:
        out.write_table(table, max_chunksize=3)


WRITERS = [(write_parquet, Parquet), (write_file, Arrow), (write_stream, Arrow)]
KINDS = [
    pyarrow.string(),
    pyarrow.large_string(),
    pyarrow.string_view(),
    pyarrow.binary(),
    pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
]


@pytest.mark.parametrize(("write", "source"), WRITERS, ids=["parquet", "arrow file", "arrow stream"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_row_is_a_document_whatever_type_of_text_the_column_has(tmp_path: Path, write: Any, source: Any, kind: Any):
    column = pyarrow.array(AWKWARD, pyarrow.string()).cast(kind) if "dict" not in str(kind) else None
    column = column if column is not None else pyarrow.array(AWKWARD).dictionary_encode()
    write(tmp_path, pyarrow.table({"n": list(range(len(AWKWARD))), "text": column}))
    assert texts(source([str(tmp_path)])) == AWKWARD


def test_rows_are_numbered_and_have_their_address(tmp_path: Path):
    table = pyarrow.table({"body": ["x", "y"], "at": ["http://a", None]})
    write_parquet(tmp_path, table)
    found = outcomes(Parquet([f"web={tmp_path}"], text_field="body", url_field="at"))
    assert [(one.id, one.url) for one in found if isinstance(one, Document)] == [
        ("web/a.parquet:1", "http://a"),
        ("web/a.parquet:2", ""),
    ]


@pytest.mark.parametrize(("write", "source"), WRITERS, ids=["parquet", "arrow file", "arrow stream"])
def test_null_empty_and_broken_rows_are_counted(tmp_path: Path, write: Any, source: Any):
    column = pyarrow.array([b"x", None, b"", b"\xff", b"y", b"too long"], pyarrow.binary())
    write(tmp_path, pyarrow.table({"text": column}))
    config = source([f"web={tmp_path}"], max_document_bytes=7)
    assert texts(config) == ["x", "y"]
    assert [(one.reason, one.id[-1]) for one in rejects(config)] == [
        (Reason.no_text, "2"), (Reason.empty, "3"), (Reason.not_utf8, "4"), (Reason.too_long, "6"),
    ]  # fmt: skip


@pytest.mark.parametrize(("write", "source"), WRITERS, ids=["parquet", "arrow file", "arrow stream"])
@pytest.mark.parametrize(
    ("table", "detail"),
    [
        ({"txt": ["x"], "id": [1]}, "the column `text` is missing; present: txt, id"),
        ({"text": [1]}, "the column `text` is of type int64, not text"),
        ({"text": [["x"]]}, "not text"),
    ],
)
def test_a_file_without_a_column_of_text_is_one_reject(
    tmp_path: Path, write: Any, source: Any, table: Any, detail: str
):
    write(tmp_path, pyarrow.table(table))
    reject = the_reject(source([str(tmp_path)]))
    assert reject.reason is Reason.no_text
    assert detail in reject.detail


@pytest.mark.parametrize(("write", "source"), WRITERS, ids=["parquet", "arrow file", "arrow stream"])
def test_a_file_cut_short_or_damaged_ends_with_one_reject(tmp_path: Path, write: Any, source: Any):
    write(tmp_path, pyarrow.table({"text": [f"{i * i:b}" for i in range(5000)]}))
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    for broken in (content[:-9], content[: len(content) // 2], b"garbage" * 10, content[:30], b"PAR1"):
        file.write_bytes(broken)
        assert outcomes(source([str(tmp_path)]))[-1].reason is Reason.broken_archive  # pyright: ignore[reportAttributeAccessIssue]


def test_a_damaged_page_of_parquet_is_a_reject_after_the_groups_before_it(tmp_path: Path):
    wanted = [f"{i * i:b} {i}" for i in range(3000)]
    write_parquet(tmp_path, pyarrow.table({"text": wanted}), row_group_size=1000, compression="zstd")
    file = tmp_path / "a.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = b"\x55" * 400
    file.write_bytes(content)
    source = Parquet([str(tmp_path)])
    kept = texts(source)
    assert kept[:1000] == wanted[:1000]
    assert kept[-1000:] == wanted[-1000:]  # the group after the damage is read
    lost = rejects(source)
    assert {item.reason for item in lost} == {Reason.broken_archive}
    assert len(kept) + len(lost) == 3000
    pieces = [o for item in find(source) for span in spans_of(source, item, 1) for o in read(source, span)]
    assert [o.text for o in pieces if isinstance(o, Document)] == kept


@pytest.mark.parametrize("dictionary", [True, False], ids=["one text, many times", "pages of zeros"])
def test_a_parquet_file_that_expands_beyond_all_reason_is_left(tmp_path: Path, dictionary: bool):
    table = pyarrow.table({"text": ["x" * 100_000] * 1000})
    write_parquet(tmp_path, table, use_dictionary=dictionary, compression="zstd")
    assert rejects(Parquet([str(tmp_path)]))[-1].reason is Reason.zip_bomb
    assert len(texts(Parquet([str(tmp_path)], max_expansion=100_000_000))) == 1000


# --- CSV -------------------------------------------------------------------------------------------------------------


def csv_of(*lines: list[Any], delimiter: str = ",") -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(lines)
    return out.getvalue().encode()


@pytest.mark.parametrize("delimiter", list(Delimiter))
def test_csv_texts_are_taken_as_written(tmp_path: Path, delimiter: Delimiter):
    character = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}[delimiter]
    content = csv_of(["n", "text"], *([i, text] for i, text in enumerate(AWKWARD)), delimiter=character)
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + content)
    assert texts(Csv([str(tmp_path)], delimiter=delimiter)) == AWKWARD


def test_csv_agrees_with_datasets_where_that_loses_nothing(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    plain = [text for text in AWKWARD if text.strip() not in ("NA", "null", "\0")]
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(csv_of(["text", "at"], *([text, "u"] for text in plain))))
    found = datasets.load_dataset("csv", data_files=str(tmp_path / "a.csv.gz"), split="train", streaming=True)
    assert texts(Csv([str(tmp_path)])) == [row["text"] for row in found] == plain


@pytest.mark.parametrize(
    ("broken", "reason", "detail"),
    [
        (b"1,x,extra\n", Reason.bad_row, "the row has 3 columns, the header 2"),
        (b"1\n", Reason.bad_row, "the row has 1 columns"),
        (b'1,"x"y\n', Reason.bad_row, "line 3"),
        (b"\n", Reason.empty, "blank"),
        (b"1,\n", Reason.empty, "empty"),
        (b"1,\xff\n", Reason.not_utf8, "byte 0"),
    ],
)
def test_a_broken_row_of_csv_is_counted_and_the_rest_is_read(
    tmp_path: Path, broken: bytes, reason: Reason, detail: str
):
    (tmp_path / "a.csv").write_bytes(b"n,text\n0,before\n" + broken + b"2,after\n")
    source = Csv([f"web={tmp_path}"])
    assert texts(source) == ["before", "after"]
    assert (the_reject(source).reason, the_reject(source).id) == (reason, "web/a.csv:2")
    assert detail in the_reject(source).detail


def test_a_line_of_csv_above_the_limit_ends_the_file_for_it_may_hold_an_open_quote(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b'text\nbefore\n"' + b"x" * 300 + b'\nmore"\nafter\n')
    source = Csv([str(tmp_path)], max_document_bytes=200)
    assert texts(source) == ["before"]
    assert the_reject(source).reason is Reason.too_long
    assert "line 3 has 301 bytes; source.max_document_bytes=200" in the_reject(source).detail


def test_an_open_quote_that_swallows_the_rest_is_named_with_its_lines(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b'text\nbefore\n"open\na\nb\n')
    assert texts(Csv([str(tmp_path)])) == ["before"]
    assert "lines 3 to 5" in the_reject(Csv([str(tmp_path)])).detail


def test_csv_without_the_column_is_one_reject(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b"a,b\n1,2\n3,4\n")
    assert "the column `text` is missing; present: a, b" in the_reject(Csv([str(tmp_path)])).detail
    (tmp_path / "a.csv").write_bytes(b"")
    assert the_reject(Csv([str(tmp_path)])).reason is Reason.empty


# --- Hugging Face ----------------------------------------------------------------------------------------------------


def test_a_folder_of_json_files_is_a_dataset_with_a_shard_a_file(tmp_path: Path):
    pytest.importorskip("datasets")
    folder = tmp_path / "books"
    folder.mkdir()
    for i in range(3):
        (folder / f"train-{i}.jsonl").write_bytes(rows(f"{i}a", "", f"{i}b"))
    (folder / "test-0.jsonl").write_bytes(rows("held out"))
    source = HuggingFace(str(folder))
    inputs = find(source)
    assert [item.name for item in inputs] == [f"books/train-0000{i}" for i in range(3)]
    assert [item.bytes for item in inputs] == [file.stat().st_size for file in sorted(folder.glob("train*"))]
    assert texts(source) == ["0a", "0b", "1a", "1b", "2a", "2b"]
    assert [one.id for one in rejects(source)] == [f"books/train-0000{i}:2" for i in range(3)]
    assert texts(HuggingFace(str(folder), split="test")) == ["held out"]
    (folder / "train-1.jsonl").write_bytes(rows("altered"))
    after = find(source)
    assert [one == two for one, two in zip(inputs, after, strict=True)] == [True, False, True]
    with pytest.raises(DataError, match="changed since it was listed"):
        list(read(source, Span(inputs[1], 0, inputs[1].bytes)))


@pytest.mark.parametrize("shards", [1, 4])
def test_a_saved_dataset_and_a_folder_of_parquet_give_their_rows(tmp_path: Path, shards: int):
    datasets = pytest.importorskip("datasets")
    wanted = [f"document {i}" for i in range(50)]
    dataset = datasets.Dataset.from_dict({"text": wanted, "url": [f"http://{i}" for i in range(50)]})
    dataset.save_to_disk(tmp_path / "saved", num_shards=shards)
    datasets.DatasetDict({"train": dataset}).save_to_disk(tmp_path / "splits", num_shards={"train": shards})
    (tmp_path / "parquet").mkdir()
    for i in range(shards):
        dataset.shard(shards, i, contiguous=True).to_parquet(tmp_path / "parquet" / f"train-{i}.parquet")
    for name in ("saved", "splits", "parquet"):
        source = HuggingFace(str(tmp_path / name), url_field="url")
        assert len(find(source)) == shards
        assert texts(source) == wanted
        assert [one.url for one in outcomes(source)] == dataset["url"][:]  # pyright: ignore[reportAttributeAccessIssue]


def test_what_is_wrong_with_a_dataset_is_said(tmp_path: Path):
    pytest.importorskip("datasets")
    (tmp_path / "a.jsonl").write_text(json.dumps({"body": "x"}))
    source: Source = HuggingFace(str(tmp_path))
    assert "the column `text` is missing; present: body" in the_reject(source).detail
    with pytest.raises(DataError, match=r"split=valid\): ValueError: Bad split: valid"):
        find(HuggingFace(str(tmp_path), split="valid"))
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{broken')
    with pytest.raises(DataError, match=r"source\.dataset="):
        texts(source)


def test_packed_csv_is_unpacked(tmp_path: Path):
    (tmp_path / "a.csv.zst").write_bytes(zstd(b"text\nx\n"))
    assert texts(Csv([str(tmp_path)])) == ["x"]
