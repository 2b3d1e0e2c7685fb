"""`launch sweep`: from a budget and a family of shapes to a table of runs, a law, and a forecast that is scored.

In: the words of the command line: those of `train` as the base of every cell, `sweep.*`, `fit.*`, and for a cluster
`job.*` and `slurm.*`. Out: the plan as a table; with start=true the cells run here, cheap ones first, with submit=true
as a Slurm array. The same command again goes on: finished cells are passed over, partial ones resumed. Everything lies
in `sweep.folder`/`sweep.name`: plan.json, runs/, the ledger, the sealed forecasts, the report.
"""

import dataclasses
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conf.check import flatten, to_tree
from conf.errors import ConfigError
from data_prep.files import DataError, exclusive, publish_json
from launch.sweep.cells import Cell, cells
from launch.sweep.children import Places
from launch.sweep.config import SweepConfig
from launch.sweep.costs import Cost, costs, own_device_hours, whole_device_hours
from launch.sweep.states import State, lost, may_begin, refuse_strangers, state_of, with_beginnings
from launch.sweep.table import remarks, table
from model.arithmetic import flops_per_token
from train.parallel import RankGrid
from train.setup import check


def sweep(config: SweepConfig) -> int:
    """The exit code: 0, or 1 if a cell failed. Raises ConfigError or DataError before anything is started."""
    found, short = cells(config)
    if not found:
        raise ConfigError(["no cell is left: " + "; ".join(f"{name}: {why}" for name, why in short)])
    refuse_strangers(found)
    doubts = _runnable(config, found)
    states = {cell.name: state_of(cell) for cell in found}
    found, notes = with_beginnings(found, states)
    priced = _priced(found, states)
    left_out = beyond_caps(config, found, priced, states)
    notes = [
        *doubts,
        *remarks(config, found),
        *notes,
        *(f"{name} is lost: {why}" for name, why in lost(found, states).items()),
    ]
    print(table(found, priced, states, left_out, short, notes), flush=True)
    if not config.start and not config.submit:
        print("nothing was started; start=true runs these cells here, submit=true sends them to Slurm")
        return 0
    kept = [cell for cell in found if cell.name not in left_out]
    places = None if config.submit else Places.of(config)
    with exclusive(folder_of(config), "it runs or sends the cells of this sweep", name=".running"):
        write_plan(config, found, priced, left_out, short)
        if places is None:
            from launch.sweep.queued import send

            return send(config, kept, priced, states)
        from launch.sweep.runner import Runner

        code = Runner(config, kept, priced, places).run()
    _tell_what_fits(config, found, left_out)
    return code


def _priced(found: Sequence[Cell], states: dict[str, State]) -> dict[str, Cost]:
    return costs(found, {name: state.summary for name, state in states.items() if state.summary})


def _tell_what_fits(config: SweepConfig, found: Sequence[Cell], left_out: dict[str, str]) -> None:
    """Cells that were left out for what they were expected to cost, and that cost less by what others did."""
    states = {cell.name: state_of(cell) for cell in found}
    now = beyond_caps(config, found, _priced(found, states), states)
    if fit := [name for name in left_out if name not in now]:
        print(f"under the caps after all, by what was really spent; the same command runs them: {', '.join(fit)}")


def folder_of(config: SweepConfig) -> Path:
    return Path(config.sweep.folder) / config.sweep.name


def beyond_caps(
    config: SweepConfig, found: Sequence[Cell], priced: dict[str, Cost], states: dict[str, State]
) -> dict[str, str]:
    """Cell → why it is left out: with those before it, it would cost more than the caps allow. What has been spent
    counts as it was, what is to come as it is expected."""
    hours, usd = config.sweep.max_device_hours, config.sweep.max_usd
    if usd is not None and config.cluster.usd_per_device_hour is None:
        raise ConfigError([f"sweep.max_usd={usd} needs a price: cluster.usd_per_device_hour and cluster.price_date"])
    left_out: dict[str, str] = {}
    spent_hours = 0.0
    for cell in found:
        state = states[cell.name]
        is_over = state.is_over
        needs = spent_hours + whole_device_hours(cell, priced[cell.name], state.summary, is_over)
        price = (config.cluster.usd_per_device_hour or 0.0) * needs
        if hours is not None and needs > hours and not is_over:
            left_out[cell.name] = f"{needs:.3g} device-hours with those before, sweep.max_device_hours={hours:g}"
        elif usd is not None and price > usd and not is_over:
            left_out[cell.name] = f"${price:.2f} with those before, sweep.max_usd={usd:g}"
        else:
            spent_hours = needs
            continue
        spent_hours += own_device_hours(state.summary) if state.summary else 0.0
    for cell in sorted(found, key=lambda cell: cell.steps):  # one that costs less than its beginning came before it
        if cell.parent in left_out and not states[cell.name].is_over and not may_begin(cell):
            left_out.setdefault(cell.name, f"its beginning, {cell.parent}, is left out")
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
    earlier = _earlier_choices(folder / "plan.json", to_tree(config.fit))
    publish_json(
        folder / "plan.json",
        {
            "schema_version": 1,
            "name": config.sweep.name,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "fit": to_tree(config.fit),
            "fit_before": earlier,
            "sweep": to_tree(config.sweep),
            "caps": {"device_hours": config.sweep.max_device_hours, "usd": config.sweep.max_usd},
            "cells": [_tree(cell, priced[cell.name], left_out.get(cell.name)) for cell in found],
            "not_in_the_plan": [{"run": name, "why": why} for name, why in short],
        },
    )


def _earlier_choices(plan: Path, now: dict[str, Any]) -> list[dict[str, Any]]:
    """How rows were to become a law before, if that was changed; told, for who sees losses first and chooses rows then
    foretells nothing."""
    try:
        held = json.loads(plan.read_text())
        earlier, choice, written = list(held.get("fit_before", [])), dict(held["fit"]), str(held["written"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    if choice == now:
        return earlier
    before, after = flatten(choice), flatten(now)
    changed = [f"fit.{key} {before.get(key)} → {after.get(key)}" for key in after if before.get(key) != after.get(key)]
    print(f"note: changed since the plan of {written}: {', '.join(changed)}. plan.json keeps both", flush=True)
    return [*earlier, {"written": written, "fit": choice}]


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
        "unique_tokens": config.data.unique_tokens,
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


def _runnable(config: SweepConfig, found: Sequence[Cell]) -> list[str]:
    """What lacks; a plan that is only looked at needs no data yet."""
    try:
        _refuse_unrunnable(config, found)
    except DataError as error:
        if config.start or config.submit:
            raise
        return [f"cannot be started yet: {error}"]
    return []


def _refuse_unrunnable(config: SweepConfig, found: Sequence[Cell]) -> None:
    """What `train` would refuse, of the cheapest cell and the dearest of each kind: said now, not after hours."""
    dearest = {(cell.family, cell.config.data.unique_tokens, cell.held_out): cell for cell in found}
    for cell in {found[0].name: found[0], **{cell.name: cell for cell in dearest.values()}}.values():
        parallel, run = cell.config.parallel, dataclasses.replace(cell.config.run, branch_from=None)
        per_node = cell.ranks if cell.ranks != config.job.n_ranks else config.job.ranks_per_node
        grid = RankGrid(0, cell.ranks, 0, per_node, parallel.tp_size, parallel.sp_size)
        check(dataclasses.replace(cell.config, run=run), grid)
