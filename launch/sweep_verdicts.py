"""How a sweep stands, in the few lines that a person reads first: forecast, law, cost, cells.

In: the sweep, what its rows say, its forecasts. Out: lines with a judgement each, as `verdicts.py` has for one run.
"""

from collections import Counter
from collections.abc import Sequence

from launch import words
from launch.plot_layers import power_of_ten
from launch.scaling.bootstrap import interval
from launch.sweep_folder import Sweep
from launch.sweep_forecasts import Told
from launch.sweep_law import Findings
from launch.sweep_more_charts import tuned
from launch.verdicts import Verdict

ENDED = ("finished", "left out")
_BROKEN = ("failed", "diverged", "lost", "damaged")


def sweep_verdicts(sweep: Sweep, found: Findings, told: Sequence[Told]) -> list[Verdict]:
    return [_forecast(sweep, told), _law(found), _cost(sweep), cells_verdict(sweep), *_edges(sweep)]


def progress(sweep: Sweep) -> str:
    planned = [cell for cell in sweep.cells if cell.state != "left out"]
    n_finished = sum(cell.state == "finished" for cell in planned)
    return f"{n_finished} of {len(planned)} cells finished"


def _forecast(sweep: Sweep, told: Sequence[Told]) -> Verdict:
    if not told:
        held = [cell.run for cell in sweep.held_out()]
        what = f"held out: {', '.join(held[:3])}" if held else "no cell of the plan is held out"
        begun = [cell.run for cell in sweep.held_out() if cell.state not in ("not started", "left out")]
        if begun:
            return Verdict("bad", f"no forecast was sealed, though {begun[0]}, held out, has begun")
        return Verdict("neutral", f"no forecast is sealed yet; {what}")
    one = told[-1]
    ends = f" (95 %: {one.ends95[0]:.4f} to {one.ends95[1]:.4f})" if one.ends95 else ""
    said = f"forecast {one.number} of {one.run}, sealed {one.sealed}: {words.fixed(one.predicted, 4)}{ends}"
    if one.is_altered:
        return Verdict("bad", f"{said}; its files were ALTERED after they were written: it proves nothing")
    score = one.score
    if score is None:
        return Verdict("neutral", f"{said}; not scored yet")
    parts = [f"came {words.fixed(score.measured, 4)}"]
    parts += [] if score.relative_error is None else [f"error {score.relative_error:+.2%}"]
    for percent, inside in ((80, score.inside80), (95, score.inside95)):
        parts += [] if inside is None else [f"{'inside' if inside else 'outside'} the {percent} % interval"]
    if score.skills:
        better = sum((one.skill or 0.0) > 0 for one in score.skills)
        parts.append(f"better than {better} of {len(score.skills)} simpler rules")
    ending = {True: "it passes", False: "it does not pass", None: "no verdict in its score"}[score.passed]
    goal = (
        "; the goal is met" if score.goal else "; the goal (1 %, inside 80 %) is not met" if score.goal is False else ""
    )
    return Verdict("good" if score.passed else "bad", f"{said}; {', '.join(parts)}: {ending}{goal}")


def _law(found: Findings) -> Verdict:
    if found.analysis is None:
        return Verdict("neutral", f"no law yet ({len(found.used)} usable rows): {found.why}")
    family = found.analysis.family
    law, drawn = family.fit.law, family.constants
    said: list[str] = []
    loose: list[str] = []
    for name in ("E", "alpha", "beta"):
        span = interval(getattr(drawn, name))
        said.append(f"{name} {float(getattr(law, name)):.3g} [{span.low95:.3g}, {span.high95:.3g}]")
        loose += [name] if family.loose(name) else []
    a = interval(drawn.n_exponent(family.cost))
    said.append(f"N* ~ C^{float(law.n_exponent(family.cost)):.3f} [{a.low95:.3f}, {a.high95:.3f}]")
    unsure = f"; not identified: {', '.join(loose)}" if loose else ""
    form = f"L = {law.E:.4g} + {law.A:.4g}/N^{law.alpha:.3f} + {law.B:.4g}/D^{law.beta:.3f}"
    return Verdict(
        "neutral" if loose else "good",
        f"{form} from {len(family.points.n)} runs, mean error {family.fit.error:.2%}; 95 %: {', '.join(said)}{unsure}",
    )


def _cost(sweep: Sweep) -> Verdict:
    own = sum(cell.own_hours or 0.0 for cell in sweep.cells)
    if not own > 0:
        return Verdict("neutral", "nothing is spent yet")
    pairs = [(p, cell.own_hours) for cell in sweep.cells if cell.state == "finished"
             and (p := cell.number("predicted_device_hours")) and cell.own_hours]  # fmt: skip
    ratio = f", {sum(m for _, m in pairs) / sum(p for p, _ in pairs):.2f} x what was predicted" if pairs else ""
    usd = [cell.own_usd for cell in sweep.cells if cell.own_usd is not None]
    paid = f", {words.usd(sum(usd))}" if usd else ", no price given"
    flops = sum(cell.number("own_flops_causal") or cell.number("flops_causal") or 0.0
                for cell in sweep.cells if cell.state == "finished")  # fmt: skip
    caps = [f"{_cap(key, value)}" for key, value in sweep.caps.items() if isinstance(value, int | float)]
    cap = f"; cap {' and '.join(caps)}" if caps else ""
    done = f", {power_of_ten(float(f'{flops:.3g}'))} FLOPs in finished cells" if flops else ""
    return Verdict("neutral", f"it cost {words.duration(own * 3600)} of device time{paid}{ratio}{done}{cap}")


def cells_verdict(sweep: Sweep) -> Verdict:
    states = Counter(cell.state for cell in sweep.cells if cell.state != "finished")
    others = f" ({', '.join(f'{n} {state}' for state, n in states.most_common())})" if states else ""
    is_done = all(cell.state in ENDED for cell in sweep.cells) and bool(sweep.cells)
    broken = [cell for cell in sweep.cells if cell.state in _BROKEN]
    return Verdict("bad" if broken else "good" if is_done else "neutral", progress(sweep) + others)


def _edges(sweep: Sweep) -> list[Verdict]:
    """Optima that lie on the edge of what was tried are none."""
    edges = [f"{one.what}: {edge}" for one in tuned(sweep) for edge in one.edges]
    return [Verdict("bad", f"tuning at an edge: {edge}; try beyond it") for edge in edges]


def _cap(key: str, value: float) -> str:
    return words.usd(value) if key == "usd" else f"{value:g} {key.replace('_', '-')}"
