"""What a run printed: by the newest job, by an attempt, as it comes; and what is shown where nothing was kept."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.files import DataError
from launch.batch_script import SCRIPT
from launch.logs import _START, logs  # pyright: ignore[reportPrivateUsage]
from launch.look_config import LogsConfig
from tests.runs import finish, start


def shown(capsys: pytest.CaptureFixture[str], config: LogsConfig) -> str:
    assert logs(config) == 0
    return capsys.readouterr().out


def head(job: int, attempt: int) -> str:
    return f"2026-11-21T10:00:00 job {job} on n[1-2], attempt {attempt}\n"


@pytest.fixture
def logged(runs: Path) -> Path:
    """The killed run as one of job 17, which was started twice; job 9 came before."""
    slurm = runs / "killed/slurm"
    slurm.mkdir()
    (slurm / "9.log").write_text(head(9, 1) + "of the older job\n")
    os.utime(slurm / "9.log", (1, 1))
    (slurm / "17.log").write_text(head(17, 1) + "first start\n" + head(17, 2) + "second start\nlast words\n")
    holder = runs / "killed/attempts/0001/holder.json"
    holder.write_text(json.dumps(json.loads(holder.read_text()) | {"slurm_job": "box/17", "slurm_restarts": 1}))
    return runs


def test_the_line_by_which_starts_are_told_apart_is_the_one_that_the_job_script_writes():
    echo = next(
        line for line in SCRIPT.replace("{{", "{").replace("}}", "}").splitlines() if "job $SLURM_JOB_ID" in line
    )
    environment = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n[1-2]", "attempt": "3", "PATH": os.environ["PATH"]}
    said = subprocess.run(["bash", "-c", echo], env=environment, capture_output=True, text=True, check=True).stdout
    found = _START.match(said.rstrip("\n"))
    assert found is not None
    assert (found["job"], found["start"]) == ("17", "3")


def test_the_end_of_the_newest_log_comes_after_the_first_failure(logged: Path, capsys: pytest.CaptureFixture[str]):
    printed = shown(capsys, LogsConfig(run="killed", folder=str(logged), lines=2))
    lines = printed.splitlines()
    assert lines[0].startswith("first failure: rank 1 on ")
    assert any(line.strip().endswith("rank-00001.failure.json") for line in lines)
    assert lines[-3:] == [f"--- {logged / 'killed/slurm/17.log'}", "second start", "last words"]


def test_an_attempt_shows_its_own_part_of_the_log(logged: Path, capsys: pytest.CaptureFixture[str]):
    printed = shown(capsys, LogsConfig(run="killed", folder=str(logged), attempt=1))
    assert "second start" in printed, "its holder says that the job had been restarted once"
    assert "first start" not in printed
    with pytest.raises(DataError, match="no attempt 7; there are: 1 to 1"):
        logs(LogsConfig(run="killed", folder=str(logged), attempt=7))


def test_a_run_that_slurm_did_not_start_says_so_and_shows_its_events(made: Path, capsys: pytest.CaptureFixture[str]):
    for config in (LogsConfig(run="done", folder=str(made / "runs")),
                   LogsConfig(run="done", folder=str(made / "runs"), attempt=1)):  # fmt: skip
        printed = shown(capsys, config)
        assert "Slurm" in printed
        assert "finished at step 30" in printed


def test_logs_are_followed_into_those_of_later_jobs_until_ctrl_c(logged: Path, tmp_path: Path):
    slurm, printed = logged / "killed/slurm", tmp_path / "printed"
    words = [sys.executable, "-m", "launch", "logs", "run=killed", "follow=true", "lines=1"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with printed.open("w") as stream:
        process = subprocess.Popen(words, cwd=logged.parent, env=environment, stdout=stream)
    try:
        wait_for(printed, "last words\n")
        with (slurm / "17.log").open("a") as stream:
            stream.write("more\x1b[2J of it\n")
        wait_for(printed, "more\\x1b[2J of it\n")  # nothing of a log moves the cursor
        (slurm / "18.log").write_text(head(18, 1) + "the next job\nhalf a li")
        wait_for(printed, "the next job\n")
        with (slurm / "18.log").open("a") as stream:
            stream.write("ne\n")
        wait_for(printed, "half a line\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
    assert printed.read_text().count("last words") == 1


def test_following_a_finished_run_ends(made: Path):
    code, printed = finish(start(made, "logs", "run=done", "follow=true", module="launch"))
    assert code == 0
    assert printed.endswith("--- done has finished\n")


def wait_for(file: Path, words: str) -> None:
    until = time.monotonic() + 120
    while words not in file.read_text():
        assert time.monotonic() < until, file.read_text()
        time.sleep(0.05)


def test_what_cannot_be_asked_together_is_refused():
    assert LogsConfig(run="a", attempt=1, follow=True).problems()
    assert LogsConfig(run="a", attempt=0).problems()
    assert LogsConfig(run="a", lines=0).problems()
    assert LogsConfig(run="../a").problems()
