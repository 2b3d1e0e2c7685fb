"""Sample number → which source it comes from, and how many of that source came before: exact quotas, nothing random.

In: integer weights of the sources, and from which sample on other ones hold. Out: for every prefix of the run, each
source has had its share of samples to within less than one: |samples of i among the first n - sum of its shares| < 1,
across changes of the weights too. This is Tijdeman's solution of the chairman assignment problem (Discrete Mathematics
32, 1980): with k sources, the j-th sample of a source may come once its share has reached j - 1 + 1/(2k - 2) and must
come before it exceeds j - 1/(2k - 2), and the earliest deadline goes first.

The sequence repeats with the sum of the weights, so a table of one period answers for a run of any length.
"""

import bisect
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]

LONGEST_PERIOD = 10_000
"""weights may be fine to one part in this many: it bounds start-up and memory"""
_FOREVER = 1 << 62


def integer_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """The smallest integers in exactly the same proportion, each weight being taken as the decimal it is written as.

    Raises ValueError, with what would do, when their sum is above LONGEST_PERIOD.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    divisor = math.gcd(*whole)
    found = tuple(weight // divisor for weight in whole)
    if sum(found) > LONGEST_PERIOD:
        near = in_proportion([float(weight) for weight in exact])
        raise ValueError(
            f"the weights {list(weights)} are {list(found)} parts of {sum(found)}; quotas are kept exact for at most "
            f"{LONGEST_PERIOD} parts. Nearest such weights: {list(near)}"
        )
    return found


def in_proportion(sizes: Sequence[float]) -> tuple[int, ...]:
    """Weights of sum LONGEST_PERIOD in proportion to the sizes: largest remainders, and at least 1 for each size that
    is not 0."""
    total = sum(sizes)
    exact = [size * LONGEST_PERIOD / total for size in sizes]
    whole = [max(math.floor(share), int(share > 0)) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (whole[i] - exact[i], i))
    for i in by_remainder[: max(0, LONGEST_PERIOD - sum(whole))]:
        whole[i] += 1
    while sum(whole) > LONGEST_PERIOD:  # only where many tiny sources were raised to 1
        whole[whole.index(max(whole))] -= 1
    return tuple(whole)


@dataclass(frozen=True)
class Stage:
    """From which sample on which integer weights hold, one for each source."""

    first_sample: int
    weights: tuple[int, ...]

    @property
    def period(self) -> int:
        return sum(self.weights)


@dataclass(frozen=True)
class _Stretch:
    """A table of sources that is gone through again and again until the next stretch begins."""

    first_sample: int
    before: Int64Array
    """(k,) samples of each source before it"""
    table: Int64Array
    """(length,) source of each sample"""
    rank: Int64Array
    """(length,) how many of the same source come earlier in the table"""
    per_pass: Int64Array
    """(k,) samples of each source in the table"""


class Mixture:
    def __init__(self, stages: Sequence[Stage]):
        self.n_sources = len(stages[0].weights)
        self._stretches = _stretches(stages)
        self._firsts = np.array([stretch.first_sample for stretch in self._stretches], np.int64)

    def locate(self, samples: Int64Array) -> tuple[Int64Array, Int64Array]:
        """(source, number of the sample within that source) of each sample."""
        sources, indices = np.empty_like(samples), np.empty_like(samples)
        of_stretch = np.searchsorted(self._firsts, samples, side="right") - 1
        for i in np.unique(of_stretch):
            inside, stretch = of_stretch == i, self._stretches[i]
            passes, at = np.divmod(samples[inside] - stretch.first_sample, len(stretch.table))
            found = stretch.table[at]
            sources[inside] = found
            indices[inside] = stretch.before[found] + passes * stretch.per_pass[found] + stretch.rank[at]
        return sources, indices

    def sample_of(self, source: int, indices: Int64Array) -> Int64Array:
        """The inverse of `locate`; -1 where the source never gets so far."""
        out = np.full_like(indices, -1)
        befores = np.array([stretch.before[source] for stretch in self._stretches])
        of_stretch = np.searchsorted(befores, indices, side="right") - 1
        for i in np.unique(of_stretch):
            inside, stretch = of_stretch == i, self._stretches[i]
            if stretch.per_pass[source]:
                passes, rank = np.divmod(indices[inside] - stretch.before[source], stretch.per_pass[source])
                at = np.flatnonzero(stretch.table == source)[rank]
                out[inside] = stretch.first_sample + passes * len(stretch.table) + at
        return out

    def counts(self, n: int) -> Int64Array:
        """(k,) samples of each source among the first n."""
        stretch = self._stretches[int(np.searchsorted(self._firsts, n, side="right")) - 1]
        passes, rest = divmod(n - stretch.first_sample, len(stretch.table))
        part = np.bincount(stretch.table[:rest], minlength=self.n_sources)
        return stretch.before + passes * stretch.per_pass + part


def _stretches(stages: Sequence[Stage]) -> list[_Stretch]:
    election = _Election(stages)
    found: list[_Stretch] = []
    for i, stage in enumerate(stages):
        stop = stages[i + 1].first_sample if i + 1 < len(stages) else _FOREVER
        while (left := stop - election.n) > 0:
            before = list(election.counts)
            first = election.n
            length = left if left <= 3 * stage.period else stage.period
            table = election.take(length)
            per_pass = [after - count for after, count in zip(election.counts, before, strict=True)]
            repeats = 1
            if length < left and tuple(per_pass) == stage.weights:
                # The state is as it was a period ago, so it goes on like this until the next stage is in sight.
                repeats = (left - stage.period) // stage.period
                election.move(
                    first + repeats * length, [b + repeats * p for b, p in zip(before, per_pass, strict=True)]
                )
            found.append(_stretch(first, before, table, per_pass))
            if stop == _FOREVER and repeats > 1:
                break
    return found


def _stretch(first: int, before: list[int], table: list[int], per_pass: list[int]) -> _Stretch:
    sources = np.array(table, np.int64)
    rank = np.empty_like(sources)
    for source in range(len(before)):
        inside = sources == source
        rank[inside] = np.arange(inside.sum())
    return _Stretch(first, np.array(before, np.int64), sources, rank, np.array(per_pass, np.int64))


class _Election:
    """Tijdeman's sequence, one sample after the other, in exact integers (shares are multiples of 1/denominator)."""

    def __init__(self, stages: Sequence[Stage]):
        k = len(stages[0].weights)
        margin = max(1, 2 * k - 2)
        self._unit = math.lcm(margin, *(stage.period for stage in stages))
        self._margin = self._unit // margin
        self._stages = stages
        self._steps = [[weight * (self._unit // stage.period) for weight in stage.weights] for stage in stages]
        self._bases = [[0] * k]
        for stage, after, steps in zip(stages, stages[1:], self._steps, strict=False):
            length = after.first_sample - stage.first_sample
            self._bases.append([base + length * step for base, step in zip(self._bases[-1], steps, strict=True)])
        self._reached_before = [list(shares) for shares in zip(*self._bases, strict=True)]
        self.move(0, [0] * k)

    def move(self, n: int, counts: list[int]) -> None:
        """To where n samples were given out, so many of them to each source."""
        self.n, self.counts = n, counts
        self._waiting: list[tuple[int, int]] = []
        self._ready: list[tuple[int, int]] = []
        for source in range(len(counts)):
            self._announce(source)

    def take(self, n: int) -> list[int]:
        """The sources of the next n samples."""
        out: list[int] = []
        for _ in range(n):
            self.n += 1
            while self._waiting and self._waiting[0][0] <= self.n:
                _, source = heapq.heappop(self._waiting)
                deadline = (self.counts[source] + 1) * self._unit - self._margin + 1
                heapq.heappush(self._ready, (self._reached(source, deadline), source))
            _, source = heapq.heappop(self._ready)
            self.counts[source] += 1
            self._announce(source)
            out.append(source)
        return out

    def _announce(self, source: int) -> None:
        release = self._reached(source, self.counts[source] * self._unit + self._margin)
        if release < _FOREVER:
            heapq.heappush(self._waiting, (release, source))

    def _reached(self, source: int, share: int) -> int:
        """After how many samples the source's share is at least `share`."""
        i = max(0, bisect.bisect_left(self._reached_before[source], share) - 1)
        step = self._steps[i][source]
        if step == 0:
            return _FOREVER
        return self._stages[i].first_sample - (self._reached_before[source][i] - share) // step
