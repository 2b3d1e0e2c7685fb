"""Sweeps as commands: real child processes, killed, stopped, failing and diverging ones among them."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.launch.sweep.words import TINY
from tests.runs import cpu_seconds_of_commands, finish, rows, start

ONE_SIZE = "sweep.shapes=[{d_model: 16, n_layers: 1}]"


def sweep(folder: Path, *words: str) -> Any:
    return start(folder, "sweep", *TINY, *words, module="launch")


def summary(folder: Path, cell: str) -> dict[str, Any]:
    return json.loads((folder / "sweeps" / "tiny" / "runs" / cell / "summary.json").read_text())


@pytest.fixture(scope="module")
def swept(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A whole sweep: two sizes x two lengths, two at a time."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "data").symlink_to(workplace / "data")
    code, printed = finish(sweep(folder, "sweep.jobs=2", "start=true"), 300)
    assert code == 0, printed
    return folder, printed


def test_sweep_runs_every_cell_and_longer_ones_go_on_from_shorter_ones(swept: tuple[Path, str]):
    folder, printed = swept
    assert "4 of 4" in printed
    for size in ("d16-l1", "d32-l2"):
        short, long = summary(folder, f"{size}-2.56k-s0"), summary(folder, f"{size}-5.12k-s0")
        assert (short["status"], long["status"]) == ("finished", "finished")
        assert (short["branch"], long["branch"]["run"], long["branch"]["step"]) == (None, f"{size}-2.56k-s0", 8)
        assert (short["tokens_seen"], long["tokens_seen"]) == (2560, 5120)


def test_plan_is_kept_with_words_that_a_person_can_type(swept: tuple[Path, str]):
    plan = json.loads((swept[0] / "sweeps" / "tiny" / "plan.json").read_text())
    assert [cell["left_out"] for cell in plan["cells"]] == [None] * 4
    for cell in plan["cells"]:
        held = summary(swept[0], cell["run"])
        assert held["config_sha256"] == cell["config_sha256"]
        assert (held["flops_causal"], held["flops_full"]) == (cell["flops_causal"], cell["flops_full"])
        assert held["n_params_matmul"] == cell["n_params_matmul"]


def test_same_command_again_starts_nothing(swept: tuple[Path, str]):
    before = cpu_seconds_of_commands()
    code, printed = finish(sweep(swept[0], "start=true"))
    assert code == 0, printed
    assert "to do: 0 cells" in printed
    assert "start  " not in printed
    assert cpu_seconds_of_commands() - before < 20


def test_cells_of_another_configuration_are_refused_and_left_alone(swept: tuple[Path, str]):
    code, printed = finish(sweep(swept[0], "optimizer.beta2=0.9", "start=true"))
    assert code == 2
    assert "optimizer.beta2 0.95 → 0.9" in printed
    assert "choose another sweep.name" in printed


def test_another_choice_of_rows_is_told_and_the_one_before_is_kept(swept: tuple[Path, str]):
    code, printed = finish(sweep(swept[0], "fit.rows.min_tokens=3000", "start=true"))
    assert code == 0, printed
    assert "fit.rows.min_tokens 0.0 → 3000.0. plan.json keeps both" in printed
    code, printed = finish(sweep(swept[0], "fit.rows.min_tokens=3000", "start=true"))
    assert "plan.json keeps both" not in printed
    plan = json.loads((swept[0] / "sweeps" / "tiny" / "plan.json").read_text())
    assert [choice["fit"]["rows"]["min_tokens"] for choice in plan["fit_before"]] == [0.0]
    assert plan["fit"]["rows"]["min_tokens"] == 3000.0


def test_nothing_is_written_without_start(here: Path):
    code, printed = finish(sweep(here))
    assert code == 0, printed
    assert "nothing was started" in printed
    assert not (here / "sweeps").exists()


def test_plan_without_data_is_shown_with_what_lacks_and_is_not_started(tmp_path: Path):
    code, printed = finish(sweep(tmp_path))
    assert (code, "note: cannot be started yet: data/tiny holds no finished dataset" in printed) == (0, True), printed
    code, printed = finish(sweep(tmp_path, "start=true"))
    assert code not in (0, 1), printed
    assert not (tmp_path / "sweeps").exists()


def test_sweep_goes_on_past_cells_that_diverge_or_fail(here: Path):
    blocked = here / "sweeps" / "tiny" / "runs" / "d16-l1-5.12k-lr1-s0"
    blocked.mkdir(parents=True)
    (blocked / "checkpoints").write_text("in the way")
    words = (ONE_SIZE, "sweep.lr_factors=[1,1000000000000]", "sweep.branch=false", "sweep.jobs=2", "start=true")
    code, printed = finish(sweep(here, *words), 300)
    assert code == 1, printed
    assert summary(here, "d16-l1-2.56k-lr1-s0")["status"] == "finished"
    assert summary(here, "d16-l1-2.56k-lr1e12-s0")["status"] == "diverged"
    assert printed.count("DIVERGED") == 2
    assert "FAILED d16-l1-5.12k-lr1-s0: exit code" in printed
    (blocked / "checkpoints").unlink()
    code, printed = finish(sweep(here, *words), 300)
    assert code == 0, printed
    assert printed.count("start  ") == 1  # what diverged would diverge again


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_cells_of_a_sweep_that_is_ended_save_and_go_on(here: Path, number: signal.Signals, code: int):
    words = (ONE_SIZE, "sweep.tokens=[128000]", "log.every_steps=1000", "start=true")
    process = sweep(here, *words)
    cell = here / "sweeps" / "tiny" / "runs" / "d16-l1-128k-s0"
    _wait(lambda: (cell / "metrics.jsonl").exists() and len(rows_so_far(cell)) > 20)
    os.kill(process.pid, number)
    printed = finish(process)
    assert printed[0] == code, printed[1]
    _wait(lambda: (cell / "attempts" / "0001" / "ended.json").exists())
    saved = summary(here, "d16-l1-128k-s0")["step"]
    assert saved >= 20
    code, printed = finish(sweep(here, *words))
    assert code == 0, printed
    assert f"goes on at step {saved}" in printed
    steps = [row["step"] for row in rows(cell) if "loss" in row]
    assert steps == list(range(1, 501))
    assert summary(here, "d16-l1-128k-s0")["restarts"] == 1


def test_caps_leave_out_the_dearest_cells_and_name_them(here: Path):
    code, printed = finish(sweep(here, "sweep.max_device_hours=0.013"))
    assert code == 0
    assert "d32-l2-5.12k-s0" in printed
    assert "left out: " in printed
    assert "device-hours with those before, sweep.max_device_hours=0.013" in printed
    code, printed = finish(sweep(here, "sweep.max_usd=5"))
    assert (code, "sweep.max_usd=5.0 needs a price" in printed) == (2, True)


def rows_so_far(cell: Path) -> list[str]:
    return (cell / "metrics.jsonl").read_text().splitlines()


def _wait(until: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.1)
