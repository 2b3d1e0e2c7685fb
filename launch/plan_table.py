"""What `launch plan` prints: predictions in, text out. One block for each question that a person has before queueing:
what is trained and where, does it fit, how long does a step take and why, what does the run cost, how sure is that.
"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest
from textwrap import fill

from launch.layouts import ROOM, Change, Search
from launch.predict import Prediction
from train.plan import GIB, duration, size, summary_rows

WIDTH = 118
HELD_OUT = (59, 0.036, 0.106)
"""rows that no constant was fitted to, and the median and 90th percentile of their error: as `reproduce=` finds them"""
NOTHING_FITS = (
    "no three of these changes would do: smaller micro-batch, more recomputation, chunked loss, higher ZeRO stage, "
    "more TP, bf16, offloading, up to 128 times the devices"
)
HOW_TO_DESCRIBE = (
    "choose a described cluster (cluster=h100, h200, a100_80, ...), or give cluster.generation, "
    "bf16_flops_per_second, memory_gib, memory_bytes_per_second, gpus_per_node, link_bytes_per_second, "
    "network_bytes_per_second and watts"
)
STEP_PARTS = {
    "matmul": "matrix products",
    "attention": "attention",
    "elementwise": "norms, activations",
    "loss": "logits and loss",
    "recomputation": "recomputation",
    "tensor_parallel": "TP and SP, exposed",
    "weights_gathered": "ZeRO 3, exposed",
    "gradients_reduced": "gradients, exposed",
    "pipeline": "pipeline bubble",
    "optimizer": "optimizer",
    "waiting": "nodes waiting",
    "rest": "fixed",
}


def plan_table(found: Prediction, changes: Sequence[Change]) -> str:
    """changes: those that would make it fit, if it does not."""
    rows = summary_rows(found.plan)
    head = [*_shown(rows, "parameters", "tokens", "compute", "machine"), ("layout", _layout(found))]
    tail = [("speed", _speed(found)), *_shown(rows, "time", "energy", "cost"), ("how sure", _sureness(found))]
    to_fit = [("to fit", _change(change)) for change in changes]
    if found.plan.fits is False and not changes:
        to_fit = [("to fit", NOTHING_FITS)]
    return "\n".join([*_lines(head), "", *_two_columns(_memory(found), _step(found)), "", *_lines(tail + to_fit)])


def _shown(rows: dict[str, str], *names: str) -> list[tuple[str, str]]:
    return [(name, rows[name]) for name in names if name in rows]


def _lines(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Long ones go on below themselves."""
    indent = " " * 14
    return [
        fill(f"  {name:<11} {text}", WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        for name, text in rows
    ]


def _layout(found: Prediction) -> str:
    parallel, batch = found.config.parallel, found.batch
    nodes = found.config.cluster.gpus_per_node
    across = ""
    if nodes and parallel.tp_size > nodes:
        across = f"; TP ACROSS NODES of {nodes}: every block waits for the network several times"
    return (
        f"dp {batch.dp_size} x tp {parallel.tp_size} x sp {parallel.sp_size}, ZeRO {parallel.zero_stage}, "
        f"{parallel.precision}, {batch.gradient_accumulation_steps} x micro-batch {batch.micro_batch_size}, "
        f"recomputation {parallel.activation_checkpointing}{across}"
    )


def _memory(found: Prediction) -> list[str]:
    memory, machine = found.plan.memory, found.plan.machine
    parts = {name.replace("_", " "): value for name, value in asdict(memory).items() if value}
    names = {"buckets": "communication", "optimizer": "masters, moments", "update": "(update, later)"}
    lines = ["memory of one device"]
    lines += [f"  {names.get(name, name):<18}{size(value):>12}" for name, value in parts.items()]
    lines.append(f"  {'at most':<18}{size(memory.total):>12}")
    if machine.memory_bytes is not None:
        spare = machine.memory_bytes - memory.total
        lines.append(f"  {'of':<18}{size(machine.memory_bytes):>12}")
        lines.append(f"  {'FITS, spare' if spare >= 0 else 'DOES NOT FIT, by':<18}{size(abs(spare)):>12}")
    return lines


def _step(found: Prediction) -> list[str]:
    if found.step is None:
        return ["time of one step: not predicted"]
    lines = ["time of one step"]
    for name, seconds in asdict(found.step).items():
        if seconds:
            lines.append(f"  {STEP_PARTS[name]:<20}{seconds:>10.3g} s{seconds / found.step.total:>6.0%}")
    lines.append(f"  {'total':<20}{found.step.total:>10.3g} s")
    return lines


def _two_columns(left: Sequence[str], right: Sequence[str]) -> list[str]:
    return [f"  {one:<40}{two}".rstrip() for one, two in zip_longest(left, right, fillvalue="")]


def _speed(found: Prediction) -> str:
    if found.step is None:
        on_cpu = found.plan.machine.device.startswith("CPU")
        return "not predicted for a CPU" if on_cpu else f"not predicted: {HOW_TO_DESCRIBE}"
    made = found.plan
    speed = made.tokens_per_step / found.step.total
    each = f" ({speed / made.machine.n_devices:,.0f} a GPU)" if made.machine.n_devices > 1 else ""
    masked = found.config.data.mask_documents
    count = "causal count of whole rows; a run counts inside documents alone" if masked else "causal count"
    return f"{speed:,.0f} tokens/s{each}, MFU {made.expected_mfu:.1%} ({count})"


def _sureness(found: Prediction) -> str:
    if found.hardware is None:
        return "the MFU is an assumption (cluster.expected_mfu): time, energy and cost are no better than it"
    n_rows, middle, high = HELD_OUT
    text = (
        f"of {n_rows} published runs on A100 and H100 that were kept out of the fit, half were within {middle:.1%} of "
        f"the predicted step time, nine in ten within {high:.0%}; "
    )
    if found.hardware.generation not in ("ampere", "hopper"):
        text += f"none was on {found.hardware.name}, so expect much worse; "
    return text + "loading, evaluation, checkpoints and restarts are not in it"


def _change(change: Change) -> str:
    memory, step = change.prediction.plan.memory.total, change.prediction.step
    time = "" if step is None else f", {step.total:.3g} s a step"
    return f"{' '.join(change.words)}: {memory / GIB:.1f} GiB{time}"


def search_table(found: Search) -> str:
    tight = f"; {found.n_tight} more would fit with less to spare" if found.n_tight else ""
    head = "     dp  tp  sp zero micro accum recompute  memory GiB   step s  tokens/s/GPU    MFU       time    cost USD"
    rows = [f"{place:>2} {_row(change.prediction)}" for place, change in enumerate(found.best, start=1)]
    words = [f"{place:>2} {' '.join(change.words)}" for place, change in enumerate(found.best[:3], start=1)]
    return "\n".join(
        [
            f"{found.n_tried} layouts tried; those that fit with {ROOM:.0%} of memory to spare, fastest first{tight}",
            head,
            *rows,
            *(f"left out: {reason}" for reason in found.left_out),
            f"differences below {HELD_OUT[1]:.0%} are smaller than the usual error of a prediction",
            "words to add:",
            *words,
        ]
    )


def _row(one: Prediction) -> str:
    parallel, batch, made = one.config.parallel, one.batch, one.plan
    assert one.step is not None, "searched without a predicted time"
    speed = made.tokens_per_step / one.step.total / made.machine.n_devices
    cost = "-" if made.cost_usd is None else f"{made.cost_usd:,.0f}"
    return (
        f"{batch.dp_size:>4}{parallel.tp_size:>4}{parallel.sp_size:>4}{parallel.zero_stage:>5}"
        f"{batch.micro_batch_size:>6}{batch.gradient_accumulation_steps:>6} {parallel.activation_checkpointing:<9}"
        f"{made.memory.total / GIB:>12.1f}{one.step.total:>9.3g}{speed:>14,.0f}{made.expected_mfu:>7.1%}"
        f"{duration(made.seconds):>11}{cost:>12}"
    )
