"""Run folders as `launch status`, `logs`, `watch` and `report` see them: real runs that finished, stopped, diverged,
were killed, or go on at this moment; files that are damaged, foreign, hostile, or grow while they are read.
"""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conf.errors import ConfigError
from launch.again import train_words
from launch.event_words import words as event_words
from launch.look_config import LogsConfig, ReportConfig, StatusConfig
from launch.rows import CURVE, RECENT, GrowingRows
from launch.run_view import RunView, State
from launch.runs import RunReader, Runs
from launch.status import overview, status
from tests.faults.jobs import Job
from tests.runs import cpu_seconds_of_commands, finish, start, step_row
from train.attempt import started_at
from train.history import read_stories
from train.parallel import identity
from train.run_folder import config_of


def views(folder: Path) -> dict[str, RunView]:
    return {view.name: view for view in Runs(folder).refresh()}


# --- what a run's state is -------------------------------------------------------------------------------------------


def test_each_run_is_in_the_state_that_it_was_left_in_and_those_that_need_a_person_come_first(made: Path):
    found = Runs(made / "runs").refresh()
    states = {view.name: view.state for view in found}
    assert states == {"done": State.finished, "stopped": State.stopped, "hot": State.diverged, "killed": State.failed}
    assert {view.name for view in found[:2]} == {"hot", "killed"}
    assert [view.needs_a_person for view in found] == [True, True, False, False]
    of = {view.name: view for view in found}
    assert "rank 1" in (of["killed"].concern or ""), "the rank that died is the cause, not the one that noticed"
    assert "step" in (of["hot"].concern or "")


def test_figures_are_those_of_the_last_rows(made: Path):
    view = views(made / "runs")["done"]
    rows = [json.loads(line) for line in (made / "runs/done/metrics.jsonl").read_text().splitlines()]
    steps, evaluations = ([row for row in rows if key in row] for key in ("loss", "val_loss"))
    assert (view.step, view.total_steps, view.done) == (30, 30, 1.0)
    assert (view.loss, view.tokens) == (steps[-1]["loss"], steps[-1]["tokens_seen"])
    assert view.val_loss == evaluations[-1]["val_loss"]
    assert view.recent_losses == [row["loss"] for row in steps]


def test_a_killed_run_has_cost_what_all_its_ranks_have_lived(made: Path):
    """summary.json, of the last checkpoint, knows less."""
    view, run = views(made / "runs")["killed"], made / "runs/killed"
    story = read_stories(run)[0]
    assert view.device_hours is not None
    assert view.cost_usd == pytest.approx(3600 * view.device_hours)
    assert view.device_hours * 3600 >= 2 * story.seconds - 1e-3, "two ranks"
    assert view.device_hours * 3600 < 2 * (story.seconds + 30)


def test_a_run_that_goes_on_is_running_and_nobody_elses_kill_leaves_it_so(made: Path):
    job = Job(made, "run.name=live", "total_tokens=256_000_000", ranks=1)
    try:
        job.wait_for_step(made / "runs/live", 3)
        runs = Runs(made / "runs")
        view = next(view for view in runs.refresh() if view.name == "live")
        assert view.state in (State.running, State.saving)
        assert view.eta_seconds is not None
        assert view.eta_seconds > 0
        before = view.step
        job.wait_for_step(made / "runs/live", (before or 0) + 2)
        view = next(view for view in runs.refresh() if view.name == "live")
        assert (view.step or 0) > (before or 0)
    finally:
        job.kill(0)
        job.end()
    view = next(view for view in runs.refresh() if view.name == "live")
    assert view.state in (State.lost, State.failed)
    assert view.eta_seconds is None
    shutil.rmtree(made / "runs/live")


def unheard(run: Path, seconds: float) -> None:
    """As if the run's holder were on another machine, and its last sign of life so old."""
    attempt = run / "attempts" / "0001"
    (attempt / "ended.json").unlink(missing_ok=True)
    for failure in attempt.glob("rank-*"):
        failure.unlink()
    events = (run / "events.jsonl").read_text().splitlines(keepends=True)
    (run / "events.jsonl").write_text("".join(line for line in events if '"event": "failed"' not in line))
    holder = json.loads((attempt / "holder.json").read_text())
    (attempt / "holder.json").write_text(json.dumps(holder | {"boot_id": "another", "host": "n7"}))
    (attempt / "alive").write_text("5 1700000000\n")
    for path in (attempt / "alive", attempt / "holder.json"):
        os.utime(path, (time.time() - seconds, time.time() - seconds))


def test_a_holder_elsewhere_lives_while_its_sign_of_life_is_renewed_and_is_lost_when_it_is_not(runs: Path):
    unheard(runs / "killed", 5)
    assert views(runs)["killed"].state == State.running
    unheard(runs / "killed", 3600)
    view = views(runs)["killed"]
    assert view.state == State.lost
    assert view.needs_a_person
    unheard(runs / "killed", 5)
    (runs / "killed/events.jsonl").write_text("")
    assert views(runs)["killed"].state == State.starting, "no event tells of a step of this attempt"


def test_a_sign_of_life_that_changes_is_believed_whatever_its_clock_says(runs: Path):
    unheard(runs / "killed", 3600)
    looker = Runs(runs)
    assert {view.name: view for view in looker.refresh()}["killed"].state == State.lost
    attempt = runs / "killed/attempts/0001"
    (attempt / "alive").write_text("6 1700000002\n")
    os.utime(attempt / "alive", (time.time() - 3599, time.time() - 3599))
    assert {view.name: view for view in looker.refresh()}["killed"].state == State.running


def test_a_process_of_this_machine_is_looked_for_itself(runs: Path):
    unheard(runs / "killed", 0)
    attempt = runs / "killed/attempts/0001"
    me = vars(identity())
    holder = json.loads((attempt / "holder.json").read_text())
    (attempt / "holder.json").write_text(json.dumps(holder | me | {"pid_started": started_at(os.getpid())}))
    assert views(runs)["killed"].state == State.running
    (attempt / "holder.json").write_text(json.dumps(holder | me | {"pid_started": 1}))
    assert views(runs)["killed"].state == State.lost


def test_an_exit_6_says_that_another_start_would_not_help(runs: Path):
    (runs / "killed/slurm").mkdir()
    (runs / "killed/slurm/17.3.exit").write_text("6\n")
    assert "exit code 6" in (views(runs)["killed"].concern or "")


# --- damaged, foreign, hostile ---------------------------------------------------------------------------------------


HURT = {
    "no summary": lambda run: (run / "summary.json").unlink(),
    "half a summary": lambda run: (run / "summary.json").write_text('{"status": "fini'),
    "a list as plan": lambda run: (run / "plan.json").write_text("[1, 2]"),
    "types of a stranger in the plan": lambda run: (run / "plan.json").write_text(
        '{"total_steps": "many", "price": 3, "memory": 1, "seconds": null}'
    ),
    "rows of a stranger": lambda run: (run / "metrics.jsonl").write_text(
        'x\n{"step": "a"}\n[]\n{"step": 3, "tokens_seen": 1, "loss": "low", "mfu": [1], "seconds": {}}\nnull\n'
    ),
    "bytes": lambda run: (run / "metrics.jsonl").write_bytes(os.urandom(5000)),
    "a folder as metrics": lambda run: ((run / "metrics.jsonl").unlink(), (run / "metrics.jsonl").mkdir()),
    "no attempts": lambda run: shutil.rmtree(run / "attempts"),
    "an attempt without files": lambda run: (run / "attempts/0009").mkdir(),
    "attempts is a file": lambda run: (shutil.rmtree(run / "attempts"), (run / "attempts").write_text("")),
    "no events": lambda run: (run / "events.jsonl").unlink(),
    "events of a stranger": lambda run: (run / "events.jsonl").write_text(
        '{"time": "2026-11-21T10:00:00Z", "event": {"a": [1]}, "attempt": 1}\n{"time": 3}\n'
    ),
    "no configuration": lambda run: (run / "config.yaml").unlink(),
    "a strange configuration": lambda run: (run / "config.yaml").write_text("a: [\n"),
    "deep nesting": lambda run: (run / "summary.json").write_text("[" * 100_000),
    "checkpoints is a file": lambda run: (shutil.rmtree(run / "checkpoints"), (run / "checkpoints").write_text("")),
    "a failure of a stranger": lambda run: (run / "attempts/0001/rank-00000.failure.json").write_text('{"rank": "x"}'),
}


@pytest.mark.parametrize("what", HURT)
def test_damaged_files_end_no_display(runs: Path, what: str, capsys: pytest.CaptureFixture[str]):
    """Neither the table nor what tells of the run alone; the other runs are not touched by it."""
    HURT[what](runs / "done")
    found = views(runs)
    assert found["stopped"].state == State.stopped
    assert "done" in found
    for config in (StatusConfig(folder=str(runs)), StatusConfig(folder=str(runs), run="done")):
        assert status(config) == 0
        config.json = True
        assert status(config) == 0
    from launch.logs import logs
    from launch.report import report

    assert logs(LogsConfig(folder=str(runs), run="done")) == 0
    assert report(ReportConfig(folder=str(runs), run="done")) == 0
    assert (runs / "done/report.html").read_text().endswith("</main></body></html>\n")
    assert "Traceback" not in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_shown_as_such_and_files_are_not(runs: Path):
    (runs / "notes").mkdir()
    (runs / "notes/todo.txt").write_text("x")
    (runs / "a file").write_text("x")
    found = views(runs)
    assert found["notes"].state == State.foreign
    assert not found["notes"].needs_a_person
    assert "a file" not in found


def test_names_and_events_of_a_stranger_move_no_cursor(runs: Path, capsys: pytest.CaptureFixture[str]):
    evil = "\x1b[2J\x1b]0;owned\x07‮"
    (runs / "stopped").rename(runs / f"x{evil}\n")
    with (runs / f"x{evil}\n" / "events.jsonl").open("a") as stream:
        stream.write(json.dumps({"time": "2026-11-21T10:00:00Z", "attempt": 1, "event": "a" + evil, "b": evil}) + "\n")
    assert status(StatusConfig(folder=str(runs))) == 0
    printed = capsys.readouterr().out
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", printed)
    assert "\n" not in event_words({"event": "a\nb", "c": "d\r\n"})


def test_a_run_that_does_not_exist_is_answered_with_the_nearest_and_all_names(made: Path):
    code, printed = finish(start(made, "status", "run=dome", module="launch"))
    assert code == 3
    assert "did you mean run=done?" in printed
    assert "done, hot, killed, stopped" in printed
    code, printed = finish(start(made, "status", "folder=nowhere", module="launch"))
    assert code == 3
    assert "nowhere cannot be read" in printed
    code, printed = finish(start(made, "status", "fodler=runs", module="launch"))
    assert code == 2
    assert "did you mean `folder`" in printed


# --- a growing file --------------------------------------------------------------------------------------------------


def line(step: int, **facts: Any) -> str:
    return json.dumps(step_row(step, **facts)) + "\n"


def many_lines(n: int) -> Iterator[str]:
    """The same as `line` for steps 1 to n, but quicker made."""
    before, after = line(77_777).split("77777", 1)
    between, end = after.split(str(8 * 77_777), 1)
    return (f"{before}{step}{between}{8 * step}{end}" for step in range(1, n + 1))


def test_a_growing_file_is_read_from_where_the_last_look_ended(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    rows = GrowingRows(path)
    assert not rows.refresh(), "no file yet"
    path.write_text(line(1) + line(2)[:30])
    assert rows.refresh()
    assert rows.last["step"] == 1, "half a line waits"
    with path.open("a") as stream:
        stream.write(line(2)[30:] + line(3, loss=7.5))
    rows.refresh()
    assert [row["step"] for row in rows.recent] == [1, 2, 3]
    assert rows.n_foreign == 0
    assert not rows.refresh(), "nothing new"


def test_a_file_that_was_replaced_or_cut_is_read_anew(tmp_path: Path):
    path, other = tmp_path / "metrics.jsonl", tmp_path / "other"
    path.write_text("".join(line(step) for step in range(1, 21)))
    rows = GrowingRows(path)
    rows.refresh()
    other.write_text("".join(line(step) for step in range(1, 11)) + line(11, loss=9.0) * 30)
    other.rename(path)  # as a rewind does; longer than what was there
    rows.refresh()
    assert rows.last["loss"] == 9.0
    path.write_text(line(1))  # in place, shorter
    rows.refresh()
    assert [row["step"] for row in rows.recent] == [1]
    path.write_text("".join(line(step, loss=2.0) for step in range(1, 30)))  # in place, longer, another beginning
    rows.refresh()
    assert [row["loss"] for row in rows.recent] == [2.0] * 29
    path.unlink()
    rows.refresh()
    assert not rows.recent


def test_a_large_file_gives_its_end_its_last_evaluation_and_an_even_curve(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    evaluation = json.dumps({"step": 9000, "tokens_seen": 72_000, "val_loss": 3.25, "bits_per_byte": 1.5}) + "\n"
    n = 30_000
    content = (line(step) + (evaluation if step == 9000 else "") for step in range(1, n + 1))
    path.write_text("".join(content))
    rows = GrowingRows(path)
    rows.refresh()
    assert [row["step"] for row in rows.recent] == list(range(n - RECENT + 1, n + 1))
    assert rows.last_evaluation["val_loss"] == 3.25
    steps = [row["step"] for row in rows.curve]
    assert steps == sorted(steps)
    assert 100 <= len(steps) <= CURVE
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    assert max(gaps) < 3 * n / 100
    with path.open("a") as stream:
        stream.writelines(line(step) for step in range(n + 1, 3 * n))
    rows.refresh()
    assert rows.last["step"] == 3 * n - 1
    assert len(rows.curve) <= CURVE


def test_a_hundred_runs_of_many_steps_are_looked_at_again_in_well_under_a_second(made: Path, tmp_path: Path):
    """Of CPU. The metrics are one file under a hundred names, of 100 000 rows."""
    big = tmp_path / "big"
    with big.open("w") as stream:
        stream.writelines(many_lines(100_000))
    for i in range(100):
        run = tmp_path / "runs" / f"r{i}"
        shutil.copytree(made / "runs/done", run, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
        (run / "metrics.jsonl").unlink()
        (run / "metrics.jsonl").hardlink_to(big)
    runs = Runs(tmp_path / "runs")
    assert len(runs.refresh()) == 100
    with big.open("a") as stream:
        stream.writelines(line(step) for step in range(100_001, 100_011))
    began = time.process_time()
    found = runs.refresh()
    spent = time.process_time() - began
    assert {view.step for view in found} == {100_010}
    assert spent < 1.0, f"{spent:.2f} s"


# --- status ----------------------------------------------------------------------------------------------------------


def test_status_of_ten_runs_costs_less_than_a_second_and_a_half_of_cpu(made: Path, tmp_path: Path):
    for i in range(10):
        shutil.copytree(made / "runs/done", tmp_path / "runs" / f"r{i}")
    before = cpu_seconds_of_commands()
    code, printed = finish(start(tmp_path, "status", module="launch"))
    assert code == 0, printed
    assert printed.count("finished at step 30") == 10
    assert cpu_seconds_of_commands() - before < 1.5


def test_one_run_is_told_down_to_the_command_that_goes_on_with_it(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(made)
    assert status(StatusConfig(run="killed")) == 0
    printed = capsys.readouterr().out
    for words in (
        "killed: failed, step",
        "attempts:",
        "rank 1 on",
        "checkpoints:",
        "step-00000010  (newest)",
        "first step done",
    ):
        assert words in printed, printed
    assert "attempts/0001/rank-00001.failure.json" in printed
    assert re.search(r"to go on +torchrun --nproc-per-node 2 -m train run.name=killed ", printed)


def test_the_words_to_go_on_compose_to_the_very_configuration_of_the_run(made: Path):
    """They are proved by composing them; one that had lost a key would be refused."""
    config = config_of(made / "runs/killed")
    words = train_words(config)
    assert words is not None
    assert "model.d_model=32" in words
    config.sample.prompts = ["a 'b' \"c\" $(d) \\ {e}: [f], #", "null", "1e3"]
    config.data.mask_documents = True
    assert train_words(config) is not None


def test_json_has_every_run_and_no_nan(made: Path, capsys: pytest.CaptureFixture[str]):
    def refuse(word: str) -> None:
        raise AssertionError(word)

    assert status(StatusConfig(folder=str(made / "runs"), json=True)) == 0
    tree = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert {run["name"]: run["state"] for run in tree["runs"]}["hot"] == "diverged"
    assert status(StatusConfig(folder=str(made / "runs"), json=True, run="hot")) == 0
    tree = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert tree["failure"]["kind"] == "NumericsError"
    assert tree["attempts"][0]["number"] == 1


def test_a_table_of_no_runs_and_of_foreign_ones_is_a_table_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert status(StatusConfig(folder=str(tmp_path))) == 0
    assert "no runs in" in capsys.readouterr().out
    lines = overview([RunView("a", tmp_path, State.foreign), RunView("b", tmp_path, State.lost, concern="gone")])
    assert "no run" in lines[1]
    assert lines[-1] == "! b: gone"


# --- Slurm -----------------------------------------------------------------------------------------------------------


JOB = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --open-mode=append
#SBATCH --requeue
echo "$(date +%FT%T) job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, attempt $((${{SLURM_RESTART_COUNT:-0}} + 1))"
echo "words of start ${{SLURM_RESTART_COUNT:-0}}"
sleep 600
"""


@pytest.fixture
def sent(runs: Path, box: Any) -> Iterator[dict[str, str]]:
    """Jobs by the name of their run: one runs, one is held."""
    numbers: dict[str, str] = {}
    for name, options in (("stopped", []), ("killed", ["--hold"])):
        slurm = runs / name / "slurm"
        slurm.mkdir()
        (slurm / "job.sh").write_text(JOB.format(name=f"{name}-0a1b2c"))
        command = ["sbatch", "--parsable", *options, f"--output={slurm}/%j.log", str(slurm / "job.sh")]
        numbers[name] = box.ask(*command).strip()
    yield numbers
    box.ask("scancel", *numbers.values())


@pytest.mark.slurm
def test_jobs_in_the_queue_are_shown_with_their_runs_and_logs_are_followed_over_a_requeue(
    runs: Path, box: Any, sent: dict[str, str]
):
    def ask(*words: str) -> str:
        command = [sys.executable, "-m", "launch", *words]
        environment = box.env | {"PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(command, cwd=runs.parent, env=environment, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    log = runs / "stopped/slurm" / f"{sent['stopped']}.log"
    wait_for(lambda: log.exists() and "words of start 0" in log.read_text())
    tree = {run["name"]: run for run in json.loads(ask("status", "json=true"))["runs"]}
    assert tree["stopped"]["state"] == "starting", "its job runs, and the run's next attempt has not begun"
    assert tree["stopped"]["jobs"][0]["state"] == "RUNNING"
    assert tree["killed"]["state"] == "queued"
    assert tree["killed"]["jobs"][0]["reason"] == "JobHeldUser"
    assert "waits in vain" in tree["killed"]["concern"], "nobody lets it go but a person"
    one = ask("status", "run=killed")
    assert f"{sent['killed']} PENDING: JobHeldUser: held; scontrol release lets it go" in one

    assert "words of start 0" in ask("logs", "run=stopped")
    follower = subprocess.Popen(
        [sys.executable, "-m", "launch", "logs", "run=stopped", "follow=true"],
        cwd=runs.parent,
        env=box.env | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1"},
        stdout=(runs.parent / "followed").open("w"),
    )
    try:
        wait_for(lambda: "words of start 0" in (runs.parent / "followed").read_text())
        box.ask("scontrol", "requeue", sent["stopped"])
        wait_for(lambda: "words of start 1" in (runs.parent / "followed").read_text())
        follower.send_signal(2)
        assert follower.wait(60) == 0
    finally:
        follower.kill()
        follower.wait()


def wait_for(ready: Any, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_reader_of_one_run_reads_no_torch_and_no_other_folder(made: Path):
    """It is what other programs may use."""
    view = RunReader(made / "runs/done", identity()).view()
    assert view.state == State.finished
    with pytest.raises(ConfigError):
        raise ConfigError(StatusConfig(run="../done").problems())
