"""What of a sweep is sent to Slurm, by what has become of its cells; Slurm's programs are stand-ins."""

import os
from pathlib import Path

import pytest

from launch.forecast import history
from launch.sweep.cells import Cell, cells
from launch.sweep.command import sweep
from launch.sweep.config import SweepConfig
from launch.sweep.states import state_of
from tests.launch.sweep.made import checkpoint, end
from tests.launch.sweep.words import sweep_of

WORDS = (
    "sweep.shapes=[{d_model: 16, n_layers: 1}, {d_model: 24, n_layers: 2, n_heads: 3, n_kv_heads: 1}, "
    "{d_model: 32, n_layers: 2}]",
    "sweep.tokens=[2560, 5120, 10240]",
    "sweep.held_out=[{d_model: 48, n_layers: 2, tokens: 5120}]",
    "fit={resamples: 40, rows: {min_tokens: 1}}",
    "submit=true",
)


@pytest.fixture
def config(here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> SweepConfig:
    programs = tmp_path_factory.mktemp("programs")
    answers = {"sbatch": 'echo 12; echo "$@" >>sent', "squeue": "true", "scontrol": "exit 1", "sinfo": "exit 1"}
    for name, answer in answers.items():
        (programs / name).write_text(f"#!/bin/sh\n{answer}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.chdir(here)
    return sweep_of(*WORDS)


def sent() -> dict[str, list[str]]:
    """Element → the cells that it trains."""
    files = sorted(Path("sweeps/tiny/slurm").glob("cells-*.sh"))
    return {
        file.stem: [line.split()[0].removeprefix("name=") for line in file.read_text().splitlines() if " from=" in line]
        for file in files
    }


def beginning(cell: str) -> str:
    (text,) = [file.read_text() for file in Path("sweeps/tiny/slurm").glob("cells-*.sh") if cell in file.read_text()]
    return text.split(f"name={cell} from=")[1].split("\n")[0].strip("'")


def finish_all(here: Path, found: list[Cell]) -> None:
    for cell in found:
        if state_of(cell).summary is None:
            end(here, cell)


def test_chains_are_sent_cheapest_first_and_held_out_runs_wait(
    here: Path, config: SweepConfig, capsys: pytest.CaptureFixture[str]
):
    assert sweep(config) == 0
    assert sent() == {
        f"cells-{i:04d}": [f"{size}-{tokens}-s0" for tokens in ("2.56k", "5.12k", "10.2k")]
        for i, size in enumerate(("d16-l1", "d24-l2", "d32-l2"))
    }
    assert beginning("d24-l2-5.12k-s0") == "d24-l2-2.56k-s0"
    assert "held-out runs come after these: the same command again" in capsys.readouterr().out
    assert not Path("sweeps/tiny/forecasts").exists()


def test_only_what_is_left_is_sent_and_begins_from_what_there_is(here: Path, config: SweepConfig):
    found = {cell.name: cell for cell in cells(config)[0]}
    end(here, found["d16-l1-2.56k-s0"])
    checkpoint(here, found["d16-l1-2.56k-s0"], 8)
    end(here, found["d24-l2-2.56k-s0"])  # and kept nothing
    end(here, found["d32-l2-2.56k-s0"], "diverged", 4)
    assert sweep(config) == 0
    assert sent() == {
        "cells-0000": ["d16-l1-5.12k-s0", "d16-l1-10.2k-s0"],
        "cells-0001": ["d24-l2-5.12k-s0", "d24-l2-10.2k-s0"],
    }
    assert [beginning(f"{size}-5.12k-s0") for size in ("d16-l1", "d24-l2")] == ["d16-l1-2.56k-s0", ""]


def test_held_out_run_is_foretold_and_sent_when_nothing_else_can_still_run(here: Path, config: SweepConfig):
    found = cells(config)[0]
    others = [cell for cell in found if not cell.held_out]
    lost = next(cell for cell in others if cell.name == "d32-l2-2.56k-s0")
    end(here, lost, "diverged", 4)
    finish_all(here, [cell for cell in others if cell.config.model.d_model < 32])
    more = sweep_of(*WORDS, "sweep.shapes=[{d_model: 16, n_layers: 1}, {d_model: 20, n_layers: 1, n_heads: 2}, "
        "{d_model: 24, n_layers: 2, n_heads: 3, n_kv_heads: 1}, {d_model: 32, n_layers: 2}]")  # fmt: skip
    finish_all(here, [cell for cell in cells(more)[0] if not cell.held_out and cell.config.model.d_model < 32])
    assert sweep(more) == 0
    assert sent() == {"cells-0000": ["d48-l2-5.12k-s0-held-out"]}
    ((forecast, score),) = history(Path("sweeps/tiny"))
    assert (forecast.run, len(forecast.rows), score) == ("d48-l2-5.12k-s0-held-out", 9, None)


def test_held_out_run_that_cannot_be_foretold_is_not_sent(
    here: Path, config: SweepConfig, capsys: pytest.CaptureFixture[str]
):
    for cell in cells(config)[0]:
        if not cell.held_out:
            end(here, cell, "diverged", 4)
    assert sweep(config) == 1
    assert "not sent: d48-l2-5.12k-s0-held-out: " in capsys.readouterr().out
    assert not Path("sent").exists()
