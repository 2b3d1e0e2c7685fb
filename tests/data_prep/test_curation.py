"""The whole way with everything on: read, clean, dedup, decontaminate, encode; killed, shared out and changed."""

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.clean.config import CleanConfig, GopherQuality, Newlines
from data_prep.config import SHARED_STAGES, DataPrepConfig, OnBad, Stage, TokenizerConfig
from data_prep.decontaminate.config import DecontaminateConfig
from data_prep.dedup.config import MinHashDedup
from data_prep.files import DataError
from data_prep.jobs import Done, in_ranges
from data_prep.manifest import Manifest
from data_prep.parts import read_part
from data_prep.pipeline import prepare
from data_prep.shards import ShardHead, ShardReader, shard_writer
from data_prep.sources.config import Jsonl, Wet
from data_prep.stages import Stages
from data_prep.tokenizer import Tokenizer
from data_prep.workers import Workers
from tests.corpus import document

ROOT = Path(__file__).parents[2]
GOPHER = GopherQuality(enabled=True, min_stop_words=1, max_ellipsis_lines=None, max_ellipses_per_word=None)
SECRET = "which of these seven copper lanterns did the patient harbour master answer for in winter"


def texts(seed: int, n: int) -> list[str]:
    return [document(random.Random(f"{seed}/{i}")) for i in range(n)]


def write_jsonl(file: Path, texts: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def write_corpus(folder: Path) -> Path:
    """Two sources with 20 copies, 10 near-copies, 5 short and 3 contaminated documents, and one bad line."""
    web, books = texts(1, 120), texts(2, 60)
    near = [text + "And one more sentence stands at the end of this copy.\n" for text in web[20:30]]
    write_jsonl(folder / "web" / "a.jsonl", [*web, *near, *["too short"] * 5])
    write_jsonl(folder / "books" / "b.jsonl", [*books, *web[:20], *(f"{text}{SECRET}\n" for text in texts(3, 3))])
    with (folder / "books" / "b.jsonl").open("a") as stream:
        stream.write("{not json\n")
    (folder / "evaluation.txt").write_text(SECRET + "\n")
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("curated"))


def config(out: Path, corpus: Path, **options: object) -> DataPrepConfig:
    whole = DataPrepConfig(
        out=str(out),
        source=Jsonl(paths=[str(corpus / "web"), str(corpus / "books")]),
        clean=CleanConfig(newlines=Newlines.lf, gopher_quality=GOPHER),
        dedup=MinHashDedup(max_source_loss=1.0, min_jaccard=0.6, bands=32, rows=4),
        decontaminate=DecontaminateConfig(files=[str(corpus / "evaluation.txt")], max_source_loss=1.0),
        tokenizer=TokenizerConfig(vocab_size=400),
        val_fraction=0.1,
        task_bytes=20_000,
        on_bad_document=OnBad.skip,
        workers=1,
    )
    return dataclasses.replace(whole, **options)  # pyright: ignore[reportArgumentType]


def words(out: Path, corpus: Path, *more: str) -> list[str]:
    """The command line that asks for the same."""
    options = [
        f"out={out}",
        "source=jsonl",
        f"source.paths=[{corpus}/web,{corpus}/books]",
        "clean.newlines=lf",
        "clean.gopher_quality.enabled=true",
        "clean.gopher_quality.min_stop_words=1",
        "clean.gopher_quality.max_ellipsis_lines=null",
        "clean.gopher_quality.max_ellipses_per_word=null",
        "dedup=minhash",
        "dedup.max_source_loss=1.0",
        "dedup.min_jaccard=0.6",
        "dedup.bands=32",
        "dedup.rows=4",
        f"decontaminate.files=[{corpus}/evaluation.txt]",
        "decontaminate.max_source_loss=1.0",
        "tokenizer.vocab_size=400",
        "val_fraction=0.1",
        "task_bytes=20_000",
        "on_bad_document=skip",
    ]
    return [sys.executable, "-m", "data_prep", *options, *more]


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    prepare(config(out, corpus))
    return out


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the dataset."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name != ".lock")
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def decoded(folder: Path) -> list[str]:
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    readers = [ShardReader(folder / shard.name) for shard in Manifest.load(folder).shards]
    return [tokenizer.decode(reader.document(i)) for reader in readers for i in range(reader.n_documents)]


# --- what becomes of each document -----------------------------------------------------------------------------------


def test_every_document_is_kept_or_counted_with_its_reason(whole: Path):
    web, books = sorted(Manifest.load(whole).sources, key=lambda entry: -entry.documents_in)
    assert (web.name, web.inputs, web.documents_in) == ("web", 1, 135)
    assert (books.name, books.inputs, books.documents_in) == ("books", 1, 84)
    assert books.removed == {"bad_json": 1, "contaminated": 3}
    assert web.removed == {"exact_duplicate": 20, "gopher_too_few_words": 5, "near_duplicate": 10}
    for entry in (web, books):
        assert entry.documents_in == entry.train + entry.val + sum(entry.removed.values())
    lines = [json.loads(line) for line in (whole / "inputs.jsonl").read_text().splitlines()]
    assert len(lines) > 10  # the files were cut
    assert sum(line["documents_in"] for line in lines) == 219
    assert all(line["documents_in"] == line["train"] + line["val"] + sum(line["removed"].values()) for line in lines)


def test_the_shards_hold_exactly_the_survivors(whole: Path):
    """Of two near-copies the longer one stays."""
    web = texts(1, 120)
    near = [text + "And one more sentence stands at the end of this copy.\n" for text in web[20:30]]
    assert sorted(decoded(whole)) == sorted([*web[:20], *near, *web[30:], *texts(2, 60)])


def test_no_shard_mixes_sources(whole: Path):
    manifest = Manifest.load(whole)
    for shard in manifest.shards:
        names = {span.name.split("/")[0] for span in ShardReader(whole / shard.name).sidecar.spans}
        assert names == {shard.source}
    for source in ("web", "books"):
        kept = sum(shard.documents for shard in manifest.shards_of("train", source))
        assert kept == next(entry.train for entry in manifest.sources if entry.name == source)


def test_dropped_documents_are_kept_aside_when_asked(tmp_path: Path, corpus: Path, whole: Path):
    out = shutil.copytree(whole, tmp_path / "out")
    (out / "manifest.json").unlink()
    prepare(config(out, corpus, keep_dropped=True))
    dropped = [document for file in (out / "work").glob("dropped-*.parquet") for _, document in read_part(file)]
    assert [item.text for item in dropped] == ["too short"] * 5
    assert all("gopher_too_few_words" in item.id for item in dropped)
    assert digests(out) == digests(whole)


def test_a_damaged_part_is_found_and_named(tmp_path: Path, corpus: Path, whole: Path):
    out = shutil.copytree(whole, tmp_path / "out")
    (out / "manifest.json").unlink()
    for file in out.glob("*-*.bin"):
        file.unlink()
    part = max((out / "work").glob("clean-*.parquet"), key=lambda file: file.stat().st_size)
    content = bytearray(part.read_bytes())
    content[200] ^= 1
    part.write_bytes(content)
    with pytest.raises(DataError, match=f"{part.name} is damaged"):
        prepare(config(out, corpus))


def test_nothing_goes_in_favour_of_a_document_that_holds_evaluation_data(tmp_path: Path):
    (base,) = texts(7, 1)
    write_jsonl(tmp_path / "web" / "a.jsonl", [base, f"{base}{SECRET}\n", *texts(8, 30)])
    (tmp_path / "evaluation.txt").write_text(SECRET + "\n")
    out = tmp_path / "out"
    prepare(config(out, tmp_path, source=Jsonl(paths=[str(tmp_path / "web")])))
    assert Manifest.load(out).removed == {"contaminated": 1}
    assert sorted(decoded(out)) == sorted([base, *texts(8, 30)])


def test_a_braked_decontamination_lets_nothing_be_encoded(tmp_path: Path, corpus: Path, whole: Path):
    strict = DecontaminateConfig(files=[str(corpus / "evaluation.txt")], max_source_loss=0.001)
    given = TokenizerConfig(model=str(whole / "tokenizer.model"))
    settings = config(tmp_path / "out", corpus, decontaminate=strict, tokenizer=given)
    with pytest.raises(DataError, match=r"decontaminate\.max_source_loss=0\.001"):
        prepare(settings)
    with pytest.raises(DataError, match="run all its sub-stages first"):
        prepare(dataclasses.replace(settings, stage=Stage.tokenizer))
    assert not list((tmp_path / "out").glob("*.bin"))


def test_one_flipped_bit_in_what_is_removed_is_found(tmp_path: Path, corpus: Path, whole: Path):
    out = shutil.copytree(whole, tmp_path / "out")
    (out / "manifest.json").unlink()
    for file in [*out.glob("*-*.bin")]:
        file.unlink()
    victim = max((out / "work" / "dedup").glob("*/removed/*"), key=lambda file: file.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[0] ^= 1
    victim.write_bytes(content)
    with pytest.raises(DataError, match="is damaged: the checksum of document differs"):
        prepare(config(out, corpus))


def test_a_single_stage_does_not_touch_a_finished_dataset_of_other_settings(tmp_path: Path, corpus: Path, whole: Path):
    out = shutil.copytree(whole, tmp_path / "out")
    for stage in (Stage.tokenizer, Stage.encode, Stage.publish):
        with pytest.raises(DataError, match="holds another finished dataset"):
            prepare(config(out, corpus, stage=stage, val_fraction=0.3))
    assert digests(out) == digests(whole)
    Manifest.load(out).verify(out)


def test_looking_at_what_is_not_there_makes_no_folder(tmp_path: Path, corpus: Path):
    for stage in (Stage.verify, Stage.inspect):
        with pytest.raises(DataError, match="holds no finished dataset"):
            prepare(config(tmp_path / "typo", corpus, stage=stage))
    assert not (tmp_path / "typo").exists()


def test_records_that_are_no_pages_are_counted_and_stop_nothing(tmp_path: Path):
    pytest.importorskip("fastwarc", reason="needs the extra `warc`")
    records = "WARC/1.0\r\nWARC-Type: warcinfo\r\nWARC-Record-ID: <urn:x:0>\r\nContent-Length: 2\r\n\r\nhi\r\n\r\n"
    for i, text in enumerate(texts(9, 30)):
        head = f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Record-ID: <urn:x:{i + 1}>\r\nWARC-Target-URI: http://a.b/{i}\r\n"
        head += f"Content-Type: text/plain\r\nContent-Length: {len(text.encode())}\r\n\r\n"
        records += f"{head}{text}\r\n\r\n"
    (tmp_path / "a.warc.wet").write_bytes(records.encode())
    settings = DataPrepConfig(
        out=str(tmp_path / "out"),
        source=Wet(paths=[str(tmp_path / "a.warc.wet")]),
        tokenizer=TokenizerConfig(vocab_size=300),
        val_fraction=0.0,
        workers=1,
    )
    prepare(settings)
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.documents("train"), manifest.removed) == (30, {"not_a_page": 1})


def test_a_worker_left_over_removes_no_shard_of_others(tmp_path: Path):
    """What fails while the first file is written has published nothing, so there is nothing of it to remove."""
    head = ShardHead("t", "s", "k", 100, 2)
    with shard_writer(tmp_path / "x", head) as writer:
        writer.add(np.array([5]), np.array([1]), 1)
    before = digests(tmp_path)
    with pytest.raises(RuntimeError), shard_writer(tmp_path / "x", head):
        raise RuntimeError
    assert digests(tmp_path) == before


# --- the same bytes, whoever did the work -----------------------------------------------------------------------------


@pytest.mark.parametrize("n_workers", [2, 7])
def test_any_number_of_workers_makes_the_same_bytes(tmp_path: Path, corpus: Path, whole: Path, n_workers: int):
    prepare(config(tmp_path / "out", corpus, workers=n_workers))
    assert digests(tmp_path / "out") == digests(whole)


@pytest.mark.parametrize("n_tasks", [1, 3, 50])
def test_a_job_array_of_any_width_makes_the_same_bytes(tmp_path: Path, corpus: Path, whole: Path, n_tasks: int):
    """Elements in another order, some of them twice."""
    out = tmp_path / "out"
    elements = [*random.Random(n_tasks).sample(range(n_tasks), n_tasks), 0]
    prepare(config(out, corpus, stage=Stage.plan))
    for stage in SHARED_STAGES:
        for i in elements:
            prepare(config(out, corpus, stage=stage, task=i, n_tasks=n_tasks))
        if stage is Stage.resolve:
            prepare(config(out, corpus, stage=Stage.tokenizer))
    prepare(config(out, corpus, stage=Stage.publish))
    names = {name: digest for name, digest in digests(out).items() if not name.startswith(".lock")}
    assert names == digests(whole)


def test_an_array_needs_a_plan_made_for_its_options(tmp_path: Path, corpus: Path):
    share = config(tmp_path / "out", corpus, stage=Stage.clean, task=0, n_tasks=2)
    with pytest.raises(DataError, match="run the same with stage=plan first"):
        prepare(share)
    prepare(config(tmp_path / "out", corpus, stage=Stage.plan))
    with pytest.raises(DataError, match=r"val_fraction: 0\.1 there, 0.5 asked for"):
        prepare(dataclasses.replace(share, val_fraction=0.5))
    prepare(share)


def test_status_tells_what_is_left_and_for_which_elements(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    prepare(config(out, corpus, stage=Stage.plan))
    prepare(config(out, corpus, stage=Stage.clean, task=1, n_tasks=4))
    prepare(config(out, corpus, stage=Stage.status, n_tasks=4))
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    n = len(Stages(config(out, corpus)).jobs(Stage.clean))
    assert lines["plan"] == "done"
    assert lines["clean"] == f"{len(range(1, n, 4))} of {n} tasks done; array elements with something left: 0,2-3"
    assert lines["encode"] == "waits for the stages before it"
    assert lines["publish"] == "to do"
    assert in_ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"


def test_killed_at_twenty_moments_it_ends_with_the_same_bytes(tmp_path: Path, corpus: Path, whole: Path):
    """kill -9 of the command, or of it and all its workers, whose number changes each time."""
    out, rng, i = tmp_path / "out", random.Random(0), 0
    for i in range(20):
        n_workers = (1, 2, 7)[i % 3]
        process = subprocess.Popen(
            words(out, corpus, f"workers={n_workers}"),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.4 + 2 * rng.random())
            break  # it was quicker than its killer: what follows looks at what it made
        if rng.random() < 0.5:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert i >= 5
    done = subprocess.run(words(out, corpus, "workers=2"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert digests(out) == digests(whole)
    assert not [file for file in out.rglob("*") if ".tmp-" in file.name]


def test_files_added_and_altered_make_exactly_the_new_shards(tmp_path: Path):
    """Nothing is shared between documents here, so only the tasks of those files may change."""
    corpus = tmp_path / "corpus"
    for i in range(12):
        write_jsonl(corpus / "web" / f"{i:02d}.jsonl", texts(100 + i, 12))
    (corpus / "evaluation.txt").write_text(SECRET + "\n")
    settings = config(tmp_path / "out", corpus, source=Jsonl(paths=[str(corpus / "web")]))
    prepare(settings)
    before = digests(tmp_path / "out")
    write_jsonl(corpus / "web" / "05b.jsonl", texts(200, 12))
    write_jsonl(corpus / "web" / "09.jsonl", texts(201, 12))
    prepare(dataclasses.replace(settings, update=True))
    after = digests(tmp_path / "out")
    fresh = config(tmp_path / "fresh", corpus, source=settings.source)
    given = TokenizerConfig(model=str(tmp_path / "out" / "tokenizer.model"))
    prepare(dataclasses.replace(fresh, tokenizer=given))
    shards = {name for name in after if name.endswith(".bin")}
    assert {name: after[name] for name in shards} == {
        name: digest for name, digest in digests(tmp_path / "fresh").items() if name.endswith(".bin")
    }
    kept = {name for name in shards if before.get(name) == after[name]}
    touched = {
        name
        for name in shards
        for span in ShardReader(tmp_path / "out" / name.removesuffix(".bin")).sidecar.spans
        if span.name in ("web/05b.jsonl", "web/09.jsonl")
    }
    assert touched
    assert len(shards - kept) <= len(touched) + 4  # the borders beside them may move
    assert not shards & touched & kept


# --- workers ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Trial:
    """A job that does as it is told."""

    id: str
    folder: Path
    act: str = "write"
    bytes: int = 1

    def finished(self) -> bool:
        return (self.folder / self.id).exists()

    def run(self, advance: Callable[[Done], None]) -> None:
        match self.act:
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "fail":
                raise DataError("a clear message")
            case "sleep":
                time.sleep(60)
            case _:
                advance(Done(bytes=1, documents=1))
                (self.folder / self.id).write_text(str(os.getpid()))


@pytest.mark.parametrize("n", [1, 3])
def test_all_jobs_are_done_once_by_so_many_processes(tmp_path: Path, n: int):
    jobs = [Trial(str(i), tmp_path) for i in range(40)]
    (tmp_path / "0").write_text("before")
    with Workers(n) as pool:
        pool.run("trial", jobs[:30])
        pool.run("trial", jobs)
    done = [file.read_text() for file in tmp_path.iterdir()]
    assert len(done) == 40
    assert (tmp_path / "0").read_text() == "before"
    assert str(os.getpid()) not in done or n == 1


def test_a_worker_that_dies_is_named_with_its_signal_and_the_others_end(tmp_path: Path):
    jobs = [Trial("die", tmp_path, "die", bytes=9), Trial("long", tmp_path, "sleep"), Trial("x", tmp_path)]
    started = time.monotonic()
    with pytest.raises(DataError, match="killed by SIGKILL at task die"), Workers(2) as pool:
        pool.run("trial", jobs)
    assert time.monotonic() - started < 30


def test_an_error_in_a_worker_comes_back_as_it_is(tmp_path: Path):
    with pytest.raises(DataError, match="a clear message") as caught, Workers(2) as pool:
        pool.run("trial", [Trial("f", tmp_path, "fail"), Trial("x", tmp_path)])
    assert "at task f" in caught.value.__notes__[0]
