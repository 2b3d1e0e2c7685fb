"""What a time limit means for a run, before its job is sent: refused, noted, or told as a number of jobs."""

import dataclasses
from pathlib import Path

import pytest

from conf.compose import ConfigError, compose
from data_prep.files import DataError
from launch.job_time import forecast, n_jobs
from launch.plan import planned
from launch.submit import submit
from launch.submit_config import TrainJobConfig
from tests.launch.desk import APP
from train.plan import Plan

LARGE = ("experiment=llama_100m", "cluster=h100", "run.name=big", "job.gpus_per_node=1", "data.folder=data/none")
"""a step of it takes over half a second on an H100, by the plan"""


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    """(problem or "", what was noted on the console)"""
    try:
        submit(compose(APP, words), words)
    except ConfigError as error:
        return str(error), capsys.readouterr().err
    return "", capsys.readouterr().err


def test_a_limit_that_ends_before_the_first_checkpoint_is_refused_with_limits_that_would_do(
    capsys: pytest.CaptureFixture[str],
):
    problem, _ = said(capsys, *LARGE, "slurm.time_limit_minutes=30", "checkpoint.every_steps=5000")
    assert "slurm.time_limit_minutes=30 ends a job before its first checkpoint" in problem
    minutes, steps = problem.rpartition("Allow slurm.time_limit_minutes=")[2].split(", or checkpoint.every_steps=")
    for word, value in (("slurm.time_limit_minutes", minutes), ("checkpoint.every_steps", steps)):
        words = [*LARGE, "slurm.time_limit_minutes=30", "checkpoint.every_steps=5000"]
        assert said(capsys, *[w for w in words if not w.startswith(word)], f"{word}={value}") == ("", "")


def test_a_limit_that_may_do_after_all_is_only_noted(capsys: pytest.CaptureFixture[str]):
    """Predictions are not exact: one that is a tenth too long refuses nothing."""
    problem, _ = said(capsys, *LARGE, "slurm.time_limit_minutes=30", "checkpoint.every_steps=5000")
    needed = int(problem.rpartition("Allow slurm.time_limit_minutes=")[2].partition(",")[0])
    problem, noted = said(capsys, *LARGE, f"slurm.time_limit_minutes={needed - 3}", "checkpoint.every_steps=5000")
    assert problem == ""
    assert noted.startswith("note: slurm.time_limit_minutes=")


def test_a_run_that_will_not_fit_is_told_before_it_waits_in_the_queue(capsys: pytest.CaptureFixture[str]):
    words = ("model=llama2_7b", "run.name=big", "cluster=h100", "job.gpus_per_node=1", "data.folder=data/none")
    _, noted = said(capsys, *words)
    assert "note: a rank is planned to need" in noted
    assert "of its device's 79.60 GiB" in noted


def test_on_a_machine_that_is_not_described_nothing_is_refused(capsys: pytest.CaptureFixture[str]):
    """Its speed is a guess: what expected_mfu says of a peak that was measured where the command was typed."""
    words = ("experiment=debug", "run.name=x", "cluster.device=cpu", "cluster.peak_flops_per_second=1.0")
    problem, noted = said(capsys, *words, "slurm.time_limit_minutes=10")
    assert problem == ""
    assert "a guess: this machine is not described" in noted


@pytest.mark.parametrize(
    ("hours", "chain", "told"),
    [
        (31, 1, "about 31 h (predicted) at 24 h a job: 2 jobs' time, which one job takes in turns"),
        (31, 3, "about 31 h (predicted) at 24 h a job: 2 jobs"),
        (20, 1, "about 20 h (predicted) at 24 h a job: 1 job"),
    ],
)
def test_the_number_of_jobs_is_told(hours: int, chain: int, told: str):
    assert forecast(TrainJobConfig(chain=chain), plan(hours)).startswith(told)


def test_starts_and_orderly_ends_are_no_time_for_training():
    queue = TrainJobConfig(time_limit_minutes=60, signal_seconds=1740)
    assert n_jobs(queue, plan(10)) == 24
    assert n_jobs(TrainJobConfig(time_limit_minutes=10, signal_seconds=240), plan(10)) is None


def plan(hours: float) -> Plan:
    words = ("experiment=debug", "run.name=x", "cluster.device=cpu", "cluster.peak_flops_per_second=1.0e+11")
    return dataclasses.replace(planned(compose(APP, words).train).plan, seconds=hours * 3600, mfu_is="predicted")


def test_a_chain_that_is_too_short_is_noted(capsys: pytest.CaptureFixture[str]):
    words = ("experiment=debug", "run.name=x", "cluster.device=cpu", "cluster.peak_flops_per_second=1.0e+8")
    assert "slurm.chain=2 will hardly do" in said(capsys, *words, "slurm.chain=2", "slurm.time_limit_minutes=30")[1]


def test_sixty_days_are_noted(capsys: pytest.CaptureFixture[str]):
    """24:00:00 without quotes is 86400 to YAML, which Slurm takes as minutes."""
    problem, noted = said(capsys, "experiment=debug", "run.name=x", "slurm.time_limit_minutes=86400")
    assert problem == ""
    assert "slurm.time_limit_minutes=86400 is 60 days. 24:00:00" in noted


@pytest.mark.parametrize("typed", ["24:00:00", "'24:00:00'", "1-00:00"])
def test_a_time_where_minutes_are_wanted_is_refused_with_the_minutes(typed: str):
    with pytest.raises(ConfigError, match="that is 1440 minutes"):
        compose(APP, ["experiment=debug", "run.name=x", f"slurm.time_limit_minutes={typed}"])


def test_a_limit_that_no_partition_allows_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Slurm would take the job, and leave it waiting for ever."""
    (tmp_path / "sinfo").write_text("#!/bin/sh\necho 'short* 1-00:00:00'\necho 'long 7-00:00:00'\n")
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    words = ["experiment=debug", "run.name=x", "slurm.time_limit_minutes=86400"]
    with pytest.raises(
        DataError, match=r"24:00:00 in YAML .* write 1440\) is more than the partition long allows, 10,080"
    ):
        submit(compose(APP, [*words, "slurm.partition=long"]), words)
    with pytest.raises(DataError, match=r"the partition \(the default one\) allows, 1,440"):
        submit(compose(APP, [*words[:2], "slurm.time_limit_minutes=1500"]), words)
