"""The ledger finds every way in which a log can differ from what the run must have been fed."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.train.sources import corpus_of
from tests.train.test_lineage import QUIET, SEED, go_on, start
from train.ledger import Ledger, Once, balance, feed
from train.order import Order
from train.rows import open_rows

Row = dict[str, Any]
STEPS = 24


@pytest.fixture(scope="module", params=["concat", "best_fit"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(log, phases, opened rows) of a run of two sources over several epochs, with a rebase to other rows on the
    way."""
    folder = tmp_path_factory.mktemp("sources")
    a = corpus_of(folder, "a", [[20, 31, 1], [9, 3]], weight=3)
    b = corpus_of(folder, "b", [[20], [11]], first_id=5000, weight=1)
    phases = start([a, b], 3, seq_len=8, packing=request.param)
    phases = go_on(phases, 10, [a, b], 2, seq_len=5, packing=request.param)
    opened = [open_rows(phase, [a, b], SEED, QUIET) for phase in phases]
    log = [{"step": step, "loss": 1.0, **vars(fed)} for step, fed in feed(phases, opened, STEPS)]
    return log, phases, opened


def judge(run: Any, change: Callable[[list[Row]], object], saved_step: int = 0) -> Ledger:
    log, phases, opened = run
    rows = copy.deepcopy(log)
    change(rows)
    return balance(rows, saved_step, phases, opened, SEED)


def test_a_run_that_was_fed_right_balances(run: Any):
    ledger = judge(run, lambda rows: None)
    assert ledger.problems == []
    assert (ledger.steps, ledger.tokens) == (STEPS, 10 * 24 + 14 * 10)
    assert (ledger.tokens_lost, ledger.tokens_repeated, ledger.tokens_other) == (0, 0, 0)


def test_evaluations_and_times_are_no_part_of_the_ledger(run: Any):
    assert judge(run, lambda rows: rows.insert(20, {"step": 20, "val_loss": 1.0})).balances


def test_a_missing_step_is_named_and_its_tokens_are_lost(run: Any):
    ledger = judge(run, lambda rows: rows.pop(4))
    assert ledger.problems == [(5, "is not in metrics.jsonl")]
    assert ledger.tokens_lost == 24


def test_a_log_that_ends_before_the_newest_checkpoint_lacks_steps(run: Any):
    ledger = judge(run, lambda rows: rows.pop(), saved_step=STEPS)
    assert ledger.problems == [(STEPS, "is not in metrics.jsonl")]


def test_a_double_step_is_named_and_its_tokens_are_repeated(run: Any):
    ledger = judge(run, lambda rows: rows.insert(5, rows[4]))
    assert ledger.problems == [(5, "is in metrics.jsonl 2 times")]
    assert ledger.tokens_repeated == 24


def test_steps_out_of_order_are_named(run: Any):
    ledger = judge(run, lambda rows: rows.insert(9, rows.pop(4)))
    assert ledger.problems == [(5, "comes after step 10")]


@pytest.mark.parametrize(("key", "value"), [("batch_hash", "0" * 16), ("n_targets", 1), ("tokens_seen", 7)])
def test_other_data_are_found_at_their_step(run: Any, key: str, value: object):
    ledger = judge(run, lambda rows: rows[15].update({key: value}))
    ((step, problem),) = ledger.problems
    assert (step, f"{key} is {value}, not " in problem, ledger.tokens_other) == (16, True, 10)


def test_two_steps_that_changed_places_are_found(run: Any):
    def swap(rows: list[Row]) -> None:
        rows[3]["batch_hash"], rows[7]["batch_hash"] = rows[7]["batch_hash"], rows[3]["batch_hash"]

    assert [step for step, _ in judge(run, swap).problems] == [4, 8]


def test_another_use_of_a_source_is_found(run: Any):
    ledger = judge(run, lambda rows: rows[6]["source_tokens"].update(b=0))
    assert "source_tokens of b is 0" in ledger.problems[0][1]


def test_a_step_without_a_hash_proves_nothing(run: Any):
    assert "has no batch_hash" in judge(run, lambda rows: rows[6].pop("batch_hash")).problems[0][1]


def test_skipped_steps_are_counted_and_balance(run: Any):
    def skip(rows: list[Row]) -> None:
        rows[6] = {"step": 7, "skipped": "loss 1e9", "tokens_seen": rows[6]["tokens_seen"]}

    ledger = judge(run, skip)
    assert (ledger.balances, ledger.skipped) == (True, [(7, "loss 1e9")])


def test_an_order_that_repeats_a_row_in_an_epoch_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever the log says: the order itself is counted."""
    corpus = corpus_of(tmp_path, "a", [[100]])
    phases = start([corpus], 2, seq_len=8)
    opened = [open_rows(phase, [corpus], SEED, QUIET) for phase in phases]
    right = Order.positions

    def wrong(self: Order, consumed: Any) -> Any:
        positions = right(self, consumed)
        positions[consumed == 24] = right(self, consumed[consumed == 24] - 16)
        return positions

    monkeypatch.setattr(Order, "positions", wrong)
    once = Once(SEED)
    problems = [(step, problem) for step, _ in feed(phases, opened, 20, once) for problem in once.take_problems()]
    assert problems[0] == (2, "uses a row of the source a a second time in epoch 0")
    assert any("before all rows" in problem for _, problem in problems)


def test_a_source_that_is_left_behind_or_read_ahead_is_found(tmp_path: Path):
    corpus = corpus_of(tmp_path, "a", [[100]])
    (phase,) = start([corpus], 2, seq_len=8)
    import numpy as np

    once = Once(SEED)
    once.take(phase, np.array([0, 1]))
    once.take(phase, np.array([3, 4]))
    assert once.take_problems() == ["leaves out or repeats rows of the source a"]
