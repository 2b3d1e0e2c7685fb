"""The cells of a sweep as a job array: how they are dealt out, and what the script of an element does with each end of
a cell. It runs here for real, with stand-ins for Slurm's own programs (tests/launch/desk.py), and once under a real
Slurm.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conf.errors import ConfigError
from data_prep.files import DataError
from launch.slurm import Limits
from launch.submit_config import JobConfig, TrainJobConfig
from launch.sweep.slurm_array import (
    Cell,
    SweepArray,
    array_script,
    cells_file,
    cells_name,
    dealt,
    send,
    shown,
    sweep_array,
)
from launch.sweep.slurm_array import told as told_of
from tests.faults.slurm_runs import HELD, PATIENCE, ROOT, SHORT
from tests.launch.conftest import HOSTILE, directives
from tests.launch.desk import Desk
from tests.runs import TINY, curve, rows
from tests.slurm_box import Box

AMPLE = Limits(1001, 10_000, "slurm.conf(5)")


def cell(run: str, branch_from: str | None = None, *more: str) -> Cell:
    return Cell(run, (f"run.name={run}", *more), branch_from)


CHAINS = [[cell("a"), cell("b", "a"), cell("c"), cell("d", "b")], [cell("e")]]


def array_of(folder: Path, chains: list[list[Cell]]) -> SweepArray:
    job = JobConfig(nodes=2, preflight=False)
    return SweepArray(folder, dealt(chains, AMPLE), job, TrainJobConfig(), at_once=None, max_idle_starts=3)


# --- what is sent ----------------------------------------------------------------------------------------------------


def test_chains_become_elements_and_share_them_where_the_cluster_allows_fewer():
    chains = [[cell(f"{name}{i}") for i in range(2)] for name in "abcde"]
    assert dealt(chains, AMPLE) == tuple(map(tuple, chains))
    for limits in (Limits(2, 10_000, ""), Limits(1001, 5, "")):
        names = [[one.run for one in element] for element in dealt(chains, limits)]
        assert names == [["a0", "a1", "c0", "c1", "e0", "e1"], ["b0", "b1", "d0", "d1"]]
    with pytest.raises(DataError, match="MaxArraySize=0"):
        dealt(chains, Limits(0, 10_000, ""))


def test_a_script_asks_slurm_for_an_array_of_what_was_configured(tmp_path: Path):
    queue = TrainJobConfig(partition="gpu", time_limit_minutes=90, signal_seconds=120)
    array = SweepArray(tmp_path / "it's", (tuple(CHAINS[0]), tuple(CHAINS[1])), JobConfig(nodes=2), queue, 1, 3)
    found = directives(array_script(array))
    assert found.pop("job-name").startswith("sweep-it_s-")
    assert found.pop("export").startswith("PATH,")
    assert found == {
        "array": "0-1%1",
        "nodes": "2",
        "ntasks-per-node": "1",
        "cpus-per-task": "4",
        "time": "90",
        "partition": "gpu",
        "signal": "USR1@120",
        "requeue": "",
        "open-mode": "append",
        "kill-on-invalid-dep": "yes",
    }


@pytest.mark.parametrize(
    ("chains", "keys", "why"),
    [
        (CHAINS, {"queue": TrainJobConfig(chain=2)}, "slurm.chain=2: an element of an array puts itself back"),
        (CHAINS, {"at_once": 0}, "sweep.jobs=0 must be at least 1, or null"),
        ([], {}, "no cell left to train"),
        ([[cell("b", "a"), cell("a")]], {}, "b begins from a, which does not come before it in its chain"),
        ([[cell("a")], [cell("b", "a")]], {}, "b begins from a, which does not come before it in its chain"),
        ([[cell("a")], [cell("a")]], {}, "the run a is in the sweep's chains twice"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, chains: list[list[Cell]], keys: dict, why: str):
    with pytest.raises(ConfigError) as error:
        sweep_array(tmp_path, chains, JobConfig(), **{"queue": TrainJobConfig(), **keys})
    assert why in str(error.value)


def test_a_cell_may_begin_from_a_run_that_was_finished_before(tmp_path: Path):
    assert len(sweep_array(tmp_path, [[cell("b", "a")]], JobConfig(), TrainJobConfig()).elements) == 1


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, **answers: str) -> None:
    for name in ("sbatch", "squeue", "scontrol", "sinfo"):
        (folder / name).write_text(f"#!/bin/sh\n{answers.get(name, 'exit 1')}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_nothing_is_written_but_by_sending_and_nothing_is_sent_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sweep, programs = tmp_path / "sweeps" / "demo", tmp_path / "programs"
    programs.mkdir()
    array = array_of(sweep, CHAINS)
    text = shown(array)
    assert "nothing was sent" in text
    assert text.splitlines()[-1].startswith(f"sbatch --parsable --array=0-1 --job-name={array.name} ")
    assert not sweep.exists()
    stand_in(programs, monkeypatch, sbatch=f'echo "$@" >{programs}/sent; echo "12;box"', squeue="true")
    assert send(array) == "12"
    assert (programs / "sent").read_text().endswith(f"--output={sweep}/slurm/%A_%a.log {sweep}/slurm/array.sh\n")
    assert (sweep / "slurm" / "array.sh").read_text() in text
    assert all((sweep / "slurm" / cells_name(i)).read_text() in text for i in range(2))
    assert told_of(array, "12").startswith("job 12: 5 runs in 2 elements\n")
    send(array_of(sweep, CHAINS[1:]))
    assert sorted(path.name for path in (sweep / "slurm").iterdir()) == ["array.sh", "cells-0000.sh"]
    stand_in(programs, monkeypatch, sbatch="echo 13", squeue=f'echo "12_[1-3] {array.name} PENDING"')
    with pytest.raises(DataError, match=rf"wait or run already:\n  12_\[1-3\] .*\n.*scancel --name={array.name}"):
        send(array)
    stand_in(programs, monkeypatch, sbatch="echo too many >&2; exit 1", squeue="true")
    with pytest.raises(DataError, match=r"Slurm refused the sweep .*: too many"):
        send(array)


# --- the script at work ----------------------------------------------------------------------------------------------


class Element(Desk):
    """Element 1 of an array, job 7, whose number is the array's own: it is the last. `ends` are the exit codes of
    cells, 0 where nothing is said; each is noted as it starts."""

    def __init__(self, folder: Path, cells: list[Cell], rank: str = "", preflight: str = "exit 0", **ends: int):
        codes = "".join(f"*run.name={name}\\ *) code={code} ;; " for name, code in ends.items())
        noted = f'echo "${{3#run.name=}}" >>{folder}/started\n'
        noted += f'code=0; case "$* " in {codes} esac\n[ $code = 0 ] || [ $code = 143 ] || '
        noted += f'[ $code = 1 ] || echo $code >"$CRISOL_EXIT_WORD"\n{rank}\nexit $code'
        super().__init__(folder, noted, preflight=preflight)
        self.sweep = folder / HOSTILE
        self.array = array_of(self.sweep, [[cell("other")], cells])
        (self.sweep / "slurm").mkdir(parents=True)
        (self.sweep / "slurm" / cells_name(1)).write_text(cells_file(self.array, 1))

    def go(self, restarts: int = 0, preflight: bool = False) -> tuple[int, str]:
        self.array.job.preflight = preflight
        environment = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
        (self.folder / "started").write_text("")
        return self.end(array_script(self.array), restarts, environment=environment)

    @property
    def started(self) -> list[str]:
        return (self.folder / "started").read_text().split()


def test_cells_are_trained_one_after_the_other_with_their_words_as_they_were_typed(tmp_path: Path):
    element = Element(tmp_path, [cell("a"), cell("b", "a", f"data.folder={HOSTILE}", "x=\n$HOME\\")])
    code, printed = element.go()
    assert code == 0, printed
    assert element.started == ["a", "b"]
    assert element.seen()[0] == ["-m", "train", "run.name=b", f"data.folder={HOSTILE}", "x=\n$HOME\\"]
    assert "a: run 1 of 2" in printed
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("code", [2, 3, 4, 5, 6])
def test_a_cell_that_ended_for_good_takes_along_only_those_that_begin_from_it(tmp_path: Path, code: int):
    element = Element(tmp_path, CHAINS[0], a=code)
    ended, printed = element.go()
    assert (ended, element.requeued, element.started) == (code, False, ["a", "c"]), printed
    assert f"a: ended with exit code {code}, which another start would not change" in printed
    assert "b: not trained, since it begins from a\n" in printed
    assert "d: not trained, since it begins from b\n" in printed  # as it begins from one that begins from a
    assert printed.endswith("all is done, but for what is lost: a b d\n")


def test_an_element_that_must_leave_starts_no_further_cell_and_only_it_goes_back_into_the_queue(tmp_path: Path):
    element = Element(tmp_path, CHAINS[0], c=143, a=5)
    code, printed = element.go()
    assert (code, element.started) == (143, ["a", "c"]), printed
    assert "requeue 7_1" in element.asked()
    assert "show job --oneliner 7_1" in element.asked()
    assert element.go(restarts=1)[0] == 143
    assert element.started == ["c"]  # and not a once more, which has diverged


def test_a_signal_between_two_cells_is_heeded(tmp_path: Path):
    """The script is told while no ranks run: here at the very end of the first cell."""
    element = Element(tmp_path, CHAINS[0], rank="trap '' USR1; kill -USR1 $PPID; sleep 0.3")
    code, printed = element.go()
    assert (code, element.started) == (143, ["a"]), printed
    assert "requeue 7_1" in element.asked()


def test_a_cell_that_dies_is_taken_up_again_and_an_element_that_never_comes_to_train_ends(tmp_path: Path):
    element = Element(tmp_path, [cell("a"), cell("b")], b=1)
    assert [element.go(restarts)[0] for restarts in (0, 1)] == [1, 1]
    assert element.started == ["a", "b"]  # a says itself that it is finished
    code, printed = element.go(restarts=2)
    assert (code, "the last 3 attempts did not come so far" in printed) == (6, True), printed


def test_the_preflight_looks_once_and_what_it_has_against_one_cell_concerns_that_cell(tmp_path: Path):
    element = Element(tmp_path, CHAINS[0], preflight="exit 2", a=2)
    code, printed = element.go(preflight=True)
    assert (code, element.started) == (2, ["a", "c"]), printed
    assert (tmp_path / "modules").read_text().split() == ["train.preflight", "train", "train"]


def test_a_bad_node_ends_the_element_before_its_first_cell(tmp_path: Path):
    element = Element(tmp_path, CHAINS[0], preflight='echo n2 >>"$CRISOL_BAD_NODES"; exit 7')
    code, printed = element.go(preflight=True)
    assert (code, element.started) == (7, []), printed
    assert element.asked()[-1] == "update JobId=7_1 ExcNodeList=n2"


# --- under a real Slurm ----------------------------------------------------------------------------------------------


@pytest.mark.slurm
def test_elements_go_on_by_themselves_past_a_refused_cell_and_a_signal(
    here: Path, box: Box, monkeypatch: pytest.MonkeyPatch
):
    """Element 0 trains a run that is held; element 1, whose number is the array's own, refuses its first cell and so
    does not train what begins from it; it is told to leave in the middle of the third, and takes it up again."""
    sweep, place = here / "sweeps" / "tiny", here / "held"
    place.mkdir()
    (place / "sitecustomize.py").write_text(HELD)

    def may_go_to(step: int) -> None:
        (place / "limit.new").write_text(str(step))
        (place / "limit.new").rename(place / "limit")

    def real(run: str, branch_from: str | None = None, *more: str) -> Cell:
        return Cell(run, (*TINY, *SHORT, f"run.folder={sweep}/runs", f"run.name={run}", *more), branch_from)

    chains = [[real("quiet")], [real("refused", None, "model.vocab_size=256"), real("after", "refused"), real("told")]]
    queue = TrainJobConfig(cpus_per_task=1, export=["PATH", "HOME", "PYTHONPATH", "GLOO_SOCKET_IFNAME", "PLACE"])
    for name, value in {**box.env, "PYTHONPATH": f"{ROOT}:{place}", "PLACE": str(place)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", box.interface)
    monkeypatch.chdir(here)
    may_go_to(7)
    array = sweep_array(sweep, chains, JobConfig(preflight=False), queue)
    number = send(array)
    with pytest.raises(DataError, match="wait or run already"):
        send(array)

    def has_come_to(run: str, step: int) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return any(row["step"] >= step for row in rows(sweep / "runs" / run))
        return False

    def log(element: int) -> str:
        file = sweep / "slurm" / f"{number}_{element}.log"
        return file.read_text() if file.exists() else "(no log)"

    def wait(ready: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE
        while not ready():
            assert time.monotonic() < until, log(0) + log(1)
            time.sleep(0.2)

    def fact(element: int, name: str) -> str:
        shown = box.ask("scontrol", "show", "job", "--oneliner", f"{number}_{element}").split()
        return next(word.partition("=")[2] for word in shown if word.startswith(f"{name}="))

    wait(lambda: has_come_to("told", 7) and has_come_to("quiet", 7))
    assert fact(1, "JobId") == number
    box.ask("scancel", "--signal=USR1", f"{number}_1")
    wait(lambda: fact(1, "JobState") == "PENDING")
    box.ask("scontrol", "update", f"jobid={number}_1", "StartTime=now+2")
    may_go_to(24)
    wait(lambda: all(fact(element, "JobState") in ("COMPLETED", "FAILED") for element in (0, 1)))
    assert (fact(0, "ExitCode"), fact(0, "Restarts")) == ("0:0", "0"), log(0)
    assert (fact(1, "ExitCode"), fact(1, "Restarts")) == ("2:0", "1"), log(1)
    assert "after: not trained, since it begins from refused" in log(1)
    assert "back into the queue" in log(1)
    assert curve(sweep / "runs" / "told") == curve(sweep / "runs" / "quiet")
    events = map(json.loads, (sweep / "runs" / "told" / "events.jsonl").read_text().splitlines())
    assert [event["repeated_steps"] for event in events if event["event"] == "started"] == [0, 0]
    assert not (sweep / "runs" / "after").exists()
