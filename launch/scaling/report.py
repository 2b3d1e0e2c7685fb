"""What `launch fit` prints of an analysis: aligned tables, plain words."""

import math
from collections.abc import Sequence

from launch.scaling.analysis import DEFAULT_SEED_NOISE, Analysis, Family, Prediction
from launch.scaling.bootstrap import Interval, interval
from launch.scaling.envelope import Envelope
from launch.scaling.families import Ratio
from launch.scaling.layout import aligned
from launch.scaling.overtraining import in_compute
from launch.scaling.repeated import Decay
from launch.scaling.rows import Counting, Row

_SHOWN_ROWS = 40
_HEAD: tuple[str, ...] = ("", "fitted", "80 % interval", "95 % interval", "")
ESTIMATORS: tuple[str, ...] = ("estimator", "a (N*)", "b (D*)", "E", "")
COUNTINGS: tuple[str, ...] = (
    *("N counts", "alpha", "beta", "E", "a (N*)", "b (D*)"), "loss at 10 x the largest budget", "mean error"
)  # fmt: skip


def rows_text(used: Sequence[Row], dropped: Sequence[tuple[str, str]]) -> str:
    """Which rows carry the law, and why each of the others does not."""
    cells = [
        (
            row.run,
            f"{row.n_params_matmul:,}",
            f"{row.tokens:,}",
            f"{row.flops_causal:.3g}",
            f"{row.loss:.4f}",
            _note(row),
        )
        for row in sorted(used, key=lambda row: (row.family, row.n_params_matmul, row.tokens))
    ]
    more = [f"... and {len(cells) - _SHOWN_ROWS} more rows"] if len(cells) > _SHOWN_ROWS else []
    head = ("run", "N (matmul)", "tokens", "FLOPs", "loss", "")
    lines = [f"{len(used)} rows used", aligned([head, *cells[:_SHOWN_ROWS]], right=(1, 2, 3, 4), indent="  "), *more]
    if dropped:
        lines += ["", f"{len(dropped)} rows not used", aligned(dropped, indent="  ")]
    return "\n".join(lines)


def analysis_text(found: Analysis, counting: Counting) -> str:
    family = found.family
    constants = aligned([_HEAD, *constant_rows(family)], right=(1,), indent="  ")
    return "\n\n".join(
        [
            "\n".join([form_text(family, counting), constants, *(f"  {line}" for line in basis_lines(family))]),
            _profiles(found),
            aligned([ESTIMATORS, *estimator_rows(found)], right=(1, 2, 3)),
            _bottoms(found),
            "the same rows, counted differently\n"
            + aligned([COUNTINGS, *counting_rows(found, counting)], right=range(1, 8), indent="  "),
        ]
    )


def prediction_text(one: Prediction) -> str:
    rows: list[tuple[str, ...]] = [_HEAD]
    rows += [_interval_row("N", one.n, one.n_interval, "best size")] if one.n_interval else []
    rows += [_interval_row("tokens", one.d, one.d_interval, "best length")] if one.d_interval else []
    rows += [
        _interval_row("loss", one.loss, one.loss_interval, "of the law"),
        _interval_row("loss", one.loss, one.run_interval, "of one run: with the noise of runs"),
    ]
    where = "; ".join(one.outside)
    lines = [
        f"at {one.flops:.4g} FLOPs, N {one.n:.4g}, {one.d:.4g} tokens ({one.d / one.n:.3g} a parameter)",
        aligned(rows, right=(1,), indent="  "),
        "  intervals of predictions: from how the runs scatter about the law, as a sealed forecast has them",
        f"  OUTSIDE what was sampled: {where}" if where else "  inside what was sampled",
    ]
    return "\n".join(lines)


def decay_text(found: Decay, n_rows: int) -> str:
    known = "" if found.identified else " NOT IDENTIFIED: the range has no end."
    return (
        f"repeated text ({n_rows} rows that repeat): half-lives R*_D {found.repeated.r_d:.3g} epochs, "
        f"R*_N {found.repeated.r_n:.3g}\n  R*_D from {found.low_r_d:.3g} to {found.high_r_d:.3g} fits within "
        f".5 %.{known}"
    )


def families_text(first: str, second: str, ratios: Sequence[Ratio]) -> str:
    head = ("at loss", "ratio", "80 % interval", "95 % interval", "")
    rows = [
        _interval_row(f"{one.loss:.4g}", one.ratio, one.interval, f"reached in {one.reached:.0%} of the draws")
        for one in ratios
    ]
    return f"FLOPs of {second} / FLOPs of {first}, each at its best size\n" + aligned(
        [head, *rows], right=(1,), indent="  "
    )


# --- rows of tables, for the console and for a page -------------------------------------------------------------------


def constant_rows(family: Family) -> list[tuple[str, ...]]:
    law, drawn, cost = family.fit.law, family.constants, family.cost
    rows = [
        _interval_row(name, getattr(law, name), interval(getattr(drawn, name)), open_words(family, name))
        for name in ("E", "A", "B", "alpha", "beta")
    ]
    rows.append(_interval_row("a", law.n_exponent(cost), interval(drawn.n_exponent(cost)), "N* ~ C^a"))
    rows.append(_interval_row("b", law.d_exponent(cost), interval(drawn.d_exponent(cost)), "D* ~ C^b"))
    return rows


def open_words(family: Family, name: str) -> str:
    if not family.loose(name):
        return ""
    return "NOT IDENTIFIED: zero fits as well" if name == "E" else "NOT IDENTIFIED"


def form_text(family: Family, counting: Counting) -> str:
    cost = family.cost
    return f"L = E + A/N^alpha + B/D^beta, N = {counting}; C = 6·{cost.scale:.3g}·N^{cost.power:.3f}·D"


def basis_lines(family: Family) -> list[str]:
    """How well the law fits, and what its intervals are."""
    fit = family.fit
    others = "" if fit.exact else "; THE MINIMUM WAS NOT REACHED"
    others += f"; others end {', '.join(f'{o:.2g}' for o in fit.others)} higher (relative)" if fit.others else ""
    return [
        f"mean error {fit.error:.2%} over {len(family.points.n)} rows; Huber {fit.delta:g} on log loss, sum "
        f"{fit.objective:.6g}; {fit.n_agreeing} of {fit.n_starts} starts agree{others}",
        f"intervals of the constants: {family.drawn}",
    ]


def estimator_rows(found: Analysis) -> list[tuple[str, ...]]:
    cost, rows = found.family.cost, list[tuple[str, ...]]()
    for name, law, note in (
        ("parametric, Huber on log loss", found.family.fit.law, ""),
        ("variable projection, squares", found.projected, ""),
        ("over-training form, alpha = beta", found.overtraining.law, _overtraining(found)),
    ):
        rows.append((name, f"{law.n_exponent(cost):.3f}", f"{law.d_exponent(cost):.3f}", f"{law.E:.4g}", note))
    if isinstance(found.envelope, Envelope):
        names = len(found.envelope.members)
        a, b = f"{found.envelope.n_exponent:.3f}", f"{found.envelope.d_exponent:.3f}"
        rows.append(("envelope", a, b, "none", f"through {names} runs; L ~ C^{found.envelope.loss_exponent:.4f}"))
    else:
        rows.append(("envelope", "none", "none", "none", found.envelope))
    used = sum(not bottom.flag for bottom in found.bottoms)
    if found.isoflop:
        a, b = f"{found.isoflop.exponent:.3f}", f"{1 - cost.power * found.isoflop.exponent:.3f}"
        rows.append(("isoFLOP parabolas", a, b, "none", f"{used} budgets"))
    else:
        rows.append(("isoFLOP parabolas", "none", "none", "none", f"{used} with a bottom inside, 2 budgets are needed"))
    return rows


def counting_rows(found: Analysis, chosen: Counting) -> list[tuple[str, ...]]:
    largest, rows = float(found.family.points.flops.max()), list[tuple[str, ...]]()
    for one in found.countings:
        law = one.fit.law
        exponents = (law.n_exponent(one.cost), law.d_exponent(one.cost))
        numbers = [f"{float(value):.3f}" for value in (law.alpha, law.beta, law.E, *exponents)]
        far = float(law.loss(*law.optimum(10 * largest, one.cost)))
        name = f"{one.counting}{' (chosen)' if one.counting == chosen else ''}"
        rows.append((name, *numbers, f"{far:.4f}", f"{one.fit.error:.2%}"))
    return rows


def noise_words(found: Analysis) -> str:
    if found.seed_noise:
        return f"seed noise {found.seed_noise:.2%}, as measured between seeds"
    return f"seed noise {DEFAULT_SEED_NOISE:.2%}, assumed: no cell was run with two seeds"


def spans(span: Interval, form: str = ".4g") -> tuple[str, str]:
    """Its 80 and its 95 % interval."""
    return _ends(span.low80, span.high80, form), _ends(span.low95, span.high95, form)


def _ends(low: float, high: float, form: str) -> str:
    return f"{low:{form}} to {high:{form}}" if math.isfinite(high) else f"{low:{form}} to no end"


def _profiles(found: Analysis) -> str:
    lines = ["how much worse the best fit gets with one constant held there (of the objective)"]
    for name, values in found.profiles.items():
        cells = [(f"{value:.4g}", f"{max(rise, 0.0):+.1%}") for value, rise in values]
        lines.append(aligned([(f"  {name}", *(v for v, _ in cells)), ("", *(r for _, r in cells))], right=range(1, 9)))
    return "\n".join(lines)


def _overtraining(found: Analysis) -> str:
    a, b, eta = in_compute(found.overtraining.law)
    return f"L = E + ({a:.3g}·M^{eta:.3f} + {b:.3g}·M^-{eta:.3f})·C^-{eta:.3f}"


def _bottoms(found: Analysis) -> str:
    if not found.bottoms:
        return "isoFLOP: no budget has three runs"
    rows = [("budget FLOPs", "best N", "spread of ln N", "loss there", "")]
    for one in found.bottoms:
        rows.append((f"{one.flops:.3g}", f"{one.n:.3g}", f"{one.spread:.2f}", f"{one.loss:.4f}", one.flag))
    return f"isoFLOP bottoms; {noise_words(found)}\n" + aligned(rows, right=(0, 1, 2, 3), indent="  ")


def _interval_row(name: str, value: float, span: Interval, note: str) -> tuple[str, ...]:
    return name, f"{value:.4g}", *spans(span), note


def _note(row: Row) -> str:
    edge = "the best of those tried, at their edge" if row.verdict == "edge" else ""
    return "; ".join(part for part in (row.family if row.family != "transformer" else "", edge) if part)
