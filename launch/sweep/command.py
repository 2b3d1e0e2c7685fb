"""`launch sweep`: from a budget and a family of shapes to a table of runs, a law, and a forecast that is scored.

In: the words of the command line: those of `train` as the base of every cell, `sweep.*`, `fit.*`, and for a cluster
`job.*` and `slurm.*`. Out: the plan as a table; with start=true the cells run here, cheap ones first, with submit=true
as a Slurm array. The same command again goes on: finished cells are passed over, partial ones resumed. Everything lies
in `sweep.folder`/`sweep.name`: plan.json, runs/, the ledger, the sealed forecasts, the report.
"""

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conf.check import to_tree
from conf.errors import ConfigError
from data_prep.files import publish_json
from launch.sweep.cells import Cell, cells
from launch.sweep.config import SweepConfig
from launch.sweep.costs import Cost, costs
from launch.sweep.states import Become, State, refuse_strangers, state_of
from launch.sweep.table import table
from model.arithmetic import flops_per_token
from train.parallel import RankGrid
from train.setup import check

_DONE = (Become.finished, Become.diverged)


def sweep(config: SweepConfig) -> int:
    """The exit code: 0, or 1 if a cell failed. Raises ConfigError or DataError before anything is started."""
    found, short = cells(config)
    if not found:
        raise ConfigError(["no cell is left: " + "; ".join(f"{name}: {why}" for name, why in short)])
    refuse_strangers(found)
    _refuse_unrunnable(config, found)
    states = {cell.name: state_of(cell) for cell in found}
    priced = costs(found, {name: state.summary for name, state in states.items() if state.summary})
    left_out = beyond_caps(config, found, priced, states)
    print(table(found, priced, states, left_out, short), flush=True)
    if not config.start and not config.submit:
        print("nothing was started; start=true runs these cells here, submit=true sends them to Slurm")
        return 0
    write_plan(config, found, priced, left_out, short)
    kept = [cell for cell in found if cell.name not in left_out]
    if config.submit:
        from launch.sweep.queued import send

        return send(config, kept, priced, states)
    from launch.sweep.runner import Runner

    return Runner(config, kept, priced).run()


def folder_of(config: SweepConfig) -> Path:
    return Path(config.sweep.folder) / config.sweep.name


def beyond_caps(
    config: SweepConfig, found: Sequence[Cell], priced: dict[str, Cost], states: dict[str, State]
) -> dict[str, str]:
    """Cell → why it is left out: with those before it, it would cost more than the caps allow."""
    hours, usd = config.sweep.max_device_hours, config.sweep.max_usd
    if usd is not None and config.cluster.usd_per_device_hour is None:
        raise ConfigError([f"sweep.max_usd={usd} needs a price: cluster.usd_per_device_hour and cluster.price_date"])
    left_out: dict[str, str] = {}
    spent_hours = 0.0
    for cell in found:
        needs = spent_hours + priced[cell.name].device_hours
        price = (config.cluster.usd_per_device_hour or 0.0) * needs
        begun = states[cell.name].become in _DONE
        if cell.parent in left_out and not begun:
            left_out[cell.name] = f"its beginning, {cell.parent}, is left out"
        elif hours is not None and needs > hours and not begun:
            left_out[cell.name] = f"{needs:.3g} device-hours with those before, sweep.max_device_hours={hours:g}"
        elif usd is not None and price > usd and not begun:
            left_out[cell.name] = f"${price:.2f} with those before, sweep.max_usd={usd:g}"
        else:
            spent_hours = needs
    return left_out


def write_plan(
    config: SweepConfig,
    found: Sequence[Cell],
    priced: dict[str, Cost],
    left_out: dict[str, str],
    short: Sequence[tuple[str, str]],
) -> None:
    folder = folder_of(config)
    folder.mkdir(parents=True, exist_ok=True)
    publish_json(
        folder / "plan.json",
        {
            "schema_version": 1,
            "name": config.sweep.name,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "fit": to_tree(config.fit),
            "sweep": to_tree(config.sweep),
            "caps": {"device_hours": config.sweep.max_device_hours, "usd": config.sweep.max_usd},
            "cells": [_tree(cell, priced[cell.name], left_out.get(cell.name)) for cell in found],
            "not_in_the_plan": [{"run": name, "why": why} for name, why in short],
        },
    )


def _tree(cell: Cell, cost: Cost, left_out: str | None) -> dict[str, Any]:
    config, counts = cell.config, cell.counts
    full, causal = flops_per_token(config.model, config.data.seq_len)
    return {
        "run": cell.name,
        "group": cell.root,
        "family": cell.family,
        "labels": dict(config.run.labels),
        "held_out": cell.held_out,
        "branch_from": cell.parent,
        "d_model": config.model.d_model,
        "n_layers": config.model.n_layers,
        **{name: getattr(counts, name) for name in ("n_params", "n_params_matmul", "n_params_non_embedding")},
        "seq_len": config.data.seq_len,
        "tokens_per_step": cell.tokens_per_step,
        "warmup_tokens": config.schedule.warmup_tokens,
        "peak_lr": config.optimizer.peak_lr,
        "seed": config.run.seed,
        "tokens": cell.tokens,
        "unique_tokens": getattr(config.data, "unique_tokens", None),
        "flops_full_per_token": full,
        "flops_causal_per_token": causal,
        "flops_full": cell.flops_full,
        "flops_causal": cell.flops_causal,
        "own_flops_causal": cell.own_flops_causal,
        "predicted_device_hours": cost.device_hours,
        "predicted_usd": cost.usd,
        "predicted": cost.source,
        "config_sha256": cell.sha256,
        "words": cell.words(),
        "left_out": left_out,
    }


def _refuse_unrunnable(config: SweepConfig, found: Sequence[Cell]) -> None:
    """What `train` would refuse, of the cheapest and the dearest cell: said now, not after hours."""
    ranks, parallel = config.job.n_ranks, config.parallel
    for cell in {found[0].name: found[0], found[-1].name: found[-1]}.values():
        run = dataclasses.replace(cell.config.run, branch_from=None)
        grid = RankGrid(0, ranks, 0, config.job.ranks_per_node, parallel.tp_size, parallel.sp_size)
        check(dataclasses.replace(cell.config, run=run), grid)
