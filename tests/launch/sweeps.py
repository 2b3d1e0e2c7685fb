"""A sweep of known law, as rows and run folders, for what happens after its runs: five sizes, four budgets each that
branch from one trunk, and one larger run that is held out.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from launch.forecast import Target
from launch.scaling.law import Law
from launch.scaling.rows import Row
from tests.launch.scaling.surfaces import row, summary

LAW = Law(E=0.6, A=19.0, B=79.0, alpha=0.30, beta=0.35)
"""of bytes of source code: losses of 2.3 to 1.4 nats"""
SIZES = (26_000, 40_000, 108_000, 228_000, 492_000)
BUDGETS = (500_000, 1_000_000, 2_000_000, 4_000_000)
HELD_OUT = (1_040_000, 4_000_000)
SHARED = 0.5
"""of the variance of the noise, between the budgets of one trunk"""


def rows_of(noise: float = 0.01, seed: int = 0, sizes: tuple[int, ...] = SIZES) -> list[Row]:
    rng, rows = np.random.default_rng(seed), []
    for n in sizes:
        trunk = rng.standard_normal()
        for d in BUDGETS:
            scatter = np.sqrt(SHARED) * trunk + np.sqrt(1 - SHARED) * rng.standard_normal()
            loss = float(LAW.loss(float(n), float(d)) * np.exp(noise * scatter))
            rows.append(row(f"n{n // 1000}k-d{d // 1000}k", n, d, loss=loss, group=f"n{n // 1000}k"))
    return rows


def held_out(sweep: Path, run: str = "large", **changed: Any) -> Target:
    made = row(run, *HELD_OUT)
    names = ("n_params", "n_params_matmul", "n_params_non_embedding", "tokens", "flops_full", "flops_causal")
    known = {name: getattr(made, name) for name in names}
    return replace(Target(run=run, run_folder=sweep / "runs" / run, config_sha256="c" * 64, **known), **changed)


def outcome(run: str = "large", loss: float | None = None, **changed: Any) -> Row:
    """Of the held-out run: the loss of the law where none is given."""
    return row(run, *HELD_OUT, loss=float(LAW.loss(*map(float, HELD_OUT))) if loss is None else loss, **changed)


def left_behind(sweep: Path, made: Row, **changed: Any) -> Path:
    """The folder of a run that ended so."""
    keys = {
        "val_loss": made.loss if np.isfinite(made.loss) else None,
        "config_sha256": "c" * 64,
        "device_hours": {"train": 0.5, "eval": 0.1, "checkpoint": 0.0, "idle": 0.0},
        "branch": None,
    }
    folder = sweep / "runs" / made.run
    folder.mkdir(parents=True, exist_ok=True)
    found = summary(made.run, made.n_params_matmul, made.tokens) | keys | changed
    (folder / "summary.json").write_text(json.dumps(found))
    return folder
