"""F23: checkpoints of a stranger, whose manifests vouch for what they say: names and places that lead elsewhere."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.errors import CheckpointError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint of two ranks, to be made a stranger's."""
    from tests.train.checkpoint.layouts import LAYOUTS, tensors, written

    return written(tmp_path / "checkpoints", LAYOUTS["zero 1, dp 2"], tensors(), step=20).path


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A manifest that says something else, and says it with the right checksum."""
    from train.checkpoint.manifest import FileFacts, manifest_bytes

    facts = json.loads((path / "manifest.json").read_text())
    change(facts)
    files = {name: FileFacts(file["bytes"], file["sha256"]) for name, file in facts["files"].items()}
    (path / "manifest.json").write_bytes(manifest_bytes(facts["step"], files, facts["tensor_hashes"]))


def vouch(path: Path) -> None:
    """Has the manifest say what the index is now."""
    from data_prep.files import sha256_file

    index = path / "index.jsonl"
    facts = {"bytes": index.stat().st_size, "sha256": sha256_file(index)}
    rewrite(path, lambda manifest: manifest["files"].update({"index.jsonl": facts}))


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../secret", "sub/secret", "..", ".", "", ".hidden", "a\x00b", "a\nb", "\\\\host\\x", "x" * 300],
)
def test_a_manifest_that_names_what_lies_elsewhere_is_refused_before_anything_is_opened(path: Path, name: str):
    """F23: absolute paths, `..`, separators, hidden and endless names."""
    from train.checkpoint.verify import verify

    (path.parent / "secret").write_bytes(b"secret")
    rewrite(path, lambda facts: facts["files"].update({name: facts["files"]["state.json"]}))
    opened = opens()
    with pytest.raises(CheckpointError, match=r"is not the name of a file in its folder: nothing was opened"):
        verify(path)
    assert opened() == {str(path / "manifest.json")}


_opened: list[str] = []
_is_audited: list[bool] = []


def opens() -> Callable[[], set[str]]:
    """What this process opens from here on when asked."""

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            _opened.append(str(args[0]))

    if not _is_audited:
        sys.addaudithook(audit)
        _is_audited.append(True)
    _opened.clear()
    return lambda: {path for path in _opened if not path.endswith((".py", ".pyc"))}


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "device"])
@pytest.mark.parametrize("name", ["manifest.json", "state.json", "index.jsonl", "master-00000.safetensors"])
def test_a_file_that_is_none_is_refused_and_not_opened(path: Path, name: str, kind: str):
    """F23: a link, even to the right content; a pipe, which would wait for ever; a folder; a device."""
    from train.checkpoint.verify import verify

    file = path / name
    match kind:
        case "link":
            file.rename(path.parent / "elsewhere")
            file.symlink_to(path.parent / "elsewhere")
        case "pipe":
            file.unlink()
            os.mkfifo(file)
        case "folder":
            file.unlink()
            file.mkdir()
        case _:
            file.unlink()
            file.symlink_to("/dev/zero")
    opened = opens()
    with pytest.raises(CheckpointError, match=f"{name} is a link, a folder or a device"):
        verify(path)
    assert str(file) not in opened()


DEEP = "[" * 200_000
BIG = 10**18


def swap(find: str, put: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert find in text
        return text.replace(find, put, 1)

    return change


INDEXES: dict[str, tuple[Callable[[str], str], str]] = {
    "deeply nested": (lambda text: text + DEEP + "\n", "index.jsonl cannot be read: RecursionError"),
    "of endless shape": (swap('"shape": [16, 12]', f'"shape": [{BIG}, {BIG}]'), "are nowhere"),
    "of negative shape": (swap('"shape": [16, 12]', '"shape": [-16, -12]'), "no whole numbers"),
    "of a strange dtype": (swap('"dtype": "F32"', '"dtype": "I8"'), "index.jsonl cannot be read: KeyError"),
    "behind the file's end": (swap('["master-00000.safetensors", ', '["master-00000.safetensors", 9'), "ends at"),
    "before the file": (swap('["master-00000.safetensors", ', '["master-00000.safetensors", -'), "no whole numbers"),
    "in a file elsewhere": (swap('["master-00000.safetensors"', '["/etc/passwd"'), "the manifest names no file"),
    "in a file of no name": (swap('["master-00000.safetensors"', '[["x"]'), "unhashable"),
    "no JSON": (lambda text: "index", "index.jsonl cannot be read"),
    "no text": (lambda text: text + "\udcff", "index.jsonl cannot be read"),
}


@pytest.mark.parametrize("kind", INDEXES)
def test_an_index_that_its_manifest_vouches_for_is_not_believed_either(path: Path, kind: str):
    """F23: what a stranger's checkpoint could say; nothing is allocated, read or followed for it."""
    from train.checkpoint.verify import verify

    change, words = INDEXES[kind]
    text = change((path / "index.jsonl").read_text())
    (path / "index.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    vouch(path)
    with pytest.raises(CheckpointError, match=words):
        verify(path)


@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_nested_brackets_without_end_are_damage_and_no_crash(path: Path, name: str):
    """F23: a RecursionError of the JSON reader names the file."""
    from data_prep.files import sha256_file
    from train.checkpoint.verify import verify

    (path / name).write_text(DEEP)
    if name == "state.json":
        facts = {"bytes": len(DEEP), "sha256": sha256_file(path / name)}
        rewrite(path, lambda manifest: manifest["files"].update({name: facts}))
    with pytest.raises(CheckpointError, match=f"{name} cannot be read: maximum recursion"):
        verify(path)


def test_fragments_that_overlap_and_leave_a_hole_are_found_though_their_numbers_add_up(path: Path):
    """F23: one range of the index moved by one, with a manifest that vouches for it."""
    from train.checkpoint.verify import verify

    lines = (path / "index.jsonl").read_text().splitlines()
    row = next(row for row in map(json.loads, lines) if len(row["fragments"]) == 2)
    moved = json.loads(json.dumps(row))
    later = max(moved["fragments"], key=lambda fragment: fragment[-1])
    later[-2:] = [later[-2] - 1, later[-1] - 1]
    text = "\n".join(lines).replace(json.dumps(row), json.dumps(moved))
    (path / "index.jsonl").write_text(text)
    vouch(path)
    with pytest.raises(CheckpointError, match=rf"{row['kind']} of {row['name']}.* are there twice"):
        verify(path)
