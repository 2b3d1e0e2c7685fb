"""What happened to a run, told from whatever it has left."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runs import step_row
from train.failure import Failure, write
from train.history import Story, device_seconds_before, first_start, read_history
from train.layout import read_layouts

BEGAN = 1_800_000_000.0


def stamp(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(BEGAN + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def write_events(run: Path, *events: tuple[float, dict[str, Any]]) -> None:
    run.mkdir(exist_ok=True)
    text = "".join(json.dumps({"time": stamp(at), **event}) + "\n" for at, event in events)
    (run / "events.jsonl").write_text(text)


def write_rows(run: Path, last: int) -> None:
    rows = [step_row(step, seconds=2.0) for step in range(1, last + 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_attempt(run: Path, number: int, started: float, **files: Any) -> Path:
    folder = run / "attempts" / f"{number:04d}"
    folder.mkdir(parents=True)
    holder = {"attempt": number, "host": f"n{number}", "pid": 17, "started": BEGAN + started, "world_size": 2}
    (folder / "holder.json").write_text(json.dumps(holder | files.get("holder", {})))
    if "ended" in files:
        (folder / "ended.json").write_text(json.dumps(files["ended"]))
    if "alive" in files:
        (folder / "alive").write_text(f"123 {BEGAN + files['alive']}\n")
    return folder


def started(attempt: int, step: int, repeated: int = 0) -> dict[str, Any]:
    return {"attempt": attempt, "event": "started", "step": step, "world_size": 2, "repeated_steps": repeated}


def facts(story: Story) -> tuple[Any, ...]:
    return story.number, story.from_step, story.to_step, story.repeated_steps, story.ending, story.is_failure


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Four attempts: one that died, one that did not get as far as a step, one that was stopped, one that finished."""
    write_events(
        tmp_path,
        (1, started(1, 0)),
        (5, {"attempt": 1, "event": "first_step", "step": 1}),
        (40, {"attempt": 1, "event": "saved", "step": 10}),
        (100, started(3, 10, repeated=5)),
        (103, {"attempt": 3, "event": "first_step", "step": 11}),
        (110, {"attempt": 3, "event": "flagged", "step": 12, "reason": "loss spike"}),
        (120, {"attempt": 3, "event": "saved", "step": 20}),
        (121, {"attempt": 3, "event": "stopped", "step": 20, "reason": "SIGUSR1"}),
        (200, started(4, 20)),
        (203, {"attempt": 4, "event": "first_step", "step": 21}),
        (240, {"attempt": 4, "event": "finished", "step": 30}),
    )
    write_rows(tmp_path, 30)
    slurm = {"slurm_job": "c/55", "slurm_restarts": 1}
    write_attempt(tmp_path, 1, 0, holder={"from_step": 0}, alive=52)
    write_attempt(tmp_path, 2, 60, alive=66)
    ended = {"how": "stopped", "step": 20, "ended": BEGAN + 122}
    write_attempt(tmp_path, 3, 90, holder={"from_step": 10, **slurm}, alive=122, ended=ended)
    write_attempt(
        tmp_path, 4, 190, holder={"from_step": 20}, ended={"how": "finished", "step": 30, "ended": BEGAN + 241}
    )
    return tmp_path


def test_each_attempt_is_told_from_its_beginning_to_its_end(run: Path):
    history = read_history(run)
    assert [facts(story) for story in history.attempts] == [
        (1, 0, 15, 0, "died without a word", True),
        (2, None, None, None, "died without a word", True),
        (3, 10, 20, 5, "stopped by SIGUSR1", False),
        (4, 20, 30, 0, "finished", False),
    ]
    assert [story.job for story in history.attempts] == ["pid 17", "pid 17", "Slurm c/55, start 2", "pid 17"]
    assert [story.host for story in history.attempts] == ["n1", "n2", "n3", "n4"]
    assert history.waits() == [None, None, 103 - 66, 203 - 122]


def test_time_is_parted_into_steps_and_gaps(run: Path):
    history = read_history(run)
    assert (history.first_start, history.until) == (BEGAN, BEGAN + 241)
    assert history.seconds_between_attempts == (60 - 52) + (90 - 66) + (190 - 122)
    assert (history.step_seconds, history.n_steps, history.n_saved, history.n_failures) == (60.0, 30, 2, 2)


def test_what_was_noted_on_the_way_is_kept_in_order(run: Path):
    assert [(note["event"], note["attempt"]) for note in read_history(run).notes] == [("flagged", 3)]


def test_the_failure_of_a_rank_is_the_end_of_its_attempt(run: Path):
    failure = Failure(1, "n7", 14, "train", "RuntimeError", "boom\nand more", is_echo=False, time=BEGAN)
    write(run / "attempts" / "0001", failure)
    ending = read_history(run).attempts[0].ending
    assert ending == "failed: rank 1 on n7 after step 14 (train): RuntimeError: boom"


def test_a_run_without_attempts_is_told_from_its_events(tmp_path: Path):
    def plain(event: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in event.items() if key != "attempt"}

    write_events(
        tmp_path,
        (1, plain(started(0, 0))),
        (40, {"event": "saved", "step": 10}),
        (100, plain(started(0, 10, repeated=5))),
        (121, {"event": "failed", "step": 17, "error": "NumericsError: loss nan"}),
        (150, plain(started(0, 10, repeated=7))),
    )
    write_rows(tmp_path, 19)
    history = read_history(tmp_path)
    assert [facts(story) for story in history.attempts] == [
        (1, 0, 15, 0, "died without a word", True),
        (2, 10, 17, 5, "failed: NumericsError: loss nan", True),
        (3, 10, 19, 7, "no end noted: it runs, or died without a word", False),
    ]
    assert history.first_start == first_start(tmp_path) == BEGAN + 1


def test_clocks_that_were_set_back_make_no_time_negative(tmp_path: Path):
    write_events(
        tmp_path, (1000, started(1, 0)), (1050, {"attempt": 1, "event": "saved", "step": 9}), (5, started(2, 9))
    )
    write_rows(tmp_path, 9)
    history = read_history(tmp_path)
    assert (history.seconds_between_attempts, history.waits()) == (0.0, [None, None])
    assert all(story.seconds >= 0 for story in history.attempts)


def test_torn_and_strange_files_hide_nothing_else(run: Path):
    with (run / "events.jsonl").open("ab") as stream:
        stream.write(b'\xff\n[1]\n{"event": "started"}\n{"time": "yesterday", "event": "x"}\n{"time": "2026')
    (run / "attempts" / "0002" / "holder.json").write_text("[")
    (run / "attempts" / "notes").mkdir()
    assert [story.number for story in read_history(run).attempts] == [1, 2, 3, 4]
    assert read_history(run).attempts[3].ending == "finished"


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("holder.json", {"started": "x"}),
        ("holder.json", {"started": 1e300}),
        ("holder.json", {"world_size": "two"}),
        ("holder.json", {"from_step": "x"}),
        ("holder.json", {"layout": [1]}),
        ("ended.json", {"how": "finished", "step": "x", "ended": 5}),
        ("ended.json", {"how": ["finished"], "step": 3, "ended": "yesterday"}),
        ("rank-00000.failure.json", {"rank": 0, "host": "n", "step": 1, "phase": "p", "kind": "k", "message": 5}),
    ],
)
def test_a_fact_of_another_type_is_no_word(run: Path, name: str, facts: dict[str, Any]):
    path = run / "attempts" / "0002" / name
    before = json.loads(path.read_text()) if path.exists() else {"is_echo": False, "time": 5}
    expected = [story.number for story in read_history(run).attempts if story.number != 2]
    path.write_text(json.dumps(before | facts))
    stories = read_history(run).attempts
    assert [story.number for story in stories if story.number != 2] == expected
    assert stories[1].ending == "died without a word"
    assert device_seconds_before(run, 5) > 0
    assert read_layouts(run / "attempts")(30) == {"ranks": 2}


@pytest.mark.parametrize("name", ["attempt", "step", "repeated_steps", "world_size"])
def test_an_event_with_a_count_that_is_none_is_left_out(run: Path, name: str):
    before = read_history(run)
    with (run / "events.jsonl").open("a") as stream:
        stream.write(json.dumps({"time": stamp(300), **started(5, 30), name: "x"}) + "\n")
    assert read_history(run) == before


def test_a_folder_without_anything_has_no_history(tmp_path: Path):
    history = read_history(tmp_path)
    assert (history.attempts, history.notes, history.first_start, history.until) == ([], [], None, 0.0)
    assert first_start(tmp_path) is None


def test_the_first_start_is_that_of_the_first_attempt(run: Path):
    assert first_start(run) == BEGAN


def test_devices_are_paid_for_as_long_as_attempts_lived(run: Path):
    """The two that died too, with all that no checkpoint has noted."""
    assert device_seconds_before(run, 1) == 0
    assert device_seconds_before(run, 3) == 2 * 52 + 2 * 6
    assert device_seconds_before(run, 4) == 2 * 52 + 2 * 6 + 2 * 32
