import gzip
import json
from pathlib import Path

import pyarrow
import pytest

from data_prep.config import Jsonl, OnBad, PythonSite, PythonStdlib, Source, TextFiles
from data_prep.document import Document, Outcome, Reason, Rejected, refusing
from data_prep.files import DataError
from data_prep.inputs import Input, find, fingerprint
from data_prep.sources import read


def outcomes(source: Source) -> list[Outcome]:
    return [outcome for item in find(source) for outcome in read(source, item)]


def texts(source: Source) -> list[str]:
    return [outcome.text for outcome in outcomes(source) if isinstance(outcome, Document)]


def the_reject(source: Source) -> Rejected:
    (found,) = [outcome for outcome in outcomes(source) if isinstance(outcome, Rejected)]
    return found


def rows(*texts: str) -> bytes:
    return b"".join(json.dumps({"text": text, "id": i}).encode() + b"\n" for i, text in enumerate(texts))


def zstd(content: bytes) -> bytes:
    return pyarrow.Codec("zstd").compress(content, asbytes=True)


# --- text ------------------------------------------------------------------------------------------------------------


def test_a_text_file_is_one_document_and_nothing_in_it_is_touched(tmp_path: Path):
    text = "\ufeff  a\r\nb\rc\x00\n\n "
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert texts(TextFiles([str(tmp_path)])) == [text]


def test_a_file_that_is_not_utf8_is_named_with_its_byte(tmp_path: Path):
    (tmp_path / "latin.txt").write_bytes("abc é".encode("latin-1"))
    reject = the_reject(TextFiles([str(tmp_path)]))
    assert reject.reason is Reason.not_utf8
    assert reject.id.endswith("latin.txt")
    assert "byte 4 of the file (0xE9)" in reject.detail


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
        ("a.jsonl.zst", zstd(rows(*THREE))),
        ("a.jsonl.zst", zstd(rows(*THREE[:2])) + zstd(rows(*THREE[2:]))),
    ],
    ids=["plain", "no last newline", "CRLF", "BOM", "gzip", "gzip members", "zstd", "zstd frames"],
)
def test_jsonl_gives_a_document_a_line(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    assert texts(Jsonl([str(tmp_path)])) == THREE


def test_jsonl_documents_are_named_by_line_and_another_field_can_hold_the_text(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"body": "x"}\n{"body": "y"}\n')
    found = outcomes(Jsonl([str(file)], text_field="body"))
    assert [outcome.id for outcome in found] == [f"{file}:1", f"{file}:2"]


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b'{"text": "cut', Reason.bad_json, "not JSON"),
        (b"[" * 100_000, Reason.bad_json, "not JSON"),
        (b'{"text": "\xff"}', Reason.not_utf8, "byte 10 of the line"),
        (b'{"txt": "x", "id": 3}', Reason.no_text, "`text` is missing; present: id, txt"),
        (b'{"text": null}', Reason.no_text, "`text` is a NoneType"),
        (b'{"text": ["x"]}', Reason.no_text, "`text` is a list"),
        (b'"x"', Reason.no_text, "not an object but a str"),
        (b'{"text": "a\\ud800b"}', Reason.lone_surrogate, "character 1 is U+D800"),
        (b'{"text": ""}', Reason.empty, "empty"),
        (b"   ", Reason.empty, "blank"),
    ],
)
def test_a_bad_line_is_a_counted_reason_with_file_and_line(tmp_path: Path, line: bytes, reason: Reason, detail: str):
    file = tmp_path / "a.jsonl"
    file.write_bytes(rows("before") + line + b"\n" + rows("after"))
    source = Jsonl([str(file)])
    reject = the_reject(source)
    assert (reject.reason, reject.id) == (reason, f"{file}:2")
    assert detail in reject.detail
    assert texts(source) == ["before", "after"]


def test_a_surrogate_pair_is_one_character_and_kept(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\\ud83d\\ude00"}\n')
    assert texts(Jsonl([str(tmp_path)])) == ["\U0001f600"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_compressed_file_cut_short_or_damaged_is_not_taken_for_its_end(tmp_path: Path, name: str):
    content = rows(*(f"document {i * i} {i:b}" for i in range(20_000)))
    packed = gzip.compress(content) if name.endswith("gz") else zstd(content)
    for broken in (packed[:-9], packed[: len(packed) // 2], packed[:-2000] + b"\x55" * 2000, b"garbage"):
        (tmp_path / name).write_bytes(broken)
        last = outcomes(Jsonl([str(tmp_path)]))[-1]
        assert isinstance(last, Rejected)
        assert last.reason is Reason.broken_archive


# --- finding ---------------------------------------------------------------------------------------------------------


def test_files_globs_and_folders_are_found_in_the_order_of_their_names(tmp_path: Path):
    for name in ("b.txt", "a.txt", "sub/c.md", "sub/.hidden", ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts(TextFiles([str(tmp_path)])) == ["a.txt", "b.txt", "sub/c.md"]
    assert texts(TextFiles([f"{tmp_path}/**/*.md", f"{tmp_path}/a.txt"])) == ["a.txt", "sub/c.md"]


def test_a_folder_of_jsonl_gives_its_jsonl_files_only(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(rows("x"))
    (tmp_path / "README.md").write_text("about")
    assert texts(Jsonl([str(tmp_path)])) == ["x"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["nowhere.txt"], "nowhere.txt does not exist"),
        (["*.txt"], r"the pattern \*.txt matches no file"),
        (["empty"], "the corpus is empty"),
        (["a", "a/x"], "in the corpus twice"),
        (["a/*", "a/x"], "in the corpus twice"),
    ],
)
def test_paths_that_give_no_corpus_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: list[str], message: str
):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("a").mkdir()
    Path("a/x").write_text("x")
    with pytest.raises(DataError, match=message):
        find(TextFiles(paths))


def test_a_link_to_a_file_taken_already_is_a_second_copy(tmp_path: Path):
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(DataError, match="in the corpus twice"):
        find(TextFiles([str(tmp_path)]))


def test_a_file_that_changes_between_planning_and_reading_stops_the_job(tmp_path: Path):
    file = tmp_path / "a.txt"
    file.write_text("before")
    source = TextFiles([str(file)])
    (item,) = find(source)
    file.write_text("afterwards")
    with pytest.raises(DataError, match="changed while it was being read"):
        list(read(source, item))


def test_the_fingerprint_follows_content_and_name_not_time(tmp_path: Path):
    item = Input(Path("x"), "x", 1, 5, "d")
    assert fingerprint([item]) == fingerprint([Input(Path("/y"), "x", 1, 7, "d")])
    assert fingerprint([item]) != fingerprint([Input(Path("x"), "x", 1, 5, "e")])
    assert fingerprint([item]) != fingerprint([Input(Path("x"), "z", 1, 5, "d")])


def test_the_standard_library_is_a_corpus_without_its_tests():
    names = [item.name for item in find(PythonStdlib())]
    assert names == sorted(names)
    assert {"os.py", "json/__init__.py"} <= set(names)
    folders = {part for name in names for part in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "__pycache__"}


def test_the_installed_packages_are_a_corpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A folder stands in for site-packages: the real one holds hundreds of megabytes."""
    for name in ("pkg/a.py", "pkg/data.bin", "pkg/__pycache__/a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    monkeypatch.setattr("sysconfig.get_path", lambda kind: str(tmp_path))
    assert [item.name for item in find(PythonSite())] == ["purelib/pkg/a.py"]
