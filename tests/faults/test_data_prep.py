"""F3, F4: data preparation that is killed, and that finds the disk full."""

import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from conf.compose import compose
from data_prep.__main__ import APP
from data_prep.manifest import Manifest
from tests.corpus import write_corpus

ROOT = Path(__file__).parents[2]
KILLS = 20
LOT_BYTES = 400
_context = multiprocessing.get_context("forkserver")

Fault = Callable[[], None]


def words(out: Path, texts: Path, model: Path, *more: str) -> list[str]:
    """Forty tasks for two workers."""
    options = [f"out={out}", "source=text", f"source.paths=[{texts}]", f"tokenizer.model={model}", "val_fraction=0.2"]
    return [*options, "task_bytes=4_000", "workers=2", *more]


@dataclass(frozen=True)
class Ended:
    code: int
    printed: str
    seconds_outlived: float
    """until no process of the command was left"""
    temporaries: int
    """files half written that lay there then"""


def prepared(asked: list[str], out: Path, *faults: Fault | None) -> list[Ended]:
    """`python -m data_prep` with these words, once for each fault; each in a process of its own, forked from one that
    has imported what it needs."""
    ours, theirs = _context.Pipe()
    process = _context.Process(target=_in_turn, args=(theirs, asked, str(out), faults))
    process.start()
    theirs.close()
    if not ours.poll(300):
        process.kill()
        pytest.fail("hung")
    return ours.recv()


def _in_turn(pipe: Any, asked: list[str], out: str, faults: Sequence[Fault | None]) -> None:
    import pyarrow  # noqa: F401
    import sentencepiece  # noqa: F401

    import data_prep.pipeline  # noqa: F401

    fork = multiprocessing.get_context("fork")
    log = Path(f"{out}.log")
    ended: list[Ended] = []
    for fault in faults:
        process = fork.Process(target=_prepare, args=(asked, str(log), fault))
        process.start()
        process.join()
        outlived = seconds_until_gone(process.pid or 0)
        ended.append(Ended(process.exitcode or 0, log.read_text(), outlived, len(list(Path(out).rglob("*.tmp-*")))))
    pipe.send(ended)


def _prepare(asked: list[str], log: str, fault: Fault | None) -> None:
    from data_prep.__main__ import run

    os.setsid()  # by which its workers are found
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    _fork_workers()
    code = 0
    try:
        if fault is not None:
            fault()
        run(compose(APP, asked))
    except Exception as error:
        code = getattr(error, "exit_code", 1)
        print(f"error: {error}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(code)


def _fork_workers() -> None:
    """Workers start in milliseconds, and know the faults of their parent."""
    get = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: get("fork")  # pyright: ignore[reportAttributeAccessIssue]


def kill_at(lot: int, whom: str) -> None:
    """The worker that comes to its `lot`-th lot of documents, in the middle of a shard, kills itself, or its parent; in
    the latter case it then works on for a minute without a word."""
    from data_prep import encode

    encode.BATCH_BYTES = LOT_BYTES
    write, count = encode._write, 0  # pyright: ignore[reportPrivateUsage]

    def counted(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == lot:
            os.kill(os.getpid() if whom == "worker" else os.getppid(), signal.SIGKILL)
            time.sleep(60)
        return write(*arguments)

    encode._write = counted  # pyright: ignore[reportPrivateUsage]


def alive_in_session(session: int) -> list[int]:
    """Processes of this session that still run; a zombie has ended."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = stat.read_text().rpartition(") ")
        except OSError:
            continue
        state, _, _, its_session = rest.split()[:4]
        if int(its_session) == session and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def seconds_until_gone(session: int) -> float:
    """At most ten."""
    began = time.monotonic()
    while alive_in_session(session) and time.monotonic() < began + 10:
        time.sleep(0.01)
    return time.monotonic() - began


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("texts") / "texts", n_documents=160)


@pytest.fixture(scope="module")
def model(workplace: Path) -> Path:
    return workplace / "data" / "tiny" / "tokenizer.model"


@pytest.fixture(scope="module")
def whole(texts: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run makes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    (ended,) = prepared(words(out, texts, model), out, None)
    assert ended.code == 0, ended.printed
    return contents(out)


def test_twenty_kills_in_a_row_leave_the_bytes_of_a_run_that_saw_none(
    tmp_path: Path, texts: Path, model: Path, whole: dict[str, bytes]
):
    """F3: kill -9 of a worker in the middle of a shard, and of the parent of workers that then say nothing."""
    out, draw = tmp_path / "out", random.Random(3)
    faults = [partial(kill_at, draw.randint(2, 4), "parent" if i % 2 else "worker") for i in range(KILLS)]
    *killed, last = prepared(words(out, texts, model), out, *faults, None)
    for i, ended in enumerate(killed):
        assert ended.code == (-signal.SIGKILL if i % 2 else 3), ended.printed
        assert i % 2 or "a worker process was killed by SIGKILL at task" in ended.printed
        assert ended.seconds_outlived < 5
    assert any(ended.temporaries for ended in killed[1::2])  # there was something half written
    assert not any(ended.temporaries for ended in killed[::2])  # a command that lives on to tell leaves nothing
    assert last.code == 0, last.printed
    assert "are done already and used again" in last.printed
    assert contents(out) == whole


def test_the_workers_of_a_killed_command_end(tmp_path: Path, model: Path):
    """F3: as typed, with workers that were not forked, and enough to do for them until they are killed."""
    texts = write_corpus(tmp_path / "texts", n_documents=1600)
    command = [sys.executable, "-m", "data_prep", *words(tmp_path / "out", texts, model)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while process.poll() is None and not list((tmp_path / "out").glob("train-*.json")):
        time.sleep(0.005)
    assert len(alive_in_session(process.pid)) >= 3
    process.kill()
    process.wait()
    assert seconds_until_gone(process.pid) < 10


def test_a_full_disk_is_named_with_its_bytes_and_room_lets_it_go_on(
    tmp_path: Path, texts: Path, model: Path, whole: dict[str, bytes]
):
    """F4: on a tmpfs of 200 kB where mounts are allowed, else with a limit for the size of files."""
    out, left = tmp_path / "out", tmp_path / "out"
    out.mkdir()
    if may_mount():
        left = tmp_path / "kept"
        done = on_a_small_disk(out, left, words(out, texts, model))
        code, printed = done.returncode, done.stderr
    else:
        (ended,) = prepared(words(out, texts, model), out, partial(limit_files, 3_000))
        code, printed = ended.code, ended.printed
    assert code == 3, printed
    assert "Traceback" not in printed
    assert f"no room to write {out}" in printed
    assert re.search(r"no room to write .* after [\d,]+ bytes \([\d.]+ MiB free", printed)
    found = contents(left)
    assert not [name for name in found if ".tmp" in name]
    assert "manifest.json" not in found
    assert [name for name in found if found[name] != whole[name]] == []
    (ended,) = prepared(words(left, texts, model), left, None)
    assert ended.code == 0, ended.printed
    assert contents(left) == whole
    assert Manifest.load(left).verify(left) > 0


def may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "x", "/mnt"], capture_output=True).returncode == 0
    )


def on_a_small_disk(out: Path, kept: Path, asked: list[str]) -> "subprocess.CompletedProcess[str]":
    """The command with `out` on a tmpfs of its own, whose content is copied to `kept` before it vanishes."""
    kept.mkdir()
    script = 'o="$1"; k="$2"; shift 2; mount -t tmpfs -o size=200k x "$o" && "$@"; c=$?; cp -a "$o/." "$k"; exit $c'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(out), str(kept)]
    command += [sys.executable, "-m", "data_prep", *asked]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def limit_files(n_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
