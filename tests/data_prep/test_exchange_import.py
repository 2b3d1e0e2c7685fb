"""Token files of other programs become a dataset: written by those programs where they can be had, else by their
documented layout; and what contradicts itself or the tokenizer is refused by name."""

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.config import OnBad
from data_prep.exchange.config import ExportConfig, ImportConfig, PeerFormat
from data_prep.exchange.incoming import import_dataset
from data_prep.exchange.outgoing import export
from data_prep.files import DataError
from data_prep.manifest import Manifest
from data_prep.shards import ShardReader, read_sidecar
from data_prep.tokenizer import Tokenizer

EOS = 9
VOCABULARY = 12
DOCUMENTS = [[5, 6, 7, EOS], [1, EOS], [10, 11, 2, 3, EOS]]
TEXT_BYTES = 5 + 6 + 7 + 1 + 10 + 11 + 2 + 3  # id i stands for i bytes, the end-of-text id for none


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    """A folder for token files, and beside it a table of bytes for a vocabulary of twelve ids."""
    widths = np.arange(VOCABULARY)
    widths[EOS] = 0
    np.save(tmp_path / "widths.npy", widths)
    (tmp_path / "peer").mkdir()
    return tmp_path / "peer"


def bring(peer: Path, format: PeerFormat, *, on_bad: OnBad = OnBad.error, out: str = "out", **keys: Any) -> Path:
    table = str(peer.parent / "widths.npy")
    settings: dict[str, Any] = {"tokenizer": table, "tokenizer_sha256": "ab" * 32, "eos_id": EOS}
    import_dataset(peer.parent / out, ImportConfig([str(peer)], format, **(settings | keys)), on_bad)
    return peer.parent / out


def documents(dataset: Path, split: str = "train") -> list[list[int]]:
    shards = [ShardReader(dataset / shard.name) for shard in Manifest.load(dataset).shards_of(split)]
    return [shard.document(i).tolist() for shard in shards for i in range(shard.n_documents)]


def linked(dataset: Path) -> bool:
    return all(file.stat().st_nlink == 2 for file in dataset.glob("*.bin"))


def write_datatrove(
    peer: Path, rows: list[list[int]] = DOCUMENTS, dtype: str = "<u2", name: str = "00000_a.ds"
) -> Path:
    np.array([id for row in rows for id in row], dtype).tofile(peer / name)
    np.cumsum([len(row) for row in rows]).astype("<u8").tofile(peer / f"{name}.index")
    n = sum(map(len, rows))
    (peer / f"{name}.metadata").write_text(f"gpt2|{np.dtype(dtype).itemsize}\n{n}\n{n} T")
    return peer / name


def write_olmo(peer: Path, rows: list[list[int]] = DOCUMENTS, dtype: str = "<u2") -> Path:
    np.array([id for row in rows for id in row], dtype).tofile(peer / "part-0.npy")
    ends = np.cumsum([len(row) for row in rows]).tolist()
    with gzip.open(peer / "part-0.csv.gz", "wt") as stream:
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            stream.write(f'{start},{end},"id, {start}",s3://bucket/a.json.gz,{start}\n')
    return peer / "part-0.npy"


def write_megatron(peer: Path, rows: list[list[int]] = DOCUMENTS, dtype: str = "<u2", code: int = 8) -> Path:
    """By the documented layout, one sequence a document."""
    np.array([id for row in rows for id in row], dtype).tofile(peer / "a.bin")
    lengths = [len(row) for row in rows]
    offsets = (np.cumsum([0, *lengths[:-1]]) * np.dtype(dtype).itemsize).tolist()
    n = len(rows)
    content = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, n, n + 1)
    content += struct.pack(f"<{n}i{n}q{n + 1}q", *lengths, *offsets, *range(n + 1))
    (peer / "a.idx").write_bytes(content)
    return peer / "a.bin"


# --- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", list(PeerFormat))
def test_what_was_exported_comes_back_as_the_same_documents(dataset: Path, tmp_path: Path, format: PeerFormat):
    exported = export(dataset, ExportConfig(format, str(tmp_path / "exported")))
    keys: dict[str, Any] = {"tokenizer": str(dataset / "tokenizer.model"), "val": ["*/val*"]}
    config = ImportConfig([str(exported)], format, eos_scan=format is PeerFormat.nanogpt, **keys)
    manifest = import_dataset(tmp_path / "back", config, OnBad.error)
    manifest.verify(tmp_path / "back")
    original = Manifest.load(dataset)
    for split in ("train", "val"):
        assert sorted(documents(tmp_path / "back", split)) == sorted(documents(dataset, split))
        assert manifest.text_bytes(split) == original.text_bytes(split)
    assert manifest.tokenizer_sha256 == original.tokenizer_sha256
    assert np.array_equal(np.load(tmp_path / "back/token_bytes.npy"), np.load(dataset / "token_bytes.npy"))
    assert Tokenizer.load(tmp_path / "back/tokenizer.model").vocab_size == manifest.vocab_size


# --- written by the peers themselves ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.uint8, np.int16])
def test_a_pair_written_by_megatron_core_comes_in_whatever_its_width(peer: Path, dtype: type):
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="needs megatron-core")
    torch = pytest.importorskip("torch")
    builder = indexed.IndexedDatasetBuilder(str(peer / "a.bin"), dtype=dtype)
    for row in DOCUMENTS:
        builder.add_document(torch.tensor(row), [len(row)])
    builder.finalize(str(peer / "a.idx"))
    out = bring(peer, PeerFormat.megatron)
    assert documents(out) == DOCUMENTS
    assert Manifest.load(out).text_bytes("train") == TEXT_BYTES
    assert linked(out) == (np.dtype(dtype).itemsize in (2, 4))
    (shard,) = Manifest.load(out).shards
    assert read_sidecar(out / shard.name).dtype == ("int32" if dtype is np.int32 else "uint16")


def test_sequences_of_one_document_are_joined(peer: Path):
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="needs megatron-core")
    torch = pytest.importorskip("torch")
    builder = indexed.IndexedDatasetBuilder(str(peer / "a.bin"), dtype=np.uint16)
    builder.add_document(torch.tensor([1, 2, 3, 4, EOS]), [2, 1, 2])
    builder.add_document(torch.tensor([5, EOS]), [2])
    builder.finalize(str(peer / "a.idx"))
    out = bring(peer, PeerFormat.megatron)
    assert documents(out) == [[1, 2, 3, 4, EOS], [5, EOS]]
    assert linked(out)


@pytest.mark.parametrize("modes", [[0, 0], [0, 1]])
def test_modes_of_text_are_dropped_and_other_modes_refused(peer: Path, modes: list[int]):
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="needs megatron-core")
    torch = pytest.importorskip("torch")
    builder = indexed.IndexedDatasetBuilder(str(peer / "a.bin"), dtype=np.uint16, multimodal=True)
    for mode in modes:
        builder.add_document(torch.tensor([1, EOS]), [2], [mode])
    builder.finalize(str(peer / "a.idx"))
    if any(modes):
        with pytest.raises(DataError, match=r"a\.idx has sequences of another mode"):
            bring(peer, PeerFormat.megatron)
    else:
        assert documents(bring(peer, PeerFormat.megatron)) == [[1, EOS], [1, EOS]]


@pytest.mark.parametrize("token_size", [2, 4])
def test_files_written_by_datatrove_come_in_as_links(peer: Path, token_size: int):
    writer = pytest.importorskip("datatrove.pipeline.tokens.tokenizer", reason="needs datatrove")
    file = writer.TokenizedFile(str(peer), "00000.ds", save_final_metadata=True, token_size=token_size)
    for row in DOCUMENTS:
        file.write(row, None)
    file.close()
    out = bring(peer, PeerFormat.datatrove)
    assert documents(out) == DOCUMENTS
    assert linked(out)


def test_text_of_a_byte_level_tokenizer_is_counted_in_bytes(peer: Path):
    library = pytest.importorskip("tokenizers", reason="needs tokenizers")
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    texts = ["Grüße,\n\tworld   of tokens", "naïve — 数字 12", "the the the"]
    tokenizer.train_from_iterator(texts * 3, trainer)
    tokenizer.save(str(peer.parent / "tokenizer.json"))
    eos = tokenizer.token_to_id("<|endoftext|>")
    write_datatrove(peer, [[*tokenizer.encode(text).ids, eos] for text in texts])
    out = bring(
        peer, PeerFormat.datatrove, tokenizer=str(peer.parent / "tokenizer.json"), tokenizer_sha256="", eos_id=eos
    )
    manifest = Manifest.load(out)
    assert manifest.text_bytes("train") == sum(len(text.encode()) for text in texts)
    assert manifest.vocab_size == tokenizer.get_vocab_size()
    from data_prep.exchange.peer_tokenizer import of_dataset

    assert [of_dataset(out, manifest).decode(ids) for ids in documents(out)] == texts


# --- documented layouts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<u1", "<u2", "<u4", "<i8"])
def test_the_width_of_an_olmo_array_follows_from_its_rows(peer: Path, dtype: str):
    write_olmo(peer, dtype=dtype)
    out = bring(peer, PeerFormat.olmo)
    assert documents(out) == DOCUMENTS
    assert linked(out) == (dtype in ("<u2", "<u4"))


def test_without_metadata_the_width_of_a_ds_follows_from_its_index(peer: Path):
    file = write_datatrove(peer, dtype="<u4")
    Path(f"{file}.metadata").unlink()
    assert documents(bring(peer, PeerFormat.datatrove)) == DOCUMENTS


@pytest.mark.parametrize(("magic", "version", "dtype"), [(20240520, 1, "<u2"), (20240801, 7, "<u4")])
def test_the_header_of_llm_c_is_recognised(peer: Path, magic: int, version: int, dtype: str):
    ids = np.array([id for row in DOCUMENTS for id in row], dtype)
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids)
    (peer / "a.bin").write_bytes(header.tobytes() + ids.tobytes())
    assert documents(bring(peer, PeerFormat.nanogpt, eos_scan=True)) == DOCUMENTS
    (peer / "a.bin").write_bytes(header.tobytes() + ids.tobytes()[:-2])
    with pytest.raises(DataError, match=r"a\.bin is damaged: its llm\.c header promises"):
        bring(peer, PeerFormat.nanogpt, eos_scan=True, out="other")


def test_nanogpt_needs_the_scan_to_be_asked_for(peer: Path):
    np.array([id for row in DOCUMENTS for id in row], "<u2").tofile(peer / "train.bin")
    with pytest.raises(DataError, match=r"no document boundaries; peer\.eos_scan=true"):
        bring(peer, PeerFormat.nanogpt)
    out = bring(peer, PeerFormat.nanogpt, eos_scan=True)
    assert documents(out) == DOCUMENTS
    assert linked(out)


# --- rules -----------------------------------------------------------------------------------------------------------


def test_a_missing_end_of_text_is_refused_or_written(peer: Path):
    write_datatrove(peer, [[1, 2], [3, EOS], [4]])
    with pytest.raises(DataError, match=r"2 of 3 documents do not end with eos_id=9.*peer.append_eos=true"):
        bring(peer, PeerFormat.datatrove)
    assert documents(bring(peer, PeerFormat.datatrove, append_eos=True)) == [[1, 2, EOS], [3, EOS], [4, EOS]]


def test_a_control_id_inside_a_document_is_refused_left_out_or_allowed(peer: Path):
    rows = [[1, EOS, 2, EOS], [0, 3, EOS], [4, 0, EOS], [5, EOS]]
    write_datatrove(peer, rows)
    with pytest.raises(DataError, match=r"a\.ds: 3 documents hold an id without text.*first: document 0, ids \[9\]"):
        bring(peer, PeerFormat.datatrove)
    skipped = bring(peer, PeerFormat.datatrove, on_bad=OnBad.skip, out="skipped")
    assert documents(skipped) == [[5, EOS]]
    assert Manifest.load(skipped).removed == {"control_id_in_text": 3}
    begun = bring(peer, PeerFormat.datatrove, on_bad=OnBad.skip, bos_id=0, out="begun")
    assert documents(begun) == [[0, 3, EOS], [5, EOS]]
    allowed = bring(peer, PeerFormat.datatrove, on_bad=OnBad.skip, allow_ids=[0], out="allowed")
    assert documents(allowed) == rows[1:]


def test_checks_hold_across_the_borders_of_blocks(peer: Path, monkeypatch: pytest.MonkeyPatch):
    """Every block length from one id on gives what one block for all gives."""
    write_datatrove(peer, [[0, 1, EOS], [EOS], [0, 2, 3, EOS], [4, 0, 5, EOS], [0, 6, EOS]])
    for size in (1, 2, 3, 4, 5, 7, 11):
        monkeypatch.setattr("data_prep.exchange.peers.BLOCK_TOKENS", size)
        monkeypatch.setattr("data_prep.exchange.peers.BLOCK_DOCUMENTS", max(1, size // 2))
        monkeypatch.setattr("data_prep.exchange.indexes.BLOCK_DOCUMENTS", max(1, size // 3))
        out = bring(peer, PeerFormat.datatrove, on_bad=OnBad.skip, bos_id=0, out=f"out{size}")
        assert documents(out) == [[0, 1, EOS], [EOS], [0, 2, 3, EOS], [0, 6, EOS]]
        assert Manifest.load(out).text_bytes("train") == 1 + 5 + 6


def test_empty_documents_are_counted(peer: Path):
    write_datatrove(peer, [[], [1, EOS], [], [2, EOS]])
    out = bring(peer, PeerFormat.datatrove)
    assert documents(out) == [[1, EOS], [2, EOS]]
    manifest = Manifest.load(out)
    assert (manifest.documents_in, manifest.removed) == (4, {"empty": 2})


def test_an_id_outside_the_vocabulary_is_named_with_its_place(peer: Path):
    write_datatrove(peer, [[1, EOS], [2, 12, EOS]])
    with pytest.raises(DataError, match=r"a\.ds: id 12 at token 3 lies outside the vocabulary 0 \.\.\. 11"):
        bring(peer, PeerFormat.datatrove)
    write_megatron(peer, [[1, EOS], [-1, EOS]], "<i4", 4)
    with pytest.raises(DataError, match=r"a\.bin: id -1 at token 2"):
        bring(peer, PeerFormat.megatron)


def test_ids_that_were_cut_off_are_suspected_by_the_width(peer: Path):
    widths = np.ones(70_000, np.uint16)
    widths[EOS] = 0
    np.save(peer.parent / "wide.npy", widths)
    write_datatrove(peer)
    with pytest.raises(DataError, match=r"uint16, which cannot hold the largest of this vocabulary \(69999\)"):
        bring(peer, PeerFormat.datatrove, tokenizer=str(peer.parent / "wide.npy"))


def test_whole_files_are_held_out_by_name(peer: Path):
    write_datatrove(peer)
    write_datatrove(peer, [[2, EOS]], name="00001_val.ds")
    out = bring(peer, PeerFormat.datatrove, val=["*_val.ds"])
    assert documents(out, "val") == [[2, EOS]]
    assert documents(out, "train") == DOCUMENTS
    for globs, message in ((["*"], "leaves nothing to train on"), (["*.bin"], "matches none of 2 files")):
        with pytest.raises(DataError, match=message):
            bring(peer, PeerFormat.datatrove, val=globs, out="other")


def test_the_source_is_only_read_and_the_same_command_has_nothing_left_to_do(peer: Path):
    write_datatrove(peer)
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in peer.iterdir()}
    out = bring(peer, PeerFormat.datatrove)
    sha256 = Manifest.load(out).sha256
    bring(peer, PeerFormat.datatrove)
    assert Manifest.load(out).sha256 == sha256
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in peer.iterdir()} == before
    with pytest.raises(DataError, match="another finished dataset"):
        bring(peer, PeerFormat.datatrove, append_eos=True)


def test_an_interrupted_import_goes_on_with_the_files_that_are_left(peer: Path, capsys: pytest.CaptureFixture[str]):
    write_datatrove(peer)
    bad = write_datatrove(peer, [[2, 99, EOS]], name="00001.ds")
    with pytest.raises(DataError, match=r"00001\.ds: id 99"):
        bring(peer, PeerFormat.datatrove)
    write_datatrove(peer, [[2, 3, EOS]], name=bad.name)
    capsys.readouterr()
    out = bring(peer, PeerFormat.datatrove)
    assert "peer/00000_a.ds: done already" in capsys.readouterr().err
    assert sorted(documents(out)) == sorted([*DOCUMENTS, [2, 3, EOS]])


def test_payloads_behind_symbolic_links_are_linked_themselves(peer: Path):
    file = write_datatrove(peer)
    blob = peer.parent / "blob"
    file.rename(blob)
    file.symlink_to(blob)
    out = bring(peer, PeerFormat.datatrove)
    (payload,) = out.glob("*.bin")
    assert not payload.is_symlink()
    assert payload.samefile(blob)


# --- refused by name -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "broken", "message"),
    [
        (PeerFormat.datatrove, "00000_a.ds", r"00000_a\.ds.* (fit|ids)"),
        (PeerFormat.datatrove, "00000_a.ds.index", r"00000_a\.ds.*"),
        (PeerFormat.olmo, "part-0.npy", r"part-0\.npy has \d+ bytes for 11 tokens"),
        (PeerFormat.olmo, "part-0.csv.gz", r"part-0\.(csv\.gz is damaged|npy has 22 bytes for 0 tokens)"),
        (PeerFormat.megatron, "a.bin", r"a\.bin is (truncated|damaged)"),
        (PeerFormat.megatron, "a.idx", r"a\.idx is (damaged|no Megatron index)"),
    ],
)
@pytest.mark.parametrize("left", [0, 1, -1, -2, -8])
def test_a_truncated_file_is_refused_by_name(peer: Path, format: PeerFormat, broken: str, message: str, left: int):
    for write in (write_datatrove, write_olmo, write_megatron):
        write(peer)
    file = peer / broken
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(DataError, match=message):
        bring(peer, format)


@pytest.mark.parametrize(
    ("format", "missing", "message"),
    [
        (PeerFormat.datatrove, "00000_a.ds.index", r"00000_a\.ds\.index is missing"),
        (PeerFormat.olmo, "part-0.csv.gz", r"part-0\.csv\.gz is missing"),
        (PeerFormat.megatron, "a.idx", r"a\.idx is missing"),
        (PeerFormat.megatron, "a.bin", r"a\.idx has no a\.bin beside it"),
    ],
)
def test_a_missing_file_is_named(peer: Path, format: PeerFormat, missing: str, message: str):
    for write in (write_datatrove, write_olmo, write_megatron):
        write(peer)
    (peer / missing).unlink()
    with pytest.raises(DataError, match=message):
        bring(peer, format)


@pytest.mark.parametrize("code", [0, 6, 7, 9])
def test_a_megatron_type_that_holds_no_ids_is_refused(peer: Path, code: int):
    write_megatron(peer, code=code)
    with pytest.raises(DataError, match=rf"a\.idx has dtype code {code}"):
        bring(peer, PeerFormat.megatron)


def test_a_megatron_index_of_another_width_or_version_is_refused(peer: Path):
    write_megatron(peer, dtype="<u2", code=4)
    with pytest.raises(DataError, match=r"a\.(idx: its sequences do not lie behind each other|bin is damaged)"):
        bring(peer, PeerFormat.megatron)
    write_megatron(peer)
    content = (peer / "a.idx").read_bytes()
    (peer / "a.idx").write_bytes(content[:9] + struct.pack("<Q", 2) + content[17:])
    with pytest.raises(DataError, match=r"a\.idx has version 2"):
        bring(peer, PeerFormat.megatron)


def test_things_that_only_look_right_are_refused(peer: Path):
    np.save(peer / "part-0.npy", np.arange(3))
    with pytest.raises(DataError, match=r"part-0\.npy is a NumPy file with a header"):
        bring(peer, PeerFormat.olmo)
    file = write_datatrove(peer)
    Path(f"{file}.loss").write_bytes(b"\1" * 11)
    with pytest.raises(DataError, match=r"a\.ds\.loss masks tokens out of the loss"):
        bring(peer, PeerFormat.datatrove)
    Path(f"{file}.loss").unlink()
    Path(f"{file}.metadata").write_text("gpt2|4\n11\n11 T")
    with pytest.raises(DataError, match=r"a\.ds does not fit its records"):
        bring(peer, PeerFormat.datatrove)


def test_what_is_missing_in_the_configuration_is_told_at_once(tmp_path: Path):
    with pytest.raises(DataError) as error:
        import_dataset(tmp_path / "out", ImportConfig(format=PeerFormat.nanogpt), OnBad.error)
    for key in ("peer.paths", "peer.tokenizer", "peer.eos_scan=true"):
        assert key in str(error.value)
    assert ImportConfig(eos_scan=True).problems() != []
    assert ImportConfig().problems() == []


def test_a_tokenizer_that_cannot_be_the_right_one_is_refused(peer: Path):
    write_datatrove(peer)
    with pytest.raises(DataError, match=r"peer\.eos_id=12 lies outside"):
        bring(peer, PeerFormat.datatrove, eos_id=12)
    with pytest.raises(DataError, match=r"peer\.eos_id=3 stands for 3 bytes"):
        bring(peer, PeerFormat.datatrove, eos_id=3)
    useless: list[dict[str, Any]] = [{"allow_ids": [3]}, {"allow_ids": [12]}, {"bos_id": -1}]
    for keys in useless:
        with pytest.raises(DataError, match="needs no permission"):
            bring(peer, PeerFormat.datatrove, **keys)
    word_piece = {"model": {"type": "WordPiece", "vocab": {"a": 0}}, "added_tokens": []}
    (peer.parent / "tokenizer.json").write_text(json.dumps(word_piece))
    with pytest.raises(DataError, match="neither byte-level nor SentencePiece-like"):
        bring(peer, PeerFormat.datatrove, tokenizer=str(peer.parent / "tokenizer.json"), tokenizer_sha256="")


def test_a_rewritten_file_is_what_a_loop_over_its_documents_gives(peer: Path, monkeypatch: pytest.MonkeyPatch):
    """Documents left out and end-of-text ids written, for every way that blocks can cut the documents."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 6, rng.integers(1, 6)).tolist() + [EOS] * int(rng.integers(2)) for _ in range(40)]
    for row in rows[::5]:
        row[0] = 0
    expected = [row if row[-1] == EOS else [*row, EOS] for row in rows if 0 not in row]
    write_datatrove(peer, rows)
    for size in (1, 3, 8, 1000):
        monkeypatch.setattr("data_prep.exchange.peers.BLOCK_TOKENS", size)
        monkeypatch.setattr("data_prep.exchange.indexes.BLOCK_DOCUMENTS", size)
        out = bring(peer, PeerFormat.datatrove, on_bad=OnBad.skip, append_eos=True, out=f"out{size}")
        assert documents(out) == expected
        manifest = Manifest.load(out)
        manifest.verify(out)
        assert manifest.text_bytes("train") == sum(id for row in expected for id in row if id != EOS)
        assert manifest.removed == {"control_id_in_text": 8}
