"""Batch to documents and documents to batches are inverse, for every packing, across epochs and phases."""

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from data_prep.files import DataError
from tests.train.sources import corpus_of
from tests.train.test_lineage import QUIET, SEED, go_on, phases_by_plan, start
from train.corpus import Corpus
from train.lineage import Phase
from train.trace import Trace, TraceCommand


@pytest.fixture
def corpora(tmp_path: Path) -> list[Corpus]:
    a = corpus_of(tmp_path, "a", [[20, 31, 1, 48], [99, 3]], weight=3)
    b = corpus_of(tmp_path, "b", [[70], [11]], first_id=5000, weight=1)
    c = corpus_of(tmp_path, "c", [[64], [36], [7, 7]], first_id=9000, weight=2)
    return [a, b, c]


def both_ways(phases: Sequence[Phase], corpora: Sequence[Corpus], n_steps: int) -> None:
    trace = Trace(phases, corpora, SEED, QUIET, n_steps)
    forwards: dict[tuple[str, str, int], set] = defaultdict(set)
    for step in range(1, n_steps + 1):
        for use in trace.step(step):
            passage = use.passage
            forwards[use.digest, passage.shard, passage.document] |= {
                (use.step, use.row, use.position + i, passage.first + i) for i in range(passage.tokens)
            }
    for corpus in corpora:
        for shard in corpus.manifest.shards:
            for number in range(shard.documents):
                uses = trace.document(shard.name, number)
                assert [(u.step, u.row, u.position) for u in uses] == sorted((u.step, u.row, u.position) for u in uses)
                mine = [use for use in uses if use.digest == corpus.digest]  # sources may have shards of one name
                backwards = {
                    (u.step, u.row, u.position + i, u.passage.first + i) for u in mine for i in range(u.passage.tokens)
                }
                assert backwards == forwards[corpus.digest, shard.name, number]
                assert sum(u.passage.tokens for u in mine) == len(backwards)


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
@pytest.mark.parametrize("seq_len", [8, 13])
def test_one_source_is_traced_both_ways(corpora: list[Corpus], packing: str, seq_len: int):
    both_ways(start(corpora[:1], seq_len=seq_len, packing=packing), corpora[:1], 30)


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_a_mixture_is_traced_both_ways_across_rebases(corpora: list[Corpus], packing: str):
    phases, last = phases_by_plan(corpora, packing=packing)
    both_ways(phases, corpora, last + 15)


def test_a_rebase_on_the_border_of_an_epoch_is_traced(corpora: list[Corpus]):
    a = corpora[0]
    phases = start([a], 1, seq_len=2)
    both_ways(go_on(phases, 101, [a], 1, seq_len=7), [a], 150)
    both_ways(go_on(go_on(phases, 30, [a], 1, seq_len=7), 40, [a], 1, seq_len=3), [a], 200)


def test_what_the_run_does_not_have_is_said(corpora: list[Corpus]):
    trace = Trace(start(corpora, seq_len=8), corpora, SEED, QUIET, 10)
    with pytest.raises(DataError, match=r"steps 1 \.\.\. 10; 11 is none"):
        list(trace.step(11))
    with pytest.raises(DataError, match="holds a shard nothing"):
        trace.document("nothing", 0)
    with pytest.raises(DataError, match=r"holds documents 0 .*; 4 is none"):
        trace.document(corpora[0].manifest.shards[0].name, 4)


def test_a_document_of_a_long_run_is_found_at_once(tmp_path: Path):
    corpus = corpus_of(tmp_path, "a", [[500] * 2000])
    trace = Trace(start([corpus], 256, seq_len=64), [corpus], SEED, QUIET, 1000)  # 16 million tokens, 16 epochs
    started = time.process_time()
    uses = trace.document(corpus.manifest.shards[0].name, 1234)
    assert time.process_time() - started < 1  # a hundredth of it on an idle core
    assert sum(use.passage.tokens for use in uses) == pytest.approx(500 * 16.4, rel=0.05)


@pytest.mark.parametrize(
    "keys", [{}, {"step": 1, "document": "a:1"}, {"step": 0}, {"document": "a"}, {"document": "a:x"}]
)
def test_a_question_that_cannot_be_answered_is_refused(keys: dict):
    assert TraceCommand("runs/x", **keys).problems()
