"""The tables of a sweep's page: score, constants, estimators, countings, rolling origin, cost, cells, rows not used.

In: what the rows, the forecasts and the folder say. Out: HTML; whatever came from a file has passed through `shown`.
"""

from collections.abc import Sequence

from data_prep.harmless import shown
from launch import words
from launch.charts import tick
from launch.page import details, table
from launch.plot_layers import power_of_ten
from launch.scaling.analysis import Analysis
from launch.scaling.bootstrap import Interval, interval
from launch.scaling.envelope import Envelope
from launch.scaling.families import Ratio
from launch.scaling.report import identified
from launch.sweep_folder import HOURS, Cell, Sweep
from launch.sweep_forecasts import Origin, Scored, Told
from launch.sweep_law import Findings

_SHOWN = 40
_CONSTANTS = ("E", "A", "B", "alpha", "beta")


def note(text: str) -> str:
    return f"<p class='note'>{shown(text)}</p>" if text else ""


def scores(told: Sequence[Told]) -> str:
    head = [
        "forecast",
        "verdict",
        "predicted",
        "95 % interval",
        "came",
        "error",
        "in seed spreads",
        "held by",
        "least skill",
    ]
    rows: list[list[str]] = []
    for one in told:
        ends = "-" if one.ends95 is None else f"{one.ends95[0]:.4f} to {one.ends95[1]:.4f}"
        name = f"{shown(one.number)} {_name(one.run)}"
        rows.append([name, shown(verdict_of(one)), words.fixed(one.predicted, 4), ends, *_outcome(one.score)])
    return table(head, rows, left=(0, 1))


def _outcome(score: Scored | None) -> list[str]:
    if score is None:
        return ["-"] * 5
    error = "-" if score.relative_error is None else f"{score.relative_error:+.2%}"
    held = {80: score.inside80, 95: score.inside95}
    narrowest = next((f"{percent} %" for percent, inside in held.items() if inside), "neither")
    skill = min((one.skill for one in score.skills if one.skill is not None), default=None)
    known = narrowest if any(inside is not None for inside in held.values()) else "-"
    return [words.fixed(score.measured, 4), error, words.number(score.seed_spreads), known, words.fixed(skill, 2)]


def verdict_of(one: Told) -> str:
    if one.score is None:
        return "sealed, not scored yet"
    if one.score.goal:
        return "passes, goal met"
    return {True: "passes", False: "does not pass", None: "scored"}[one.score.passed]


def skills(one: Told) -> str:
    """The newest forecast beside simpler rules, and what its score remarks."""
    score = one.score
    came, found = (score.measured, score.skills) if score else (None, [])
    rows = [
        [
            shown(rule.name),
            words.fixed(rule.loss, 4),
            "-" if not came or rule.loss is None else f"{rule.loss / came - 1:+.2%}",
            words.fixed(rule.skill, 2),
            shown(rule.words),
        ]
        for rule in found or one.baselines
    ]
    head = ["simpler rule", "said", "error", "skill against it", ""]
    limit = f"It passes up to {score.limit:.2%}." if score and score.limit is not None else ""
    width = f"The 95 % interval is {score.width95:.1%} of the loss wide." if score and score.width95 else ""
    cost = _cost_told(*score.hours) if score else ""
    sealed = f"Sealed on {one.n_rows} rows, SHA-256 {one.sha256[:16]}; {'; '.join(one.outside) or 'inside'}."
    remarks = "".join(note(remark) for remark in (score.remarks if score else []))
    return (
        table(head, rows, left=(0, 4)) + note(" ".join(part for part in (sealed, limit, width, cost) if part)) + remarks
    )


def _cost_told(predicted: float | None, measured: float | None) -> str:
    if not predicted or measured is None:
        return ""
    told = f"{words.duration(predicted * 3600)} of device time predicted, {words.duration(measured * 3600)} measured"
    return f"{told} ({measured / predicted:.2f} x)."


def constants(found: Findings) -> str:
    analysis = found.analysis
    assert analysis is not None
    family = analysis.family
    law, laws, lowest = family.fit.law, family.laws, float(family.points.loss.min())
    rows: list[list[str]] = []
    for name in _CONSTANTS:
        span = interval(getattr(laws, name))
        rows.append([name, f"{float(getattr(law, name)):.4g}", *_spans(span), shown(identified(name, span, lowest))])
    for name, value, drawn, what in (
        ("a", law.n_exponent(family.cost), laws.n_exponent(family.cost), "N* ~ C^a"),
        ("b", law.d_exponent(family.cost), laws.d_exponent(family.cost), "D* ~ C^b"),
    ):
        rows.append([name, f"{float(value):.4g}", *_spans(interval(drawn)), what])
    fit = family.fit
    refused = f", {family.n_refused} draws could not carry a law" if family.n_refused else ""
    told = (
        f"L = E + A/N^alpha + B/D^beta, N = {found.choice.counting}, "
        f"C = 6·{family.cost.scale:.3g}·N^{family.cost.power:.3f}·D. "
        f"Mean error {fit.error:.2%} over {len(family.points.n)} rows; {fit.n_agreeing} of {fit.n_starts} starts agree"
        f"{'' if fit.exact else '; THE MINIMUM WAS NOT REACHED'}. Intervals: {family.n_laws} resamples of "
        f"{len(set(family.points.groups))} runs{refused}."
    )
    return table(["", "fitted", "80 % interval", "95 % interval", ""], rows, left=(0, 4)) + note(told)


def estimators(analysis: Analysis) -> str:
    cost, rows = analysis.family.cost, list[list[str]]()
    for name, law in (
        ("parametric, Huber on log loss", analysis.family.fit.law),
        ("variable projection, squares", analysis.projected),
        ("over-training form, alpha = beta", analysis.overtraining.law),
    ):
        rows.append([name, f"{law.n_exponent(cost):.3f}", f"{law.d_exponent(cost):.3f}", f"{law.E:.4g}", ""])
    if isinstance(analysis.envelope, Envelope):
        one = analysis.envelope
        rows.append(
            ["envelope", f"{one.n_exponent:.3f}", f"{one.d_exponent:.3f}", "-", f"through {len(one.members)} runs"]
        )
    else:
        rows.append(["envelope", "-", "-", "-", shown(analysis.envelope)])
    used = sum(not bottom.flag for bottom in analysis.bottoms)
    if analysis.isoflop:
        a = analysis.isoflop.exponent
        rows.append(["isoFLOP parabolas", f"{a:.3f}", f"{1 - cost.power * a:.3f}", "-", f"{used} budgets"])
    else:
        rows.append(["isoFLOP parabolas", "-", "-", "-", f"{used} budgets with a bottom inside, needs 2"])
    return table(["estimator", "a (N*)", "b (D*)", "E", ""], rows, left=(0, 4))


def countings(found: Findings) -> str:
    analysis = found.analysis
    assert analysis is not None
    largest = float(analysis.family.points.flops.max())
    rows: list[list[str]] = []
    for one in analysis.countings:
        law = one.fit.law
        exponents = float(law.n_exponent(one.cost)), float(law.d_exponent(one.cost))
        far = float(law.loss(*law.optimum(10 * largest, one.cost)))
        chosen = " (chosen)" if one.counting == found.choice.counting else ""
        numbers = [f"{float(v):.3f}" for v in (law.alpha, law.beta, law.E, *exponents)]
        rows.append([str(one.counting).replace("_", "-") + chosen, *numbers, f"{far:.4f}", f"{one.fit.error:.2%}"])
    head = ["N counts", "alpha", "beta", "E", "a (N*)", "b (D*)", "loss at 10 x the largest budget", "mean error"]
    return table(head, rows)


def bottoms(analysis: Analysis) -> str:
    rows = [
        [
            power_of_ten(float(f"{b.flops:.3g}")),
            tick(float(f"{b.n:.3g}")) if b.n > 0 else "-",
            f"{b.spread:.2f}" if b.spread < 1e6 else "-",
            f"{b.loss:.4f}",
            shown(b.flag),
        ]
        for b in analysis.bottoms
    ]
    level = (
        f"{analysis.seed_noise:.2%}, as measured between seeds"
        if analysis.seed_noise
        else "0.50 %, assumed: no cell has two seeds"
    )
    return table(["budget FLOPs", "best N", "spread of ln N", "loss there", ""], rows, left=(4,)) + note(
        f"Seed noise {level}."
    )


def held_out(found: Findings) -> str:
    """What the law of now says of runs that it has not seen: no forecast, for it may be made after the fact."""
    rows = [
        [_name(row.run), f"{p.loss:.4f}", _span(p.run_interval.low95, p.run_interval.high95), f"{row.loss:.4f}",
         f"{p.loss / row.loss - 1:+.2%}", shown("; ".join(p.outside) or "inside what was sampled")]
        for row, p in found.held
    ]  # fmt: skip
    head = ["held out", "law of now", "95 % interval of a run", "came", "error", "how far outside"]
    return table(head, rows, left=(0, 5))


def rolling(origins: Sequence[Origin], left_out: Sequence[str]) -> str:
    """The count of intervals that held, never a percentage: there are few."""
    rows = [
        [_name(o.run), words.fixed(o.predicted, 4), words.fixed(o.measured, 4),
         "-" if o.error is None else f"{o.error:+.2%}",
         _inside(o.inside80), _inside(o.inside95)]
        for o in origins
    ]  # fmt: skip
    held = [f"{sum(bool(o.inside80) for o in origins)} of {len(origins)} inside 80 %"]
    held += [f"{sum(bool(o.inside95) for o in origins)} of {len(origins)} inside 95 %"]
    head = ["held back", "forecast", "came", "error", "80 %", "95 %"]
    return table(head, rows) + (note(f"{', '.join(held)}.") if rows else "") + "".join(map(note, left_out))


def families(found: Findings) -> str:
    rows: list[list[str]] = []
    for name, ratios in found.families.items():
        for one in ratios if isinstance(ratios, list) else []:
            rows.append([_name(name), f"{one.loss:.4g}", f"{one.ratio:.3g}", *_spans(one.interval), _reached(one)])
        if isinstance(ratios, str):
            rows.append([_name(name), "-", "-", "-", "-", shown(ratios)])
    head = [
        "family",
        "at loss",
        f"its FLOPs over those of {shown(found.choice.family)}",
        "80 % interval",
        "95 % interval",
        "",
    ]
    return table(head, rows, left=(0, 5))


def cost_table(sweep: Sweep) -> str:
    """What was really spent, by kind; branches share what came before them."""
    kinds, own, rows = {str(kind): 0.0 for kind in HOURS}, 0.0, list[list[str]]()
    for cell in sweep.cells:
        total = sum(cell.hours.values())
        for kind, hours in cell.hours.items():
            kinds[kind] += hours * (cell.own_hours or 0.0) / total if total else 0.0
        own += cell.own_hours or 0.0
    if not own > 0:
        return ""
    colours, bar = {"train": 2, "eval": 0, "checkpoint": 1}, list[str]()
    for kind in HOURS:
        share, colour = 100 * kinds[kind] / own, f"c{colours.get(kind, 7)}"
        bar.append(f'<span class="{colour}" style="width:{share:.3f}%"></span>')
        rows.append([f'<i class="dot {colour}"></i>{kind}', words.duration(kinds[kind] * 3600), f"{share:.1f} %"])
    return f'<div class="bar">{"".join(bar)}</div>{table([], rows)}'


def totals(sweep: Sweep) -> str:
    """Compute, device time and dollars, as planned and as they came; what branches share is counted once."""
    planned = [cell for cell in sweep.cells if cell.state != "left out"]
    finished = [cell for cell in planned if cell.state == "finished"]
    rows: list[list[str]] = []
    for name, some in (("planned", planned), ("of it finished", finished)):
        flops = _sum(some, "own_flops_causal") or _sum(some, "flops_causal")
        predicted, usd = _sum(some, "predicted_device_hours"), _sum(some, "predicted_usd")
        own = sum(cell.own_hours or 0.0 for cell in some)
        paid = [cell.own_usd for cell in some if cell.own_usd is not None]
        rows.append(
            [
                name,
                str(len(some)),
                power_of_ten(float(f"{flops:.3g}")) if flops else "-",
                words.duration(predicted * 3600) if predicted else "-",
                words.duration(own * 3600) if own else "-",
                f"{own / predicted:.2f} x" if predicted and own else "-",
                words.usd(usd) if usd else "-",
                words.usd(sum(paid)) if paid else "-",
            ]
        )
    head = ["", "cells", "FLOPs", "device time predicted", "measured", "ratio", "dollars predicted", "spent"]
    return table(head, rows) if planned else ""


def _sum(some: Sequence[Cell], key: str) -> float:
    return sum(cell.number(key) or 0.0 for cell in some)


def cells(sweep: Sweep) -> str:
    """Those of the plan, in its order, and how each stands."""
    head = ["run", "state", "N", "tokens", "FLOPs", "loss", "predicted", "measured", "ratio", "dollars", ""]
    rows = [_cell(cell) for cell in sweep.cells]
    return _long(head, rows, (0, 1, 10), "cells")


def not_used(dropped: Sequence[tuple[str, str]]) -> str:
    return _long(["run", "why it does not count"], [[_name(run), shown(why)] for run, why in dropped], (0, 1), "rows")


# --- cells of tables -------------------------------------------------------------------------------------------------


def _cell(cell: Cell) -> list[str]:
    predicted, own = cell.number("predicted_device_hours"), cell.own_hours
    ratio = "-" if not predicted or own is None else f"{own / predicted:.2f} x"
    n, flops = cell.number("n_params_matmul"), cell.number("flops_causal")
    tokens = cell.number("tokens") or cell.number("tokens_seen")
    loss = cell.row.loss if cell.row else None
    why = [cell.why] + (["held out"] if cell.held_out else [])
    usd, asked = cell.own_usd, cell.number("predicted_usd")
    mood = {"finished": "good", "diverged": "bad", "failed": "bad", "lost": "bad", "damaged": "bad"}.get(cell.state, "")
    return [
        _name(cell.run),
        f'<span class="verdict-word {mood}">{shown(cell.state)}</span>',
        words.number(n),
        words.number(tokens),
        "-" if flops is None else power_of_ten(float(f"{flops:.3g}")),
        words.fixed(loss, 4),
        "-" if predicted is None else words.duration(predicted * 3600),
        "-" if own is None else words.duration(own * 3600),
        ratio,
        words.usd(usd if usd is not None else asked),
        shown("; ".join(part for part in why if part)),
    ]


def _long(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int], what: str) -> str:
    """The first ones, and the rest folded away."""
    more = rows[_SHOWN:]
    first = table(head, rows[:_SHOWN], left)
    return first + (details(f"{len(more)} more {what}", table(head, more, left)) if more else "")


def _name(run: str) -> str:
    return f"<bdi>{shown(run)}</bdi>"


def _inside(held: bool | None) -> str:
    return {True: "inside", False: "outside", None: "-"}[held]


def _spans(span: Interval) -> tuple[str, str]:
    return _span(span.low80, span.high80), _span(span.low95, span.high95)


def _span(low: float, high: float) -> str:
    return f"{low:.4g} to {high:.4g}"


def _reached(one: Ratio) -> str:
    return f"reached in {one.reached:.0%} of the resamples"
