"""Whole runs of deduplication on small corpora, against brute force over all pairs."""

import dataclasses
import hashlib
import pickle
import random
import re
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from data_prep.dedup import run
from data_prep.dedup.columns import writing
from data_prep.dedup.config import ExactDedup, MinHashDedup
from data_prep.dedup.plan import Plan, plan
from data_prep.dedup.resolve import Reason, State, mark_neighbours
from data_prep.dedup.run import Stage
from data_prep.dedup.sign import band_keys, factors_of, minima_of
from data_prep.dedup.words import grams
from data_prep.files import DataError

SURE = MinHashDedup(
    ngram=3, bands=24, rows=1, min_jaccard=0.5, max_source_loss=1, max_cluster_share=1, memory_bytes=1 << 26
)  # finds a pair of similarity 0.5 with probability 1 - 6e-8


@dataclass(frozen=True)
class Part:
    id: str
    documents: tuple[str, ...]
    source: str = "web"

    def texts(self) -> Iterator[bytes]:
        return (text.encode() for text in self.documents)

    @property
    def bytes(self) -> int:
        return sum(len(text.encode()) for text in self.documents)


def parts_of(texts: Sequence[str], n: int) -> list[Part]:
    """n slices of nearly equal length, in order."""
    cuts = [len(texts) * i // n for i in range(n + 1)]
    return [Part(f"{n:08x}{i:08x}", tuple(texts[cuts[i] : cuts[i + 1]])) for i in range(n)]


def do(made: Plan, stage: Stage, parts: Sequence[Part]) -> None:
    for job in run.jobs(made, stage, parts):
        if not job.finished():
            pickle.loads(pickle.dumps(job)).run(lambda n_bytes: None)
            assert job.finished()


def deduplicated(config: ExactDedup | MinHashDedup, parts: Sequence[Part], folder: Path) -> Plan:
    made = plan(config, parts, folder)
    for stage in run.stages(made):
        do(made, stage, parts)
    return made


def survivors(made: Plan, parts: Sequence[Part]) -> list[str]:
    kept: list[str] = []
    for part in parts:
        gone = run.removals(made, part.id)
        kept += [text for i, text in enumerate(part.documents) if i not in gone]
    return kept


def corpus(n: int, seed: int) -> list[str]:
    """Random texts, some with copies, and some with chains of edited versions."""
    draw = random.Random(seed)
    texts: list[str] = []
    while len(texts) < n:
        text = [f"w{draw.randrange(3000)}" for _ in range(draw.randrange(1, 60))]
        texts.append(" ".join(text))
        while draw.random() < 0.6:
            if draw.random() < 0.3:
                texts.append(texts[-1])
            else:
                for _ in range(draw.randrange(1, 5)):
                    text.insert(draw.randrange(len(text) + 1), f"w{draw.randrange(3000)}")
                texts.append(" ".join(text))
    draw.shuffle(texts)
    return texts[:n]


def true_jaccard(a: str, b: str, n: int) -> float:
    def shingles(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"[a-z0-9]+", text.lower())
        return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()

    one, two = shingles(a), shingles(b)
    return len(one & two) / len(one | two) if one and two else 0.0


def greedy(texts: Sequence[str], config: MinHashDedup) -> set[str]:
    """The definition: in order of rank, keep what is not similar to something kept. Ties of length by the same hash."""
    kept: list[str] = []
    digest = {text: hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts}
    for text in sorted(set(texts), key=lambda text: (-len(text.encode()), digest[text])):
        if all(true_jaccard(text, other, config.ngram) < config.min_jaccard for other in kept):
            kept.append(text)
    return set(kept)


# --- what stays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_what_stays_is_what_comparing_all_pairs_would_keep(seed: int, tmp_path: Path):
    texts = corpus(300, seed)
    expected = greedy(texts, SURE)
    assert len(expected) < 0.8 * len(set(texts))
    for n, config in ((1, SURE), (7, dataclasses.replace(SURE, memory_bytes=1 << 15))):
        parts = parts_of(texts, n)
        made = deduplicated(config, parts, tmp_path / str(n))
        assert sorted(survivors(made, parts)) == sorted(expected)


def test_order_of_files_and_number_of_slices_do_not_change_which_texts_stay(tmp_path: Path):
    config = dataclasses.replace(SURE, bands=6, rows=3, max_bucket=2)  # chance decides, but the same chance each time
    texts = corpus(300, 3)
    kept = []
    for i, n in enumerate((1, 4, 11)):
        parts = parts_of(texts, n)
        kept.append(sorted(survivors(deduplicated(config, parts, tmp_path / str(i)), parts)))
        random.Random(i).shuffle(texts)
    assert kept[0] == kept[1] == kept[2]


def test_whoever_goes_is_as_similar_as_said_to_one_that_stays(tmp_path: Path):
    parts = parts_of(corpus(300, 4), 5)
    made = deduplicated(SURE, parts, tmp_path)
    text_of = {(part.id, i): text for part in parts for i, text in enumerate(part.documents)}
    gone = {(part.id, i): why for part in parts for i, why in run.removals(made, part.id).items()}
    assert {why.reason for why in gone.values()} == set(Reason)
    for where, why in gone.items():
        assert (why.slice, why.document) not in gone
        similar = true_jaccard(text_of[where], text_of[why.slice, why.document], SURE.ngram)
        assert why.jaccard == pytest.approx(similar)
        assert similar >= SURE.min_jaccard


def test_there_are_no_chains(tmp_path: Path):
    words = [f"w{i}" for i in range(100)]
    texts = [" ".join(words[start : start + 40]) for start in (0, 10, 20, 30)]  # neighbours alone are similar
    assert true_jaccard(texts[0], texts[1], 3) > 0.5 > true_jaccard(texts[0], texts[2], 3)
    parts = parts_of([texts[0] + " end", *texts[1:3], texts[3] + " of it"], 2)
    kept = survivors(deduplicated(SURE, parts, tmp_path), parts)
    assert set(kept) == greedy([text for part in parts for text in part.documents], SURE)
    assert len(kept) == 2


def test_rounds_over_the_edges_give_the_sequential_result(tmp_path: Path):
    draw = np.random.default_rng(0)
    a, b = draw.integers(0, 2000, (2, 12_000))
    chain = np.arange(2000, 2300)  # as many rounds as it is long
    lower = np.concatenate([np.maximum(a, b)[a != b], chain[1:]])
    higher = np.concatenate([np.minimum(a, b)[a != b], chain[:-1]])
    with writing(tmp_path / "edges", {"runs": 1}) as out:
        for name, column in (("lower0", lower), ("higher0", higher), ("jaccard0", np.ones(len(lower)))):
            out.write(name, column)
    state = np.zeros(2300, np.uint8)
    mark_neighbours([tmp_path / "edges"], state, tmp_path)
    stays = np.ones(2300, np.bool_)
    for document in range(2300):
        stays[document] = not stays[higher[lower == document]].any()
    np.testing.assert_array_equal(state == State.kept, stays)


def test_exact_keeps_the_first_of_each_text(tmp_path: Path):
    texts = corpus(300, 5)
    parts = parts_of(texts, 6)
    made = deduplicated(ExactDedup(max_source_loss=1, memory_bytes=1 << 13), parts, tmp_path)
    assert survivors(made, parts) == list(dict.fromkeys(texts))


def test_documents_of_few_words(tmp_path: Path):
    parts = [Part("0" * 16, ("Hello, World!", "hello world", "!!!", "??? ...", "hello", "world hello", "!!!"))]
    made = deduplicated(SURE, parts, tmp_path)
    assert survivors(made, parts) == ["Hello, World!", "!!!", "??? ...", "hello", "world hello"]


def test_a_page_repeated_fifty_thousand_times_is_no_bucket(tmp_path: Path):
    page = " ".join(f"w{i}" for i in range(20))
    texts = [page] * 50_000 + corpus(20, 6)
    parts = parts_of(texts, 5)
    made = deduplicated(SURE, parts, tmp_path)
    kept = survivors(made, parts)
    assert kept.count(page) == 1
    assert set(kept) == greedy(texts, SURE)


def test_a_bucket_larger_than_memory_gives_the_same_as_in_memory(tmp_path: Path):
    base = [f"w{i}" for i in range(30)]
    texts = [" ".join([*base, f"x{i}", "y" * (i % 9)]) for i in range(600)]
    kept = []
    for name, memory in (("small", 1 << 16), ("large", 1 << 26)):  # 512 rows, or all
        parts = parts_of(texts, 3)
        config = dataclasses.replace(SURE, memory_bytes=memory, bands=3)
        kept.append(survivors(deduplicated(config, parts, tmp_path / name), parts))
    assert kept[0] == kept[1]
    assert len(kept[0]) < 100


# --- MinHash ---------------------------------------------------------------------------------------------------------


def pair_of(jaccard: float, draw: random.Random) -> tuple[str, str, float]:
    """Two texts of about that similarity over single words, and the true one."""
    size = draw.randrange(50, 200)
    common = round(2 * size * jaccard / (1 + jaccard))
    words = draw.sample(range(10**6), 2 * size - common)
    one, two = words[:size], words[size - common :]
    exact = common / len(words)
    return " ".join(f"w{w}" for w in one), " ".join(f"w{w}" for w in two), exact


@pytest.mark.parametrize("jaccard", [0.2, 0.5, 0.8])
def test_the_estimate_of_similarity_is_unbiased_with_binomial_error(jaccard: float):
    draw = random.Random(int(jaccard * 10))
    pairs = [pair_of(jaccard, draw) for _ in range(400)]
    texts = [text.encode() for one, two, _ in pairs for text in (one, two)]
    minima = np.concatenate([minima_of(block, factors_of(0, 112)) for block in grams(texts, 1)])
    agreed = (minima[0::2] == minima[1::2]).mean(axis=1)
    exact = np.array([exact for _, _, exact in pairs])
    deviation = (agreed - exact) / np.sqrt(exact * (1 - exact) / 112)
    assert abs(deviation.mean()) < 4 / np.sqrt(len(pairs))
    assert 0.85 < deviation.std() < 1.15


def test_recall_is_that_of_the_formula_and_of_datasketch():
    datasketch = pytest.importorskip("datasketch", reason="the oracle datasketch is not installed")
    draw = random.Random(0)
    config = MinHashDedup(ngram=1)
    pairs = [pair_of(0.72, draw) for _ in range(300)]
    texts = [text.encode() for one, two, _ in pairs for text in (one, two)]
    _, keys = band_keys(grams(texts, 1), config)
    ours = (keys[0::2] == keys[1::2]).any(axis=1)
    theirs = np.zeros(len(pairs), np.bool_)
    for i, pair in enumerate(pairs):
        index = datasketch.MinHashLSH(num_perm=112, params=(config.bands, config.rows))
        one, two = (datasketch.MinHash(num_perm=112, seed=i) for _ in range(2))
        one.update_batch([word.encode() for word in pair[0].split()])
        two.update_batch([word.encode() for word in pair[1].split()])
        index.insert("one", one)
        theirs[i] = bool(index.query(two))
    chance = np.array([config.chance(exact) for _, _, exact in pairs])
    error = np.sqrt((chance * (1 - chance)).sum())
    assert abs(ours.sum() - chance.sum()) < 4 * error
    assert abs(float(ours.sum()) - theirs.sum()) < 4 * np.sqrt(2) * error


def test_another_seed_draws_other_hash_functions():
    block = next(iter(grams([b"some words that are hashed"], 1)))
    assert not np.intersect1d(minima_of(block, factors_of(0, 50)), minima_of(block, factors_of(1, 50))).size


# --- resuming --------------------------------------------------------------------------------------------------------


def test_signatures_are_used_again_when_slices_are_added(tmp_path: Path):
    parts = parts_of(corpus(200, 7), 4)
    deduplicated(SURE, parts[:3], tmp_path)
    signed = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "signatures").iterdir()}
    made = plan(SURE, parts, tmp_path)
    assert [job.finished() for job in run.jobs(made, Stage.sign, parts)] == [True, True, True, False]
    grown = survivors(deduplicated(SURE, parts, tmp_path), parts)
    for name, modified in signed.items():
        assert (tmp_path / "signatures" / name).stat().st_mtime_ns == modified
    fresh = survivors(deduplicated(SURE, parts, tmp_path / "fresh"), parts)
    assert grown == fresh


@pytest.mark.parametrize("lost", list(Stage))
def test_a_run_that_was_killed_goes_on_from_what_is_whole(lost: Stage, tmp_path: Path):
    texts = corpus(200, 8)
    parts = parts_of(texts, 3)
    made = plan(SURE, parts, tmp_path)
    for stage in run.stages(made):
        do(made, stage, parts)
        if stage is lost:
            job = run.jobs(made, stage, parts)[-1]
            job.path.unlink()
            job.path.with_name(f".{job.path.name}.tmp1").write_bytes(b"half")
            break
    made = deduplicated(SURE, parts, tmp_path)
    assert set(survivors(made, parts)) == greedy(texts, SURE)


def test_nothing_is_said_before_all_is_done(tmp_path: Path):
    parts = parts_of(corpus(20, 9), 2)
    made = plan(SURE, parts, tmp_path)
    do(made, Stage.sign, parts)
    with pytest.raises(DataError, match="no finished deduplication"):
        run.removals(made, parts[0].id)


def test_what_lies_between_can_be_discarded(tmp_path: Path):
    parts = parts_of(corpus(100, 10), 2)
    made = deduplicated(SURE, parts, tmp_path)
    before = survivors(made, parts)
    run.discard_between(made)
    assert not made.path("shingle").exists()
    for stage in run.stages(made):
        assert all(job.finished() for job in run.jobs(made, stage, parts))
    assert survivors(made, parts) == before


# --- the brake -------------------------------------------------------------------------------------------------------


def test_the_brake_stops_when_a_source_all_but_vanishes(tmp_path: Path):
    page = " ".join(f"w{i}" for i in range(30))
    parts = [Part("a" * 16, tuple(corpus(50, 11)), "good"), Part("b" * 16, (page,) * 20, "bad")]
    config = dataclasses.replace(SURE, max_source_loss=0.7)
    with pytest.raises(DataError, match=r"source bad would lose 95\.0%.*max_source_loss=0\.7") as error:
        deduplicated(config, parts, tmp_path)
    assert "w0 w1 w2" in str(error.value)
    assert "document 0" in str(error.value)
    with pytest.raises(DataError, match="no finished"):
        run.removals(plan(config, parts, tmp_path), "b" * 16)


def test_a_raised_limit_goes_on_from_the_pairs_and_a_lowered_one_is_judged_again(tmp_path: Path):
    parts = [Part("b" * 16, ("one two three four",) * 20)]
    strict = dataclasses.replace(SURE, max_source_loss=0.7)
    with pytest.raises(DataError, match="would lose"):
        deduplicated(strict, parts, tmp_path)
    made = plan(SURE, parts, tmp_path)
    assert all(job.finished() for job in run.jobs(made, Stage.compare, parts))
    assert len(survivors(deduplicated(SURE, parts, tmp_path), parts)) == 1
    with pytest.raises(DataError, match="would lose"):
        deduplicated(strict, parts, tmp_path)


def test_the_brake_stops_at_an_enormous_cluster(tmp_path: Path):
    base = " ".join(f"w{i}" for i in range(40))
    texts = [f"{base} {i}" for i in range(150)] + [f"page {i} of its own kind, {i + 1}" for i in range(1000)]
    config = dataclasses.replace(SURE, bands=14, rows=8, min_jaccard=0.8, max_cluster_share=0.01)
    with pytest.raises(DataError, match=r"149 of 1,150 documents .*dedup\.max_cluster_share=0\.01"):
        deduplicated(config, parts_of(texts, 3), tmp_path)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_memory_of_matching_and_comparing_does_not_grow_with_the_corpus(tmp_path: Path):
    config = dataclasses.replace(SURE, bands=2, memory_bytes=1 << 16)
    peaks = []
    for n in (2, 8):
        parts = [Part(f"{i:016x}", tuple(corpus(1000, 100 + i))) for i in range(n)]
        made = plan(config, parts, tmp_path / str(n))
        do(made, Stage.sign, parts)
        do(made, Stage.catalog, parts)
        tracemalloc.start()
        for stage in (Stage.copies, Stage.match, Stage.shingle, Stage.compare):
            do(made, stage, parts)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_a_large_document_is_compared_in_bounded_memory(tmp_path: Path):
    draw = random.Random(1)
    words = [f"w{draw.randrange(50_000)}" for _ in range(100_000)]
    text = " ".join(words)
    edited = " ".join(words[:90_000])
    config = MinHashDedup(max_source_loss=1, memory_bytes=1 << 18)
    parts = [Part("1" * 16, (text,)), Part("2" * 16, (edited, "and another text of five words"))]
    made = plan(config, parts, tmp_path)
    for stage in (Stage.sign, Stage.catalog, Stage.copies, Stage.match):
        do(made, stage, parts)
    tracemalloc.start()
    do(made, Stage.shingle, parts)
    do(made, Stage.compare, parts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    do(made, Stage.resolve, parts)
    (why,) = run.removals(made, "2" * 16).values()
    assert why.jaccard == pytest.approx(true_jaccard(text, edited, 5))
    assert peak < 24 << 20  # some blocks of text
