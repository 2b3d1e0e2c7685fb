"""A dataset in other programs' layouts, read back by those programs where they can be had, by numpy where not."""

import csv
import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_prep.config import OnBad
from data_prep.exchange.config import ExportConfig, ImportConfig, PeerFormat
from data_prep.exchange.incoming import import_dataset
from data_prep.exchange.outgoing import export
from data_prep.files import DataError
from data_prep.manifest import Manifest
from data_prep.shards import ShardReader, read_sidecar


@pytest.fixture(scope="module")
def exported(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[PeerFormat, Path]:
    root = tmp_path_factory.mktemp("exported")
    return {format: export(dataset, ExportConfig(format, str(root / format.value))) for format in PeerFormat}


def documents(dataset: Path, split: str) -> list[tuple[str, list[list[int]]]]:
    """(shard, its documents) as our own reader has them."""
    shards = [ShardReader(dataset / shard.name) for shard in Manifest.load(dataset).shards_of(split)]
    return [(shard.stem.name, [shard.document(i).tolist() for i in range(shard.n_documents)]) for shard in shards]


@pytest.mark.parametrize("split", ["train", "val"])
def test_megatron_core_reads_the_same_documents(dataset: Path, exported: dict[PeerFormat, Path], split: str):
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="needs megatron-core")
    for name, expected in documents(dataset, split):
        found = indexed.IndexedDataset(str(exported[PeerFormat.megatron] / split / name))
        assert [row.tolist() for row in found] == expected


@pytest.mark.parametrize("split", ["train", "val"])
def test_datatrove_reads_the_same_tokens_and_boundaries(dataset: Path, exported: dict[PeerFormat, Path], split: str):
    trove = pytest.importorskip("datatrove.utils.dataset", reason="needs datatrove")
    for name, expected in documents(dataset, split):
        file = exported[PeerFormat.datatrove] / split / f"{name}.ds"
        ends = np.fromfile(f"{file}.index", "<u8").tolist()
        assert ends == np.cumsum([len(ids) for ids in expected]).tolist()
        window = trove.DatatroveFileDataset(str(file), seq_len=ends[-1] - 1, token_size=2, return_positions=True)[0]
        assert window["input_ids"].tolist() == [id for ids in expected for id in ids]
        assert window["positions"].tolist() == [i for ids in expected for i in range(len(ids))]
        first, count, _ = Path(f"{file}.metadata").read_text().split("\n")
        assert first.endswith("|2")
        assert int(count) == ends[-1]


def test_a_folder_of_datatrove_holds_the_whole_split(dataset: Path, exported: dict[PeerFormat, Path]):
    trove = pytest.importorskip("datatrove.utils.dataset", reason="needs datatrove")
    folder = trove.DatatroveFolderDataset(str(exported[PeerFormat.datatrove] / "train"), 9, "*.ds", token_size=2)
    streams = [[id for ids in shard for id in ids] for _, shard in sorted(documents(dataset, "train"))]
    windows = [stream[i : i + 10] for stream in streams for i in range(0, len(stream) - 9, 10)]
    assert [folder[i]["input_ids"].tolist() for i in range(len(folder))] == windows


@pytest.mark.parametrize("split", ["train", "val"])
def test_olmos_raw_arrays_and_rows_give_the_same_documents(dataset: Path, exported: dict[PeerFormat, Path], split: str):
    for name, expected in documents(dataset, split):
        base = exported[PeerFormat.olmo] / split / name
        ids = np.fromfile(f"{base}.npy", "<u2")
        with gzip.open(f"{base}.csv.gz", "rt", newline="") as stream:
            rows = list(csv.reader(stream))
        assert [ids[int(row[0]) : int(row[1])].tolist() for row in rows] == expected
        inputs = [item for item in read_sidecar(dataset / name).spans for _ in range(item.documents)]
        assert [row[3] for row in rows] == [item.name for item in inputs]


def test_nanogpt_gets_one_file_a_split_with_all_its_shards(dataset: Path, exported: dict[PeerFormat, Path]):
    for split in ("train", "val"):
        ids = np.fromfile(exported[PeerFormat.nanogpt] / f"{split}.bin", np.uint16).tolist()
        assert ids == [id for _, shard in documents(dataset, split) for document in shard for id in document]


def test_the_payload_is_the_same_file_under_another_name(dataset: Path, exported: dict[PeerFormat, Path]):
    shard = Manifest.load(dataset).shards_of("train")[0]
    payload = (dataset / f"{shard.name}.bin").stat()
    for format, ending in ((PeerFormat.megatron, ".bin"), (PeerFormat.datatrove, ".ds"), (PeerFormat.olmo, ".npy")):
        assert (exported[format] / "train" / f"{shard.name}{ending}").stat().st_ino == payload.st_ino


def test_an_export_introduces_itself(dataset: Path, exported: dict[PeerFormat, Path]):
    manifest = Manifest.load(dataset)
    for format, folder in exported.items():
        record = json.loads((folder / "crisol_export.json").read_text())
        assert (record["format"], record["vocab_size"], record["eos_id"]) == (format.value, 400, manifest.eos_id)
        assert record["tokenizer_sha256"] == manifest.tokenizer_sha256
        assert sum(file["tokens"] for file in record["files"]) == manifest.tokens("train") + manifest.tokens("val")
        assert all((folder / file["name"]).is_file() for file in record["files"])
        assert (folder / "tokenizer.model").is_file()
        assert not list(folder.rglob(".*"))


def test_across_file_systems_the_content_is_copied_and_that_is_said(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    folder = export(dataset, ExportConfig(PeerFormat.megatron, str(tmp_path / "far")))
    assert "copied" in capsys.readouterr().err
    for shard in Manifest.load(dataset).shards_of("train"):
        copy = folder / "train" / f"{shard.name}.bin"
        assert copy.read_bytes() == (dataset / f"{shard.name}.bin").read_bytes()
        assert copy.stat().st_ino != (dataset / f"{shard.name}.bin").stat().st_ino


def test_an_export_is_whole_or_absent(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr("data_prep.exchange.outgoing.publish_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export(dataset, ExportConfig(PeerFormat.olmo, str(target)))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "left.npy").write_bytes(b"by a kill")
    export(dataset, ExportConfig(PeerFormat.olmo, str(target)))
    assert not (target / "left.npy").exists()
    with pytest.raises(DataError, match="exists already"):
        export(dataset, ExportConfig(PeerFormat.olmo, str(target)))


def test_nanogpt_refuses_a_vocabulary_that_needs_four_bytes(tmp_path: Path):
    np.array([69_999, 2], "<u4").tofile(tmp_path / "a.npy")
    with gzip.open(tmp_path / "a.csv.gz", "wt") as stream:
        stream.write("0,2,x,y,1\n")
    widths = np.ones(70_000, np.uint16)
    widths[2] = 0
    np.save(tmp_path / "widths.npy", widths)
    peer = ImportConfig([str(tmp_path / "a.npy")], PeerFormat.olmo, str(tmp_path / "widths.npy"), "0" * 64, eos_id=2)
    import_dataset(tmp_path / "wide", peer, OnBad.error)
    with pytest.raises(DataError, match=r"uint16 only.*70000 ids needs int32"):
        export(tmp_path / "wide", ExportConfig(PeerFormat.nanogpt, str(tmp_path / "out")))
    folder = export(tmp_path / "wide", ExportConfig(PeerFormat.datatrove, str(tmp_path / "trove")))
    (file,) = (folder / "train").glob("*.ds")
    assert np.fromfile(file, "<u4").tolist() == [69_999, 2]


def test_a_damaged_dataset_is_not_exported(dataset: Path, tmp_path: Path):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    shard = Manifest.load(copy).shards_of("train")[0]
    (copy / f"{shard.name}.bin").write_bytes(b"\0\0")
    with pytest.raises(DataError, match="truncated"):
        export(copy, ExportConfig(PeerFormat.megatron, str(tmp_path / "out")))
