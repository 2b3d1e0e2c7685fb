"""Losses from a known law, so that what a fit says can be compared with the truth."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from launch.ledger_row import facts_of
from launch.ledger_run import row_of_summary
from launch.scaling.law import Law
from launch.scaling.minimum import Floats
from launch.scaling.rows import Row, Verdict

TRUE = Law(E=1.7, A=400.0, B=410.0, alpha=0.34, beta=0.28)


def grid(sizes: int = 5, lengths: int = 4) -> tuple[Floats, Floats]:
    n, d = np.meshgrid(np.geomspace(2e7, 1e9, sizes), np.geomspace(1e9, 3e10, lengths))
    return n.ravel(), d.ravel()


def isoflop(budgets: tuple[float, ...] = (1e17, 1e18, 1e19, 1e20)) -> tuple[Floats, Floats, Floats]:
    """(N, D, C): five sizes a budget, around the best one."""
    flops = np.repeat(budgets, 5)
    n = np.concatenate([TRUE.optimum(c)[0] * np.array([0.25, 0.5, 1, 2, 4]) for c in budgets])
    return n, flops / 6 / n, flops


def noisy(law: Law, n: Floats, d: Floats, noise: float, seed: int) -> Floats:
    return law.loss(n, d) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(n)))


def row(run: str = "run", n: int = 10**8, d: int = 10**10, **changed: Any) -> Row:
    fields: dict[str, Any] = {
        "run": run,
        "group": run,
        "n_params": int(1.1 * n),
        "n_params_matmul": n,
        "n_params_non_embedding": int(0.9 * n),
        "tokens": d,
        "unique_tokens": d,
        "flops_full": 6.6 * n * d,
        "flops_causal": 6.3 * n * d,
        "loss": float(TRUE.loss(float(n), float(d))),
        "stderr": 0.001,
        "schedule_finished": True,
        "seed": 1,
        "verdict": Verdict.ok,
        "tokenizer": "t" * 64,
        "validation": "v" * 64,
    }
    return Row(**(fields | changed))


def summary(run: str, n: int, d: int, **changed: Any) -> dict[str, Any]:
    """As `summary.json` has it, of the keys that a fit reads."""
    made = row(run, n, d)
    return {
        "schema_version": 1,
        "run_name": run,
        "status": "finished",
        "n_params": made.n_params,
        "n_params_matmul": n,
        "n_params_non_embedding": made.n_params_non_embedding,
        "tokens_seen": d,
        "unique_tokens": d,
        "flops_full": int(made.flops_full),
        "flops_causal": int(made.flops_causal),
        "val_loss": made.loss,
        "val_loss_stderr": 0.001,
        "bits_per_byte": made.loss / 3,
        "schedule_finished": True,
        "seed": 1,
        "data": {"manifest_sha256": "v" * 64, "tokenizer_sha256": "t" * 64},
    } | changed


def ledger(path: Path, summaries: list[dict[str, Any]]) -> Path:
    """The lines of a ledger; beside the keys of a summary, `group`, `family` and `verdict` may be said."""
    more = ("group", "family", "verdict")
    rows = [
        dataclasses.replace(row_of_summary(one), **{name: one[name] for name in more if name in one})
        for one in summaries
    ]
    path.write_text("".join(json.dumps(facts_of(row)) + "\n" for row in rows))
    return path
