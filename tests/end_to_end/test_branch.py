"""Runs that begin from a checkpoint of another one end with the numbers that they would have had alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.runs import curve, outcome, rows

STEP = 256
SHORT = ("schedule=wsd", f"total_tokens={20 * STEP}", "checkpoint.keep_steps=[16]")
LONG = ("schedule=wsd", f"total_tokens={40 * STEP}", "checkpoint={every_steps: 25, keep_steps: [32]}")
BRANCHED = (*LONG, "run.branch_from=runs/short")


def train(folder: Path, name: str, *words: str, ranks: int = 1) -> str:
    code, printed = outcome(folder, f"run.name={name}", *words, ranks=ranks)
    assert code == 0, printed
    return printed


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def weights(run: Path) -> dict[str, Any]:
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    return json.loads((newest / "manifest.json").read_text())["tensor_hashes"]


@pytest.fixture(scope="module")
def folder(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run, a longer one that goes on from it, and the longer one alone."""
    here = tmp_path_factory.mktemp("branches")
    (here / "data").symlink_to(workplace / "data")
    train(here, "short", *SHORT)
    train(here, "longer", *BRANCHED)
    train(here, "alone", *LONG)
    return here


def test_branch_ends_bit_for_bit_as_the_run_alone(folder: Path):
    assert curve(folder / "runs" / "longer") == curve(folder / "runs" / "alone")
    assert weights(folder / "runs" / "longer") == weights(folder / "runs" / "alone")


def test_branch_makes_only_the_steps_that_are_new(folder: Path):
    events = (folder / "runs" / "longer" / "events.jsonl").read_text()
    assert '"event": "branched", "origin": "runs/short", "step": 16' in events
    assert '"event": "first_step", "step": 17' in events


def test_totals_are_those_of_the_whole_run_and_what_it_shares_is_told(folder: Path):
    longer, alone, short = (summary(folder / "runs" / name) for name in ("longer", "alone", "short"))
    for key in ("tokens_seen", "flops_full", "flops_causal", "unique_tokens", "val_loss", "schedule_finished"):
        assert longer[key] == alone[key], key
    branch = longer["branch"]
    assert (branch["root"], branch["run"], branch["step"], branch["tokens"]) == ("short", "short", 16, 16 * STEP)
    first_rows = [row["seconds"] for row in rows(folder / "runs" / "short") if row["step"] <= 16 and "loss" in row]
    assert branch["device_hours"]["train"] == pytest.approx(sum(first_rows) / 3600, rel=0.01)
    assert longer["device_hours"]["train"] > branch["device_hours"]["train"]
    assert short["branch"] is None
    assert 0 < longer["effective_time_ratio"] <= 1


def test_chain_of_branches_knows_its_root_and_other_ranks_may_take_it_up(folder: Path):
    words = ("schedule=wsd", f"total_tokens={60 * STEP}")
    train(folder, "longest", *words, "run.branch_from=runs/longer", ranks=2)
    assert {key: summary(folder / "runs" / "longest")["branch"][key] for key in ("root", "run", "step")} == {
        "root": "short", "run": "longer", "step": 32,
    }  # fmt: skip


def test_branch_that_was_stopped_goes_on_from_its_own_checkpoint(folder: Path):
    train(folder, "stopped", *BRANCHED, "run.stop_at_step=22")
    moved = folder / "runs" / "gone"
    shutil.copytree(folder / "runs" / "short", moved)
    printed = train(folder, "stopped", *LONG, "run.branch_from=runs/nowhere")  # the other run is not needed any more
    assert "resumed at step 22" in printed
    assert "the first 16 steps are those of short" in printed
    assert curve(folder / "runs" / "stopped") == curve(folder / "runs" / "alone")
    assert summary(folder / "runs" / "stopped")["branch"]["step"] == 16


def test_first_run_may_be_removed_once_a_branch_has_begun(folder: Path):
    train(folder, "parent", *SHORT)
    train(folder, "child", *LONG, "run.branch_from=runs/parent", "run.stop_at_step=20")
    shutil.rmtree(folder / "runs" / "parent")
    train(folder, "child", *LONG, "run.branch_from=runs/parent")
    assert curve(folder / "runs" / "child") == curve(folder / "runs" / "alone")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("run.branch_from=runs/none",), "runs/none is not a run's folder"),
        (("run.branch_from=",), "run.branch_from is empty"),
        (("run.branch_from=runs/short", "run.seed=1"), "another run from its first step on: run.seed 0 → 1"),
        (("run.branch_from=runs/short", "optimizer.peak_lr=1e-3"), "optimizer.peak_lr 0.003 → 0.001"),
        (
            ("run.branch_from=runs/short", "schedule.warmup_tokens=1280"),
            "the learning rates differ from the first step on",
        ),
        (
            ("run.branch_from=runs/short", f"total_tokens={14 * STEP}"),
            "the same until step 11, and its checkpoints are of steps 16, 20: none of those can be begun from. "
            "Train that run with checkpoint.keep_steps=[11]",
        ),
        (("checkpoint.keep_steps=[41]",), "checkpoint.keep_steps=[41]: the run has 40 steps"),
        (("checkpoint.keep_steps=[3, 3]",), "must be different steps"),
    ],
)
def test_what_is_no_beginning_of_this_run_is_refused(folder: Path, words: tuple[str, ...], told: str):
    before = sorted(folder.glob("runs/*"))
    code, printed = outcome(folder, "run.name=refused", *LONG, *words)
    assert (code, told in printed) == (2, True), printed
    assert sorted(folder.glob("runs/*")) == before
