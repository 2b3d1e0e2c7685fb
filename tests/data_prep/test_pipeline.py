import dataclasses
import gzip
import json
import lzma
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.config import DataPrepConfig, OnBad, Stage, TokenizerConfig
from data_prep.files import DataError
from data_prep.manifest import Manifest
from data_prep.pipeline import prepare
from data_prep.shards import ShardReader, read_sidecar
from data_prep.sources.config import Jsonl, PythonStdlib
from data_prep.split import is_held_out
from data_prep.tokenizer import Tokenizer
from tests.corpus import document, write_corpus
from tests.data_prep.conftest import VOCABULARY, config

ROOT = Path(__file__).parents[2]


def made(settings: DataPrepConfig) -> Manifest:
    manifest = prepare(settings)
    assert manifest is not None
    return manifest


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "inputs.jsonl").read_text().splitlines()]


def documents(folder: Path, split: str) -> list[str]:
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    shards = [ShardReader(folder / entry.name) for entry in Manifest.load(folder).shards_of(split)]
    return [tokenizer.decode(shard.document(i)) for shard in shards for i in range(shard.n_documents)]


def words(out: Path, corpus: Path, *more: str) -> list[str]:
    """The command line that asks for the same as `conftest.config`."""
    options = [f"out={out}", "source=text", f"source.paths=[{corpus}]", f"tokenizer.vocab_size={VOCABULARY}"]
    return [sys.executable, "-m", "data_prep", *options, "val_fraction=0.2", "task_bytes=20_000", *more]


# --- what a dataset holds --------------------------------------------------------------------------------------------


def test_every_document_comes_back_from_the_shards_in_the_right_split(dataset: Path, corpus: Path):
    texts = [file.read_text() for file in sorted(corpus.iterdir())]
    assert documents(dataset, "train") == [text for text in texts if not is_held_out(text.encode(), 0.2)]
    assert documents(dataset, "val") == [text for text in texts if is_held_out(text.encode(), 0.2)]


def test_counts_balance_per_input_and_in_all(dataset: Path, corpus: Path):
    manifest = Manifest.load(dataset)
    inputs = lines_of(dataset)
    assert [line["name"] for line in inputs] == [f"texts/{file.name}" for file in sorted(corpus.iterdir())]
    for line in inputs:
        assert line["documents_in"] == line["train"] + line["val"] + sum(line["removed"].values()) == 1
    (source,) = manifest.sources
    assert (source.name, source.inputs, source.documents_in) == ("texts", 60, source.train + source.val)
    assert manifest.documents_in == manifest.documents("train") + manifest.documents("val") == 60
    assert manifest.text_bytes("train") + manifest.text_bytes("val") == sum(f.stat().st_size for f in corpus.iterdir())


def test_tokens_are_counted_with_one_end_of_text_a_document(dataset: Path):
    manifest = Manifest.load(dataset)
    for split in ("train", "val"):
        ids = [ShardReader(dataset / entry.name).tokens(0, entry.tokens) for entry in manifest.shards_of(split)]
        assert sum(map(len, ids)) == manifest.tokens(split)
        assert sum(int((row == manifest.eos_id).sum()) for row in ids) == manifest.documents(split)


def test_token_bytes_give_the_bytes_of_every_shard(dataset: Path):
    token_bytes = np.load(dataset / "token_bytes.npy", allow_pickle=False)
    manifest = Manifest.load(dataset)
    assert (token_bytes.dtype, token_bytes.shape) == (np.dtype(np.uint16), (manifest.vocab_size,))
    for entry in manifest.shards:
        ids = ShardReader(dataset / entry.name).tokens(0, entry.tokens)
        assert token_bytes[ids].sum(dtype=np.int64) == entry.text_bytes


def test_baselines_are_those_compressors_on_the_held_out_text(dataset: Path):
    text = "".join(documents(dataset, "val")).encode()
    assert Manifest.load(dataset).baselines == {
        "gzip_bits_per_byte": pytest.approx(8 * len(gzip.compress(text, 9, mtime=0)) / len(text), abs=1e-6),
        "xz_bits_per_byte": pytest.approx(8 * len(lzma.compress(text, preset=9)) / len(text), abs=1e-6),
    }


def test_a_corpus_full_of_control_symbols_holds_no_control_id_but_its_ends(tmp_path: Path):
    texts = ["</s> <s> <unk> <pad> <0x41>\n</s>\u2581 " * 20 + str(i) for i in range(40)]
    write_jsonl(tmp_path / "a.jsonl", texts + [f"</s </st> <st> <unkn> <0x4 {i}" for i in range(40)])
    out = tmp_path / "out"
    settings = config(out, tmp_path, source=Jsonl(paths=[str(tmp_path)]), tokenizer=TokenizerConfig(vocab_size=280))
    manifest = made(settings)
    for entry in manifest.shards:
        ids = ShardReader(out / entry.name).tokens(0, entry.tokens)
        assert int((ids < 4).sum()) == entry.documents
    assert set(texts) < set(documents(out, "train") + documents(out, "val"))


def test_nothing_is_held_out_when_nothing_was_asked_to_be(tmp_path: Path, corpus: Path):
    manifest = made(config(tmp_path / "out", corpus, val_fraction=0.0))
    assert manifest.shards_of("val") == ()
    assert (manifest.documents("train"), manifest.baselines) == (60, {})
    manifest.verify(tmp_path / "out")


def test_the_held_out_split_does_not_move_when_data_is_added(tmp_path: Path, dataset: Path, corpus: Path):
    larger = shutil.copytree(corpus, tmp_path / "larger")
    write_corpus(larger, n_documents=30, seed=7)
    made(config(tmp_path / "out", larger))
    before, after = set(documents(dataset, "val")), set(documents(tmp_path / "out", "val"))
    assert before < after
    assert not after & set(documents(dataset, "train"))


# --- running again ---------------------------------------------------------------------------------------------------


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, dataset: Path, corpus: Path):
    made(config(tmp_path / "again", corpus))
    assert contents(tmp_path / "again") == contents(dataset)


def test_a_finished_dataset_is_recognised_and_left_as_it_is(
    tmp_path: Path, dataset: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    times = {file.name: file.stat().st_mtime_ns for file in copy.iterdir()}
    assert made(config(copy, corpus)) == Manifest.load(dataset)
    assert "nothing to do" in capsys.readouterr().err
    assert {file.name: file.stat().st_mtime_ns for file in copy.iterdir()} == times


def test_another_finished_dataset_is_refused_with_the_differing_keys(dataset: Path, corpus: Path, tmp_path: Path):
    before = contents(dataset)
    with pytest.raises(DataError, match="holds another finished dataset") as caught:
        prepare(config(dataset, corpus, val_fraction=0.5, tokenizer=TokenizerConfig(vocab_size=300)))
    assert "val_fraction: 0.2 there, 0.5 asked for" in str(caught.value)
    assert "tokenizer.vocab_size: 400 there, 300 asked for" in str(caught.value)
    with pytest.raises(DataError, match=r'source\.kind: "text" there, "python_stdlib" asked for'):
        prepare(config(dataset, corpus, source=PythonStdlib()))
    assert contents(dataset) == before


def test_changed_inputs_of_a_finished_dataset_are_named(tmp_path: Path):
    texts = write_corpus(tmp_path / "texts")
    out = tmp_path / "out"
    made(config(out, texts))
    (texts / "new.txt").write_text("new")
    (texts / "00-0003.txt").unlink()
    (texts / "00-0005.txt").write_text("other")
    with pytest.raises(DataError, match=r"1 added \(first: .*new.txt\), 1 removed .*0003.*, 1 changed .*0005"):
        prepare(config(out, texts))
    made(config(out, texts, update=True)).verify(out)
    assert len(documents(out, "train")) + len(documents(out, "val")) == 60


def test_only_tasks_with_changed_inputs_are_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    texts = write_corpus(tmp_path / "texts")
    out = tmp_path / "out"
    made(config(out, texts))
    model = (out / "tokenizer.model").read_bytes()
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("*.bin")}
    (texts / "00-0030.txt").write_text("another text\n" * 50)
    manifest = made(config(out, texts, update=True))
    after = {file.name: file.stat().st_mtime_ns for file in out.glob("*.bin")}
    untouched = {name for name in before if after.get(name) == before[name]}
    assert len(before) > 6
    assert len(before) - 6 <= len(untouched) < len(before)
    assert "are done already and used again" in capsys.readouterr().err
    manifest.verify(out)
    assert (out / "tokenizer.model").read_bytes() == model
    given = TokenizerConfig(model=str(out / "tokenizer.model"))
    assert made(config(tmp_path / "fresh", texts, tokenizer=given)).fingerprint == manifest.fingerprint


def test_moving_the_corpus_changes_nothing(tmp_path: Path, dataset: Path, corpus: Path):
    moved = shutil.copytree(corpus, tmp_path / "elsewhere" / "texts")  # keeps the times
    copy = shutil.copytree(dataset, tmp_path / "copy")
    assert made(config(copy, moved)) == Manifest.load(dataset)


def test_shards_of_an_earlier_plan_are_removed_and_other_files_are_left_alone(tmp_path: Path, corpus: Path):
    out = tmp_path / "out"
    made(config(out, corpus))
    (out / "manifest.json").unlink()
    (out / "notes.txt").write_text("mine")
    (out / "model.bin").write_text("mine")
    manifest = made(config(out, corpus, val_fraction=0.3))
    manifest.verify(out)
    names = {file.stem for file in out.glob("*-*.bin")}
    assert names == {entry.name for entry in manifest.shards}
    assert (out / "notes.txt").read_text() == (out / "model.bin").read_text() == "mine"


def test_stages_one_by_one_give_what_all_of_them_give(tmp_path: Path, dataset: Path, corpus: Path):
    out = tmp_path / "out"
    with pytest.raises(DataError, match="run stage=tokenizer first"):
        prepare(config(out, corpus, stage=Stage.encode))
    assert prepare(config(out, corpus, stage=Stage.tokenizer)) is None
    assert sorted(file.name for file in out.iterdir()) == [".lock", "tokenizer.json", "tokenizer.model"]
    with pytest.raises(DataError, match=r"stage=encode is not finished: \d+ of \d+ tasks are missing"):
        prepare(config(out, corpus, stage=Stage.publish))
    assert prepare(config(out, corpus, stage=Stage.encode)) is None
    assert made(config(out, corpus, stage=Stage.publish)) == Manifest.load(dataset)
    assert contents(out) == contents(dataset)
    prepare(config(out, corpus, stage=Stage.verify))


def test_a_tokenizer_is_trained_again_only_when_its_settings_change(tmp_path: Path, corpus: Path):
    out = tmp_path / "out"

    def trained(**options: object) -> bytes:
        prepare(config(out, corpus, stage=Stage.tokenizer, **options))
        return (out / "tokenizer.model").read_bytes()

    first = trained()
    sized = trained(tokenizer=TokenizerConfig(vocab_size=VOCABULARY, sample_bytes=40_000))
    seeded = trained(tokenizer=TokenizerConfig(vocab_size=VOCABULARY, sample_bytes=40_000, seed=1))
    assert len({first, sized, seeded, trained(val_fraction=0.5)}) == 4
    assert trained() == first
    with pytest.raises(DataError, match="run stage=tokenizer first"):
        prepare(config(out, corpus, stage=Stage.encode, val_fraction=0.5))


def test_killed_anywhere_the_same_command_ends_with_the_same_bytes(tmp_path: Path):
    """kill -9 at several moments, the last time while shards are being written."""
    texts = write_corpus(tmp_path / "texts", n_documents=300)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    made(config(whole, texts))
    rng = random.Random(0)
    for least in (0, 1, 4, 12):
        process = subprocess.Popen(words(killed, texts), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(killed.glob("*.json"))) < least:
            time.sleep(0.001)
        time.sleep(0.02 * rng.random())
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (killed / "manifest.json").exists()
    n_done = len(list(killed.glob("train-*.json")))
    assert 1 <= n_done < len(Manifest.load(whole).shards_of("train"))
    done = subprocess.run(words(killed, texts), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "are done already and used again" in done.stderr
    assert contents(killed) == contents(whole)


def test_a_half_written_shard_is_done_again(tmp_path: Path, dataset: Path, corpus: Path):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    (copy / "manifest.json").unlink()
    names = sorted(file.stem for file in copy.glob("train-*.bin"))
    (copy / f"{names[0]}.json").unlink()
    with (copy / f"{names[1]}.bin").open("r+b") as stream:
        stream.truncate(101)
    made(config(copy, corpus))
    assert contents(copy) == contents(dataset)


# --- bad input -------------------------------------------------------------------------------------------------------


def write_jsonl(file: Path, texts: list[str]) -> None:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.mark.parametrize("files", [{}, {"a.txt": ""}, {"a.txt": "", "b.txt": ""}, {"a.txt": "\n\n"}])
def test_an_empty_corpus_says_so(tmp_path: Path, files: dict[str, str], dataset: Path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for name, text in files.items():
        (texts / name).write_text(text)
    with pytest.raises(DataError, match=r"the corpus is empty|holds no file"):
        prepare(config(tmp_path / "out", texts))
    if "\n" not in "".join(files.values()):
        given = TokenizerConfig(model=str(dataset / "tokenizer.model"))
        with pytest.raises(DataError, match=r"the corpus is empty|holds no file"):
            prepare(config(tmp_path / "out2", texts, tokenizer=given))


def test_a_file_that_is_not_utf8_stops_the_job_or_is_counted(tmp_path: Path, corpus: Path):
    texts = shutil.copytree(corpus, tmp_path / "texts")
    (texts / "latin.txt").write_bytes(b"caf\xe9")
    (texts / "empty.txt").touch()
    with pytest.raises(DataError, match=r"not_utf8.*latin\.txt: byte 3 of the text"):
        prepare(config(tmp_path / "out", texts))
    manifest = made(config(tmp_path / "out", texts, on_bad_document=OnBad.skip))
    assert manifest.removed == {"empty": 1, "not_utf8": 1}
    assert manifest.documents_in == 62 == manifest.documents("train") + manifest.documents("val") + 2
    counts = {line["name"]: line for line in lines_of(tmp_path / "out")}
    assert counts["texts/latin.txt"]["removed"] == {"not_utf8": 1}


def test_shards_made_while_skipping_are_not_taken_for_shards_without_faults(tmp_path: Path, corpus: Path):
    texts = shutil.copytree(corpus, tmp_path / "texts")
    (texts / "latin.txt").write_bytes(b"caf\xe9")
    out = tmp_path / "out"
    given = TokenizerConfig(model=str(made(config(tmp_path / "other", corpus)) and tmp_path / "other/tokenizer.model"))
    made(config(out, texts, on_bad_document=OnBad.skip, tokenizer=given))
    (out / "manifest.json").unlink()
    with pytest.raises(DataError, match="not_utf8"):
        prepare(config(out, texts, tokenizer=given))


def test_a_vocabulary_larger_than_the_text_supports_is_refused_with_the_largest(tmp_path: Path, corpus: Path):
    with pytest.raises(DataError, match=r"tokenizer\.vocab_size=60000 is larger than the text supports.*at most \d+"):
        prepare(config(tmp_path / "out", corpus, tokenizer=TokenizerConfig(vocab_size=60_000)))


def test_a_tokenizer_that_loses_something_is_refused_before_the_long_job(tmp_path: Path, corpus: Path):
    import sentencepiece

    files = sorted(str(file) for file in corpus.iterdir())
    sentencepiece.SentencePieceTrainer.train(
        input=files, model_prefix=str(tmp_path / "lossy"), vocab_size=200, minloglevel=2
    )
    given = TokenizerConfig(model=str(tmp_path / "lossy.model"))
    with pytest.raises(DataError, match=r"alters text|not lossless"):
        prepare(config(tmp_path / "out", corpus, tokenizer=given))
    assert not list((tmp_path / "out").glob("*.bin"))


def test_a_given_tokenizer_is_copied_and_used(tmp_path: Path, dataset: Path, corpus: Path):
    manifest = made(config(tmp_path / "out", corpus, tokenizer=TokenizerConfig(model=str(dataset / "tokenizer.model"))))
    assert manifest.tokenizer_sha256 == Manifest.load(dataset).tokenizer_sha256
    assert [entry.bin_sha256 for entry in manifest.shards] == [e.bin_sha256 for e in Manifest.load(dataset).shards]


def test_a_corpus_too_small_to_hold_anything_out_says_what_to_change(tmp_path: Path):
    texts = tmp_path / "texts"
    texts.mkdir()
    rng = random.Random(0)
    texts_in = [text for text in (document(rng) for _ in range(9)) if not is_held_out(text.encode(), 0.01)]
    for i, text in enumerate(texts_in):
        (texts / f"{i}.txt").write_text(text)
    settings = config(tmp_path / "out", texts, val_fraction=0.01, tokenizer=TokenizerConfig(vocab_size=300))
    with pytest.raises(DataError, match=r"none of the \d documents fell into the held-out part.*val_fraction=0"):
        prepare(settings)
    made(dataclasses.replace(settings, val_fraction=0.0))


def test_larger_tasks_make_fewer_shards_of_the_same_documents(tmp_path: Path, dataset: Path, corpus: Path):
    manifest = made(config(tmp_path / "out", corpus, task_bytes=10**9))
    assert len(manifest.shards) == 2 < len(Manifest.load(dataset).shards)
    assert documents(tmp_path / "out", "train") == documents(dataset, "train")
    assert read_sidecar(tmp_path / "out" / manifest.shards[0].name).documents == manifest.documents("train")


# --- a disk that does not want ---------------------------------------------------------------------------------------


def run(command: list[str], **options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)  # pyright: ignore[reportCallIssue, reportArgumentType]


def in_own_mounts(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """A shell script whose mounts vanish with it. Skips where the machine does not allow mounts."""
    if shutil.which("unshare") is None or run(["unshare", "--mount", "mount", "-t", "tmpfs", "x", "/mnt"]).returncode:
        pytest.skip("needs the right to mount a file system (root with CAP_SYS_ADMIN, and `unshare`)")
    return run(["unshare", "--mount", "sh", "-c", script, "sh", *arguments])


def refused(done: "subprocess.CompletedProcess[str]", message: str) -> None:
    assert done.returncode == 3, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_output_folder_below_a_file_is_refused(tmp_path: Path, corpus: Path):
    (tmp_path / "file").write_text("x")
    done = run(words(tmp_path / "file" / "out", corpus))
    refused(done, "cannot write")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; the read-only file system stands in for it")
def test_a_folder_without_write_permission_is_refused(tmp_path: Path, corpus: Path):
    (tmp_path / "out").mkdir(mode=0o555)
    refused(run(words(tmp_path / "out", corpus)), "no permission to write")


def test_a_read_only_file_system_is_refused_before_anything_is_trained(tmp_path: Path, corpus: Path):
    out = tmp_path / "out"
    out.mkdir()
    script = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'
    done = in_own_mounts(script, str(out), *words(out, corpus))
    refused(done, "no permission to write")
    assert "training" not in done.stderr
    assert list(out.iterdir()) == []


def test_a_full_disk_leaves_nothing_half_written_and_the_rest_is_used_again(tmp_path: Path, corpus: Path):
    out, kept = tmp_path / "out", tmp_path / "kept"
    out.mkdir()
    kept.mkdir()
    script = 'o="$1"; k="$2"; shift 2; mount -t tmpfs -o size=100k x "$o" && "$@"; c=$?; cp -a "$o/." "$k"; exit $c'
    done = in_own_mounts(script, str(out), str(kept), *words(out, corpus))
    refused(done, "no room to write")
    left = sorted(file.name for file in kept.iterdir())
    assert "tokenizer.model" in left
    assert not [name for name in left if ".tmp" in name]
    for name in left:
        if name.endswith(".bin"):
            ShardReader(kept / name.removesuffix(".bin"))
    done = run(words(kept, corpus))
    assert done.returncode == 0, done.stderr
    assert "are done already and used again" in done.stderr


def test_a_file_size_limit_leaves_nothing_half_written(tmp_path: Path, corpus: Path):
    out = tmp_path / "out"
    assert run(words(out, corpus, "stage=tokenizer")).returncode == 0
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))  # noqa: E731
    done = run(words(out, corpus, "task_bytes=10_000_000", "tokenizer.model=null"), preexec_fn=limit)
    refused(done, "no room to write")
    assert sorted(file.name for file in out.iterdir()) == [".lock", "tokenizer.json", "tokenizer.model", "work"]
    assert [file.name for file in (out / "work").iterdir()] == []  # the plan is too large, too


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_verify_says_that_all_is_right(tmp_path: Path, corpus: Path):
    out = tmp_path / "out"
    done = run(words(out, corpus))
    assert done.returncode == 0, done.stderr
    for word in ("documents", "train", "val", "vocabulary", "gzip", "bytes per token", str(out)):
        assert word in done.stdout
    done = run([sys.executable, "-m", "data_prep", f"out={out}", "stage=verify"])
    assert done.returncode == 0, done.stderr
    assert "every checksum is right" in done.stderr
    file = next(out.glob("train-*.bin"))
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    refused(run([sys.executable, "-m", "data_prep", f"out={out}", "stage=verify"]), file.name)


def test_a_dataset_inside_its_own_corpus_is_refused(tmp_path: Path):
    """It would be part of the corpus at the next run."""
    write_corpus(tmp_path / "texts")
    with pytest.raises(DataError, match="lies inside the corpus"):
        prepare(config(tmp_path / "texts" / "dataset", tmp_path / "texts"))
    assert not (tmp_path / "texts" / "dataset").exists()
