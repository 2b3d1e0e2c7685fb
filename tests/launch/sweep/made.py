"""Run folders of a sweep's cells as training would leave them, on a known law. No network is trained for them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from conf.check import to_yaml
from launch.sweep.cells import Cell
from tests.launch import sweep_folders

LAW = sweep_folders.TRUE


def end(root: Path, cell: Cell, status: str = "finished", step: int | None = None, **changed: Any) -> Path:
    """The folder of a cell that ended so; `root` is the directory that the sweep was started in."""
    counts, config = cell.counts, cell.config
    step = cell.steps if step is None else step
    planned = {
        **sweep_folders.planned_cell(cell.name, counts.n_params_matmul, cell.tokens, dict(config.run.labels), None),
        **{name: getattr(counts, name) for name in ("n_params", "n_params_matmul", "n_params_non_embedding")},
        "flops_full": cell.flops_full,
        "flops_causal": cell.flops_causal,
        "seq_len": config.data.seq_len,
        "seed": config.run.seed,
        "config_sha256": cell.sha256,
    }
    loss = float(LAW.loss(float(counts.n_params_matmul), float(cell.tokens)))
    loss *= 1 + 0.002 * np.cos(7 * cell.steps + counts.n_params)  # what no law foretells
    made = sweep_folders.summary(
        planned, loss if status == "finished" else float("nan"), status, step / cell.steps, None
    )
    made |= {
        "branch": None,
        "step": step,
        "total_steps": cell.steps,
        "tokens_seen": step * cell.tokens_per_step,
        "global_batch_size": config.batch.global_batch_size,
        "n_devices": 1,
        "schedule_finished": status == "finished",
    }
    run = root / cell.folder
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(to_yaml(config))
    sweep_folders.write_rows(run, planned, loss, cell.steps, step / cell.steps, np.random.default_rng(0))
    (run / "summary.json").write_text(json.dumps(made | changed))
    return run


def checkpoint(root: Path, cell: Cell, step: int) -> None:
    (root / cell.folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
