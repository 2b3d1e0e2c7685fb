import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from data_prep import shards
from data_prep.files import DataError
from data_prep.shards import ShardHead, ShardReader, SpanCount, dtype_for, read_sidecar, shard_writer

DOCUMENTS = [[5, 6, 7], [], [300, 9], [11]]


def head(vocab_size: int = 400) -> ShardHead:
    return ShardHead(task="t", source="s", tokenizer_sha256="k", vocab_size=vocab_size, eos_id=2)


def write(stem: Path, documents: list[list[int]], vocab_size: int = 400) -> Path:
    with shard_writer(stem, head(vocab_size)) as writer:
        for lot in (documents[:3], documents[3:]):
            flat = np.array([id for ids in lot for id in ids], dtype=np.int32)
            writer.add(flat, np.array([len(ids) for ids in lot], dtype=np.int64), text_bytes=len(flat) * 3)
        writer.spans.append(SpanCount("a.txt", "v", 0, 10, len(documents), len(documents), {}))
    return stem


@pytest.mark.parametrize(("vocab_size", "code", "letter"), [(400, 8, "H"), (65_536, 8, "H"), (65_537, 4, "i")])
def test_files_are_megatrons_byte_for_byte(tmp_path: Path, vocab_size: int, code: int, letter: str):
    stem = write(tmp_path / "x", DOCUMENTS, vocab_size)
    ids = [5, 6, 7, 2, 2, 300, 9, 2, 11, 2]
    assert (tmp_path / "x.bin").read_bytes() == struct.pack(f"<10{letter}", *ids)
    size = struct.calcsize(letter)
    expected = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, 4, 5)
    expected += struct.pack("<4i", 4, 1, 3, 2) + struct.pack("<4q", 0, 4 * size, 5 * size, 8 * size)
    expected += struct.pack("<5q", 0, 1, 2, 3, 4)
    assert stem.with_suffix(".idx").read_bytes() == expected


def test_a_five_line_reading_of_megatrons_layout_finds_the_documents(tmp_path: Path):
    stem = write(tmp_path / "x", DOCUMENTS)
    raw = stem.with_suffix(".idx").read_bytes()
    n = struct.unpack_from("<Q", raw, 18)[0]
    lengths, offsets = np.frombuffer(raw, "<i4", n, 34), np.frombuffer(raw, "<i8", n, 34 + 4 * n)
    payload = stem.with_suffix(".bin").read_bytes()
    found = [np.frombuffer(payload, "<u2", k, at).tolist() for k, at in zip(lengths, offsets, strict=True)]
    assert found == [[*ids, 2] for ids in DOCUMENTS]


def test_the_reader_gives_back_what_was_written(tmp_path: Path):
    shard = ShardReader(write(tmp_path / "with.dots.in.name", DOCUMENTS))
    assert (shard.n_documents, shard.n_tokens) == (4, 10)
    assert [shard.document(i).tolist() for i in range(4)] == [[*ids, 2] for ids in DOCUMENTS]
    assert shard.document_starts.tolist() == [0, 4, 5, 8, 10]
    assert shard.tokens(3, 7).tolist() == [2, 2, 300, 9]
    assert shard.tokens(10, 10).tolist() == []
    for start, stop in ((-1, 2), (3, 2), (0, 11)):
        with pytest.raises(IndexError):
            shard.tokens(start, stop)


def test_the_sidecar_introduces_the_shard(tmp_path: Path):
    sidecar = read_sidecar(write(tmp_path / "x", DOCUMENTS))
    assert (sidecar.documents, sidecar.tokens, sidecar.text_bytes) == (4, 10, 18)
    assert (sidecar.dtype, sidecar.eos_policy, sidecar.eos_id) == ("uint16", "after_every_document", 2)
    assert (sidecar.tokenizer_sha256, sidecar.vocab_size) == ("k", 400)
    assert sidecar.spans == (SpanCount("a.txt", "v", 0, 10, 4, 4, {}),)


def test_an_index_written_in_blocks_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = write(tmp_path / "x", DOCUMENTS).with_suffix(".idx").read_bytes()
    for block in (1, 2, 3, 4, 5):
        monkeypatch.setattr(shards, "INDEX_BLOCK", block)
        assert write(tmp_path / "y", DOCUMENTS).with_suffix(".idx").read_bytes() == whole


def test_megatrons_own_reader_finds_the_documents(tmp_path: Path):
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="needs megatron-core")
    for vocab_size in (400, 65_537):
        stem = write(tmp_path / f"m{vocab_size}", DOCUMENTS, vocab_size)
        dataset = indexed.IndexedDataset(str(stem))
        assert [dataset[i].tolist() for i in range(len(dataset))] == [[*ids, 2] for ids in DOCUMENTS]
        assert dataset.document_indices.tolist() == [0, 1, 2, 3, 4]


def test_a_shard_without_documents_can_be_read(tmp_path: Path):
    shard = ShardReader(write(tmp_path / "x", []))
    assert (shard.n_documents, shard.n_tokens) == (0, 0)
    assert shard.tokens(0, 0).tolist() == []
    assert shard.document_starts.tolist() == [0]


def test_a_reader_travels_to_another_process_without_its_tokens(tmp_path: Path):
    shard = ShardReader(write(tmp_path / "x", [list(range(300))] * 100))
    shard.tokens(0, 5)
    content = pickle.dumps(shard)
    assert len(content) < 1000
    assert pickle.loads(content).document(3).tolist() == [*range(300), 2]


@pytest.mark.parametrize("bad", [-1, 400, 70_000])
def test_an_id_outside_the_vocabulary_is_refused_before_the_cast(tmp_path: Path, bad: int):
    with pytest.raises(DataError, match=r"outside 0 \.\.\. 399"), shard_writer(tmp_path / "x", head()) as writer:
        writer.add(np.array([5, bad], dtype=np.int64), np.array([2]), 2)
    assert list(tmp_path.iterdir()) == []


def test_the_largest_id_survives_in_both_widths(tmp_path: Path):
    for vocab_size in (65_536, 65_537):
        shard = ShardReader(write(tmp_path / str(vocab_size), [[vocab_size - 1]], vocab_size))
        assert shard.document(0).tolist() == [vocab_size - 1, 2]
    assert [dtype_for(n) for n in (65_536, 65_537)] == ["uint16", "int32"]


@pytest.mark.parametrize("ending", [".bin", ".idx"])
@pytest.mark.parametrize("lost", [1, 2, 20])
def test_a_truncated_file_is_named_with_both_sizes(tmp_path: Path, ending: str, lost: int):
    stem = write(tmp_path / "x", DOCUMENTS)
    file = stem.with_suffix(ending)
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-lost])
    with pytest.raises(DataError, match=rf"x{ending} is truncated: expected {size} bytes, found {size - lost}"):
        ShardReader(stem)


def test_longer_missing_and_exchanged_files_are_named(tmp_path: Path):
    stem, other = write(tmp_path / "x", DOCUMENTS), write(tmp_path / "y", [*DOCUMENTS[::-1], [1]])
    with stem.with_suffix(".bin").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(DataError, match="too long"):
        ShardReader(stem)
    other.with_suffix(".bin").unlink()
    with pytest.raises(DataError, match=r"y\.bin is missing"):
        ShardReader(other)
    write(tmp_path / "a", [[1, 2], [3]])
    write(tmp_path / "b", [[1], [2]])
    (tmp_path / "b.idx").replace(tmp_path / "a.idx")
    with pytest.raises(DataError, match=r"a\.idx was altered after it was written"):
        _ = ShardReader(tmp_path / "a").document_starts
    (tmp_path / "b.crc").replace(tmp_path / "a.crc")
    with pytest.raises(DataError, match=r"a\.idx does not describe a\.bin: it was altered or exchanged"):
        _ = ShardReader(tmp_path / "a").document_starts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "schema version None"),
        (b'{"schema_version": 1}', "schema version 1"),
        (b'{"schema_version": 2, "tokens": "5"}', "not a Sidecar"),
    ],
)
def test_a_sidecar_that_is_none_is_named(tmp_path: Path, content: bytes, message: str):
    stem = write(tmp_path / "x", DOCUMENTS)
    stem.with_suffix(".json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        ShardReader(stem)


def test_an_error_while_writing_leaves_nothing(tmp_path: Path):
    with pytest.raises(AttributeError), shard_writer(tmp_path / "x", head()) as writer:
        writer.add(None, None, 1)  # pyright: ignore[reportArgumentType]
    assert list(tmp_path.iterdir()) == []
