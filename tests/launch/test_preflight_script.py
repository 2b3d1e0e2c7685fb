"""What a batch script does with what the preflight says, as one job that puts itself back into the queue and as one of
a chain. The scripts run for real, with stand-ins for Slurm's own programs and the ranks; under a real Slurm:
tests/faults/test_slurm_chain.py.
"""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.launch.conftest import directives
from tests.launch.desk import Desk, written

STOPPED = """\
attempt=runs/hello/attempts/000${SLURM_RESTART_COUNT:-0}
mkdir -p $attempt; echo '{"how": "stopped"}' >$attempt/ended.json; exit 143"""
"""of ranks that have saved"""
NAMES_N2 = 'echo n2.cluster >"$CRISOL_BAD_NODES"; exit 7'


def modules(folder: Path) -> list[str]:
    return (folder / "modules").read_text().split()


def test_the_ranks_start_only_after_the_preflight_has_passed(tmp_path: Path):
    assert Desk(tmp_path).end(written())[0] == 0
    assert modules(tmp_path) == ["train.preflight", "train"]


def test_without_preflight_the_ranks_start_at_once(tmp_path: Path):
    assert Desk(tmp_path).end(written("job.preflight=false"))[0] == 0
    assert modules(tmp_path) == ["train"]


@pytest.mark.parametrize("preflight", [NAMES_N2, f"({NAMES_N2}); exit 143"])
def test_a_job_goes_back_into_the_queue_without_its_bad_nodes(tmp_path: Path, preflight: str):
    """Whatever code srun makes of it: the ranks on good nodes may have been ended."""
    desk = Desk(tmp_path, preflight=preflight)
    code, printed = desk.end(written())
    assert (code, modules(tmp_path)) == (7, ["train.preflight"]), printed
    told = [line for line in desk.asked() if not line.startswith("show")]
    assert told == ["requeue 7", "update JobId=7 ExcNodeList=n2"]
    assert "job 7 waits for other nodes than n2" in printed


def test_names_that_are_no_nodes_of_the_job_are_not_handed_to_slurm(tmp_path: Path):
    desk = Desk(tmp_path, preflight='printf "ALL\\nn2 Foo=1\\n\\n" >"$CRISOL_BAD_NODES"; exit 7')
    assert desk.end(written())[0] == 7
    assert desk.requeued
    assert not [line for line in desk.asked() if line.startswith("update")]


def test_a_preflight_that_the_configuration_fails_ends_the_job(tmp_path: Path):
    desk = Desk(tmp_path, preflight="exit 2")
    assert (desk.end(written())[0], desk.requeued, modules(tmp_path)) == (2, False, ["train.preflight"])


@pytest.mark.parametrize("ending", [NAMES_N2, "exit 1", "exit 143", "kill -9 $BASHPID", "exit 7"])
def test_preflights_that_fail_again_and_again_are_starts_in_vain(tmp_path: Path, ending: str):
    """143 too, which is what srun tells where it ended a rank itself: nothing was saved."""
    desk, text = Desk(tmp_path, preflight=ending), written("run.max_idle_starts=3")
    for restarts in (0, 1):
        assert desk.end(text, restarts)[0] in (1, 7)
    (tmp_path / "asked").unlink()
    code, printed = desk.end(text, 2)
    assert (code, desk.requeued) == (6, False), printed


def test_nodes_that_were_left_in_order_are_not_looked_at_again_for_an_hour(tmp_path: Path):
    desk = Desk(tmp_path, STOPPED)
    for restarts in (0, 1):
        assert desk.end(written(), restarts)[0] == 143
    passed = tmp_path / "runs" / "hello" / "slurm" / "passed"
    os.utime(passed, times=(time.time() - 3601, time.time() - 3601))
    assert desk.end(written(), 2)[0] == 143
    assert modules(tmp_path) == ["train.preflight", "train", "train", "train.preflight", "train"]


@pytest.mark.parametrize("death", ["kill -9 $$", "mkdir -p runs/hello/attempts/0002; exit 143"])
def test_nodes_on_which_a_rank_died_are_looked_at_again(tmp_path: Path, death: str):
    """Of ranks of which one died srun may tell 143, too: its own signal to the others."""
    desk = Desk(tmp_path, f"[ ${{SLURM_RESTART_COUNT:-0}} = 1 ] && {{ {death}; }}\n{STOPPED}")
    for restarts in (0, 1, 2):
        assert desk.end(written(), restarts)[0] in (143, 137)
    assert modules(tmp_path) == ["train.preflight", "train", "train", "train.preflight", "train"]


def test_nodes_that_no_preflight_has_looked_at_are_looked_at_by_the_next_job(tmp_path: Path):
    desk = Desk(tmp_path, STOPPED)
    assert desk.end(written("job.preflight=false"))[0] == 143
    assert desk.end(written(), 1)[0] == 143
    assert modules(tmp_path) == ["train", "train.preflight", "train"]


def test_a_preflight_waits_for_its_other_ranks_where_one_has_died(tmp_path: Path):
    """That one's node has to be named, by the ranks that miss it; --wait would end them after a minute."""
    text = written()
    assert "ranks train.preflight --kill-on-bad-exit=0 --wait=0 " in text
    assert text.count("--wait=") == 2
    assert "ranks train --kill-on-bad-exit=1 --wait=60\n" in text


def test_a_signal_during_the_preflight_brings_the_job_back_and_starts_no_ranks(tmp_path: Path):
    desk = Desk(tmp_path, preflight=f"touch {tmp_path}/up; exec sleep 60")
    process = desk.start(written())
    while not (tmp_path / "up").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert (process.returncode, desk.requeued, modules(tmp_path)) == (143, True, ["train.preflight"]), printed
    assert not (tmp_path / "runs" / "hello" / "slurm" / "passed").exists()


def test_a_job_keeps_what_it_was_started_with_but_no_secrets(tmp_path: Path):
    """By its number: the next submit may write another job.sh."""
    text = written("slurm.export=[PATH,NCCL_DEBUG]")
    assert Desk(tmp_path).end(text, environment={"NCCL_DEBUG": "INFO", "CUDA_TOKEN": "hidden", "HF_TOKEN": "x"})[0] == 0
    folder = tmp_path / "runs" / "hello" / "slurm"
    assert (folder / "7.sh").read_text() == (tmp_path / "slurm_script").read_text()
    found = dict(line.split("=", 1) for line in (folder / "7.1.env").read_text().splitlines())
    assert (found["NCCL_DEBUG"], found["SLURM_JOB_ID"]) == ("INFO", "7")
    assert not [name for name in found if "TOKEN" in name]


# --- chains ----------------------------------------------------------------------------------------------------------


def test_the_jobs_of_a_chain_follow_each_other_and_do_not_come_back():
    found = directives(written("slurm.chain=3"))
    assert (found["dependency"], "no-requeue" in found, "requeue" in found) == ("singleton", True, False)
    assert "dependency" not in directives(written())


@pytest.mark.parametrize("rank", ["exit 143", "kill -9 $$"])
def test_a_job_of_a_chain_leaves_the_run_to_the_next(tmp_path: Path, rank: str):
    desk = Desk(tmp_path, rank)
    code, printed = desk.end(written("slurm.chain=3"))
    assert code in (143, 137)
    assert "the next job of the chain goes on from what is saved; 2 left" in printed
    assert not [line for line in desk.asked() if not line.startswith("show")]


@pytest.mark.parametrize("code", [2, 3, 4, 5, 6])
def test_where_another_start_would_not_help_the_rest_of_the_chain_is_cancelled(tmp_path: Path, code: int):
    desk = Desk(tmp_path, f"exit {code}")
    ended, printed = desk.end(written("slurm.chain=3"))
    assert ended == code
    assert printed.splitlines()[-1] == "the rest of the chain is cancelled: 8 9"
    assert "scancel 8 9" in desk.asked()


def test_a_stale_job_of_a_chain_cancels_nothing(tmp_path: Path):
    """F15: its rank is fenced off, exit code 4, while the next job of the chain trains."""
    desk = Desk(tmp_path, "exit 4", state="NODE_FAIL")
    assert desk.end(written("slurm.chain=3"))[0] == 4
    assert not [line for line in desk.asked() if line.startswith("scancel")]


def test_the_rest_of_a_chain_leaves_out_bad_nodes_besides_those_it_left_out_already(tmp_path: Path):
    desk = Desk(tmp_path, preflight=NAMES_N2)
    assert desk.end(written("slurm.chain=3"))[0] == 7
    told = [line for line in desk.asked() if not line.startswith("show")]
    assert told == ["update JobId=8 ExcNodeList=n2", "update JobId=9 ExcNodeList=n5,n2"]


@pytest.mark.parametrize(("age", "started"), [(60, []), (-60, ["train.preflight", "train"])])
def test_a_job_of_a_chain_that_finds_the_run_finished_ends_at_once(tmp_path: Path, age: int, started: list[str]):
    """By its own chain: what was finished before the chain was sent is for the run itself to judge."""
    desk = Desk(tmp_path)
    run = tmp_path / "runs" / "hello"
    (run / "slurm" / "job.sh").touch()
    (run / "summary.json").write_text('{\n  "status": "finished"\n}')
    os.utime(run / "summary.json", times=(time.time() + age, time.time() + age))
    code, printed = desk.end(written("slurm.chain=2"))
    assert code == 0
    assert (modules(tmp_path) if (tmp_path / "modules").exists() else []) == started, printed


def test_starts_in_vain_are_counted_over_a_chain(tmp_path: Path):
    desk, text = Desk(tmp_path, "exit 1"), written("slurm.chain=9", "run.max_idle_starts=2")
    assert [desk.end(text)[0] for _ in range(2)] == [1, 6]
    assert "scancel 8 9" in desk.asked()
