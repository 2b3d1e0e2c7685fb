"""One curve: whatever happens to the logs, training goes on, and in the end every step is there exactly once."""

import json
import os
import resource
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.faults.jobs import Fault, Job
from tests.runs import STEPS, curve, outcome, rows, step_row
from train.event_files import n_records
from train.metrics_file import MetricsFile, read_rows

RUN = Path("runs/hurt")
LOG, COPY, EVENTS = "metrics.jsonl", "metrics.copy.jsonl", "events.out.tfevents.*"


@pytest.fixture(scope="module")
def undisturbed(workplace: Path) -> Path:
    code, message = outcome(workplace, "run.name=undisturbed-curve")
    assert code == 0, message
    return workplace / "runs" / "undisturbed-curve"


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 20)


def garble(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b'\x00\xff\xfe{"step": 7, "lo\n')


def remove(path: Path) -> None:
    path.unlink()


def at_steps(actions: dict[int, Callable[[], None]], rank: int) -> None:
    """A fault: does something right after the rows of these steps were written."""
    from train.metrics import Metrics

    step = Metrics.step

    def hurt(self: Metrics, number: int, *facts: Any) -> None:
        step(self, number, *facts)
        actions.get(number, lambda: None)()

    Metrics.step = hurt  # type: ignore[method-assign]


def to_files(pattern: str, action: Callable[[Path], None]) -> None:
    for path in list(RUN.glob(pattern)):
        action(path)


def limit_files(n_bytes: int | None) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if n_bytes is None else n_bytes, hard))


def run(here: Path, fault: Fault | None = None) -> tuple[int, str]:
    job = Job(here, "run.name=hurt", ranks=1, fault=fault)
    (code,) = job.end()
    return code, job.printed()


def assert_one_curve(here: Path, undisturbed: Path) -> None:
    """In metrics.jsonl, and in TensorBoard against step, tokens and FLOPs."""
    assert curve(here / RUN) == curve(undisturbed)
    ours, theirs = scalars(here / RUN / "tensorboard"), scalars(undisturbed / "tensorboard")
    assert ours == theirs
    assert {"loss/train", "loss/val", "loss_by_tokens/train", "loss_by_gigaflops/train"} <= ours.keys()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Points of each curve that is the same at any speed, by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), {"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(("loss", "optimizer"))]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


# --- whole runs


def test_a_log_that_is_cut_garbled_and_removed_in_mid_run_is_whole_at_the_end(here: Path, undisturbed: Path):
    """F30, F4: metrics.jsonl three times, and the event file."""
    actions = {
        5: partial(to_files, LOG, cut),
        11: partial(to_files, LOG, garble),
        16: partial(to_files, LOG, remove),
        23: partial(to_files, f"tensorboard/{EVENTS}", cut),
        24: partial(to_files, f"tensorboard/{EVENTS}", garble),
        25: partial(to_files, f"tensorboard/{EVENTS}", remove),
    }
    code, printed = run(here, partial(at_steps, actions))
    assert code == 0, printed
    assert_one_curve(here, undisturbed)


def test_a_disk_without_room_for_any_log_stops_nothing_and_is_caught_up_with(here: Path, undisturbed: Path):
    """F4, F30: from step 12 to 33 no file can grow, console and checkpoints included."""
    code, printed = run(here, partial(at_steps, {12: partial(limit_files, 0), 33: partial(limit_files, None)}))
    assert code == 0, printed
    assert curve(here / RUN) == curve(undisturbed)
    saves = {event["step"]: event["event"] for event in events(here / RUN) if event["event"].startswith("save")}
    assert {10, 20, 30, 40, 50} <= saves.keys()  # those that failed were noted as soon as there was room
    assert (saves[20], saves[40], saves[50]) == ("save_failed", "saved", "saved")


def test_after_a_kill_the_curve_is_made_from_the_checkpoints_copy_if_the_log_is_lost(here: Path, undisturbed: Path):
    """F30, F1: killed at step 27; then metrics.jsonl and TensorBoard are removed, or only their ends."""
    code, _ = run(here, partial(at_steps, {27: kill}))
    assert code == -9
    for path in (here / RUN).rglob(EVENTS):
        path.unlink()
    remove(here / RUN / LOG)
    code, printed = run(here, partial(at_steps, {39: kill}))
    assert code == -9, printed
    assert "resumed at step 20" in printed
    assert "lacks" not in printed
    cut(here / RUN / LOG)
    for path in (here / RUN).rglob(EVENTS):
        garble(path)
    code, printed = run(here)
    assert (code, "resumed at step 30" in printed) == (0, True)
    assert_one_curve(here, undisturbed)


@pytest.mark.parametrize("report", ["samples", "close"])
def test_a_run_that_was_killed_among_its_last_reports_makes_them(here: Path, undisturbed: Path, report: str):
    """F1, F9, F30: "finished" is said last, so that no later start takes for done what a kill took away."""
    assert run(here, partial(dies_in, report))[0] == -9
    code, printed = run(here)
    assert code == 0, printed
    assert_one_curve(here, undisturbed)
    assert (here / RUN / "samples.txt").read_bytes() == (undisturbed / "samples.txt").read_bytes()
    assert json.loads((here / RUN / "summary.json").read_text())["status"] == "finished"


def dies_in(report: str, rank: int) -> None:
    """A fault: in a report that a run makes when it has reached its last step."""
    from train.reports import Reports

    setattr(Reports, report, lambda *_: kill())


def test_what_is_truly_lost_is_said_and_the_run_goes_on(here: Path, undisturbed: Path):
    """F30: the log and its copy."""
    assert run(here, partial(at_steps, {27: kill}))[0] == -9
    for name in (LOG, COPY):
        lines = (here / RUN / name).read_text().splitlines(keepends=True)
        (here / RUN / name).write_text("".join(line for line in lines if json.loads(line)["step"] not in (3, 4)))
    code, printed = run(here)
    assert code == 0, printed
    assert "lacks 2 of the first 20 steps" in printed
    assert curve(here / RUN) == [row for row in curve(undisturbed) if row[0] not in (3, 4)]


def kill() -> None:
    os.kill(os.getpid(), 9)


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines() if line]


# --- the file itself


EVALUATION = {"step": 1, "tokens_seen": 8, "val_loss": 3.0, "bits_per_byte": 1.0}


def row(step: int) -> dict[str, Any]:
    return step_row(step, loss=1 / step)


@pytest.fixture
def log(tmp_path: Path) -> MetricsFile:
    file = MetricsFile(tmp_path / LOG)
    file.rewind(0)
    for step in range(1, 11):
        file.append(row(step))
    return file


def steps(path: Path) -> list[int]:
    return [found["step"] for found in read_rows(path)]


@pytest.mark.parametrize("hurt", [cut, garble, remove])
def test_the_next_line_mends_what_was_done_to_the_file(log: MetricsFile, tmp_path: Path, hurt: Callable[[Path], None]):
    """F30"""
    hurt(tmp_path / LOG)
    log.append(row(11))
    assert (tmp_path / LOG).read_text().splitlines() == [json.dumps(row(step)) for step in range(1, 12)]


@pytest.mark.parametrize("lost", [LOG, COPY])
def test_either_file_alone_holds_the_rows_of_a_checkpoint(log: MetricsFile, tmp_path: Path, lost: str):
    """F30"""
    log.sync()
    (tmp_path / lost).unlink()
    again = MetricsFile(tmp_path / LOG)
    assert again.rewind(8) == [row(9), row(10)]
    assert again.rows == [row(step) for step in range(1, 9)]
    assert steps(tmp_path / LOG) == steps(tmp_path / COPY) == list(range(1, 9))


def test_a_rollback_needs_no_disk(log: MetricsFile, tmp_path: Path):
    """F12, F30: rows that could not be written are in memory, and those of a step done again replace what the disk
    holds."""
    limit_files(100)
    try:
        log.append(row(11))
        assert log.rewind(5) == [row(step) for step in range(6, 12)]
        log.append(row(6) | {"loss": 7.0})
    finally:
        limit_files(None)
    log.sync()
    assert read_rows(tmp_path / LOG) == read_rows(tmp_path / COPY) == [*map(row, range(1, 6)), row(6) | {"loss": 7.0}]


def test_double_lines_and_lines_in_disorder_are_put_right(tmp_path: Path):
    """F30: of two lines of one step the later counts; an evaluation follows its step."""
    told: Sequence[dict[str, Any]] = [row(2), EVALUATION, row(1), row(2) | {"loss": 7.0}]
    (tmp_path / LOG).write_text("".join(json.dumps(line) + "\n" for line in told))
    file = MetricsFile(tmp_path / LOG)
    file.rewind(2)
    assert file.rows == [row(1), EVALUATION, row(2) | {"loss": 7.0}]


def without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}


@pytest.mark.parametrize(
    "strange",
    [
        *(without(row(5), key) | {key[:-1] + "q": row(5)[key]} for key in row(5)),
        *(row(5) | {key: "x"} for key in ("step", "tokens_seen", "seconds", "loss", "source_tokens")),
        *(row(5) | {key: "x"} for key in ("work_seconds_max", "flops_causal", "memory_gib", "grad_norms")),
        row(5) | {"source_loss": {"web": "x"}},
        row(5) | {"step": True},
        {"step": 5, "tokens_seen": 40, "note": "by hand"},
        {"step": 5, "tokens_seen": 40, "val_loss": "x", "bits_per_byte": 1.0},
        [5],
    ],
    ids=lambda line: "-".join(map(str, line))[:40],
)
def test_json_that_is_no_row_takes_no_rows_place(
    log: MetricsFile, tmp_path: Path, strange: Any, capsys: pytest.CaptureFixture[str]
):
    """F30: appended by hand, or a flipped bit in a key; it is said once."""
    log.sync()
    with (tmp_path / LOG).open("a") as stream:
        stream.write(json.dumps(strange) + "\n")
    again = MetricsFile(tmp_path / LOG)
    again.rewind(10)
    again.rewind(10)
    assert again.rows == [row(step) for step in range(1, 11)]
    assert capsys.readouterr().out.count("1 lines of ") == 1


def test_a_full_disk_is_told_once_and_its_end_too(log: MetricsFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """F4: not once a step; and while it is full the file is not written again with every step."""
    limit_files(100)
    try:
        for step in range(11, 31):
            log.append(row(step))
        log.sync()
    finally:
        limit_files(None)
    told = capsys.readouterr().err
    assert told.count("warning") == 2  # one for each file
    assert told.count("training goes on") == 2
    log.append(row(31))
    assert len(steps(tmp_path / LOG)) < 31  # not tried yet
    log.sync()
    assert steps(tmp_path / LOG) == steps(tmp_path / COPY) == list(range(1, 32))
    assert capsys.readouterr().err.count("is written again, nothing is missing") == 2


def test_a_record_that_is_cut_is_no_whole_event_file(undisturbed: Path, tmp_path: Path):
    """F30"""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

    (file,) = (undisturbed / "tensorboard").glob(EVENTS)
    assert n_records(file) == len(list(RawEventFileLoader(str(file)).Load())) > 100
    content = file.read_bytes()
    for damaged in (content[:-1], content[:-30], content + b"x", content[:100] + b"\x07" + content[100:]):
        (tmp_path / "events").write_bytes(damaged)
        assert n_records(tmp_path / "events") == -1


def test_the_undisturbed_run_has_every_step_once(undisturbed: Path):
    """F30: what the others are compared with."""
    assert [line["step"] for line in rows(undisturbed) if "loss" in line] == list(range(1, STEPS + 1))


def told_in_the_evaluation(rank: int) -> None:
    """SIGTERM, in every evaluation."""
    import signal

    import train.validation as validation

    evaluate = validation.evaluate

    def told(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    validation.evaluate = told


def test_an_evaluation_that_is_made_again_at_every_start_is_in_the_log_once(here: Path):
    """F30: a stop left it unmade, so the checkpoint knows of none, and each start from there makes it."""
    words = ("run.name=hurt", "run.stop_at_step=20", "evaluation={every_steps: 10, max_sequences: 5}")
    job = Job(here, *words, ranks=1, fault=told_in_the_evaluation)
    assert job.end() == [143], job.printed()
    assert not [row for row in rows(here / RUN) if "val_loss" in row]
    for _ in range(2):
        job = Job(here, "run.name=hurt", "run.stop_at_step=10", words[2], ranks=1)
        assert job.end() == [0], job.printed()
        assert [row["step"] for row in rows(here / RUN) if "val_loss" in row] == [10]
