"""How often the intervals of a forecast hold, on laws that are known: `python -m tests.benchmarks.coverage [SWEEPS]`.

Each line is a kind of sweep, made so many times (60 unless told) with other noise: 4 or 5 sizes of 4 lengths that share
a trunk, and a run of twice the largest size that is forecast. The share of these runs inside their 80 and 95 %
intervals should be near 80 and 95 %; with 60 sweeps each figure is good to about 5 and 3 points.
"""

import sys
from dataclasses import dataclass

import numpy as np

from launch.fit_config import FitChoice
from launch.forecast_numbers import numbers_at
from launch.scaling.analysis import fit_family
from launch.scaling.law import Law
from launch.scaling.rows import Row
from tests.launch.scaling.surfaces import row

SIZES = (26_000, 40_000, 108_000, 228_000, 492_000)
BUDGETS = (500_000, 1_000_000, 2_000_000, 4_000_000)
HELD_OUT = (1_040_000.0, 4_000_000.0)
CHOICE = FitChoice(resamples=200)


@dataclass(frozen=True)
class Kind:
    title: str
    law: Law
    noise: float
    """relative, of a run"""
    shared: float
    """of its variance, between the lengths of one trunk"""
    sizes: tuple[int, ...] = SIZES
    seeds: tuple[int, ...] = (0,)
    """of the three smallest sizes"""


KNOWN, FLAT = Law(E=0.6, A=19.0, B=79.0, alpha=0.30, beta=0.35), Law(E=0.0, A=12.0, B=40.0, alpha=0.20, beta=0.25)
KINDS = (
    Kind("5 sizes, 1 % noise, half of it shared", KNOWN, 0.010, 0.5),
    Kind("the same, none shared", KNOWN, 0.010, 0.0),
    Kind("4 sizes", KNOWN, 0.010, 0.5, SIZES[1:]),
    Kind("1.5 % noise, 80 % shared", KNOWN, 0.015, 0.8),
    Kind("the same, two seeds of three sizes", KNOWN, 0.015, 0.8, seeds=(0, 1)),
    Kind("E = 0", FLAT, 0.010, 0.5),
)


def main() -> None:
    sweeps = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    print(f"{'':<40} {'in 80 %':>8} {'in 95 %':>8} {'95 % width':>11}", flush=True)
    for kind in KINDS:
        found = np.array([_once(kind, seed) for seed in range(sweeps)])
        inside80, inside95, width = found.mean(axis=0)
        print(f"{kind.title:<40} {inside80:>8.0%} {inside95:>8.0%} {width:>11.1%}", flush=True)


def _once(kind: Kind, seed: int) -> tuple[bool, bool, float]:
    rng = np.random.default_rng([seed, 1])
    numbers = numbers_at(fit_family(_rows(kind, rng), CHOICE), *HELD_OUT)
    truth = float(kind.law.loss(*HELD_OUT) * np.exp(kind.noise * rng.standard_normal()))
    span = numbers.run_interval
    return span.low80 <= truth <= span.high80, span.low95 <= truth <= span.high95, (span.high95 - span.low95) / truth


def _rows(kind: Kind, rng: np.random.Generator) -> list[Row]:
    rows = []
    for n in kind.sizes:
        for seed in kind.seeds if n in SIZES[:3] else kind.seeds[:1]:
            trunk = rng.standard_normal()
            for d in BUDGETS:
                scatter = np.sqrt(kind.shared) * trunk + np.sqrt(1 - kind.shared) * rng.standard_normal()
                loss = float(kind.law.loss(float(n), float(d)) * np.exp(kind.noise * scatter))
                name = f"n{n}-s{seed}"
                rows.append(row(f"{name}-d{d}", n, d, loss=loss, group=name, seed=seed))
    return rows


if __name__ == "__main__":
    main()
