"""The batch script of a run: what it asks Slurm for, that hostile names stay words, and what it does with each end. The
script runs here for real, with stand-ins for Slurm's own programs; under a real Slurm: tests/faults/test_slurm.py.
"""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from conf.compose import ConfigError, compose
from launch.batch_script import script
from launch.job import Job
from launch.submit import submit
from launch.submit_config import TrainJobConfig
from tests.launch.conftest import HOSTILE, directives
from tests.launch.desk import APP, Desk, words, written


def test_a_script_asks_slurm_for_what_was_configured():
    more = (
        "partition='a,b'",
        "account=lab",
        "memory_gib=64",
        "cpus_per_task=8",
        "export=[PATH,HF_HOME]",
    )
    found = directives(
        written(*(f"slurm.{word}" for word in more), "job.gpus_per_node=2", "slurm.options=['--constraint=h100']")
    )
    assert found.pop("job-name").startswith("hello-")
    assert found == {
        "nodes": "2",
        "ntasks-per-node": "2",
        "gpus-per-node": "2",
        "cpus-per-task": "8",
        "time": "1440",
        "mem": "64G",
        "partition": "a,b",
        "account": "lab",
        "constraint": "h100",
        "signal": "USR1@300",
        "export": "PATH,HF_HOME",
        "requeue": "",
        "open-mode": "append",
        "kill-on-invalid-dep": "yes",
    }


def test_without_submit_the_script_is_shown_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    typed = words()
    submit(compose(APP, typed), typed)
    shown = capsys.readouterr().out
    assert shown.startswith("#!/bin/bash\n# Trains the run hello on 2 nodes x 2 ranks.")
    assert "nothing was sent" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["$(touch x)", "a;b", "../x", "a b", "`id`", "x\n#SBATCH --uid=0", ".x", ""])
def test_a_run_name_that_is_no_plain_name_is_refused(name: str):
    quoted = name.replace("\n", "\\n")
    with pytest.raises(ConfigError, match=r"run\.name"):
        compose(APP, ["experiment=debug", f'run.name="{quoted}"'])


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("slurm.export=[ALL]", "slurm.export holds 'ALL'"),
        ("slurm.export=['PATH=x']", "slurm.export holds 'PATH=x'"),
        ("job.gpus_per_node=1", "let them be equal"),
        ("slurm.time_limit_minutes=5", "leaves nothing of slurm.time_limit_minutes=5"),
        ("slurm.options=['--signal=USR2@9']", "launch sets --signal itself"),
        ("slurm.options=['--x=a;b']", "is not written as"),
        ("slurm.partition='a;b'", "is no name that Slurm could know"),
        ("cluster.n_devices=8", "job.nodes=2 x job.ranks_per_node=2 = 4"),
        ("job.nodes=0", "job.nodes=0 must be at least 1"),
        ("job.node=2", "unknown key"),
        ("slurm.nodes=2", "unknown key"),
        ("job.gpus_per_node=0", "job.gpus_per_node=0 must be at least 1, or null"),
        ("slurm.chain=0", "slurm.chain=0 must be at least 1"),
        ("kubernetes.image=x", "job.target=slurm would ignore kubernetes.image=x"),
    ],
)
def test_what_cannot_work_is_refused_before_it_is_queued(more: str, why: str):
    with pytest.raises(ConfigError) as error:
        compose(APP, words(more))
    assert why in str(error.value)


def test_a_batch_that_its_ranks_cannot_share_is_refused(capsys: pytest.CaptureFixture[str]):
    typed = words("job.nodes=3", "job.ranks_per_node=1")
    with pytest.raises(Exception, match="global_batch_size=4") as error:
        submit(compose(APP, typed), typed)
    assert getattr(error.value, "exit_code", None) == 2
    assert capsys.readouterr().out == ""


def test_what_was_predicted_is_kept_beside_the_run_that_was_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, answer in (("sbatch", "echo 12"), ("squeue", ""), ("scontrol", "exit 1"), ("sinfo", "exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    typed = ["experiment=llama_100m", "cluster=h100", "run.name=sent", "job.gpus_per_node=1", "submit=true"]
    submit(compose(APP, typed), typed)
    kept = json.loads((tmp_path / "runs/sent/prediction.json").read_text())
    assert kept["hardware"] == "H100 SXM"
    assert kept["tokens_per_second"] * kept["step_seconds"]["total"] == pytest.approx(262_144)
    assert kept["memory_bytes"]["total"] > 0


# --- the script at work ----------------------------------------------------------------------------------------------


def test_whatever_was_typed_reaches_the_ranks_as_it_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hostile = tmp_path / HOSTILE
    hostile.mkdir()
    monkeypatch.chdir(hostile)
    desk, typed = Desk(tmp_path), words(f"data.folder={HOSTILE}", "a=\nb", "a=\n\n\nb", "$HOME", "\\", "submit=true")
    config = compose(APP, words("run.folder='$(touch pwned);x'"))
    code, printed = desk.end(script(config, Job.of(config, typed)))
    assert code == 0, printed
    seen, variables = desk.seen()
    kept = [word for word in typed if not word.startswith(("job.", "slurm", "submit"))]
    assert seen == ["-m", "train", *kept]
    assert (variables["MASTER_ADDR"], variables["MASTER_PORT"]) == ("10.0.0.7", "29123")
    assert "SLURM_EXPORT_ENV" not in variables
    assert list(hostile.iterdir()) == []
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("rank", "code", "requeued"),
    [
        ("exit 0", 0, False),
        ("exit 143", 143, True),
        ("kill -9 $$", 137, True),
        ("exit 1", 1, True),
        *((f"exit {code}", code, False) for code in (2, 3, 4, 5, 6)),
        # a rank refused; the others were ended for it, which is what srun tells of
        ('echo 3 >"$CRISOL_EXIT_WORD"; exit 143', 3, False),
    ],
)
def test_only_an_end_that_another_start_can_change_brings_one(tmp_path: Path, rank: str, code: int, requeued: bool):
    desk = Desk(tmp_path, rank)
    ended, printed = desk.end(written())
    assert (ended, desk.requeued) == (code, requeued), printed


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "TIMEOUT"])
def test_a_job_that_was_cancelled_does_not_come_back(tmp_path: Path, state: str):
    desk = Desk(tmp_path, "exit 143", state)
    assert (desk.end(written())[0], desk.requeued) == (143, False)


def test_what_is_left_of_an_attempt_on_a_node_that_was_cut_off_does_not_requeue_the_one_that_runs_now(tmp_path: Path):
    """F15: both are the same job, and that one is RUNNING."""
    desk = Desk(tmp_path, "kill -9 $$")
    assert (desk.end(written(), restarts=1, restarts_by_now=2)[0], desk.requeued) == (137, False)


def test_each_attempt_trains_in_a_step_of_another_number(tmp_path: Path):
    """F15: else the srun of an attempt on a node that was cut off ends the one that runs now (seen with 22.05).
    Steps before it leave it the cores from the first moment."""
    for preflight, steps in (("false", [*"0", *"10", *"110", *"1110"]), ("true", [*"00", *"1100", *"111100"])):
        (tmp_path / preflight).mkdir()
        desk = Desk(tmp_path / preflight)
        for restarts in range(4 if preflight == "false" else 3):
            assert desk.end(written(f"job.preflight={preflight}"), restarts)[0] == 0
        assert (desk.folder / "steps").read_text().split() == steps


def test_a_controller_that_is_away_for_a_while_is_asked_again(tmp_path: Path):
    desk = Desk(tmp_path, "exit 143", silent=2)
    assert (desk.end(written())[0], desk.requeued) == (143, True)
    assert (tmp_path / "slept").read_text().split() == ["0", "5", "15"]


@pytest.mark.parametrize("code", [1, 143])
def test_starts_that_do_not_come_so_far_as_to_be_counted_end_by_themselves(tmp_path: Path, code: int):
    """Say, of a broken installation: the run itself never learns of them. 143: srun ended the other ranks, too."""
    desk = Desk(tmp_path, f"exit {code}")
    text = written("run.max_idle_starts=3", f"job.preflight={str(code == 1).lower()}")
    assert [desk.end(text, restarts)[0] for restarts in (0, 1)] == [code, code]
    (tmp_path / "asked").unlink()
    code, printed = desk.end(text, 2)
    assert (code, desk.requeued) == (6, False), printed
    assert "the last 3 attempts" in printed


def test_starts_that_the_run_counts_itself_are_not_counted_here(tmp_path: Path):
    desk = Desk(tmp_path, f"mkdir -p {tmp_path}/runs/hello/attempts/000${{SLURM_RESTART_COUNT:-0}}; exit 1")
    text = written("run.max_idle_starts=1")
    assert [desk.end(text, restarts)[0] for restarts in (0, 1, 2)] == [1, 1, 1]
    assert desk.requeued


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_signal_to_the_script_goes_on_to_the_ranks_as_usr1(tmp_path: Path, name: str):
    """F8: SIGTERM would end srun, and with it the ranks before they have saved."""
    rank = f"trap 'echo told >>{tmp_path}/told' USR1; trap 'exit 99' TERM USR2; touch {tmp_path}/up\n"
    rank += f"while [ ! -e {tmp_path}/told ]; do sleep 0.05; done; sleep 0.5; exit 143"
    desk = Desk(tmp_path, rank)
    process = desk.start(written())
    while not (tmp_path / "up").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.kill(process.pid, signal.Signals[name])
    printed, _ = process.communicate(timeout=60)
    assert (process.returncode, desk.requeued) == (143, True), printed


def test_srun_is_told_to_end_a_step_of_which_a_rank_is_gone_and_to_hide_no_gpu():
    """A rank that sees its own GPU only reaches the others' by way of the host; one bound to cores by Slurm would share
    them out once more, and could not choose those near its GPU."""
    text = written("job.gpus_per_node=2")
    assert "|| ranks train --kill-on-bad-exit=1 --wait=60\n" in text
    srun = text.partition('    srun "$@" ')[2].partition("&\n")[0].split()
    assert srun[:5] == [
        "--distribution=block",
        "--cpus-per-task=4",
        "--cpu-bind=none",
        "--gpu-bind=none",
        "--export=ALL",
    ]
    assert "--gpu-bind" not in written()


def test_no_value_of_this_shell_reaches_the_job_unless_it_is_named():
    assert "TOKEN" not in "".join(TrainJobConfig().export)
    assert directives(written("slurm.export=[]"))["export"] == "NIL"
