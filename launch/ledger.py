"""`launch ledger`: all runs below a folder → one table: a row a run, as JSON lines, CSV and Parquet. No torch.

In: run folders in whatever state, and the ledger that there is already. Out: the three files, whole and sorted by
FLOPs, and the table on the console, with every folder that is no row and the reason. A row of the earlier ledger stays
unless its run is read anew: runs of other folders, and runs whose folder is gone, are not lost.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from conf.errors import ConfigError
from launch import ledger_files
from launch.ledger_config import LedgerConfig
from launch.ledger_files import ENDINGS, beside, read_known
from launch.ledger_row import LedgerRow
from launch.ledger_run import row_of_folder
from launch.ledger_table import ledger_text
from launch.ledger_verdict import with_edges

_RUN_FILES = ("summary.json", "metrics.jsonl", "events.jsonl", "attempts")
_OF_A_RUN = ("attempts", "checkpoints", "samples", "slurm", "tensorboard")
"""folders inside a run's, which hold no runs"""


def ledger(config: LedgerConfig) -> None:
    """Raises ConfigError if there are no runs, or if an earlier ledger cannot be read; nothing is written then."""
    folder = Path(config.runs)
    target = Path(config.to) if config.to is not None else _beside(folder)
    rows, odd = collect(folder)
    kept, said = _kept(target, rows, odd)
    rows = _ordered(with_edges([*rows, *kept]))
    print(ledger_text(rows, odd))
    if rows:
        said += [f"written: {', '.join(str(file) for file in write(rows, target))}"]
    print("\n".join(["", *said]) if said else "\nno rows: nothing is written")


def collect(folder: Path) -> tuple[list[LedgerRow], list[tuple[str, str]]]:
    """(a row of each run below, by FLOPs; (run folder, why it is no row)). Raises ConfigError if there are no runs."""
    rows: list[LedgerRow] = []
    odd: list[tuple[str, str]] = []
    if not folder.is_dir():
        raise ConfigError([f"runs={folder} is no folder"])
    for run in _run_folders(folder, odd):
        try:
            rows.append(row_of_folder(run))
        except ValueError as error:
            odd.append((str(run), str(error)))
        except (LookupError, TypeError, AttributeError, ArithmeticError, OSError) as error:
            lacking = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            odd.append((str(run), f"its files are not as a run writes them: {lacking}"))
    if not rows and not odd:
        raise ConfigError([f"runs={folder}: no run below it; name the folder that holds the runs' folders"])
    rows, copies = _without_copies(rows)
    return _ordered(with_edges(rows)), odd + copies


def write(rows: Sequence[LedgerRow], target: Path) -> list[Path]:
    """`target`.jsonl, .csv and .parquet, sorted by FLOPs. Raises DataError if one cannot be written."""
    return ledger_files.write(_ordered(rows), target)


def read(file: Path) -> list[LedgerRow]:
    """Of any of the three formats. Raises ConfigError, with everything that is wrong, unless every line is a row."""
    return ledger_files.read(file)


def _ordered(rows: Sequence[LedgerRow]) -> list[LedgerRow]:
    return sorted(rows, key=lambda row: (row.flops_causal, row.run_name, row.folder))


def _beside(folder: Path) -> Path:
    """In the folder of the sweep, if it is one's."""
    return (folder.parent if (folder.parent / "plan.json").is_file() else folder) / "ledger"


# --- what is found ---------------------------------------------------------------------------------------------------


def _run_folders(folder: Path, odd: list[tuple[str, str]]) -> Iterator[Path]:
    """Links are followed, each folder once; runs inside a run's folder are runs, too. odd: gets what is unreadable."""
    seen: set[str] = set()

    def unreadable(error: OSError) -> None:
        odd.append((str(error.filename), f"cannot be read: {error.strerror}"))

    for place, names, files in os.walk(folder, onerror=unreadable, followlinks=True):
        here = os.path.realpath(place)
        if here in seen:
            names.clear()
            continue
        seen.add(here)
        is_run = any(name in files or name in names for name in _RUN_FILES)
        names[:] = sorted(name for name in names if name[:1] != "." and not (is_run and name in _OF_A_RUN))
        if is_run:
            yield Path(place)


def _without_copies(rows: Sequence[LedgerRow]) -> tuple[list[LedgerRow], list[tuple[str, str]]]:
    """Of folders that hold the same run, the one that came furthest."""
    best: dict[tuple[str, str], LedgerRow] = {}
    for row in rows:
        other = best.setdefault(row.identity, row)
        if _progress(row) > _progress(other):
            best[row.identity] = row
    copies = [(row.folder, best[row.identity]) for row in rows if best[row.identity] is not row]
    said = [(where, f"the same run as {row.folder} (name and config_sha256), no further on") for where, row in copies]
    return list(best.values()), said


def _progress(row: LedgerRow) -> tuple[int, bool, bool]:
    return row.tokens_seen, row.status == "finished", Path(row.folder).name == row.run_name


# --- what there was --------------------------------------------------------------------------------------------------


def _kept(target: Path, rows: Sequence[LedgerRow], odd: Sequence[tuple[str, str]]) -> tuple[list[LedgerRow], list[str]]:
    """(rows of the ledger that is there already and of no run just read, what is to be said of them)."""
    earlier, said = _earlier(target)
    known, places, unread = {row.identity for row in rows}, {row.folder for row in rows}, {where for where, _ in odd}
    kept: list[LedgerRow] = []
    reasons: dict[str, list[str]] = {"gone": [], "without a row this time": [], "elsewhere": []}
    for row in earlier:
        if row.identity not in known:
            is_gone = row.folder in places or not Path(row.folder).is_dir()
            kept.append(dataclasses.replace(row, folder_missing=is_gone))
            why = "gone" if is_gone else "without a row this time" if row.folder in unread else "elsewhere"
            reasons[why].append(row.run_name)
    said += [
        f"kept as the ledger had them, their folders being {why}: {', '.join(names)}"
        for why, names in reasons.items()
        if names
    ]
    return kept, said


def _earlier(target: Path) -> tuple[list[LedgerRow], list[str]]:
    """The rows of all its files together, and what is wrong with some. Raises ConfigError if there are files, and none
    of them is whole."""
    files = [file for ending in ENDINGS if (file := beside(target, ending)).exists()]
    found: dict[tuple[str, str], LedgerRow] = {}
    problems: list[str] = []
    n_whole = 0
    for file in files:
        rows, odd = _known(file)
        problems += odd
        n_whole += not odd
        if n_whole > 1 and (more := [row.run_name for row in rows if row.identity not in found]):
            problems.append(f"{file.name} has rows that are not in the files before it, which are kept: {more}")
        found = {row.identity: row for row in rows} | found
    if files and not n_whole:
        advice = f"the ledger {target} is damaged, and its rows would be lost: move it away, or name another one by to="
        raise ConfigError([advice, *problems])
    return list(found.values()), [f"the ledger as it was: {problem}" for problem in problems]


def _known(file: Path) -> tuple[list[LedgerRow], list[str]]:
    try:
        rows, odd = read_known(file)
    except ConfigError as error:
        return [], error.problems
    return rows, [f"{where}: {reason}" for where, reason in odd]
