"""Refits published tables and sets what comes out beside what was published.

In: the tables (see `tables.py`). Out: one line a number: published, obtained, difference, the tolerance and where it
comes from. A table alone can pass or fail; one that lacks the rows a number needs is named.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launch.scaling.bootstrap import interval, resamples
from launch.scaling.isoflop import budgets, interpolated, power
from launch.scaling.law import Law
from launch.scaling.layout import aligned
from launch.scaling.overtraining import fit_downstream, fit_overtraining
from launch.scaling.parametric import fit, refit
from launch.scaling.shapes import chinchilla_parameters, mpt_flops_per_token, open_lm_parameters
from launch.scaling.tables import Table, read_tables

PORIAN_STEPS = (
    ("rw-base-long-kaplan-kaplan-train", 0.835, "as Kaplan"),
    ("rw-base-long-kaplan-standard-val", 0.706, "head counted"),
    ("rw-base-short-kaplan-standard-val", 0.602, "short warm-up"),
    ("rw-base-short-chinchilla-standard-val", 0.571, "schedule ends"),
    ("rw-tuned-short-const-standard-val", 0.497, "tuned rate, batch, beta2"),
)
"""Porian et al. 2024 (arXiv 2406.19146), figure 1, RefinedWeb: (table's name, exponent of N*, what changed)"""
GADRE_SMALL = ("d=96_l=8_h=4", "d=512_l=8_h=4", "d=576_l=24_h=8", "d=1024_l=24_h=8")
"""fitted at 20 tokens a parameter, the first at 320 too: Gadre et al. 2024 (arXiv 2403.08540), table 1"""
GADRE_HELD = (("open_lm_1b", 32.0, 0.7103, 3.6365), ("open_lm_7b", 1.0, 0.7320, 0.0464))
"""(network, multiple of 20 tokens a parameter, published error of loss, of the mean of 17 tasks; in %), RedPajama"""
OLMO_13B = (13202396160.0, 5.0e12)
"""N and D of OLMo 2 13B"""

_RESAMPLES = 200


@dataclass(frozen=True)
class Check:
    table: str
    what: str
    published: float
    obtained: float
    tolerance: float
    """absolute"""
    basis: str
    """where the tolerance comes from, or what is to be known"""
    unit: str = ""

    @property
    def passes(self) -> bool:
        return abs(self.obtained - self.published) <= self.tolerance * (1 + 1e-9)


def reproduce(path: Path) -> bool:
    """Prints the comparison; True if every number is met. Raises ConfigError if there is no table."""
    tables, notes = read_tables(path)
    checks: list[Check] = []
    for table in tables:
        found, odd = check(table, tables)
        checks += found
        notes += odd
    print(report(checks, notes))
    return all(one.passes for one in checks)


def check(table: Table, tables: list[Table]) -> tuple[list[Check], list[str]]:
    """(comparisons, what could not be compared and why)."""
    match table.kind:
        case "chinchilla points":
            return list(_chinchilla(table)), _spread(table)
        case "porian":
            return list(_porian(table)), _missing_steps(table)
        case "gemstones":
            return list(_gemstones(table)), []
        case "gadre":
            return _gadre(table, tables)
        case "olmo ladder":
            return list(_olmo(table)), []
        case "multipower":
            return list(_multipower(table)), []
        case "nanochat":
            return list(_nanochat(table)), []
        case "chinchilla shapes" | "open_lm" | "dclm" | "throughput":
            return list(_counts(table)), []
        case _:
            return [], [f"{table.name}: published results, nothing in it to refit"]


def report(checks: list[Check], notes: list[str]) -> str:
    head = ("table", "what", "published", "obtained", "difference", "tolerance", "", "tolerance is")
    rows = [
        (
            one.table.removesuffix(".csv"),
            one.what,
            f"{one.published:.6g}{one.unit}",
            f"{one.obtained:.6g}{one.unit}",
            f"{one.obtained - one.published:+.3g}",
            f"{one.tolerance:.3g}",
            "met" if one.passes else "MISSED",
            one.basis,
        )
        for one in checks
    ]
    met = sum(one.passes for one in checks)
    lines = [aligned([head, *rows], right=(2, 3, 4, 5)), "", f"{met} of {len(checks)} numbers are met"]
    return "\n".join(lines + [f"note: {note}" for note in notes])


def _chinchilla(table: Table) -> Iterator[Check]:
    """Besiroglu et al. 2024 (arXiv 2404.10102), table 1: 240 rows, the five largest losses of 245 dropped."""
    n, d, loss = table.numbers("N", "D", "loss")
    whole = len(n) >= 240
    kept = np.argsort(loss)[: len(n) - 5] if len(n) >= 245 else np.arange(len(n))
    found = fit(n[kept], d[kept], loss[kept])
    _, best_d = found.law.optimum(5.76e23)
    basis = "its last digit" if whole else f"2 standard errors of the source; {len(kept)} of its 240 rows are here"
    basis += f", {found.n_agreeing} of {found.n_starts} starts agree"
    for what, value, published, exact, error in (
        ("E", found.law.E, 1.8172, 6e-4, 0.03),
        ("alpha", found.law.alpha, 0.3473, 6e-4, 0.02),
        ("beta", found.law.beta, 0.3672, 6e-4, 0.02),
    ):
        yield Check(table.name, what, published, value, exact if whole else 2 * error, basis)
    yield Check(table.name, "a of N* ~ C^a", 0.514, found.law.n_exponent(), 0.02, "its 80 % interval, .494 to .541")
    ratio = float(best_d / (5.76e23 / 6 / best_d))
    yield Check(table.name, "tokens a parameter", 17.9, ratio, 7.9, "its interval at 5.76e23 FLOPs, 10 to 28")


def _spread(table: Table) -> list[str]:
    """How sure these rows are of the constants."""
    n, d, loss = table.numbers("N", "D", "loss")
    drawn, _ = resamples([str(i) for i in range(len(n))], n, d, _RESAMPLES, seed=0)
    laws = refit(fit(n, d, loss), n, d, loss, drawn)
    spans = {"E": laws.E, "alpha": laws.alpha, "beta": laws.beta, "a": laws.n_exponent()}
    found = {name: interval(values) for name, values in spans.items()}
    texts = [f"{name} {span.low95:.3f} to {span.high95:.3f}" for name, span in found.items()]
    return [f"{table.name}: 95 % intervals of its {len(n)} rows: {', '.join(texts)}"]


def _porian(table: Table) -> Iterator[Check]:
    for config, published, changed in PORIAN_STEPS:
        part = table.where(config=config)
        if part.rows:
            flops, n, loss = part.numbers("C", "N", "loss")
            bottoms = [interpolated(budget, n[which], loss[which], draws=1000) for budget, which in budgets(flops)]
            unused = sum(bool(bottom.flag) for bottom in bottoms)
            basis = f"about its 95 % interval; {len(bottoms)} budgets, {unused} with the bottom at an edge"
            yield Check(table.name, f"a, {changed}", published, power(bottoms).exponent, 0.01, basis)


def _missing_steps(table: Table) -> list[str]:
    there = table.values("config")
    lost = [f"{table.name}: no rows of {config}" for config, *_ in PORIAN_STEPS if config not in there]
    more = [config for config in there if config not in {one for one, *_ in PORIAN_STEPS}]
    return lost + ([f"{table.name}: {', '.join(more)} belong to none of the five steps"] if more else [])


def _gemstones(table: Table) -> Iterator[Check]:
    """McLeish et al. 2025 (arXiv 2502.06857), the law of the cooled-down points, Huber delta 1e-3."""
    found = fit(*table.numbers("N", "D", "loss"))
    basis = f"half of its last digit and a bit; {found.n_agreeing} of {found.n_starts} starts agree"
    yield Check(table.name, "alpha", 0.3003, found.law.alpha, 5e-4, basis)
    yield Check(table.name, "beta", 0.5802, found.law.beta, 5e-4, basis)


def _gadre(table: Table, tables: list[Table]) -> tuple[list[Check], list[str]]:
    """Fitted rows and held-out rows may be in one table or in several."""
    rows = {
        (row["arch"], float(row["chinchilla_multiple"])): row
        for one in tables
        if one.kind == "gadre"
        for row in one.rows
    }
    wanted = [(arch, 1.0) for arch in GADRE_SMALL] + [(GADRE_SMALL[0], 16.0)]
    if missing := [f"{arch} at {multiple:g}" for arch, multiple in wanted if (arch, multiple) not in rows]:
        return [], [f"{table.name}: the law needs rows that are not there: {', '.join(missing)}"]
    held = [one for one in GADRE_HELD if one[:2] in {(r["arch"], float(r["chinchilla_multiple"])) for r in table.rows}]
    small = Table(table.name, table.kind, [rows[key] for key in wanted])
    found = fit_overtraining(*small.numbers("N", "D", "loss_c4_val"))
    notes = [] if held else [_gadre_note(table, found.law, found.error)]
    checks = []
    for arch, multiple, published_loss, published_error in held:
        row = rows[arch, multiple]
        loss = float(row["loss_c4_val"])
        predicted = float(found.law.loss(float(row["N"]), float(row["D"])))
        what = f"{arch} at {multiple:g}x: error of "
        basis = "its last digit"
        checks.append(
            Check(table.name, what + "loss", published_loss, 100 * abs(predicted / loss - 1), 5e-4, basis, " %")
        )
        if ("open_lm_1b", 1.0) in rows:
            fitted = Table(table.name, table.kind, [*small.rows, rows["open_lm_1b", 1.0]])
            tasks = fit_downstream(*fitted.numbers("loss_c4_val", "err_17task"))
            true = float(row["err_17task"])
            error = 100 * abs(float(tasks.error(predicted)) / true - 1)
            checks.append(Check(table.name, what + "17 tasks", published_error, error, 5e-4, basis, " %"))
    return checks, notes


def _gadre_note(table: Table, law: Law, error: float) -> str:
    named = " and ".join(f"{arch} at {multiple:g}x" for arch, multiple, *_ in GADRE_HELD)
    return (
        f"{table.name}: fitted on five rows (E {law.E:.4f}, A {law.A:.1f}, B {law.B:.1f}, exponent {law.alpha:.4f}, "
        f"mean residual {error:.2%}); its published errors are those of {named}, whose rows are not there"
    )


def _olmo(table: Table) -> Iterator[Check]:
    """Bhagia et al. 2024 (arXiv 2412.04403), step 1: L(N, D) on C4, Huber 1e-3 of log losses."""
    fitted = table.where(role="train")
    found = fit(*fitted.numbers("N", "D", "c4_loss_mean5"))
    basis = f"its last digit; {found.n_agreeing} of {found.n_starts} starts agree"
    yield Check(table.name, f"mean |error| of {len(fitted.rows)} rows", 0.2473, 100 * found.error, 5e-5, basis, " %")
    predicted = float(found.law.loss(*OLMO_13B))
    yield Check(table.name, "13B, 5T tokens", 2.3444, predicted, 5e-4, "its last digits; measured 2.4379", " nats")


def _multipower(table: Table) -> Iterator[Check]:
    """Luo et al. 2025 (arXiv 2503.12811), the curves of 25M parameters at 24,000 steps."""
    ends = {}
    for schedule in ("constant_24000", "cosine_24000"):
        step, loss = table.where(schedule=schedule).numbers("step", "loss")
        ends[schedule] = float(loss[np.argsort(step)[-5:]].mean()) if len(step) else float("nan")
    above = ends["constant_24000"] - ends["cosine_24000"]
    yield Check(table.name, "undecayed above cosine", 0.044, above, 5e-4, "its last digit; last five points", " nats")


def _nanochat(table: Table) -> Iterator[Check]:
    """One set of runs (karpathy/nanochat), three countings of N."""
    for convention, published in (("matmul_with_head", 0.52), ("all_parameters", 0.37), ("blocks_only", 0.68)):
        flops, n = table.where(convention=convention).numbers("C", "N_opt")
        if len(flops) > 1:
            exponent = float(np.polyfit(np.log(flops), np.log(n), 1)[0])
            yield Check(table.name, f"a, N = {convention}", published, exponent, 0.005, "its last digit")


def _counts(table: Table) -> Iterator[Check]:
    """Parameters and FLOPs from shapes: the worst row."""
    match table.kind:
        case "chinchilla shapes":
            published, *shape = table.numbers("params_reported", "d_model", "ffn", "kv_size", "heads", "layers")
            counted, percent, what, basis = chinchilla_parameters(*shape), 1.0, "parameters", "printed in millions"
        case "open_lm":
            published, *shape = table.numbers("params_total", "width", "depth", "vocab")
            counted, percent, what, basis = open_lm_parameters(*shape), 0.0, "parameters", "exact"
        case "dclm":
            published, n, d = table.numbers("flops", "N", "D")
            counted, percent, what, basis = 6 * n * d, 4.0, "FLOPs as 6ND", "printed with two digits"
        case _:
            yield from _throughput(table)
            return
    worst = 100 * float(np.abs(counted / published - 1).max())
    yield Check(table.name, f"{what}, worst of {len(published)}", 0.0, worst, percent, basis, " %")


def _throughput(table: Table) -> Iterator[Check]:
    """MFU of MPT networks on A100s (312e12 FLOP/s dense bf16) by the full-attention count."""
    rows = [row for row in table.rows if mpt_flops_per_token(row["model"], 1.0, 1.0) is not None]
    off = []
    for row in rows:
        flops = mpt_flops_per_token(row["model"], float(row["params"]), float(row["seq"]))
        assert flops is not None
        off.append(abs(100 * flops * float(row["tok_per_s_gpu"]) / 312e12 / float(row["mfu"]) - 1))
    met = 100 * float(np.mean(np.array(off) <= 0.01))
    yield Check(table.name, f"MFU within 1 %, of {len(rows)} rows", 100.0, met, 0.0, "every row", " %")
