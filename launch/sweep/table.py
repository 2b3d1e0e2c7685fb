"""The plan of a sweep as a table: a line a cell, what it will cost, and what has become of it."""

from collections.abc import Mapping, Sequence

from launch import words
from launch.sweep.cells import Cell
from launch.sweep.costs import Cost, own_device_hours
from launch.sweep.states import Become, State


def table(
    cells: Sequence[Cell],
    costs: Mapping[str, Cost],
    states: Mapping[str, State],
    left_out: Mapping[str, str],
    short: Sequence[tuple[str, str]],
) -> str:
    head = ("cell", "N", "tokens", "D/N", "FLOPs", "lr", "tokens/step", "warm-up", "steps", "from", "time", "cost", "")
    rows = [head, *(_row(cell, costs[cell.name], states[cell.name], left_out.get(cell.name)) for cell in cells)]
    lines = words.table(rows, left=(0, 9, 12))
    lines += [f"not in the plan: {name}: {why}" for name, why in short]
    return "\n".join([*lines, "", *_totals(cells, costs, states, left_out)])


def _row(cell: Cell, cost: Cost, state: State, left_out: str | None) -> tuple[str, ...]:
    config, size = cell.config, cell.counts.n_params_matmul
    begins = f"step {cell.shared_steps} of {cell.parent}" if cell.parent else ""
    told = state.words(cell) or ("held out" if cell.held_out else "")
    return (
        cell.name,
        words.number(size),
        words.number(cell.tokens),
        words.number(cell.tokens / size, 2),
        f"{cell.flops_causal:.2e}",
        f"{config.optimizer.peak_lr:.3g}",
        words.number(cell.tokens_per_step),
        words.number(config.schedule.warmup_tokens),
        f"{cell.steps:,}",
        begins,
        words.duration(cost.seconds),
        words.usd(cost.usd),
        f"left out: {left_out}" if left_out else told,
    )


def _totals(
    cells: Sequence[Cell], costs: Mapping[str, Cost], states: Mapping[str, State], left_out: Mapping[str, str]
) -> list[str]:
    planned = [cell for cell in cells if cell.name not in left_out]
    to_do = [cell for cell in planned if states[cell.name].become in (Become.new, Become.partial, Become.failed)]
    whole = sum(cell.flops_causal for cell in planned)
    own = sum(cell.own_flops_causal for cell in planned)
    spent = sum(own_device_hours(state.summary) for state in states.values() if state.summary)
    sources = sorted({costs[cell.name].source for cell in to_do})
    prices = [costs[cell.name].usd for cell in to_do]
    usd = "" if None in prices or not prices else f", {words.usd(sum(filter(None, prices)))}"
    lines = [
        f"{len(planned)} cells, {_decades(planned)}; {own:.2e} FLOPs in all, {own / max(1, whole):.0%} of what they "
        "would take one by one",
        f"to do: {len(to_do)} cells, {sum(costs[cell.name].device_hours for cell in to_do):.3g} device-hours{usd}"
        + (f" ({'; '.join(sources)})" if sources else ""),
    ]
    return [*lines, f"spent so far: {spent:.3g} device-hours"] if spent else lines


def _decades(cells: Sequence[Cell]) -> str:
    flops = [cell.flops_causal for cell in cells]
    return f"{min(flops):.2e} to {max(flops):.2e} FLOPs" if flops else "none"
