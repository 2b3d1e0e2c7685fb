"""Saves that are hurt while they are made: a kill at every instant, a disk without room, a folder not to be written."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import run_ranks
from tests.faults.jobs import Job
from tests.faults.kills import die_before, killed_saves
from tests.runs import curve

# --- F2: kill -9


@pytest.mark.parametrize("victim", ["0", "1"])
def test_a_kill_before_any_operation_of_a_save_leaves_a_good_newest_checkpoint(tmp_path: Path, victim: str):
    """F2: two ranks save step 3 over steps 1 and 2; one of them dies before its first, second, … last operation."""
    rows = left_by_kills(tmp_path, victim, 1)
    done = " ".join(row["before"] for row in rows)
    mine = ["master-00001.safetensors", "rank-00001.json"] if victim == "1" else ["manifest.json", "index.jsonl"]
    assert all(word in done for word in mine)
    assert ("os.rename .step-00000003.a0001.tmp step-00000003" in done) == (victim != "1")
    assert ("os.rename step-00000001 .step-00000001.a0001.old" in done) == (victim != "1")


def test_a_kill_of_both_ranks_at_once_does_too(tmp_path: Path):
    """F2: before every third operation of rank 0."""
    assert len(left_by_kills(tmp_path, "both", 3)) > 10


def left_by_kills(folder: Path, victim: str, every: int) -> list[dict[str, Any]]:
    (rows,) = run_ranks(killed_saves, 1, str(folder), victim, every)
    for row in rows:
        assert (row["good"], row["passed"]) == (True, []), row
        assert row["names"] == [f"step-0000000{step}" for step in (row["found"], 4)], row
    in_place = [number for number, row in enumerate(rows) if "step-00000003" in row["left"]]
    assert {row["found"] for row in rows[: in_place[0] if in_place else None]} == {2}
    assert {row["found"] for row in rows[len(rows) - len(in_place) :]} == ({3} if in_place else set())
    return rows


EVERY_5 = ("checkpoint.every_steps=5", "run.stop_at_step=40")
POINTS = [
    # (rank that dies, at which operation, on paths that hold these words, step of the checkpoint then gone on from)
    (0, "open", (".step-00000005.", "master-00000"), 0),
    (1, "open", (".step-00000010.", "rank-00001.json"), 5),
    (0, "open", (".step-00000015.", "manifest.json"), 10),
    (0, "os.rename", (".step-00000020.", "/step-00000020"), 15),
    (0, "os.rename", ("/step-00000015 ", ".old"), 25),
    (0, "shutil.rmtree", (".step-00000020.", ".old"), 30),
]


def test_a_run_killed_in_save_after_save_ends_as_if_nothing_had_been(here: Path, undisturbed_on_two: Path):
    """F2: one run, killed in each phase of a save: first file, last file, before the manifest, before the rename,
    before and while an old checkpoint is removed; once both ranks at the same time."""
    run = here / "runs" / "killed"
    for victim, event, words, step in POINTS:
        job = Job(here, *EVERY_5, "run.name=killed", fault=partial(die_before, victim=victim, event=event, words=words))
        job.processes[victim].join(60)
        if step == 15:
            job.kill(1 - victim)
        codes = job.end()
        assert codes[victim] == -9, (words, job.printed())
        assert codes[1 - victim] != 0, words
        names = sorted(path.name for path in (run / "checkpoints").iterdir() if path.name.startswith("step-"))
        assert (names or ["step-00000000"])[-1] == f"step-{step:08d}", words
    job = Job(here, *EVERY_5, "run.name=killed")
    assert job.end() == [0, 0], job.printed()
    assert "resumed at step 30" in job.printed()
    assert curve(run) == [row for row in curve(undisturbed_on_two) if row[0] <= 40]
    assert hashes(run, 40) == hashes(undisturbed_on_two, 40)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000035", "step-00000040"]


def hashes(run: Path, step: int) -> Any:
    return json.loads((run / "checkpoints" / f"step-{step:08d}" / "manifest.json").read_text())["tensor_hashes"]


# --- F15, F16: an attempt that lost the run


def fenced_save(folder: str, allowed: int) -> Any:
    """(error, names) of a save of step 3; rank 0 may insist so many times before a later attempt owns the run."""
    from tests.train.checkpoint.test_saver import mine, peers
    from train.checkpoint.saver import Saver
    from train.config import CheckpointConfig
    from train.errors import FencedError

    together, left = peers(), [0] * allowed

    def insist() -> None:
        if together.is_first and not left:
            raise FencedError("attempt 2 owns the run")
        if together.is_first:
            left.pop()

    for step in (1, 2, 3):
        own = Saver(Path(folder), CheckpointConfig(), together, 1, insist if step == 3 else lambda: None)
        own.save(step, mine("zero 1, dp 2", together, seed=step), {})
        try:
            outcome = own.wait()
        except FencedError as error:
            together.from_first(0)
            return str(error), sorted(path.name for path in Path(folder).iterdir())
        assert outcome is not None
        assert outcome.problem is None
    return None, sorted(path.name for path in Path(folder).iterdir())


@pytest.mark.parametrize(
    ("allowed", "steps"),
    [(0, [1, 2]), (1, [1, 2]), (2, [1, 2, 3]), (3, [2, 3])],
    ids=["before it writes", "before the rename", "before a removal", "never"],
)
def test_an_attempt_that_lost_the_run_neither_puts_nor_removes_a_checkpoint(
    tmp_path: Path, allowed: int, steps: list[int]
):
    """F15: all ranks end with FencedError, which is no failed save."""
    first, second = run_ranks(fenced_save, 2, str(tmp_path), allowed)
    assert first[0] == second[0] == (None if allowed == 3 else "rank 0: attempt 2 owns the run")
    assert first[1] == [f"step-0000000{step}" for step in steps]


def test_what_goes_wrong_because_a_later_attempt_cleared_up_is_told_as_that(tmp_path: Path):
    """F15: the later attempt has removed the files of a save that still ran."""
    from tests.train.checkpoint.test_saver import mine
    from train.checkpoint.folders import hidden_name, remove_leftovers
    from train.checkpoint.peers import ALONE
    from train.checkpoint.saver import Saver
    from train.config import CheckpointConfig
    from train.errors import FencedError

    asked: list[int] = []

    def insist() -> None:
        asked.append(len(asked))
        if len(asked) == 1:
            remove_leftovers(tmp_path, attempt=2)  # by the later attempt, right after this look
            (tmp_path / hidden_name(1, 1)).write_text("in the way")
        else:
            raise FencedError("attempt 2 owns the run")

    old = Saver(tmp_path, CheckpointConfig(), ALONE, 1, insist)
    old.save(1, mine("one process", ALONE), {})
    with pytest.raises(FencedError, match="attempt 2 owns the run"):
        old.wait()


def test_an_old_attempt_leaves_the_files_of_a_later_one_alone(tmp_path: Path):
    """F15: it removes what was left by itself and by those before it, of this version or an earlier one."""
    from train.checkpoint.folders import doomed_name, hidden_name, remove_leftovers

    later = [hidden_name(7, 3), doomed_name(5, 4), ".write-test-00000.a0003.tmp"]
    own = [hidden_name(6, 2), hidden_name(6, 1), doomed_name(5, 1), ".step-00000004.tmp", ".step-00000003.old"]
    for name in [*later, *own, "step-00000002", ".keep"]:
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path, attempt=2)
    assert {path.name for path in tmp_path.iterdir()} == {*later, "step-00000002", ".keep"}


# --- a save that failed is tried again


def test_failed_saves_are_tried_again_after_one_two_four_steps(tmp_path: Path):
    """F4: and a good one ends that. Each outcome says when, and how long the save took."""
    from tests.train.checkpoint.test_saver import mine
    from train.checkpoint.peers import ALONE
    from train.checkpoint.saver import Saver
    from train.config import CheckpointConfig

    folder = tmp_path / "checkpoints"
    folder.write_text("no folder")
    saver, begun = Saver(folder, CheckpointConfig(), ALONE), []
    for step in range(1, 40):
        if step == 10 or saver.retry_is_due(step):
            if step > 20:
                folder.unlink(missing_ok=True)
            saver.save(step, mine("one process", ALONE), {})
            outcome = saver.wait()
            assert outcome is not None
            assert 0 < outcome.paused_seconds <= outcome.seconds + 1
            begun.append((step, outcome.retry_step, outcome.problem is None))
    assert begun == [(10, 11, False), (11, 13, False), (13, 17, False), (17, 25, False), (25, None, True)]


# --- F4, F25: no room, no permission


def at_saves(rank: int, before: Any) -> None:
    """A fault: calls `before(rank, step)` as a save begins."""
    from train.checkpoint.saver import Saver

    save = Saver.save

    def hurt(self: Any, step: int, *rest: Any) -> None:
        before(rank, step)
        save(self, step, *rest)

    pytest.MonkeyPatch().setattr(Saver, "save", hurt)


def small_files(rank: int, step: int) -> None:
    """From step 20 to 24, rank 1 can write no file above 10 kB."""
    import resource

    if rank == 1:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000 if 20 <= step < 25 else hard, hard))


def full_disk(rank: int, step: int) -> None:
    """From step 20 to 24 the checkpoints' disk is full."""
    ballast = Path("runs/hurt/checkpoints/ballast")
    if rank == 0 and 20 <= step < 25:
        with ballast.open("ab", buffering=0) as stream:
            try:
                while True:
                    stream.write(bytes(4096))
            except OSError:
                pass
    if rank == 0 and step >= 25:
        ballast.unlink(missing_ok=True)


def read_only_disk(rank: int, step: int) -> None:
    """From step 20 to 24 the checkpoints' disk can only be read."""
    if rank == 0 and step >= 20:
        mode = "ro" if step < 25 else "rw"
        subprocess.run(["mount", "-o", f"remount,{mode}", "runs/hurt/checkpoints"], check=True)


@contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own, in memory, for the checkpoints of a run called hurt."""
    place = folder / "runs" / "hurt" / "checkpoints"
    place.mkdir(parents=True)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"to mount a file system takes root: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def goes_on_without_saving(here: Path, fault: Any, words: str) -> None:
    """The save of step 20 fails, with these words; the one before stays, a later one succeeds, the run ends well."""
    job = Job(here, "run.name=hurt", "run.stop_at_step=40", fault=partial(at_saves, before=fault))
    assert job.end() == [0, 0], job.printed()
    told = [(row["event"], row["step"]) for row in events(here / "runs" / "hurt") if "save" in row["event"]]
    assert told[:2] == [("saved", 10), ("save_failed", 20)]
    again = next(step for event, step in told if event == "saved" and step > 20)
    assert 25 <= again <= 30
    assert [step for event, step in told if event == "save_failed" and step > again] == []
    assert "the newest checkpoint stays that of step 10" in job.printed()
    assert words in job.printed()


def test_a_rank_that_has_no_room_for_a_file_delays_the_checkpoint_and_nothing_else(here: Path):
    """F4: by a limit on the size of files, on one rank of two."""
    goes_on_without_saving(here, small_files, "no room to write")


def test_a_full_disk_delays_the_checkpoint_and_nothing_else(here: Path):
    """F4: a disk of 4 MiB fills up in mid-run, and is freed again."""
    with disk(here, "size=4m"):
        goes_on_without_saving(here, full_disk, "no room to write")


def test_a_disk_that_becomes_read_only_delays_the_checkpoint_and_nothing_else(here: Path):
    """F25: in mid-run as F4."""
    with disk(here, "size=16m"):
        goes_on_without_saving(here, read_only_disk, "Read-only file system")


def refused_at_start(here: Path) -> str:
    job = Job(here, "run.name=hurt", "run.stop_at_step=10")
    assert job.end() == [4, 4], job.printed()
    assert not (here / "runs" / "hurt" / "metrics.jsonl").exists()
    assert "No step was made" in job.printed()
    return job.printed()


def test_a_folder_that_cannot_be_written_is_told_before_the_first_step(here: Path):
    """F25: a read-only file system; no test of permissions, which do not bind root."""
    with disk(here, "ro"):
        assert "no permission to write" in refused_at_start(here)


def test_a_disk_too_small_for_one_checkpoint_is_told_before_the_first_step(here: Path):
    """F4: all ranks end with code 4, and the message has both sizes."""
    with disk(here, "size=400k"):
        assert "not one could be saved" in refused_at_start(here)
