"""Checkpoints that were hurt after they were made: found before step 1, named, kept for a look, never made worse."""

import json
import os
import pickle
import random
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.faults.jobs import Job
from tests.runs import curve, outcome, rows
from train.errors import CheckpointError

EVERY_5 = ("checkpoint.every_steps=5", "checkpoint.keep_last=3", "run.stop_at_step=20")


@pytest.fixture(scope="module")
def undisturbed(workplace: Path) -> Path:
    """20 steps on two ranks; checkpoints of steps 10, 15 and 20."""
    job = Job(workplace, *EVERY_5, "run.name=damage")
    assert job.end() == [0, 0], job.printed()
    return workplace / "runs" / "damage"


@pytest.fixture
def checkpoints(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of the three checkpoints of two ranks."""
    return Path(shutil.copytree(undisturbed / "checkpoints", tmp_path / "checkpoints"))


@pytest.fixture
def hurt(here: Path, undisturbed: Path) -> Path:
    """A copy of the run under its own name, to be hurt and gone on with."""
    (here / "runs").mkdir()
    return Path(shutil.copytree(undisturbed, here / "runs" / "damage"))


def name_of(step: int) -> str:
    return f"step-{step:08d}"


# --- F7: at the level of files


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncate": lambda path: os.truncate(path, path.stat().st_size // 2),
    "flip": lambda path: flip(path, path.stat().st_size * 4),
    "delete": Path.unlink,
    "zero-fill": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "append": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_any_file_is_found_and_named_and_the_older_checkpoint_taken(checkpoints: Path, damage: str):
    """F7: every file of a checkpoint of two ranks."""
    from train.checkpoint.verify import newest_valid

    files = sorted((checkpoints / name_of(20)).iterdir())
    assert len(files) == 9
    for path in files:
        content = path.read_bytes()
        DAMAGE[damage](path)
        found, (passed,) = newest_valid(checkpoints)
        assert found is not None
        assert (found.step, passed.step, passed.is_damaged) == (15, 20, True)
        assert str(path) in passed.problem
        path.write_bytes(content)
    assert newest_valid(checkpoints)[1] == []


def test_two_hundred_random_flips_and_truncations_are_all_found(checkpoints: Path):
    """F7: 100 flipped bits and 100 cut files, seeded; a file is as likely as any other, whatever its size."""
    from train.checkpoint.verify import newest_valid

    draw = random.Random(7)
    files = sorted((checkpoints / name_of(20)).iterdir())
    for number in range(200):
        path = draw.choice(files)
        content = path.read_bytes()
        if number % 2:
            flip(path, draw.randrange(8 * len(content)))
        else:
            path.write_bytes(content[: draw.randrange(len(content))])
        found, passed = newest_valid(checkpoints)
        assert [(one.step, str(path) in one.problem) for one in passed] == [(20, True)], (number, path)
        assert found is not None
        path.write_bytes(content)


def test_files_of_two_saves_are_never_mixed(checkpoints: Path):
    """F2, F7: any file exchanged with that of the save before, of equal size or not; a whole folder by a wrong name."""
    from train.checkpoint.verify import newest_valid

    older, newer = checkpoints / name_of(15), checkpoints / name_of(20)
    same_size = 0
    for name in sorted(path.name for path in newer.iterdir()):
        a, b = (older / name).read_bytes(), (newer / name).read_bytes()
        if a == b:  # the index: both saves cut the tensors alike
            continue
        same_size += len(a) == len(b)
        (older / name).write_bytes(b)
        (newer / name).write_bytes(a)
        found, passed = newest_valid(checkpoints)
        assert found is not None
        assert (found.step, [one.step for one in passed]) == (10, [20, 15]), name
        (older / name).write_bytes(a)
        (newer / name).write_bytes(b)
    assert same_size >= 6
    older.rename(checkpoints / name_of(30))
    found, (passed,) = newest_valid(checkpoints)
    assert found is not None
    assert found.step == 20
    assert "holds the checkpoint of step 15" in str(passed)


def test_the_newest_is_the_one_of_the_largest_step_whatever_the_clock_said(checkpoints: Path):
    """F24: modification times in the wrong order, from the future and from before 1970's second day."""
    from train.checkpoint.verify import newest_valid

    for step, when in ((20, 1), (15, 2**31), (10, 2**32)):
        for path in [*(checkpoints / name_of(step)).iterdir(), checkpoints / name_of(step)]:
            os.utime(path, (when, when))
    found, _ = newest_valid(checkpoints)
    assert found is not None
    assert found.step == 20


def test_a_rollback_takes_the_newest_of_at_most_a_step_and_none_that_is_refused(checkpoints: Path):
    """F12: what health needs to go back."""
    from train.checkpoint.verify import newest_valid

    assert [newest_valid(checkpoints, at_most=step)[0] for step in (9, 0)] == [None, None]
    for at_most, step in ((10, 10), (14, 10), (19, 15), (99, 20)):
        found, passed = newest_valid(checkpoints, at_most=at_most)
        assert found is not None
        assert (found.step, passed) == (step, [])
    found, passed = newest_valid(checkpoints, refused=lambda state: "of before" if state["step"] > 10 else None)
    assert found is not None
    assert (found.step, [(one.step, one.is_damaged) for one in passed]) == (10, [(20, False), (15, False)])
    assert str(passed[0]).endswith(f"{name_of(20)} is not used: of before")
    with pytest.raises(CheckpointError, match=r"not started from step 0 unasked(.|\n)*no way"):
        newest_valid(checkpoints, refused=lambda _: "no way")


# --- F7: whole runs


def nested_manifest(newest: Path) -> None:
    (newest / "manifest.json").write_text("[" * 200_000)


def piped_manifest(newest: Path) -> None:
    (newest / "manifest.json").unlink()
    os.mkfifo(newest / "manifest.json")


@pytest.mark.parametrize("damage", [nested_manifest, piped_manifest])
def test_a_run_goes_on_from_the_older_checkpoint_to_the_same_end(hurt: Path, undisturbed: Path, damage: Any):
    """F7, F23: damage found before the first step; the run's second half is that of a run that never saw it."""
    damage(hurt / "checkpoints" / name_of(20))
    job = Job(hurt.parents[1], *EVERY_5, "run.name=damage")
    assert job.end() == [0, 0], job.printed()
    assert "resumed at step 15" in job.printed()
    assert curve(hurt) == curve(undisturbed)
    assert hashes(hurt) == hashes(undisturbed)


def hashes(run: Path) -> Any:
    return json.loads((run / "checkpoints" / name_of(20) / "manifest.json").read_text())["tensor_hashes"]


def test_damaged_checkpoints_stay_for_a_look(hurt: Path, undisturbed: Path):
    """F7: the newest checkpoint is damaged, saved again, and damaged again."""
    for name in ("exp_avg-00001.safetensors", "state.json"):
        flip(hurt / "checkpoints" / name_of(20) / name, 4321)
        job = Job(hurt.parents[1], *EVERY_5, "run.name=damage")
        assert job.end() == [0, 0], job.printed()
    names = sorted(path.name for path in (hurt / "checkpoints").iterdir())
    assert names == [f"damaged-000{number}-{name_of(20)}" for number in (1, 2)] + [name_of(s) for s in (10, 15, 20)]
    told = [json.loads(line) for line in (hurt / "events.jsonl").read_text().splitlines()]
    assert [row["step"] for row in told if row["event"] == "checkpoint_damaged"] == [20, 20]
    assert [row["what"][-27:] for row in told if "what" in row] == [f" damaged-000{n}-{name_of(20)}" for n in (1, 2)]
    assert curve(hurt) == curve(undisturbed)
    assert hashes(hurt) == hashes(undisturbed)


def test_of_the_damaged_checkpoints_the_last_two_are_kept(tmp_path: Path):
    """F7: in the order in which they were set aside, whatever their steps; what is removed is told."""
    from train.checkpoint.folders import set_aside, steps_found

    for number, step in enumerate((30, 20, 20, 10), start=1):
        (tmp_path / name_of(step)).mkdir()
        moved, *removed = set_aside(tmp_path, [step])
        assert moved.endswith(f"is now damaged-000{number}-{name_of(step)}")
        assert ["was removed" in words for words in removed] == [True] * (number > 2)
        assert steps_found(tmp_path) == []
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"damaged-0003-{name_of(20)}", f"damaged-0004-{name_of(10)}"]


def test_a_run_whose_checkpoints_are_all_damaged_makes_no_step_and_changes_nothing(hurt: Path):
    """F7: exit code 4, each one named, and never a start from step 0."""
    for number, step in enumerate((10, 15, 20)):
        flip(hurt / "checkpoints" / name_of(step) / "master-00000.safetensors", 999 * number)
    before = content_of(hurt / "checkpoints"), rows(hurt)
    job = Job(hurt.parents[1], *EVERY_5, "run.name=damage")
    assert job.end() == [4, 4], job.printed()
    assert "not started from step 0 unasked" in job.printed()
    assert all(name_of(step) in job.printed() for step in (10, 15, 20))
    assert (content_of(hurt / "checkpoints"), rows(hurt)) == before


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def cut_after_it_was_verified(rank: int) -> None:
    """A fault: rank 1 finds its file shorter when it loads than when it was verified."""
    from train.checkpoint.reader import Checkpoint

    read = Checkpoint.read

    def cut_and_read(self: Checkpoint, *words: Any) -> Any:
        if rank == 1:
            os.truncate(self.path / "exp_avg-00001.safetensors", 100)
        return read(self, *words)

    pytest.MonkeyPatch().setattr(Checkpoint, "read", cut_and_read)


def give_on_two(folder: str) -> Any:
    """The message of either rank, of which only the second cannot read its part."""
    from tests.train.checkpoint.test_saver import peers
    from train.checkpoint.verify import newest_valid

    together = peers()
    found, _ = newest_valid(Path(folder), together)
    assert found is not None
    cut_after_it_was_verified(together.rank)

    def load(read: Any) -> None:
        from train.checkpoint.cuts import whole

        if together.rank == 1:
            for kind, name in found._index:
                read(kind, whole(name, found._index[kind, name].shape))
        together.from_first(0)  # an engine's load is a collective too

    try:
        found.give(load, together)
    except CheckpointError as error:
        return str(error)
    return "given"


def test_what_one_rank_cannot_read_ends_all_with_one_message(checkpoints: Path):
    """F7: a file that is cut between the look at it and its use."""
    from tests.distributed.ranks import run_ranks

    first, second = run_ranks(give_on_two, 2, str(checkpoints))
    assert first == second
    assert first.startswith("rank 1: ")
    assert "exp_avg-00001.safetensors ends before byte" in first


def backwards(rank: int) -> None:
    """A fault: the clock goes backwards, an hour with every look at it."""
    began, looks = time.time(), iter(range(10**9))
    time.time = lambda: began - 3600 * next(looks)


def test_a_clock_that_goes_backwards_changes_nothing(hurt: Path, undisturbed: Path):
    """F24: times of files in the wrong order, and a clock that runs backwards while the run goes on."""
    for step, when in ((20, 1), (15, 2**31), (10, 2**32)):
        os.utime(hurt / "checkpoints" / name_of(step), (when, when))
    more = (*EVERY_5, "run.stop_at_step=25", "run.name=damage")
    job = Job(hurt.parents[1], *more, fault=backwards)
    assert job.end() == [0, 0], job.printed()
    assert "resumed at step 20" in job.printed()
    assert [row["step"] for row in rows(hurt) if "loss" in row] == list(range(1, 26))
    assert curve(hurt)[: len(curve(undisturbed))] == curve(undisturbed)


# --- F22: pickles


class Poison:
    """Whoever unpickles it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def poison(marker: Path) -> bytes:
    return pickle.dumps(Poison(marker))


def test_poison_in_place_of_any_file_is_found_and_never_opened_up(checkpoints: Path, tmp_path: Path):
    """F22: as every file of a checkpoint in turn."""
    from train.checkpoint.verify import newest_valid

    marker = tmp_path / "poisoned"
    for path in sorted((checkpoints / name_of(20)).iterdir()):
        content = path.read_bytes()
        path.write_bytes(poison(marker))
        found, (passed,) = newest_valid(checkpoints)
        assert found is not None
        assert found.step == 15
        assert str(path) in passed.problem
        path.write_bytes(content)
    assert not marker.exists()


def count_pickles(rank: int, counts: str) -> None:
    """A fault: a line for every name that an unpickler looks up from here on."""

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            with Path(f"{counts}-{rank}").open("a") as stream:
                stream.write(f"{args}\n")

    sys.addaudithook(audit)
    pickle.loads(pickle.dumps(os.getcwd))  # the hook does see what it is for


def test_a_run_that_goes_on_unpickles_nothing_at_all(hurt: Path, tmp_path: Path):
    """F22: with poison under every name that any loader looks for; not one name is looked up by an unpickler."""
    marker, counts = tmp_path / "poisoned", tmp_path / "pickles"
    strange = ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt", "latest", "data.pkl",
               "pytorch_model.bin", "master-00002.safetensors", "rng_state.pth", "__init__.py"]  # fmt: skip
    for folder in (hurt / "checkpoints" / name_of(20), hurt / "checkpoints", hurt):
        for name in strange:
            (folder / name).write_bytes(poison(marker))
    more = (*EVERY_5, "run.stop_at_step=25", "run.name=damage")
    job = Job(hurt.parents[1], *more, fault=partial(count_pickles, counts=str(counts)))
    assert job.end() == [0, 0], job.printed()
    assert "resumed at step 20" in job.printed()
    assert not marker.exists()
    seen = [path.read_text().splitlines() for path in sorted(tmp_path.glob("pickles-*"))]
    assert [len(lines) for lines in seen] == [1, 1], seen


def test_checkpoints_that_are_lost_together_with_the_events_are_missed_all_the_same(hurt: Path):
    """F7: two losses at once; attempts/ tells that there were some, and the run does not begin anew unasked."""
    shutil.rmtree(hurt / "checkpoints")
    (hurt / "events.jsonl").unlink()
    (hurt / ".leftover.tmp-1").mkdir()  # cleared away, whatever it is
    job = Job(hurt.parents[1], *EVERY_5, "run.name=damage")
    assert job.end() == [4, 4], job.printed()
    assert "not started from step 0 unasked" in job.printed()
    assert not (hurt / ".leftover.tmp-1").exists()


def test_a_torn_configuration_can_be_removed_and_the_checkpoint_still_refuses_another(here: Path):
    """F10, F18: of the run's folder; the same command goes on, and writes it anew."""
    words = ("run.name=torn", "run.stop_at_step=12")
    assert outcome(here, *words)[0] == 0
    config = here / "runs" / "torn" / "config.yaml"
    whole = config.read_bytes()
    config.write_bytes(whole[: len(whole) // 2])
    code, message = outcome(here, *words)
    assert (code, "is damaged" in message, "can be removed" in message) == (2, True, True), message
    config.unlink()
    code, message = outcome(here, *words, "optimizer.peak_lr=0.001")
    assert (code, "was made under another configuration" in message) == (4, True), message
    code, message = outcome(here, *words)
    assert (code, config.read_bytes()) == (0, whole), message
