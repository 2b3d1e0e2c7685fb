import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.config import TokenizerConfig
from data_prep.files import DataError, sha256_file
from data_prep.manifest import Manifest
from data_prep.pipeline import prepare
from tests.data_prep.conftest import config


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    return shutil.copytree(dataset, tmp_path / "copy")


def shard(folder: Path, split: str = "train", i: int = 0) -> Path:
    return folder / Manifest.load(folder).shards_of(split)[i].name


def alter(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "manifest.json"
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))


def check(folder: Path) -> None:
    Manifest.load(folder).check(folder)


def verify(folder: Path) -> int:
    return Manifest.load(folder).verify(folder)


def test_a_whole_dataset_passes_and_every_byte_was_read(dataset: Path):
    check(dataset)
    assert verify(dataset) == sum(
        f.stat().st_size for f in dataset.iterdir() if f.is_file() and f.name != "manifest.json"
    )
    assert Manifest.load(dataset).sha256 == sha256_file(dataset / "manifest.json")


def test_a_shard_made_with_another_tokenizer_is_named_with_both_digests(corpus: Path, copy: Path, tmp_path: Path):
    """The real thing: a shard of the same name, from the same text, in whose sidecar another tokenizer stands."""
    other = tmp_path / "other"
    prepare(config(other, corpus, tokenizer=TokenizerConfig(vocab_size=300)))
    victim, donor = shard(copy), shard(other)
    for ending in (".bin", ".idx", ".json"):
        shutil.copy(donor.with_suffix(ending), victim.with_suffix(ending))
    with pytest.raises(DataError, match="made with another tokenizer") as caught:
        verify(copy)
    for word in (victim.name, Manifest.load(copy).tokenizer_sha256, Manifest.load(other).tokenizer_sha256):
        assert word in str(caught.value)


def test_another_tokenizer_model_is_named(corpus: Path, copy: Path):
    content = (copy / "tokenizer.model").read_bytes()
    (copy / "tokenizer.model").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=r"tokenizer\.model is another tokenizer"):
        check(copy)


@pytest.mark.parametrize("lost", [1, 2, 1000])
@pytest.mark.parametrize("ending", [".bin", ".idx", ".json"])
def test_a_truncated_shard_is_named_with_both_sizes(copy: Path, lost: int, ending: str):
    file = shard(copy).with_suffix(ending)
    content = file.read_bytes()
    lost = min(lost, len(content))
    file.write_bytes(content[:-lost])
    with pytest.raises(DataError) as caught:
        check(copy)
    assert file.name in str(caught.value)
    if ending != ".json":
        assert f"truncated: expected {len(content)} bytes, found {len(content) - lost}" in str(caught.value)


def test_verify_names_every_file_with_a_flipped_bit(copy: Path):
    flipped = [shard(copy).with_suffix(".bin"), shard(copy, "val").with_suffix(".idx"), shard(copy).with_suffix(".crc")]
    for file in flipped:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    check(copy)  # sizes are right: the cheap check cannot see it
    with pytest.raises(DataError, match="3 found") as caught:
        verify(copy)
    assert all(file.name in str(caught.value) for file in flipped)


def test_a_flipped_bit_in_any_file_is_found(copy: Path):
    for file in sorted(file for file in copy.iterdir() if file.is_file()):
        whole = file.read_bytes()
        if file.name == "manifest.json" or not whole:  # a shard without documents has an empty .bin
            continue
        file.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        with pytest.raises(DataError) as caught:
            verify(copy)
        assert file.name in str(caught.value)
        file.write_bytes(whole)
    verify(copy)


def test_a_missing_file_and_a_strange_shard_are_named_and_other_files_are_not(copy: Path):
    first, stranger = shard(copy), copy / "train-0123456789abcdef"
    first.with_suffix(".bin").rename(stranger.with_suffix(".bin"))
    (copy / "notes.txt").write_text("mine")
    (copy / "firmware.bin").write_text("mine")
    with pytest.raises(DataError, match="2 found") as caught:
        check(copy)
    assert f"{first.name}.bin is missing" in str(caught.value)
    assert f"{stranger.name}: a shard that the manifest does not know" in str(caught.value)


def test_a_folder_without_manifest_is_no_dataset(tmp_path: Path):
    with pytest.raises(DataError, match="holds no finished dataset"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "", ".", ".."])
def test_names_that_leave_the_folder_are_refused(copy: Path, name: str):
    alter(copy, lambda tree: tree["shards"][0].update(name=name))
    with pytest.raises(DataError, match="not a plain file name"):
        Manifest.load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.update(schema_version=9), "schema version 9, this program reads 2"),
        (lambda tree: tree.pop("eos_id"), "eos_id"),
        (lambda tree: tree.update(vocab_size="400"), "vocab_size"),
        (lambda tree: tree["shards"][0].pop("tokens"), "tokens"),
        (lambda tree: tree.update(surprise=1), "surprise"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(copy: Path, change: Callable[[dict[str, Any]], None], message: str):
    alter(copy, change)
    with pytest.raises(DataError, match=message):
        Manifest.load(copy)


def test_a_manifest_that_is_not_json_is_refused(copy: Path):
    (copy / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        Manifest.load(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree.update(eos_id=3),
        lambda tree: tree.update(baselines={}),
        lambda tree: tree["sources"][0].update(documents_in=61),
        lambda tree: tree["options"].update(val_fraction=0.3),
    ],
)
def test_verify_finds_whatever_was_altered_in_the_manifest_itself(
    copy: Path, change: Callable[[dict[str, Any]], object]
):
    alter(copy, change)
    with pytest.raises(DataError, match=r"manifest\.json: its own checksum differs"):
        verify(copy)


def test_a_manifest_whose_lists_are_none_is_refused(copy: Path):
    alter(copy, lambda tree: tree.update(shards=5))
    with pytest.raises(DataError, match="shards is no list"):
        Manifest.load(copy)
