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
from launch.scaling.families import Ratio
from launch.scaling.report import (
    COUNTINGS,
    ESTIMATORS,
    basis_lines,
    constant_rows,
    counting_rows,
    estimator_rows,
    form_text,
    noise_words,
    spans,
)
from launch.sweep_folder import HOURS, Cell, Sweep
from launch.sweep_forecasts import Origin, Scored, Told
from launch.sweep_law import Findings

_SHOWN = 40


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
    head = ["", "fitted", "80 % interval", "95 % interval", ""]
    told = [form_text(analysis.family, found.choice.counting), *basis_lines(analysis.family)]
    return _table(head, constant_rows(analysis.family), (0, 4)) + note(_sentences(told))


def estimators(analysis: Analysis) -> str:
    return _table(ESTIMATORS, estimator_rows(analysis), (0, 4))


def countings(found: Findings) -> str:
    assert found.analysis is not None
    return _table(COUNTINGS, counting_rows(found.analysis, found.choice.counting), (0,))


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
    return table(["budget FLOPs", "best N", "spread of ln N", "loss there", ""], rows, left=(4,)) + note(
        _sentences([noise_words(analysis)])
    )


def held_out(found: Findings) -> str:
    """What the law of now says of runs that it has not seen: no forecast, for it may be made after the fact."""
    rows = [
        [_name(row.run), f"{p.loss:.4f}", spans(p.run_interval)[1], f"{row.loss:.4f}",
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
            rows.append([_name(name), f"{one.loss:.4g}", f"{one.ratio:.3g}", *spans(one.interval), _reached(one)])
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
        is_over = len(some) == len(finished)
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
                f"{own / predicted:.2f} x" if predicted and own and is_over else "-",
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


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """Of cells that are text."""
    return table([shown(cell) for cell in head], [[shown(cell) for cell in row] for row in rows], left)


def _sentences(parts: Sequence[str]) -> str:
    return "".join(f"{part[:1].upper()}{part[1:]}. " for part in parts).strip()


def _name(run: str) -> str:
    return f"<bdi>{shown(run)}</bdi>"


def _inside(held: bool | None) -> str:
    return {True: "inside", False: "outside", None: "-"}[held]


def _reached(one: Ratio) -> str:
    return f"reached in {one.reached:.0%} of the draws"
