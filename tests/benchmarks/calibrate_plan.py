"""Fits the constants of `launch/performance/constants.py` to published training speeds, and says what they are worth.

    python -m tests.benchmarks.calibrate_plan ../shared/data/performance [--leave-one-out]

In: the tables. Out: the constants, and the errors on rows that the fit never saw: the third of the rows that
`published.is_kept_out` names by their content; with --leave-one-out, also each source predicted by constants that were
fitted without any of its rows. Rows weigh less the more of them a source has; every constant is held near its prior (a
figure from the literature or from counting) by a normal distribution of its logarithm: what few rows touch stays there.
"""

import dataclasses
import sys
from collections import Counter
from math import log
from pathlib import Path

import numpy as np

from launch.performance.constants import Constants
from launch.performance.hardware import hardware_named
from launch.performance.layout import Job
from launch.performance.published import Row, read
from launch.performance.reproduce import meant, quantiles
from launch.performance.reproduce import tokens_per_second as tokens_per_second_of

PRIORS = {
    # name: (prior, its width as a factor). From the literature:
    "attention_flash2_ampere": (0.55, 1.2),  # arXiv 2307.08691, abstract: 50 to 73 % of the peak
    "attention_flash2_hopper": (0.35, 1.2),  # arXiv 2407.08608, abstract: 35 %
    "attention_flash3_hopper": (0.50, 1.2),  # the same, figures 5 and 6, causal, 2k to 16k
    "narrow_heads": (0.85, 1.2),  # both
    "attention_triton_ampere": (
        0.40,
        1.4,
    ),  # arXiv 2307.08691, figures 4 to 6: between the first version and the second
    "attention_triton_hopper": (0.22, 1.4),  # as much slower than flash2 as on an A100
    "matmul_ampere": (0.82, 1.2),  # large bf16 matmuls of cuBLAS reach 255 to 270 of 312 TFLOP/s
    "matmul_hopper": (0.72, 1.2),  # 790 of 989 at 8192^3, held by its power; less among other kernels
    "matmul_fp8": (0.60, 1.25),  # less than bf16, which it shares the power limit with, by the casts
    # From counting or as a matter of course:
    "power_exponent": (1.0, 1.5),  # as fast as it may draw power
    "attention_unfused": (14.0, 1.5),  # scores written, softmax and dropout read and written, their mask
    "passes_fused": (1.0, 1.4),  # by definition
    "passes_eager": (2.0, 1.4),  # each operand about twice
    "kernel_seconds": (4e-6, 1.5),  # a launch, and a last wave half full
    "link_ratio": (0.61, 1.3),  # below the 0.75 to 0.8 that NCCL reaches with nothing else running
    "network_ratio": (0.7, 1.3),  # likewise
    "tensor_parallel_exposed": (0.5, 1.4),  # half
    "interference": (0.3, 2.0),  # unknown
    "straggling": (0.012, 1.5),  # some per cent over ten doublings
}


def main() -> None:
    rows = [row for row in read(Path(sys.argv[1])) if row.tokens_per_second]
    seen = [row for row in rows if not row.kept_out]
    constants = fit(seen, Constants())
    for name in PRIORS:
        print(f"{name} = {getattr(constants, name):.4g}   (prior {PRIORS[name][0]:.4g})")
    print(f"launch/performance/fitted.py: {' '.join(sorted(row.digest for row in seen))}")
    print("fitted rows  ", summary(errors(seen, constants)))
    print("held-out rows", summary(errors([row for row in rows if row.kept_out], constants)))
    for file in sorted({row.file for row in rows}):
        those = [row for row in rows if row.file == file]
        held = [row for row in those if row.kept_out]
        text = f"{file:32} all {summary(errors(those, constants))}"
        if held:
            text += f"; held out {summary(errors(held, constants))}"
        if "--leave-one-out" in sys.argv:
            without = fit([row for row in rows if row.file != file], constants, 6)
            text += f"; fitted without it {summary(errors(those, without))}"
        print(text, flush=True)


def fit(rows: list[Row], start: Constants, rounds: int = 12) -> Constants:
    """The constants of least weighted absolute log error, by reweighted least squares in their logarithms."""
    names, theta = list(PRIORS), np.array([log(getattr(start, name)) for name in PRIORS])
    centre, width = (np.array([log(pair[i]) for pair in PRIORS.values()]) for i in (0, 1))
    of_file = Counter(row.file for row in rows)
    weight = np.array([of_file[row.file] ** -0.5 for row in rows])
    weight *= len(rows) / weight.sum()

    def with_(theta: np.ndarray) -> Constants:
        return dataclasses.replace(start, **dict(zip(names, np.exp(theta).tolist(), strict=True)))

    for _ in range(rounds):
        jobs = jobs_of(rows, with_(theta))
        now = logs(rows, jobs, with_(theta))
        slopes = np.stack(
            [(logs(rows, jobs, with_(theta + 0.01 * unit)) - now) / 0.01 for unit in np.eye(len(names))], 1
        )
        robust = weight / np.maximum(np.abs(now), 0.03)
        left = slopes.T @ (robust[:, None] * slopes) + np.diag(1 / width**2)
        step = np.linalg.solve(left, -slopes.T @ (robust * now) - (theta - centre) / width**2)
        theta = theta + np.clip(step, -0.15, 0.15)
    return with_(theta)


def jobs_of(rows: list[Row], constants: Constants) -> list[Job]:
    return [meant(row, hardware_named(row.hardware), constants) for row in rows]


def logs(rows: list[Row], jobs: list[Job], constants: Constants) -> np.ndarray:
    """log(predicted / published) of the step times."""
    return np.array(
        [
            log(tokens_per_second(row) / tokens_per_second_of(job, hardware_named(row.hardware), constants))
            for row, job in zip(rows, jobs, strict=True)
        ]
    )


def tokens_per_second(row: Row) -> float:
    assert row.tokens_per_second, f"{row.name} has no speed"
    return row.tokens_per_second


def errors(rows: list[Row], constants: Constants) -> list[float]:
    return [abs(float(np.exp(value)) - 1) for value in logs(rows, jobs_of(rows, constants), constants)]


def summary(values: list[float]) -> str:
    middle, high = quantiles(values)
    return f"{len(values)} rows, median {middle:.1%}, p90 {high:.1%}, worst {max(values):.1%}"


if __name__ == "__main__":
    main()
