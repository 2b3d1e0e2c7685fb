"""What cells will cost, from those that have ended."""

from typing import Any

import pytest

from launch.sweep.cells import Cell, cells
from launch.sweep.costs import costs, measured, own_device_hours
from tests.launch.sweep.words import sweep_of

FIXED, PER_FLOP, ASIDE = 0.02, 3e-9, 12.0


def made(*words: str) -> list[Cell]:
    return cells(sweep_of("sweep.tokens=[2560,5120,10240]", *words))[0]


def ended(cell: Cell) -> dict[str, Any]:
    """A summary as the cell would leave it on a machine of those speeds."""
    per_step = FIXED + PER_FLOP * cell.flops_causal / cell.steps
    shared = {"train": per_step * cell.shared_steps / 3600, "eval": 0.0, "checkpoint": 0.0, "idle": 5 / 3600}
    own = {"train": per_step * cell.own_steps / 3600, "eval": 2 / 3600, "checkpoint": 1 / 3600, "idle": 9 / 3600}
    return {
        "status": "finished",
        "step": cell.steps,
        "config_sha256": cell.sha256,
        "n_devices": 1,
        "device_hours": {key: own[key] + shared[key] for key in own},
        "branch": None if cell.parent is None else {"device_hours": shared},
    } if cell.parent is not None else {
        "status": "finished", "step": cell.steps, "config_sha256": cell.sha256, "n_devices": 1,
        "device_hours": own, "branch": None,
    }  # fmt: skip


def test_speeds_are_found_again_from_cells_that_have_ended():
    found = made()
    known = {cell.name: ended(cell) for cell in found[:4]}
    rates = measured(found, known)
    assert rates is not None
    assert (rates.seconds, rates.seconds_per_flop) == (pytest.approx(FIXED), pytest.approx(PER_FLOP))
    assert rates.aside_seconds == pytest.approx(ASIDE)
    for cell in found:
        per_step = FIXED + PER_FLOP * cell.flops_causal / cell.steps
        cost = costs(found, known)[cell.name]
        assert cost.seconds == pytest.approx(cell.own_steps * per_step + ASIDE)
        assert cost.device_hours == pytest.approx(cost.seconds / 3600)
        assert cost.source == "as 4 finished cells"


def test_one_cell_tells_the_speed_of_all_in_proportion_to_their_work():
    found = made()
    rates = measured(found, {found[0].name: ended(found[0])})
    assert rates is not None
    assert (rates.seconds, rates.n_cells) == (0.0, 1)


def test_cells_of_another_configuration_tell_nothing():
    found = made()
    strange = ended(found[0]) | {"config_sha256": "other"}
    assert measured(found, {found[0].name: strange}) is None
    assert costs(found, {})[found[0].name].source == "at an assumed MFU of 40%"


def test_what_a_run_shares_is_paid_once():
    found = made()
    branched = next(cell for cell in found if cell.parent)
    assert own_device_hours(ended(branched)) == pytest.approx(
        (branched.own_steps * (FIXED + PER_FLOP * branched.flops_causal / branched.steps) + ASIDE) / 3600
    )


def test_two_ranks_share_the_work_of_a_held_out_run():
    words = ("sweep.jobs=2", "sweep.held_out=[{d_model: 64, n_layers: 2, tokens: 5120}]")
    *others, last = made(*words)
    cost = costs([*others, last], {cell.name: ended(cell) for cell in others})[last.name]
    per_step = FIXED + PER_FLOP * last.flops_causal / last.steps / 2
    assert cost.seconds == pytest.approx(last.steps * per_step + ASIDE)
    assert cost.device_hours == pytest.approx(2 * cost.seconds / 3600)
