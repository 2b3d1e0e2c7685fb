"""Folders of sweeps on a known law, as `launch sweep` leaves them at any moment: plan, run folders with summary and
metrics, seals. No network is trained for them.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from conf.check import digest
from launch.scaling.law import Law

TRUE = Law(E=0.7, A=25.0, B=40.0, alpha=0.34, beta=0.28)
SIZES = (26_000, 52_000, 108_000, 228_000, 492_000)
LENGTHS = (500_000, 1_000_000, 2_000_000, 4_000_000)
FIT = {"resamples": 40}
_SPEED = 3e10
"""FLOPs a second"""


@dataclass
class MadeSweep:
    """Cells are added one by one; `plan` writes what has been added."""

    path: Path
    noise: float = 0.004
    seed: int = 0
    fit: dict[str, Any] = field(default_factory=lambda: dict(FIT))
    cells: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def cell(
        self,
        run: str,
        n: int,
        d: int,
        *,
        status: str | None = "finished",
        loss: float | None = None,
        unique: int | None = None,
        n_rows: int = 40,
        labels: dict[str, str] | None = None,
        **planned: Any,
    ) -> Path:
        """status: None for a cell that has not begun."""
        made = planned_cell(run, n, d, labels or {}, unique) | planned
        if made["branch_from"] is not None:
            made |= {key: 0.4 * made[key] for key in ("predicted_device_hours", "predicted_usd", "own_flops_causal")}
        self.cells.append(made)
        path = self.path / "runs" / run
        if status is None or made["left_out"]:
            return path
        path.mkdir(parents=True)
        worth = d if unique is None or unique >= d else unique * (1 + 5 * -math.expm1(-(d / unique - 1) / 5))
        if loss is None:
            loss = float(TRUE.loss(float(n), worth) * np.exp(self.noise * self._rng.standard_normal()))
        done = 1.0 if status == "finished" else 0.6
        write_rows(path, made, loss, n_rows, done, self._rng)
        outcome = summary(made, loss if status == "finished" else float("nan"), status, done, unique)
        (path / "summary.json").write_text(json.dumps(outcome))
        return path

    def grid(self, sizes: Sequence[int] = SIZES, lengths: Sequence[int] = LENGTHS, **changed: Any) -> "MadeSweep":
        """Shorter runs of a size branch from its longest."""
        for n in sizes:
            for d in lengths:
                run, root = f"n{n // 1000}k-d{d // 1000}k", f"n{n // 1000}k-d{lengths[-1] // 1000}k"
                branches = {"group": root, "branch_from": None if run == root else root}
                self.cell(run, n, d, **branches | changed)
        return self

    def plan(self, **changed: Any) -> Path:
        tree = {
            "schema_version": 1,
            "name": self.path.name,
            "written": "2026-11-22T07:00:00Z",
            "fit": self.fit,
            "caps": {"device_hours": 2.0, "usd": None},
            "cells": self.cells,
        }
        (self.path / "plan.json").write_text(json.dumps(tree | changed))
        return self.path


def planned_cell(run: str, n: int, d: int, labels: dict[str, str], unique: int | None) -> dict[str, Any]:
    flops = 6.3 * n * d
    return {
        "run": run,
        "group": run,
        "family": labels.get("family", "transformer"),
        "labels": labels,
        "held_out": False,
        "branch_from": None,
        "d_model": _width(n),
        "n_layers": 4,
        "n_params": n + 256 * _width(n),
        "n_params_matmul": n,
        "n_params_non_embedding": n - 256 * _width(n),
        "seq_len": 128,
        "tokens_per_step": 2048,
        "warmup_tokens": 61_440,
        "peak_lr": 0.012,
        "seed": 1,
        "tokens": d,
        "unique_tokens": unique,
        "flops_full": 6.6 * n * d,
        "flops_causal": flops,
        "own_flops_causal": flops,
        "predicted_device_hours": flops / _SPEED / 3600,
        "predicted_usd": flops / _SPEED / 3600 * 2.0,
        "config_sha256": "c" * 64,
        "words": [],
        "left_out": None,
    }


def _width(n: int) -> int:
    return max(8, round(math.sqrt(n / 48) / 8) * 8)


def summary(cell: dict[str, Any], loss: float, status: str, done: float, unique: int | None) -> dict[str, Any]:
    hours = cell["flops_causal"] * done / _SPEED / 3600 * 1.1
    tokens, shared = int(cell["tokens"] * done), 0.6
    spent = {"train": 0.85 * hours, "eval": 0.08 * hours, "checkpoint": 0.04 * hours, "idle": 0.03 * hours}
    root = cell["branch_from"]
    branch = None if root is None else {
        "root": root, "run": root, "step": 10, "tokens": int(shared * tokens),
        "device_hours": {name: shared * value for name, value in spent.items()},
    }  # fmt: skip
    return {
        "schema_version": 1,
        "run_name": cell["run"],
        "status": status,
        **{key: cell[key] for key in ("n_params", "n_params_matmul", "n_params_non_embedding", "seq_len", "labels")},
        "model": {key: cell[key] for key in ("d_model", "n_layers")} | {"n_heads": 1, "vocab_size": 512},
        "tokens_seen": tokens,
        "unique_tokens": min(tokens, unique or tokens),
        "epochs": tokens / (unique or tokens),
        "flops_full": int(cell["flops_full"] * done),
        "flops_causal": int(cell["flops_causal"] * done),
        "device_hours": spent,
        "cost_usd": 2.0 * hours,
        "price": {"usd_per_device_hour": 2.0, "rule": "an example", "date": "2026-11-01"},
        "val_loss": loss if math.isfinite(loss) else None,
        "val_loss_stderr": 0.002,
        "bits_per_byte": loss / 3 if math.isfinite(loss) else None,
        "schedule_finished": done == 1.0,
        "seed": cell["seed"],
        "config_sha256": cell["config_sha256"],
        "branch": branch,
        "data": {"manifest_sha256": "m" * 64, "tokenizer_sha256": "t" * 64, "validation_sha256": "v" * 64},
    }


def write_rows(run: Path, cell: dict[str, Any], loss: float, count: int, done: float, rng: np.random.Generator) -> None:
    """Loss falls as the law says, a little above it until the schedule's end brings it down."""
    lines: list[str] = []
    for step in range(1, max(2, int(count * done)) + 1):
        share = step / count
        tokens = int(cell["tokens"] * share)
        place = {
            "step": step,
            "tokens_seen": tokens,
            "flops_full": int(cell["flops_full"] * share),
            "flops_causal": int(cell["flops_causal"] * share),
        }
        own = float(TRUE.loss(float(cell["n_params_matmul"]), float(tokens))) + 0.12 * min(1.0, 5 * (1 - share))
        own += loss - float(TRUE.loss(float(cell["n_params_matmul"]), float(cell["tokens"])))
        trained = min(5.5, own) * (1 + 0.02 * rng.standard_normal())
        lines.append(json.dumps(place | {"loss": trained, "grad_norm": 1.0, "lr": 0.012, "seconds": 0.1}))
        if step % max(1, count // 10) == 0:
            lines.append(json.dumps(place | {"val_loss": min(5.5, own), "bits_per_byte": min(5.5, own) / 3}))
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def complete(path: Path, **changed: Any) -> Path:
    """A sweep with something for every section: a grid with a held-out cell, shared budgets, seeds, learning rates by
    batch, repeated text, and cells that diverged, failed to begin, or were left out."""
    changed = {"fit": FIT | {"rows": {"name": "[!l]*"}}} | changed  # tuning trials are not of the law
    made = MadeSweep(path, **changed).grid()
    for n in SIZES:  # about one budget
        made.cell(f"iso-{n // 1000}k", n, round(2.4e11 / n))
    for seed in (2, 3):
        made.cell(f"seed{seed}", 108_000, 1_000_000, seed=seed)
    for i, rate in enumerate((0.003, 0.006, 0.012, 0.024)):
        for j, batch in enumerate((1024, 2048, 4096)):
            worse = 1 + 0.012 * (i - 3) ** 2 + 0.01 * (j - 1) ** 2
            loss = float(TRUE.loss(52_000.0, 750_000.0)) * worse
            made.cell(f"lr{rate:g}-b{batch}", 52_000, 750_000, loss=loss, peak_lr=rate, tokens_per_step=batch)
    for epochs in (2, 4, 8, 16):
        made.cell(f"epochs{epochs}", 108_000, 250_000 * epochs, unique=250_000)
    made.cell("hot", 228_000, 3_000_000, status="diverged")
    made.cell("later", 492_000, 6_000_000, status=None)
    made.cell("dear", 2_760_000, 8_000_000, left_out="3.1 device-hours would pass the cap of 2.0")
    made.cell("target", 1_040_000, 4_000_000, held_out=True)
    return made.plan()


def forecast(folder: Path, number: int, run: str, predicted: float, **changed: Any) -> Path:
    """As one is sealed: of 4 % to both sides at 95 %, and half of that at 80 %."""
    span = {
        "low95": 0.96 * predicted,
        "low80": 0.98 * predicted,
        "high80": 1.02 * predicted,
        "high95": 1.04 * predicted,
    }
    tree = {
        "schema_version": 1,
        "number": number,
        "written": f"2026-11-22T08:0{number}:00+00:00",
        "run": run,
        "numbers": {"loss": predicted, "run_interval": span, "outside": ["N 2.1 times the largest sampled (4.9e+05)"]},
        "baselines": [
            {"name": "largest smaller run", "loss": 1.06 * predicted, "words": "n492k-d4000k"},
            {"name": "power law without E", "loss": 0.95 * predicted, "words": "L ~ C^-0.0900 through n26k-d500k"},
            {"name": "nearest cell", "loss": 1.05 * predicted, "words": "n492k-d4000k"},
        ],
        "rows": [{"run": f"r{i}"} for i in range(12)],
    } | changed
    return _sealed(folder / "forecasts" / f"{number:04d}.json", tree)


def scored(folder: Path, number: int, run: str, predicted: float, measured: float, **changed: Any) -> Path:
    error = predicted / measured - 1
    rules = (("largest smaller run", 1.06), ("power law without E", 0.95), ("nearest cell", 1.05))
    tree = {
        "schema_version": 1,
        "run": run,
        "measured": measured,
        "relative_error": error,
        "error_in_seed_spreads": error / 0.005,
        "inside_80": abs(error) < 0.02,
        "inside_95": abs(error) < 0.04,
        "width_95": 0.08,
        "limit": 0.015,
        "skills": [
            {
                "baseline": name,
                "loss": x * predicted,
                "skill": 1 - abs(error / (x * predicted / measured - 1)),
                "words": "",
            }
            for name, x in rules
        ],
        "passed": abs(error) <= 0.015,
        "goal_met": abs(error) <= 0.01,
        "failures": [] if abs(error) <= 0.015 else ["the error is above 1.5 %"],
        "notes": [],
        "origins": [
            {
                "run": f"n{n}k",
                "n_sizes": 3,
                "predicted": x,
                "measured": 1.7,
                "inside_80": x < 1.72,
                "inside_95": x < 1.75,
            }
            for n, x in ((228, 1.76), (492, 1.69))
        ],
        "origins_left_out": ["n108k: 2 sizes below it"],
        "predicted_device_hours": 0.2,
        "device_hours": 0.22,
    } | changed
    return _sealed(folder / "forecasts" / f"{number:04d}.score.json", tree)


def _sealed(file: Path, tree: dict[str, Any]) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(tree | {"sha256": digest(tree)}))
    return file
