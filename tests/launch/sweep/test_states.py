"""Which beginning a cell has or can still have, by what lies in the folders of a sweep, and what that costs."""

from pathlib import Path

import pytest

from launch.sweep.cells import Cell, cells
from launch.sweep.command import beyond_caps
from launch.sweep.costs import Cost, costs, measured
from launch.sweep.states import Become, lost, state_of, with_beginnings
from tests.launch.sweep.made import checkpoint, end
from tests.launch.sweep.words import sweep_of

ONE_SIZE = "sweep.shapes=[{d_model: 16, n_layers: 1}]"
THREE = "sweep.tokens=[2560, 5120, 10240]"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def chain(*words: str) -> list[Cell]:
    return sorted(cells(sweep_of(ONE_SIZE, THREE, *words))[0], key=lambda cell: cell.steps)


def beginnings(found: list[Cell]) -> tuple[list[tuple[str | None, int]], list[str]]:
    made, notes = with_beginnings(found, {cell.name: state_of(cell) for cell in found})
    for cell in made:
        parent = cell.parent and f"sweeps/tiny/runs/{cell.parent}"
        assert cell.config.run.branch_from == parent
        assert cell.own_steps == cell.steps - cell.shared_steps
    return [(cell.parent, cell.shared_steps) for cell in made], notes


def test_new_cells_wait_for_the_beginnings_that_were_planned(tmp_path: Path):
    short, middle, long = chain()
    as_planned = [(None, 0), (short.name, 8), (middle.name, 16)]
    assert beginnings([short, middle, long]) == (as_planned, [])
    end(tmp_path, short)
    checkpoint(tmp_path, short, 8)
    assert beginnings([short, middle, long]) == (as_planned, [])


def test_longer_cell_that_is_added_later_begins_from_what_its_chain_has_kept(tmp_path: Path):
    short, middle, long = chain()
    end(tmp_path, short)
    checkpoint(tmp_path, short, 8)
    end(tmp_path, middle, branch={"run": short.name, "root": short.name, "step": 8, "device_hours": {}})
    checkpoint(tmp_path, middle, 20)  # its last, after the cooldown; of step 16 it kept none
    found, notes = beginnings([short, middle, long])
    assert found == [(None, 0), (short.name, 8), (short.name, 8)]
    assert notes == [f"{long.name} begins from step 8 of {short.name}: {middle.name} has no checkpoint of step 16"]


def test_cell_begins_by_itself_where_nothing_was_kept_and_keeps_its_configuration(tmp_path: Path):
    short, middle, long = chain()
    end(tmp_path, short)
    found, notes = beginnings([short, middle])
    assert found == [(None, 0), (None, 0)]
    assert notes == [f"{middle.name} begins by itself: {short.name} has no checkpoint of step 8"]
    trio = [short, middle, long]
    made = with_beginnings(trio, {cell.name: state_of(cell) for cell in trio})[0]
    assert [cell.sha256 for cell in made] == [cell.sha256 for cell in trio]
    assert [cell.root for cell in made] == [short.name, middle.name, middle.name]


@pytest.mark.parametrize(("saved", "parent"), [(5, True), (9, False)])
def test_partial_run_that_has_yet_to_come_to_the_place_is_waited_for(tmp_path: Path, saved: int, parent: bool):
    short, middle, _ = chain()
    end(tmp_path, short, "preempted", saved)
    checkpoint(tmp_path, short, saved)
    (_, begins), _ = beginnings([short, middle])
    assert begins == ((short.name, 8) if parent else (None, 0))


def test_finished_cell_has_the_beginning_that_it_had(tmp_path: Path):
    """A length added between two others changes the plan, not what was done: speeds are told by its own steps."""
    short, middle, long = chain()
    shared = {"train": 0.1, "eval": 0.0, "checkpoint": 0.0, "idle": 0.0}
    end(
        tmp_path, long, device_hours=shared | {"train": 0.5},
        branch={"run": short.name, "root": short.name, "step": 8, "device_hours": shared},
    )  # fmt: skip
    assert beginnings([short, middle, long])[0][2] == (short.name, 8)
    found = [short, middle, long]
    states = {cell.name: state_of(cell) for cell in found}
    made, _ = with_beginnings(found, states)
    rates = measured(made, {long.name: states[long.name].summary or {}})
    assert rates is not None
    per_step = rates.seconds + rates.seconds_per_flop * long.flops_causal / long.steps
    assert per_step == pytest.approx(0.4 * 3600 / (40 - 8))


def test_cells_that_would_diverge_as_their_beginning_did_are_lost_and_no_others(tmp_path: Path):
    short, middle, long = chain()
    found = [short, middle, long]
    end(tmp_path, short, "diverged", 4)
    (tmp_path / short.folder / "metrics.jsonl").write_text('{"step": 4, "loss": 9.0}\n')
    assert beginnings(found) == ([(None, 0), (short.name, 8), (middle.name, 16)], [])
    states = {cell.name: state_of(cell) for cell in found}
    why = f"its first 8 steps are those of {short.name}, which diverged at step 4"
    assert lost(found, states) == {middle.name: why, long.name: why}
    checkpoint(tmp_path, short, 8)  # it diverged in its cooldown
    assert lost(found, states) == {}


def test_failed_runs_take_no_cell_along(tmp_path: Path):
    short, middle, long = chain()
    end(tmp_path, short, "failed", 4)
    states = {cell.name: state_of(cell) for cell in (short, middle, long)}
    assert states[short.name].become == Become.failed
    assert lost([short, middle, long], states) == {}


# --- caps ------------------------------------------------------------------------------------------------------------


def priced(found: list[Cell], hours: float) -> dict[str, Cost]:
    return {cell.name: Cost(hours * 3600, hours, None, "as said") for cell in found}


def left_out(found: list[Cell], cap: float) -> list[str]:
    config = sweep_of(f"sweep.max_device_hours={cap}")
    states = {cell.name: state_of(cell) for cell in found}
    return list(beyond_caps(config, found, priced(found, 1.0), states))


def test_caps_count_what_was_spent_and_of_a_partial_cell_what_is_left(tmp_path: Path):
    found = chain("sweep.branch=false")
    short, middle, long = found
    assert left_out(found, 2.5) == [long.name]
    spent = {"train": 0.2, "eval": 0.0, "checkpoint": 0.0, "idle": 0.0}
    end(tmp_path, short, device_hours=spent)  # a fifth of what was expected
    assert left_out(found, 2.1) == [long.name]
    assert left_out(found, 2.3) == []
    end(tmp_path, middle, "preempted", 15, device_hours=spent | {"train": 0.9})  # 15 of its 20 steps
    assert left_out(found, 0.2 + 0.9 + 0.25 + 1.1) == []
    assert left_out(found, 0.2 + 0.9 + 0.25 + 0.9) == [long.name]


def test_what_was_spent_beyond_the_cap_counts_for_cells_after_it(tmp_path: Path):
    found = chain("sweep.branch=false")
    spent = {"train": 5.0, "eval": 0.0, "checkpoint": 0.0, "idle": 0.0}
    end(tmp_path, found[0], "preempted", 5, device_hours=spent)
    assert left_out(found, 3.0) == [cell.name for cell in found]


def test_cell_goes_with_its_beginning_though_it_costs_less_itself():
    found = cells(sweep_of(ONE_SIZE, "sweep.tokens=[5120, 5632]"))[0]
    assert [cell.steps for cell in found] == [22, 20]  # the longer one makes few steps of its own
    expected = costs(found, {})
    config = sweep_of(f"sweep.max_device_hours={expected[found[0].name].device_hours * 1.01}")
    kept_out = beyond_caps(config, found, expected, {cell.name: state_of(cell) for cell in found})
    assert kept_out.keys() == {cell.name for cell in found}
    assert kept_out[found[0].name] == f"its beginning, {found[1].name}, is left out"
