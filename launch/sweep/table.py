"""The plan of a sweep as a table: a line a cell, what it will cost, and what has become of it."""

from collections.abc import Mapping, Sequence

from launch import words
from launch.sweep.cells import Cell
from launch.sweep.config import Rule, SweepConfig
from launch.sweep.costs import Cost, left_share, own_device_hours
from launch.sweep.states import Become, State


def table(
    cells: Sequence[Cell],
    costs: Mapping[str, Cost],
    states: Mapping[str, State],
    left_out: Mapping[str, str],
    short: Sequence[tuple[str, str]],
    notes: Sequence[str] = (),
) -> str:
    head = ("cell", "N", "tokens", "D/N", "FLOPs", "lr", "tokens/step", "warm-up", "steps", "from", "time", "cost", "")
    rows = [head, *(_row(cell, costs[cell.name], states[cell.name], left_out.get(cell.name)) for cell in cells)]
    lines = words.table(rows, left=(0, 9, 12))
    lines += [f"not in the plan: {name}: {why}" for name, why in short]
    lines += [f"note: {note}" for note in notes]
    return "\n".join([*lines, "", *_totals(cells, costs, states, left_out)])


def remarks(config: SweepConfig, cells: Sequence[Cell]) -> list[str]:
    """What a rule or the schedule makes of keys that were set, and what is not as one may expect."""
    axes, optimizer, schedule, found = config.sweep, config.optimizer, config.schedule, list[str]()
    match axes.rule:
        case Rule.porian | Rule.step_law:
            found.append(
                f"sweep.rule={axes.rule} sets the learning rate and the batch of every cell; optimizer.peak_lr="
                f"{optimizer.peak_lr:g}, batch.global_batch_size={config.batch.global_batch_size} and, for small "
                f"batches of porian, optimizer.beta2={optimizer.beta2:g} are not used"
            )
        case Rule.mup:
            found.append(
                f"sweep.rule=mup: lr is that of width {config.model.mup_base_width} (model.mup_base_width); the layers "
                "of wider models take less"
            )
        case Rule.fixed:
            pass
    if axes.warmup_tokens_per_param is not None and schedule.warmup_tokens:
        found.append(
            f"schedule.warmup_tokens={schedule.warmup_tokens} is not used: "
            f"sweep.warmup_tokens_per_param={axes.warmup_tokens_per_param:g} sets the warm-up"
        )
    if cut := [cell.name for cell in cells if cell.config.schedule.warmup_tokens < _warmup_asked(config, cell)]:
        found.append(
            f"warm-up cut to sweep.max_warmup_ratio={axes.max_warmup_ratio:g} of the shortest run of the size: "
            f"{_some(cut)}"
        )
    several = len(axes.tokens or axes.tokens_per_param or axes.flops) > 1
    if axes.branch and several and not any(cell.parent for cell in cells):
        why = f"sweep.rule={axes.rule}" if axes.rule == Rule.step_law else f"schedule={schedule.kind}"
        found.append(f"no cell begins from another one, as sweep.branch=true would have it: with {why} rates differ")
    return found


def _warmup_asked(config: SweepConfig, cell: Cell) -> int:
    per_param = config.sweep.warmup_tokens_per_param
    return config.schedule.warmup_tokens if per_param is None else int(per_param * cell.counts.n_params_matmul)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "")


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
    left = {cell.name: left_share(cell, states[cell.name].summary) for cell in to_do}
    prices = [usd * left[cell.name] for cell in to_do if (usd := costs[cell.name].usd) is not None]
    usd = f", {words.usd(sum(prices))}" if prices else ""
    hours = sum(costs[cell.name].device_hours * left[cell.name] for cell in to_do)
    lines = [
        f"{len(planned)} cells, {_decades(planned)}; {own:.2e} FLOPs in all, {own / max(1, whole):.0%} of what they "
        "would take one by one",
        f"to do: {len(to_do)} cells, {hours:.3g} device-hours{usd}" + (f" ({'; '.join(sources)})" if sources else ""),
    ]
    return [*lines, f"spent so far: {spent:.3g} device-hours"] if spent else lines


def _decades(cells: Sequence[Cell]) -> str:
    flops = [cell.flops_causal for cell in cells]
    return f"{min(flops):.2e} to {max(flops):.2e} FLOPs" if flops else "none"
