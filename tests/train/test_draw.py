"""A run that sees only a part of its train split, and repeats it (`data.unique_tokens`): which rows, how often, and
what is refused. The permutation itself: test_order.py.
"""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conf.errors import ConfigError
from data_prep.files import DataError
from launch.plan import planned
from tests.runs import outcome, tiny
from tests.train.sources import corpus_of, rows_of
from tests.train.test_lineage import QUIET, SEED, go_on, start
from tests.train.test_trace import both_ways
from train.batch import solve_batch
from train.corpus import Corpus
from train.data import TrainBatches
from train.data_config import DataConfig, Packing, SourceConfig
from train.ledger import Once, balance, feed
from train.lineage import Phase, over_the_cap
from train.order import Order
from train.rows import open_rows
from train.trace import Trace

DOCUMENTS = [[20, 31, 1, 48], [99, 3]]  # 202 tokens: 25 whole rows of 8
ROW = 8


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return corpus_of(tmp_path, "a", DOCUMENTS)


def targets(corpus: Corpus, unique_tokens: int, n_rows: int, **keys: Any) -> dict[int, int]:
    """How often each position is predicted in the first rows of a run."""
    rows = rows_of([corpus], seed=SEED, seq_len=ROW, unique_tokens=unique_tokens, **keys)
    counts: dict[int, int] = {}
    for _, pieces in rows.pieces(np.arange(n_rows, dtype=np.int64)):
        for position, pairs in pieces:
            for target in range(position + 1, position + 1 + pairs):
                counts[target] = counts.get(target, 0) + 1
    return counts


@pytest.mark.parametrize("kept", [1, 3, 24, 25])
def test_every_epoch_predicts_the_same_tokens_once(corpus: Corpus, kept: int):
    once = targets(corpus, kept * ROW, kept)
    assert len(once) == kept * ROW
    assert max(once) <= 201  # none past the end of the source
    assert targets(corpus, kept * ROW, 5 * kept) == dict.fromkeys(once, 5)


def test_a_run_that_sees_less_sees_a_part_of_what_one_that_sees_more_does(corpus: Corpus):
    seen = [targets(corpus, kept * ROW, kept).keys() for kept in (1, 4, 9, 20)]
    assert all(smaller < larger for smaller, larger in itertools.pairwise(seen))


def test_what_a_step_holds_does_not_depend_on_the_layout_nor_on_the_steps_before_it(corpus: Corpus):
    def step(number: int, dp_size: int, micro: int) -> list[Any]:
        plan = solve_batch(
            global_batch_size=8, micro_batch_size=micro, dp_size=dp_size, seq_len=ROW, total_tokens=8 * ROW * 20
        )
        rows = rows_of([corpus], global_batch_size=8, seq_len=ROW, unique_tokens=12 * ROW, mask_documents=True)
        found = [b for rank in range(dp_size) for b in TrainBatches(rows, plan, rank).micro_batches(number)]
        return [row for batch in found for row in batch[0].tolist()]

    for number in (0, 1, 13):  # 8 of 12 rows each: most steps begin in the middle of an epoch
        expected = step(number, 1, 8)
        assert [step(number, dp, micro) for dp, micro in [(1, 1), (2, 2), (4, 1), (8, 1)]] == [expected] * 4


@pytest.mark.parametrize("kept", [1, 7, 25])
@pytest.mark.parametrize("mask", [False, True])
def test_batches_and_documents_are_traced_both_ways(corpus: Corpus, kept: int, mask: bool):
    phases = start([corpus], 3, seq_len=ROW, unique_tokens=kept * ROW, mask_documents=mask)
    both_ways(phases, [corpus], 30)


def test_a_document_that_is_not_drawn_has_no_place(corpus: Corpus):
    trace = Trace(start([corpus], 3, seq_len=ROW, unique_tokens=ROW), [corpus], SEED, QUIET, 50)
    shards = [(shard.name, number) for shard in corpus.manifest.shards for number in range(shard.documents)]
    used = [bool(trace.document(*document)) for document in shards]
    assert 0 < sum(used) < len(used)


def test_the_ledger_balances_and_finds_a_row_that_comes_twice(corpus: Corpus, monkeypatch: pytest.MonkeyPatch):
    phases = start([corpus], 2, seq_len=ROW, unique_tokens=10 * ROW)
    opened = [open_rows(phase, [corpus], SEED, QUIET) for phase in phases]
    log = [{"step": step, "loss": 1.0, **vars(fed)} for step, fed in feed(phases, opened, 24)]
    assert balance(log, 24, phases, opened, SEED).problems == []
    assert log[0]["batch_hash"] != log[5]["batch_hash"]  # the second epoch has an order of its own
    right = Order.positions

    def wrong(self: Order, consumed: Any) -> Any:
        positions = right(self, consumed)
        positions[consumed == 24] = right(self, consumed[consumed == 24] - 16)
        return positions

    monkeypatch.setattr(Order, "positions", wrong)
    once = Once(SEED)
    problems = [problem for _, _ in feed(phases, opened, 20, once) for problem in once.take_problems()]
    assert problems[0] == "uses a row of the source a a second time in epoch 0"
    assert any("before all rows" in problem for problem in problems)


def test_a_draw_survives_json_and_phases_that_know_of_none_are_read(corpus: Corpus):
    (phase,) = start([corpus], seq_len=ROW, unique_tokens=10 * ROW)
    assert Phase.from_tree(json.loads(json.dumps(phase.to_tree()))) == phase
    (plain,) = start([corpus], seq_len=ROW)
    tree = plain.to_tree()
    del tree["sources"][0]["stretches"][0]["drawn_from"]
    assert Phase.from_tree(tree) == plain


def test_a_cap_counts_epochs_of_what_the_run_sees(corpus: Corpus):
    config = SourceConfig(corpus.config.folder, max_epochs=3)
    (phase,) = start([dataclasses.replace(corpus, config=config)], 2, seq_len=ROW, unique_tokens=10 * ROW)
    assert over_the_cap(phase, 15, SEED) == []
    (message,) = over_the_cap(phase, 16, SEED)
    for part in ("holds 80 tokens", "read it 3.200 times", "total_tokens=240,"):
        assert part in message


def test_no_rebase_takes_a_run_out_of_its_draw(corpus: Corpus):
    phases = start([corpus], seq_len=ROW, unique_tokens=10 * ROW)
    with pytest.raises(DataError, match=r"data\.unique_tokens=80\).*data\.rebase=true cannot change it"):
        go_on(phases, 3, [corpus], seq_len=ROW)


TWO = {"a": SourceConfig("x", weight=1), "b": SourceConfig("y", weight=1)}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"unique_tokens": 0}, "unique_tokens=0 is less than one row of data.seq_len=32"),
        ({"unique_tokens": 31}, "unique_tokens=31 is less than one row of data.seq_len=32"),
        ({"unique_tokens": 100}, "no whole number of rows of data.seq_len=32; nearest are 96 and 128"),
        ({"folder": None, "sources": TWO}, "is drawn from one source, and data.sources has 2: a, b"),
        ({"packing": Packing.best_fit}, "does not go with data.packing=best_fit"),
        ({"rebase": True}, "does not go with data.rebase=true"),
    ],
)
def test_what_does_not_go_with_a_draw_is_refused(keys: dict[str, Any], expected: str):
    config = DataConfig(**{"folder": "x", "seq_len": 32, "unique_tokens": 64, **keys})
    (problem,) = config.problems()
    assert expected in problem


@pytest.mark.parametrize(("tokens", "most"), [(202, 200), (201, 200), (200, 192), (8, 0)])
def test_the_most_that_can_be_drawn_are_the_whole_rows_there_are(tokens: int, most: int):
    config = DataConfig("x", seq_len=ROW, unique_tokens=208)
    assert f"data.unique_tokens={most}, and null takes all" in config.too_many(tokens)[0]
    assert DataConfig("x", seq_len=ROW, unique_tokens=max(most, ROW)).too_many(max(tokens, 9)) == []


def test_more_than_there_is_is_refused_before_anything_is_started_or_planned(
    here: Path, monkeypatch: pytest.MonkeyPatch
):
    words = ("run.name=a", "data.unique_tokens=32_000_000")
    code, message = outcome(here, *words)
    assert (code, "data.unique_tokens=32_000_000 is more than there is" in message) == (2, True), message
    assert not (here / "runs").exists()
    monkeypatch.chdir(here)
    with pytest.raises(ConfigError, match="more than there is"):
        planned(tiny(*words))
    assert planned(tiny("run.name=a", "data.unique_tokens=6_400")).plan.epochs == 2
