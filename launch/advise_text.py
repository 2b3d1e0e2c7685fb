"""What `launch advise` prints: what to train, what it reaches and costs, how sure that is, the command. Advice in, text
out.
"""

import shlex
from collections.abc import Sequence
from textwrap import fill

import numpy as np

from launch.advise_made import Advice
from launch.scaling.bootstrap import Interval
from launch.scaling.layout import aligned
from launch.scaling.repeated import worth
from launch.scaling.report import spans
from train.config import Device
from train.plan import GIB, counted, duration, size

WIDTH = 118
_SHOWN_CHANGES = 3


def advice_text(found: Advice, words: Sequence[str]) -> str:
    blocks = [
        _head(found),
        _lines(_run(found)),
        _sure(found),
        _lines(_bill(found)),
        _notes(found),
        _commands(found, words),
    ]
    return "\n\n".join(block for block in blocks if block)


def _head(found: Advice) -> str:
    rows, dropped, asked = found.evidence.rows, found.evidence.dropped, found.asked.budget
    law = found.evidence.family.fit.law
    what = (
        "for "
        + {
            "flops": f"{asked.flops or 0:.4g} FLOPs ({found.asked.fit.flops})",
            "device_hours": f"{asked.device_hours or 0:,.6g} device-hours",
            "usd": f"{asked.usd or 0:,.6g} USD",
            "loss": f"a {found.asked.fit.loss} of {asked.loss or 0:.6g}, as cheaply as can be",
        }[asked.asked[0]]
    )
    lines = [
        f"advice {what}",
        f"  by the law of {len(rows)} runs: E {law.E:.4g}, A {law.A:.4g}, B {law.B:.4g}, alpha {law.alpha:.3f}, "
        f"beta {law.beta:.3f}; N counts {found.asked.fit.counting}",
    ]
    if dropped:
        lines += [f"  {len(dropped)} runs not used", aligned(dropped, indent="    ")]
    return "\n".join(lines)


def _run(found: Advice) -> list[tuple[str, str]]:
    model, plan = found.shape.model, found.prediction.plan
    keys = "" if model.n_kv_heads == model.n_heads else f" ({model.n_kv_heads} of keys)"
    supply = "unique tokens not known: taken as never repeated (no manifest at data.folder; supply=TOKENS says it)"
    if found.epochs is not None:
        supply = f"{found.epochs:.3g} of the {found.supply.tokens:,.0f} unique tokens there are"
        if found.epochs > 1:
            fresh = float(worth(float(found.tokens), found.supply.tokens, found.supply.r_d))
            supply += f"; they are worth {fresh:,.0f} fresh ones by {found.evidence.wear.source}"
    return [
        ("shape", f"{model.n_layers} layers x {model.d_model}, {model.n_heads} heads of {model.head_width}{keys}, "
                  f"MLP {model.d_ff}; {found.depth}"),
        ("parameters", f"{plan.n_params:,} stored, {plan.n_params_matmul:,} in matmuls, "
                       f"{plan.n_params_non_embedding:,} without embedding"),
        ("tokens", f"{found.tokens:,}: {plan.total_steps:,} step{'s' * (plan.total_steps > 1)} of "
                   f"{plan.tokens_per_step:,}; {found.tokens / found.shape.n:.3g} a parameter"),
        ("epochs", supply),
        ("compute", f"{plan.flops_causal:.4g} FLOPs causal, {plan.flops_full:.4g} full"),
    ]  # fmt: skip


def _sure(found: Advice) -> str:
    """Numbers with intervals, then what they are worth."""
    lost, unit = found.regret, found.asked.fit.loss
    scatter = found.loss * float(np.median(found.evidence.family.scatter.sd))
    rows: list[tuple[str, ...]] = [("", "advised", "80 % interval", "95 % interval", "")]
    rows.append(_row(unit, found.loss, found.loss_interval, "of the law", ".4f"))
    rows.append(_row(unit, found.loss, found.run_interval, "of one run: with the noise of runs", ".4f"))
    rows.append(_row("best N", found.shape.n, lost.n, "of laws that fit about as well, between real sizes too", ".3g"))
    rows.append(_row("best tokens", float(found.tokens), lost.d, "of laws that fit about as well", ".3g"))
    if found.reach is not None:
        note = "to reach the loss"
        if found.reach.reached < 1:
            note += f"; {1 - found.reach.reached:.0%} of those laws never do"
        rows.append(_row("FLOPs", found.flops, found.reach.flops, note, ".3g"))
        plan, share = found.prediction.plan, found.prediction.plan.device_hours / found.flops
        rows.append(
            _row("device-hours", plan.device_hours, _scaled(found.reach.flops, share), "at the speed below", ".3g")
        )
        if plan.cost_usd is not None:
            rate = plan.cost_usd / found.flops
            rows.append(_row("USD", plan.cost_usd, _scaled(found.reach.flops, rate), "", ".4g"))
    lines = [aligned(rows, right=(1,), indent="  ")]
    lines += _lines(
        [
            ("regret", f"{lost.median:.2g} of loss given away by the median of these laws, below {lost.high90:.2g} by "
                       f"nine of ten; {lost.if_low:.2g} if the best N is {lost.n.low80:.3g}, {lost.if_high:.2g} if it "
                       f"is {lost.n.high80:.3g}. Runs scatter by {scatter:.2g} around the law"),
            ("distance", f"OUTSIDE of what was sampled, allowed by extrapolate={found.asked.extrapolate:g}: "
                         f"{'; '.join(found.outside.where)}" if found.outside.where else "inside what was sampled"),
        ]
    ).splitlines()  # fmt: skip
    return "\n".join(lines)


def _scaled(span: Interval, factor: float) -> Interval:
    return Interval(*(value * factor for value in vars(span).values()))


def _row(name: str, value: float, span: Interval, note: str, form: str) -> tuple[str, ...]:
    return name, f"{value:{form}}", *spans(span, form), note


def _bill(found: Advice) -> list[tuple[str, str]]:
    plan, parallel, batch = found.prediction.plan, found.prediction.config.parallel, found.prediction.batch
    room = "" if plan.machine.memory_bytes is None else f" of {size(plan.machine.memory_bytes)}"
    fits = {True: ": fits", False: ": DOES NOT FIT", None: ""}[plan.fits]
    cost = plan.price["rule"]
    if plan.cost_usd is not None:
        cost = f"{plan.cost_usd:,.2f} USD for training alone ({plan.price['rule']}, {plan.price['date']})"
    rows = [
        ("machine", f"{plan.cluster}: {plan.machine.n_devices} x {plan.machine.device}, "
                    f"{plan.machine.peak_flops_per_second / 1e12:.3g} TFLOP/s ({plan.machine.peak_source})"),
        ("time", f"{duration(plan.seconds)} at an MFU of {plan.expected_mfu:.0%} ({plan.mfu_is}): "
                 f"{counted(plan.device_hours)} device-hours"),
        ("cost", cost),
        ("layout", f"dp {batch.dp_size} x tp {parallel.tp_size} x sp {parallel.sp_size}, ZeRO {parallel.zero_stage}, "
                   f"{parallel.precision}, {batch.gradient_accumulation_steps} x micro-batch {batch.micro_batch_size}, "
                   f"recomputation {parallel.activation_checkpointing}; "
                   f"{'the fastest that fits' if found.layout else 'as given'}"),
        ("memory", f"{size(plan.memory.total)} a device{room}{fits}"),
    ]  # fmt: skip
    for change in found.changes[:_SHOWN_CHANGES]:
        rows.append(("to fit", f"{' '.join(change.words)}: {change.prediction.plan.memory.total / GIB:.1f} GiB"))
    if plan.fits is False and not found.changes:
        rows.append(("to fit", "no small change would do: more devices, or search=true"))
    return rows


def _notes(found: Advice) -> str:
    """What the law takes for granted."""
    config, sampled = found.prediction.config, found.evidence.sampled
    rows = [
        ("taken", f"learning rate {config.optimizer.peak_lr:g} and warm-up over {config.schedule.warmup_tokens:,} "
                  "tokens are as given: the law holds for runs as well tuned for their size as the rows were"),
    ]  # fmt: skip
    if found.evidence.family.loose("E"):
        rows.append(("BEWARE", "the rows do not identify E (zero fits as well): beyond them the law may fall too fast"))
    for key, ours, theirs in (
        ("data.seq_len", config.data.seq_len, {one.seq_len for one in sampled}),
        ("model.vocab_size", config.model.vocab_size, {one.vocab_size for one in sampled}),
    ):
        others = sorted(value for value in theirs if value is not None)
        if others and ours not in others:
            rows.append(
                ("BEWARE", f"{key}={ours}, but the rows have {', '.join(map(str, others))}: losses differ for it")
            )
    return _lines(rows)


def _commands(found: Advice, words: Sequence[str]) -> str:
    cluster, n = found.prediction.config.cluster, found.prediction.plan.machine.n_devices
    per_node = min(n, cluster.gpus_per_node or n)
    typed = " ".join(shlex.quote(word) for word in words)
    start = "python -m train" if n == 1 else f"torchrun --nproc-per-node {per_node} -m train"
    fits = found.prediction.plan.fits is not False
    head = (
        "to train it" if fits else "to train it, once it fits: a change as above, or search=true for the fastest layout"
    )
    lines = [head] + ([f"  {start} {typed}"] if n == per_node else [])
    if cluster.device == Device.cuda:
        job = f"job.nodes={-(-n // per_node)} job.ranks_per_node={per_node} job.gpus_per_node={per_node}"
        lines.append(f"  python -m launch submit {typed} {job}")
    elif n != per_node:
        lines.append(f"  torchrun --nnodes {-(-n // per_node)} --nproc-per-node {per_node} -m train {typed}")
    return "\n".join(lines)


def _lines(rows: Sequence[tuple[str, str]]) -> str:
    """Long ones go on below themselves."""
    indent = " " * 14
    return "\n".join(
        fill(f"  {name:<11} {text}", WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        for name, text in rows
    )
