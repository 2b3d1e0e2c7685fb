"""Quotas are exact for every prefix, across changes of the weights, and every sample is found in constant time."""

import math
import random
import time
from fractions import Fraction

import numpy as np
import pytest

from train.mixture import LONGEST_PERIOD, Mixture, Stage, in_proportion, integer_weights


def random_stages(rng: random.Random) -> list[Stage]:
    k, first, stages = rng.randint(1, 7), 0, []
    for _ in range(rng.randint(1, 4)):
        weights = [rng.choice([0, 1, 1, 2, 3, 5, 11, 17]) for _ in range(k)]
        weights[rng.randrange(k)] += 1
        divisor = math.gcd(*weights)
        stages.append(Stage(first, tuple(weight // divisor for weight in weights)))
        first += rng.randint(1, 300)
    return stages


def by_counting(stages: list[Stage], sources: np.ndarray) -> tuple[Fraction, list[list[int]]]:
    """(largest error of any source over all prefixes, samples of each source in order)."""
    k = len(stages[0].weights)
    shares, found, worst = [Fraction(0)] * k, [[] for _ in range(k)], Fraction(0)
    for sample, source in enumerate(sources.tolist()):
        stage = [stage for stage in stages if stage.first_sample <= sample][-1]
        found[source].append(sample)
        for i in range(k):
            shares[i] += Fraction(stage.weights[i], stage.period)
            worst = max(worst, abs(len(found[i]) - shares[i]))
    return worst, found


@pytest.mark.parametrize("seed", range(40))
def test_every_source_has_its_share_of_every_prefix_to_less_than_one_sample(seed: int):
    stages = random_stages(random.Random(seed))
    mixture, n = Mixture(stages), stages[-1].first_sample + 200
    sources, indices = mixture.locate(np.arange(n, dtype=np.int64))
    worst, samples = by_counting(stages, sources)
    assert worst < 1
    for i, mine in enumerate(samples):
        assert indices[mine].tolist() == list(range(len(mine)))  # none is left out, none comes twice
        assert mixture.sample_of(i, np.arange(len(mine), dtype=np.int64)).tolist() == mine
    for prefix in (0, 1, n // 3, n):
        assert mixture.counts(prefix).tolist() == [int((sources[:prefix] == i).sum()) for i in range(len(samples))]


def test_a_sample_far_out_is_found_without_those_before_it():
    stages = [Stage(0, (3333, 3334, 3333)), Stage(10**9 + 7, (1, 2, 9997)), Stage(10**11 + 1, (0, 1, 1))]
    started = time.process_time()
    mixture = Mixture(stages)
    assert time.process_time() - started < 2
    samples = np.arange(10**12, 10**12 + 1000, dtype=np.int64)
    sources, indices = mixture.locate(samples)
    exact = [
        Fraction(10**9 + 7) * Fraction(stages[0].weights[i], 10_000)
        + Fraction(10**11 - 10**9 - 6) * Fraction(stages[1].weights[i], 10_000)
        + Fraction(10**12 - 10**11 - 1) * Fraction(stages[2].weights[i], 2)
        for i in range(3)
    ]
    assert all(abs(count - share) < 1 for count, share in zip(mixture.counts(10**12).tolist(), exact, strict=True))
    for i in (1, 2):
        assert np.array_equal(mixture.sample_of(i, indices[sources == i]), samples[sources == i])


def test_a_source_that_is_no_longer_drawn_is_said_to_be_nowhere():
    mixture = Mixture([Stage(0, (1, 1)), Stage(10, (0, 1))])
    last = int(np.flatnonzero(mixture.locate(np.arange(10))[0] == 0)[4])
    assert mixture.sample_of(0, np.array([4, 5, 6])).tolist() == [last, -1, -1]


@pytest.mark.parametrize(
    ("weights", "whole"),
    [([0.7, 0.2, 0.1], (7, 2, 1)), ([2, 4.0], (1, 2)), ([1e-3, 1], (1, 1000)), ([5], (1,)), ([0, 3], (0, 1))],
)
def test_weights_are_taken_as_they_are_written(weights: list[float], whole: tuple[int, ...]):
    assert integer_weights(weights) == whole


def test_weights_that_are_too_fine_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"at most 10000 parts\. Nearest such weights: \[3333, 6667\]"):
        integer_weights([0.333333, 0.666667])


def test_no_weights_means_in_proportion_to_size():
    assert in_proportion([300, 100]) == (7500, 2500)
    weights = in_proportion([10**12, 1, 7 * 10**9, 0])
    assert sum(weights) == LONGEST_PERIOD
    assert weights[1] == 1
    assert weights[3] == 0


def test_many_stages_take_time_in_proportion_to_their_number():
    """Weights that move with every stage; CPU seconds, several times what an idle core needs."""
    stages = [Stage(i * 100_003, (500 + i, 400 - i, 97, 1 + i % 7)) for i in range(200)]
    started = time.process_time()
    mixture = Mixture(stages)
    assert time.process_time() - started < 6
    shares = [Fraction(0)] * 4
    for stage in stages[:-1]:
        shares = [share + Fraction(100_003 * w, stage.period) for share, w in zip(shares, stage.weights, strict=True)]
    counts = mixture.counts(stages[-1].first_sample).tolist()
    assert all(abs(count - share) < 1 for count, share in zip(counts, shares, strict=True))
