"""A ledger as text: a line a run, what is wrong with some, folders that are no rows, and the totals."""

from collections.abc import Callable, Sequence

from data_prep.harmless import plain
from launch.ledger_row import LedgerRow
from launch.scaling.rows import Verdict
from launch.words import cut, fixed, number, table, usd

_HEAD = ("run", "verdict", "N", "N matmul", "tokens", "epochs", "FLOPs", "val loss", "device-h", "cost")
_OWN = ("own device-h", "own cost")
"""without what a run shares with the one that it began from"""
_LEFT = (0, 1)
_CUT = 150
"""longer reasons are whole in the files"""


def ledger_text(rows: Sequence[LedgerRow], odd: Sequence[tuple[str, str]]) -> str:
    lines = _runs(rows) if rows else ["no rows"]
    if notes := [(plain(row.run_name), str(row.verdict), cut(_why(row), _CUT)) for row in rows if _why(row)]:
        lines += ["", _many(len(notes), "run", "with a remark"), *_indented(table(notes, (0, 1, 2)))]
    if folders := [(plain(folder), cut(plain(reason), _CUT)) for folder, reason in odd]:
        lines += ["", _many(len(folders), "folder", "without a row"), *_indented(table(folders, (0, 1)))]
    return "\n".join([*lines, "", *_totals(rows)] if rows else lines)


def _runs(rows: Sequence[LedgerRow]) -> list[str]:
    if not any(row.branch_from for row in rows):
        return table([_HEAD, *map(_cells, rows)], _LEFT)
    own = ((_hours(row.device_hours_own), usd(row.cost_usd_own)) for row in rows)
    return table([(*_HEAD, *_OWN), *((*_cells(row), *more) for row, more in zip(rows, own, strict=True))], _LEFT)


def _cells(row: LedgerRow) -> tuple[str, ...]:
    return (
        plain(row.run_name),
        str(row.verdict),
        number(row.n_params),
        number(row.n_params_matmul),
        number(row.tokens_seen),
        f"{row.epochs:.2f}" if row.epochs is not None else "-",
        f"{row.flops_causal:.2e}",
        _loss(row),
        _hours(row.device_hours),
        usd(row.cost_usd),
    )


def _loss(row: LedgerRow) -> str:
    return fixed(row.val_loss, 4) + (f" ± {row.val_loss_stderr:.4f}" if row.val_loss_stderr is not None else "")


def _hours(hours: float | None) -> str:
    return "-" if hours is None else f"{hours:.4f}" if hours < 1 else f"{hours:,.2f}"


def _why(row: LedgerRow) -> str:
    gone = "its folder is gone" if row.folder_missing else ""
    return plain("; ".join(part for part in (row.why, gone) if part))


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _totals(rows: Sequence[LedgerRow]) -> list[str]:
    """What a branch shares with the run that it began from counts there, and once."""
    counts = [f"{n} {verdict}" for verdict in Verdict if (n := sum(row.verdict == verdict for row in rows))]
    flops = _once(rows, "flops_causal_own", "flops_causal", lambda value: f"{value:.4g}")
    hours = _once(rows, "device_hours_own", "device_hours", _hours)
    cells = [
        ("rows", f"{len(rows)}", f"({', '.join(counts)})"),
        ("compute", f"{flops[0]} FLOPs", flops[1] or "(causal; each step once)"),
        ("device-hours", *hours),
        ("cost", *_cost(rows)),
    ]
    return [*table(cells, (0, 2)), *_not_counted(rows)]


def _once(rows: Sequence[LedgerRow], own: str, alone: str, words: Callable[[float], str]) -> tuple[str, str]:
    """(what was spent, what it would have been without shared trunks)."""
    spent, each = (sum(getattr(row, name) or 0.0 for row in rows) for name in (own, alone))
    shared = any(row.branch_from for row in rows)
    return words(spent), f"({words(each)} if every run had been run alone)" if shared else ""


def _cost(rows: Sequence[LedgerRow]) -> tuple[str, str]:
    costs = [row.cost_usd_own for row in rows if row.cost_usd_own is not None]
    without = len(rows) - len(costs)
    rules = sorted({f"{row.price_rule}, {row.price_date}" for row in rows if row.cost_usd_own is not None})
    notes = [plain(rule) for rule in rules] + ([_many(without, "row", "without a price")] if without else [])
    return usd(sum(costs)) if costs else "-", f"({'; '.join(notes)})" if notes else ""


def _not_counted(rows: Sequence[LedgerRow]) -> list[str]:
    """Totals that are too small, and why."""
    names = {row.run_name for row in rows}
    orphans = sorted(row.run_name for row in rows if row.branch_from is not None and row.branch_from not in names)
    silent = sorted(row.run_name for row in rows if row.device_hours_own is None)
    said = []
    if orphans:
        said.append(f"not counted: what {_list(orphans)} share with runs that are no rows here")
    if silent:
        said.append(f"not counted: the device-hours of {_list(silent)}, which do not say")
    return said


def _many(count: int, noun: str, what: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'} {what}"


def _list(names: Sequence[str]) -> str:
    return plain(", ".join(names[:5])) + (f" and {len(names) - 5} more" if names[5:] else "")
