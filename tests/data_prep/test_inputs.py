"""Which files a corpus is made of, and what they are called."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data_prep.files import DataError
from data_prep.inputs import Span, find
from data_prep.sources.config import Csv, Jsonl, Parquet, PythonSite, PythonStdlib, Source, TextFiles, Warc, Wet
from data_prep.sources.read import read
from data_prep.sources.spans import cuts, spans_of
from tests.data_prep.reading import rows, texts, zstd


def names(source: Source) -> list[str]:
    return [item.name for item in find(source)]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """web/{b.txt, a.txt, sub/c.md, sub/deep/d.txt} and things that are hidden; it is also the current folder."""
    for name in ("web/b.txt", "web/a.txt", "web/sub/c.md", "web/sub/deep/d.txt", "web/sub/.hidden", "web/.git/config"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


ALL = ["web/a.txt", "web/b.txt", "web/sub/c.md", "web/sub/deep/d.txt"]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("web", ALL),
        ("web/", ALL),
        ("./web", ALL),
        ("web/../web/.", ALL),
        ("web/**", ALL),
        ("web/*", ALL),
        ("web/*.txt", ALL[:2]),
        ("web/**/*.txt", ["web/a.txt", "web/b.txt", "web/sub/deep/d.txt"]),
        ("web/s*/*.md", ["web/sub/c.md"]),
        ("web/a.txt", ["a/a.txt"]),
        ("crawl=web", [name.replace("web", "crawl", 1) for name in ALL]),
        ("crawl=web/sub/c.md", ["crawl/c.md"]),
    ],
)
def test_a_name_is_the_label_and_the_path_below_what_was_asked_for(corpus: Path, path: str, found: list[str]):
    assert names(TextFiles([path])) == found


def test_names_are_the_same_wherever_the_corpus_lies(corpus: Path, tmp_path: Path):
    here = names(TextFiles(["web"]))
    (tmp_path / "elsewhere").mkdir()
    shutil.move("web", "elsewhere/web")
    assert names(TextFiles(["elsewhere/web"])) == names(TextFiles([str(tmp_path / "elsewhere/web")])) == here
    os.chdir("elsewhere/web")
    assert names(TextFiles(["."])) == here
    assert names(TextFiles(["*.txt"])) == here[:2]


def test_each_entry_is_a_source_and_one_label_joins_them(corpus: Path):
    found = find(TextFiles(["web/a.txt", "rest=web/sub", "rest=web/b.txt"]))
    assert [(item.source, item.name) for item in found] == [
        ("a", "a/a.txt"),
        ("rest", "rest/b.txt"),
        ("rest", "rest/c.md"),
        ("rest", "rest/deep/d.txt"),
    ]


def test_a_path_that_holds_an_equals_sign_is_a_path(corpus: Path):
    Path("web/year=2024").mkdir()
    Path("web/year=2024/x.txt").write_text("x")
    assert names(TextFiles(["web/year=2024"])) == ["year=2024/x.txt"]
    os.chdir("web")
    assert names(TextFiles(["./year=2024"])) == ["year=2024/x.txt"]
    with pytest.raises(DataError, match=r"2024 does not exist .* is written \./year=2024"):
        find(TextFiles(["year=2024"]))


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["nowhere.txt"], "nowhere.txt does not exist"),
        (["*.txt"], r"the pattern \*.txt matches no file"),
        (["empty"], "empty holds no file"),
        (["web", "a=web/a.txt"], "in the corpus twice, as a/a.txt and as web/a.txt"),
        (["web/*", "web/a.txt"], "in the corpus twice"),
        (["web", "web/**/*.md"], "would both be the source `web`. Name them apart, as web_2=web/"),
        (["web", "web=other"], "would both be the source `web`"),
        (["x=web/a.txt", "x=other/a.txt"], "are both called x/a.txt; give their entries in source.paths different"),
        (["web/broken"], r"cannot read web/broken: No such file"),
        (["web/bin"], r"b.txt is a link to nothing"),
    ],
)
def test_paths_that_give_no_corpus_are_refused(corpus: Path, paths: list[str], message: str):
    for folder in ("empty", "other", "web/bin"):
        Path(folder).mkdir()
    Path("other/a.txt").write_text("x")
    if "broken" in paths[0]:
        Path("web/broken").symlink_to("nowhere")
    if "bin" in paths[0]:
        Path("web/bin/b.txt").symlink_to("nowhere")
    else:
        Path("web/bin/x.txt").write_text("x")
    with pytest.raises(DataError, match=message):
        find(TextFiles(paths))


def test_a_link_to_a_file_taken_already_is_a_second_copy(tmp_path: Path):
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(DataError, match="in the corpus twice"):
        find(TextFiles([str(tmp_path)]))


def test_a_folder_gives_the_files_of_its_format_only(tmp_path: Path):
    for name in (
        "a.jsonl",
        "b.json.gz",
        "c.ndjson.bz2",
        "d.csv",
        "e.tsv.zst",
        "f.parquet",
        "g.warc.gz",
        "h.warc.wet.gz",
    ):
        (tmp_path / name).touch()
    (tmp_path / "x.jsonl").mkdir()
    path = [f"t={tmp_path}"]
    assert names(Jsonl(path)) == ["t/a.jsonl", "t/b.json.gz", "t/c.ndjson.bz2"]
    assert names(Csv(path)) == ["t/d.csv", "t/e.tsv.zst"]
    assert names(Parquet(path)) == ["t/f.parquet"]
    assert names(Warc(path)) == ["t/g.warc.gz"]
    assert names(Wet(path)) == ["t/h.warc.wet.gz"]
    with pytest.raises(DataError, match=r"x\.jsonl holds no file that ends in \.jsonl, \.jsonl\.gz"):
        find(Jsonl([str(tmp_path / "x.jsonl")]))


def test_the_order_does_not_depend_on_the_order_of_the_entries(corpus: Path):
    assert find(TextFiles(["web/b.txt", "web/a.txt"])) == find(TextFiles(["web/a.txt", "web/b.txt"]))


def test_an_altered_file_has_another_version_and_an_untouched_one_has_not(corpus: Path):
    before = find(TextFiles(["web"]))
    Path("web/a.txt").write_text("web/A.txt")
    after = find(TextFiles(["web"]))
    assert [one.version == two.version for one, two in zip(before, after, strict=True)] == [False, True, True, True]


def test_the_standard_library_is_a_corpus_without_its_tests():
    found = names(PythonStdlib())
    assert found == sorted(found)
    assert {"python_stdlib/os.py", "python_stdlib/json/__init__.py"} <= set(found)
    folders = {part for name in found for part in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "__pycache__"}


def test_the_installed_packages_are_a_corpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A folder stands in for site-packages: the real one holds hundreds of megabytes."""
    for name in ("pkg/a.py", "pkg/data.bin", "pkg/__pycache__/a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    monkeypatch.setattr("sysconfig.get_path", lambda kind: str(tmp_path))
    assert names(PythonSite()) == ["purelib/pkg/a.py"]


def test_a_file_name_that_is_not_utf8_is_refused(tmp_path: Path):
    (tmp_path / os.fsdecode(b"\xff.txt")).write_text("x")
    with pytest.raises(DataError, match="is not UTF-8; rename it"):
        find(TextFiles([str(tmp_path)]))


# --- remote ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    for name in ("a.jsonl", "sub/b.jsonl", ".hidden/c.jsonl", "README.md"):
        fs.pipe(f"/bucket/web/{name}", rows(name, "é"))
    yield fs
    fs.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("memory://bucket/web", ["web/a.jsonl", "web/sub/b.jsonl"]),
        ("memory://bucket/web/", ["web/a.jsonl", "web/sub/b.jsonl"]),
        ("memory://bucket/web/*.jsonl", ["web/a.jsonl"]),
        ("memory://bucket/w*", ["bucket/web/a.jsonl", "bucket/web/sub/b.jsonl"]),
        ("memory://bucket/**/b.jsonl", ["bucket/web/sub/b.jsonl"]),
        ("memory://bucket/web/a.jsonl", ["a/a.jsonl"]),
        ("crawl=memory://bucket/web", ["crawl/a.jsonl", "crawl/sub/b.jsonl"]),
    ],
)
def test_remote_files_folders_and_globs_are_found_and_read(bucket: Any, path: str, found: list[str]):
    assert names(Jsonl([path])) == found
    assert texts(Jsonl([path]))[1] == "é"


def test_a_file_url_and_a_path_give_the_same_corpus(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(rows("x", "y"))
    assert names(Jsonl([f"file://{tmp_path}"])) == names(Jsonl([str(tmp_path)]))
    assert texts(Jsonl([f"file://{tmp_path}/*"])) == ["x", "y"]


def test_a_remote_file_can_be_cut(bucket: Any):
    frames = [zstd(rows(str(i))) for i in range(9)]
    bucket.pipe("/bucket/z.jsonl.zst", b"".join(frames))
    source = Jsonl(["memory://bucket/z.jsonl.zst"])
    (item,) = find(source)
    assert len(cuts(source, item, 1)) == 8
    assert [one.text for span in spans_of(source, item, 50) for one in read(source, span)] == list("012345678")  # pyright: ignore[reportAttributeAccessIssue]


def test_a_remote_file_that_changes_stops_the_job(bucket: Any):
    source = Jsonl(["memory://bucket/web/a.jsonl"])
    (item,) = find(source)
    bucket.pipe("/bucket/web/a.jsonl", rows("A.jsonl", "é"))
    with pytest.raises(DataError, match="changed since it was listed"):
        list(read(source, Span(item, 0, item.bytes)))


class LockedFileSystem(fsspec.get_filesystem_class("memory")):  # pyright: ignore[reportUntypedBaseClass]
    """Lists like another, and lets nobody in: what a cloud's library does without credentials."""

    protocol = "locked"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("locked:/"))

    def _open(self, path: str, *args: object, **options: object) -> Any:
        raise RuntimeError("no credentials found")


def test_a_remote_place_that_cannot_be_had_says_what_is_missing(bucket: Any):
    fsspec.register_implementation("locked", LockedFileSystem, clobber=True)
    (item,) = find(source := Jsonl(["locked://bucket/web/a.jsonl"]))
    with pytest.raises(DataError, match=r"cannot read locked://.*no credentials found.*Credentials .* are taken from"):
        list(read(source, Span(item, 0, item.bytes)))
    with pytest.raises(DataError, match=r"nonsense://x: no package of fsspec speaks nonsense://"):
        find(Jsonl(["nonsense://x"]))
    with pytest.raises(DataError, match=r"absent\.jsonl"):
        find(Jsonl(["memory://bucket/absent.jsonl"]))
    with pytest.raises(DataError, match=r"holds no file that ends in \.jsonl"):
        find(Jsonl(["memory://bucket/*.jsonl"]))


def test_a_protocol_whose_package_is_missing_is_refused_with_its_name():
    try:
        import s3fs  # noqa: F401  # pyright: ignore[reportMissingImports]

        pytest.skip("s3fs is installed here")
    except ImportError:
        pass
    with pytest.raises(DataError, match=r"s3://bucket/x: Install s3fs"):
        find(Jsonl(["s3://bucket/x"]))


def test_a_path_that_no_file_system_takes_is_answered():
    with pytest.raises(DataError, match=r"source\.paths: a+ does not exist"):
        find(TextFiles(["a" * 300]))
