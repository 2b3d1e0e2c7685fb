"""A run whose data change on the way: nothing is repeated or dropped, and what cannot be is refused with numbers."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_prep.files import DataError
from tests.benchmarks.loader import large_manifest
from tests.train.sources import corpus_of, data_of, slots_of
from train.corpus import Corpus, load_corpora
from train.data_config import DataConfig, SourceConfig, WeightChange
from train.lineage import Phase, begin, over_the_cap, phase_at, rebased, refuse_other_data
from train.rows import PADDING, Packs, open_rows

QUIET = Packs(None, say=lambda _: None)
SEED = 7


def start(corpora: Sequence[Corpus], global_batch_size: int = 4, **keys) -> list[Phase]:
    data = data_of(corpora, **keys)
    return begin(data, global_batch_size, corpora, slots_of(corpora, data, QUIET))


def go_on(phases: list[Phase], step: int, corpora: Sequence[Corpus], global_batch_size: int = 4, **keys) -> list[Phase]:
    data = data_of(corpora, **keys)
    return rebased(phases, step, data, global_batch_size, corpora, slots_of(corpora, data, QUIET))


def weighted(corpus: Corpus, weight: float, max_epochs: float | None = None) -> Corpus:
    config = SourceConfig(corpus.config.folder, corpus.config.source, weight, max_epochs)
    return Corpus(corpus.name, config, corpus.manifest)


def targets_of(
    phases: list[Phase], corpora: Sequence[Corpus], first_step: int, last_step: int
) -> dict[str, Counter[int]]:
    """For each source (by digest) how often each position was the target of a prediction in these steps."""
    used: dict[str, Counter[int]] = {corpus.digest: Counter() for corpus in corpora}
    size = {corpus.digest: corpus.tokens("train") for corpus in corpora}
    for step in range(first_step, last_step):
        phase = phase_at(phases, step)
        rows = open_rows(phase, corpora, SEED, QUIET)
        first = phase.first_sample(step)
        for source, pieces in rows.pieces(np.arange(first, first + phase.global_batch_size, dtype=np.int64)):
            digest = phase.sources[source].digest
            for position, pairs in (piece for piece in pieces if piece[0] != PADDING):
                used[digest].update(((position + 1 + np.arange(pairs)) % size[digest]).tolist())
    return used


@pytest.fixture
def corpora(tmp_path: Path) -> list[Corpus]:
    a = corpus_of(tmp_path, "a", [[20, 31, 50], [99]], weight=3)
    b = corpus_of(tmp_path, "b", [[70, 11]], first_id=5000, weight=1)
    c = corpus_of(tmp_path, "c", [[64], [36]], first_id=9000, weight=2)
    return [a, b, c]


PLAN = [
    # (steps until the rebase, sources with weights, row length, batch size) of phase after phase
    (3, {"a": 3, "b": 1}, 8, 4),
    (4, {"a": 1, "b": 1, "c": 2}, 8, 4),
    (5, {"a": 1, "b": 2, "c": 2}, 12, 4),
    (2, {"a": 5, "c": 2}, 5, 6),
    (9, {"a": 1, "b": 1, "c": 1}, 16, 3),
]


def phases_by_plan(corpora: Sequence[Corpus], **keys) -> tuple[list[Phase], int]:
    by_name = {corpus.name: corpus for corpus in corpora}
    phases: list[Phase] = []
    step = 0
    for steps, weights, seq_len, batch in PLAN:
        chosen = [weighted(by_name[name], weight) for name, weight in weights.items()]
        if phases:
            phases = go_on(phases, step, chosen, batch, seq_len=seq_len, **keys)
        else:
            phases = start(chosen, batch, seq_len=seq_len, **keys)
        step += steps
    return phases, step


def test_a_rebase_never_changes_what_was_used_before_it(corpora: list[Corpus]):
    phases, _ = phases_by_plan(corpora)
    assert [phase.first_step for phase in phases] == [0, 3, 7, 12, 14]
    for n in range(1, len(phases)):
        border = phases[n].first_step
        assert targets_of(phases[:n], corpora, 0, border) == targets_of(phases, corpora, 0, border)


def test_across_rebases_every_token_is_a_target_exactly_once_an_epoch(corpora: list[Corpus]):
    """Sources added, weights, row length and batch size changed: every source is at every time used evenly, and no
    position is used twice before all were used once (a row may run into the next epoch by less than its length)."""
    phases, last = phases_by_plan(corpora)
    assert [source.name for source in phases[3].sources] == ["a", "c", "b"]  # b keeps its place while it rests
    for step in (7, 12, 14, last, last + 20):
        used = targets_of(phases, corpora, 0, step)
        consumed = dict(
            zip(
                [s.digest for s in phase_at(phases, step).sources],
                phase_at(phases, step).consumed_at(step),
                strict=True,
            )
        )
        for corpus in corpora:
            n, counts = corpus.tokens("train"), used[corpus.digest]
            assert sum(counts.values()) == consumed.get(corpus.digest, 0)
            epochs = consumed.get(corpus.digest, 0) // n
            below = sum(1 for position in range(n) if counts[position] < epochs)
            above = sum(counts[position] - epochs - 1 for position in range(n) if counts[position] > epochs + 1)
            assert below <= 16
            assert above <= 16


def test_an_epoch_that_a_rebase_cuts_through_is_finished_exactly(corpora: list[Corpus]):
    a = corpora[0]
    phases = go_on(start([a], 1, seq_len=8), 5, [a], 1, seq_len=12)
    border = phases[-1].sources[0].stretches[-1].begins
    assert border == 200  # 25 blocks of 8 are the epoch exactly
    rows = open_rows(phases[-1], corpora, SEED, QUIET).sources[0]
    assert rows is not None
    slots = rows.order.positions(np.arange(200 + 200, dtype=np.int64))
    assert sorted(slots[:200].tolist()) == list(range(200))
    assert Counter(slots.tolist()).most_common(1)[0][1] <= 3
    used = targets_of(phases, [a], 0, 21)  # 5 rows of 8 and 16 rows of 12 are 232 predictions
    assert min(used[a.digest][position] for position in range(200)) == 1


def test_best_fit_rows_change_their_length_without_loss(corpora: list[Corpus]):
    a = corpora[0]
    phases = go_on(start([a], 1, seq_len=16, packing="best_fit"), 4, [a], 1, seq_len=6, packing="best_fit")
    first = phases[0].sources[0].stretches[0]
    used = targets_of(phases, [a], 0, 4 + -(-(first.epoch_slots - 64) // 6))
    stream = a.stream("train")
    starts = set(stream.document_starts(0, 200).tolist())
    targets = [position for position in range(200) if position not in starts]
    assert {used[a.digest][position] for position in targets} <= {1, 2}
    assert not starts & used[a.digest].keys()
    assert sum(used[a.digest][position] - 1 for position in targets) <= 6


def test_the_error_of_the_quotas_stays_below_one_sample_in_each_phase(corpora: list[Corpus]):
    changes = [WeightChange(100, {"a": 1, "b": 4}), WeightChange(800, {"a": 0, "b": 1})]
    (phase,) = start(corpora[:2], seq_len=8, weight_schedule=changes)
    stages = [(0, 0.75), (13, 0.2), (100, 0.0)]  # 100 tokens are 12.5 rows of 8
    for n in range(200):
        share = sum(max(0, min(n, end) - first) * w for (first, w), end in zip(stages, (13, 100, 10**9), strict=True))
        assert abs(phase.mixture.counts(n)[0] - share) < 1


def test_phases_survive_json(corpora: list[Corpus]):
    import json

    phases, _ = phases_by_plan(corpora)
    again = [Phase.from_tree(json.loads(json.dumps(phase.to_tree()))) for phase in phases]
    assert again == phases


def test_a_rebase_to_what_is_already_there_changes_nothing(corpora: list[Corpus]):
    """So a command with data.rebase=true may be started again after a kill."""
    phases, last = phases_by_plan(corpora)
    _, weights, seq_len, batch = PLAN[-1]
    by_name = {corpus.name: corpus for corpus in corpora}
    chosen = [weighted(by_name[name], weight) for name, weight in weights.items()]
    assert go_on(phases, last + 3, chosen, batch, seq_len=seq_len) == phases


def test_another_packing_in_a_rebase_is_refused(corpora: list[Corpus]):
    with pytest.raises(DataError, match=r"data\.packing=best_fit cannot be taken up by a run that has used concat"):
        go_on(start(corpora, seq_len=8), 3, corpora, seq_len=8, packing="best_fit")


def test_other_data_under_a_run_are_refused(corpora: list[Corpus]):
    (phase,) = start(corpora[:2], seq_len=8)
    refuse_other_data(phase, corpora[:2], 3)
    with pytest.raises(
        DataError, match=r"not the dataset that this run has trained on until step 3.*data\.rebase=true"
    ):
        refuse_other_data(phase, corpora, 3)


def test_a_source_is_known_by_what_it_holds_not_by_its_name_or_folder(corpora: list[Corpus], tmp_path: Path):
    moved = corpus_of(tmp_path / "elsewhere", "renamed", [[20, 31, 50], [99]], weight=3)
    assert moved.digest == corpora[0].digest
    phases = go_on(start(corpora[:1], seq_len=8), 2, [moved, corpora[1]], seq_len=8)
    assert [source.consumed for source in phases[-1].sources] == [2 * 4 * 8, 0]


def test_a_run_that_would_read_a_source_too_often_is_refused_with_what_fits(corpora: list[Corpus]):
    a, b = weighted(corpora[0], 1), weighted(corpora[1], 1, max_epochs=2)
    (phase,) = start([a, b], seq_len=8)
    assert over_the_cap(phase, 10, SEED) == []  # 160 of 81 tokens
    (message,) = over_the_cap(phase, 20, SEED)
    for part in ("data.sources.b.max_epochs=2", "holds 81 tokens", "3.951 times", "40 of the 80 rows of 8"):
        assert part in message
    fits = int(message.split("total_tokens=")[1].split(",")[0].replace("_", ""))
    assert over_the_cap(phase, fits // 32, SEED) == []
    assert over_the_cap(phase, fits // 32 + 1, SEED) != []
    share = float(message.split("at most ")[1].split("%")[0]) / 100
    (lighter,) = start([weighted(a, 1 - round(share, 3)), weighted(b, round(share, 3), 2)], seq_len=8)
    assert over_the_cap(lighter, 20, SEED) == []


def test_a_phase_counts_what_earlier_ones_used_against_the_cap(corpora: list[Corpus]):
    a, b = weighted(corpora[0], 1), weighted(corpora[1], 1, max_epochs=2)
    phases = go_on(start([a, b], seq_len=8), 9, [a, weighted(b, 3, max_epochs=2)], seq_len=8)
    assert over_the_cap(phases[-1], 9, SEED) == []
    assert "2.667 times" in over_the_cap(phases[-1], 12, SEED)[0]


def test_two_sources_with_the_same_shard_are_refused(tmp_path: Path, corpora: list[Corpus]):
    import train.corpus

    with pytest.raises(DataError, match=r"a and twin both hold the tokens of train-0000000000000001"):
        train.corpus._refuse_overlap([*corpora, corpus_of(tmp_path, "twin", [[3], [99]], first_id=10 + 98)])


def test_a_label_that_no_shard_has_is_answered_with_those_there_are(tmp_path: Path):
    import train.corpus

    with pytest.raises(DataError, match=r"source=web is no source of .*a, which has: "):
        train.corpus._refuse_empty([corpus_of(tmp_path, "a", [[5]], source="web")])


def test_a_missing_dataset_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="holds no finished dataset"):
        load_corpora(data_of([corpus_of(tmp_path, "a", [[5]])]))


def test_only_a_process_that_looks_finds_a_shard_of_another_size(tmp_path: Path):
    folder = large_manifest(tmp_path, n_shards=3, tokens=30)
    data = DataConfig(folder=str(folder))
    file = min(folder.glob("*.bin"))
    file.write_bytes(b"")
    with pytest.raises(DataError, match=file.name):
        load_corpora(data)
    (corpus,) = load_corpora(data, look=False)
    with pytest.raises(
        DataError, match=rf"{file.name} is truncated: expected \d+ bytes, found 0"
    ):  # named all the same when it is opened
        corpus.stream("train").read(0, 30)


def corpora_of_size(*sizes: int) -> list[Corpus]:
    """Sources that hold so many tokens by their manifests; nothing is on disk."""
    shards = [SimpleNamespace(name=f"s{i}", tokens=n, bin_sha256=f"{i}", idx_sha256="") for i, n in enumerate(sizes)]
    return [
        Corpus(
            shard.name,
            SourceConfig(f"{shard.name}/"),
            SimpleNamespace(  # type: ignore[arg-type]
                tokenizer_sha256="k", shards_of=lambda split, source=None, own=shard: [own] if split == "train" else []
            ),
        )
        for shard in shards
    ]


def test_a_source_too_small_for_its_share_is_refused_with_both_shares():
    with pytest.raises(DataError) as error:
        start(corpora_of_size(10**12, 10**6, 150_000_000))
    for part in (
        "s1 holds 1_000_000",
        "a share of 1e-06",
        "become 0.0001",
        "100 times",
        "sources.s1.weight",
        "leave it",
    ):
        assert part in str(error.value)
    with pytest.raises(DataError, match=r"s1 .* 0\.667 times as often"):
        start(corpora_of_size(10**12, 150_000_000))
    for sizes in [(10**12, 1_010_000_000), (10**6,) * 3, (5 * 10**9, 7 * 10**10, 10**12)]:
        (phase,) = start(corpora_of_size(*sizes))
        weights = np.array(phase.schedule[0][1])
        assert np.allclose(weights / weights.sum(), np.array(sizes) / sum(sizes), rtol=0.05)
