"""What `launch fit` prints of an analysis: aligned tables, plain words."""

from collections.abc import Sequence

from launch.scaling.analysis import Analysis, Family, Prediction
from launch.scaling.bootstrap import Interval, interval
from launch.scaling.envelope import Envelope
from launch.scaling.families import Ratio
from launch.scaling.layout import aligned
from launch.scaling.overtraining import in_compute
from launch.scaling.parametric import LEAST_EXPONENT
from launch.scaling.repeated import Decay
from launch.scaling.rows import Counting, Row

_SHOWN_ROWS = 40
_HEAD: tuple[str, ...] = ("", "fitted", "80 % interval", "95 % interval", "")


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
    return "\n\n".join(
        [
            _constants(found.family, counting),
            _profiles(found),
            _estimators(found),
            _bottoms(found),
            _countings(found),
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
        _interval_row(f"{one.loss:.4g}", one.ratio, one.interval, f"reached in {one.reached:.0%} of the resamples")
        for one in ratios
    ]
    return f"FLOPs of {second} / FLOPs of {first}, each at its best size\n" + aligned(
        [head, *rows], right=(1,), indent="  "
    )


def _constants(family: Family, counting: Counting) -> str:
    law, laws, lowest = family.fit.law, family.laws, float(family.points.loss.min())
    spans = {name: interval(getattr(laws, name)) for name in ("E", "A", "B", "alpha", "beta")}
    rows: list[tuple[str, ...]] = [_HEAD]
    for name, span in spans.items():
        rows.append(_interval_row(name, getattr(law, name), span, identified(name, span, lowest)))
    rows.append(_interval_row("a", law.n_exponent(family.cost), interval(laws.n_exponent(family.cost)), "N* ~ C^a"))
    rows.append(_interval_row("b", law.d_exponent(family.cost), interval(laws.d_exponent(family.cost)), "D* ~ C^b"))
    fit = family.fit
    others = "" if fit.exact else "; THE MINIMUM WAS NOT REACHED"
    others += f"; others end {', '.join(f'{o:.2g}' for o in fit.others)} higher (relative)" if fit.others else ""
    groups = len(set(family.points.groups))
    refused = f", {family.n_refused} draws could not carry a law" if family.n_refused else ""
    return "\n".join(
        [
            f"L = E + A/N^alpha + B/D^beta, N = {counting}; C = 6·{family.cost.scale:.3g}·N^{family.cost.power:.3f}·D",
            aligned(rows, right=(1,), indent="  "),
            f"  mean error {fit.error:.2%}; Huber {fit.delta:g} on log loss, sum {fit.objective:.6g}; "
            f"{fit.n_agreeing} of {fit.n_starts} starts agree{others}",
            f"  intervals: {family.n_laws} resamples of {groups} runs{refused}",
        ]
    )


def identified(name: str, span: Interval, lowest: float) -> str:
    match name:
        case "E" if span.low95 < 0.01 * lowest:
            return "NOT IDENTIFIED: zero fits as well"
        case "alpha" | "beta" if span.low95 <= 1.5 * LEAST_EXPONENT or span.high95 > 4 * span.low95:
            return "NOT IDENTIFIED"
        case _:
            return ""


def _profiles(found: Analysis) -> str:
    lines = ["how much worse the best fit gets with one constant held there (of the objective)"]
    for name, values in found.profiles.items():
        cells = [(f"{value:.4g}", f"{max(rise, 0.0):+.1%}") for value, rise in values]
        lines.append(aligned([(f"  {name}", *(v for v, _ in cells)), ("", *(r for _, r in cells))], right=range(1, 9)))
    return "\n".join(lines)


def _estimators(found: Analysis) -> str:
    cost = found.family.cost
    rows = [("estimator", "a (N*)", "b (D*)", "E", "")]
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
    if found.isoflop:
        used = sum(not bottom.flag for bottom in found.bottoms)
        d = 1 - cost.power * found.isoflop.exponent
        rows.append(("isoFLOP parabolas", f"{found.isoflop.exponent:.3f}", f"{d:.3f}", "none", f"{used} budgets"))
    else:
        rows.append(("isoFLOP parabolas", "none", "none", "none", "fewer than 2 budgets with a bottom inside"))
    return aligned(rows, right=(1, 2, 3))


def _overtraining(found: Analysis) -> str:
    a, b, eta = in_compute(found.overtraining.law)
    return f"L = E + ({a:.3g}·M^{eta:.3f} + {b:.3g}·M^-{eta:.3f})·C^-{eta:.3f}"


def _bottoms(found: Analysis) -> str:
    noise = "as measured between seeds" if found.seed_noise else "assumed: no cell was run with two seeds"
    if not found.bottoms:
        return "isoFLOP: no budget has three runs"
    rows = [("budget FLOPs", "best N", "spread of ln N", "loss there", "")]
    for one in found.bottoms:
        rows.append((f"{one.flops:.3g}", f"{one.n:.3g}", f"{one.spread:.2f}", f"{one.loss:.4f}", one.flag))
    level = f"{found.seed_noise or 0.005:.2%}"
    return f"isoFLOP bottoms; seed noise {level}, {noise}\n" + aligned(rows, right=(0, 1, 2, 3), indent="  ")


def _countings(found: Analysis) -> str:
    largest = float(found.family.points.flops.max())
    rows: list[tuple[str, ...]] = [
        ("N counts", "alpha", "beta", "E", "a (N*)", "b (D*)", "loss at 10 x the largest budget")
    ]
    for one in found.countings:
        law = one.fit.law
        n, d = law.optimum(10 * largest, one.cost)
        exponents = (law.n_exponent(one.cost), law.d_exponent(one.cost))
        numbers = [f"{value:.3f}" for value in (law.alpha, law.beta, law.E, *exponents)]
        rows.append((str(one.counting), *numbers, f"{law.loss(n, d):.4f}"))
    return "the same rows, counted differently\n" + aligned(rows, right=range(1, 7), indent="  ")


def _interval_row(name: str, value: float, span: Interval | None, note: str) -> tuple[str, str, str, str, str]:
    if span is None:
        return name, f"{value:.4g}", "", "", note
    return name, f"{value:.4g}", _span(span.low80, span.high80), _span(span.low95, span.high95), note


def _span(low: float, high: float) -> str:
    return f"{low:.4g} to {high:.4g}"


def _note(row: Row) -> str:
    edge = "the best of those tried, at their edge" if row.verdict == "edge" else ""
    return "; ".join(part for part in (row.family if row.family != "transformer" else "", edge) if part)
