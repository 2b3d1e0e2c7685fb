"""Published tables of runs, read strictly: what is no such table and every damaged row is named, nothing is guessed.

In: a folder of CSV files, or one. Out: tables of a known kind (by their columns), their rows as text and numbers, and
notes on the rest. The tables are not part of the project.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conf.errors import ConfigError
from launch.scaling.minimum import Floats

Cells = dict[str, str]

KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # kind: (columns of text, columns of numbers that must be above 0)
    "porian": (("config",), ("C", "N", "D", "loss")),
    "gemstones": (("run_name",), ("N", "width", "depth", "D", "loss")),
    "gadre": (("run", "arch"), ("N", "D", "chinchilla_multiple", "loss_c4_val", "err_17task")),
    "olmo ladder": (("model", "role"), ("N", "flops_per_token", "D", "c4_loss_mean5")),
    "multipower": (("schedule",), ("step", "lr", "loss")),
    "nanochat": (("convention",), ("C", "N_opt", "D_opt")),
    "chinchilla shapes": ((), ("params_reported", "d_model", "ffn", "kv_size", "heads", "layers")),
    "open_lm": (("arch",), ("width", "depth", "vocab", "params_total", "params_without_one_embedding")),
    "dclm": (("scale",), ("N", "D", "flops", "h100_hours")),
    "porian published": (("config",), ("n_exponent", "n_exponent_weighted")),
    "throughput": (("model", "gpu"), ("seq", "mfu", "tok_per_s_gpu", "params")),
    "chinchilla points": ((), ("C", "N", "D", "loss")),
}
"""the first whose columns are all there is the kind of a table"""


@dataclass(frozen=True)
class Table:
    name: str
    kind: str
    rows: list[Cells]

    def numbers(self, *columns: str) -> list[Floats]:
        return [np.array([float(row[column]) for row in self.rows]) for column in columns]

    def where(self, **wanted: str) -> "Table":
        return Table(self.name, self.kind, [row for row in self.rows if all(row[k] == v for k, v in wanted.items())])

    def values(self, column: str) -> list[str]:
        """In the order of the file."""
        return list(dict.fromkeys(row[column] for row in self.rows))


def read_tables(path: Path) -> tuple[list[Table], list[str]]:
    """(tables of a known kind, what was not read and why). Raises ConfigError when there is none."""
    if not path.exists():
        raise ConfigError(
            [f"{path} is not there: name a folder of published tables, or one of them: reproduce=PATH, or tables=PATH"]
        )
    tables, notes = [], []
    for file in sorted(path.glob("*.csv")) if path.is_dir() else [path]:
        table, odd = _read(file)
        tables += [table] if table else []
        notes += odd
    if not tables:
        raise ConfigError([f"{path} holds no table that can be refitted: {'; '.join(notes) or 'no CSV file'}"])
    return tables, notes


def _read(file: Path) -> tuple[Table | None, list[str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            lines = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        return None, [f"{file.name}: cannot be read: {error}"]
    names = lines[0] if lines else []
    kind = next((kind for kind, (text, numbers) in KINDS.items() if {*text, *numbers} <= set(names)), None)
    if kind is None:
        return None, [f"{file.name}: no known table; its columns are {', '.join(names[:8]) or 'none'}"]
    rows, notes = [], []
    for number, line in enumerate(lines[1:], 2):
        if reason := _damage(kind, names, line):
            notes.append(f"{file.name}, line {number}: {reason}; row not used")
        elif line:
            rows.append(dict(zip(names, line, strict=True)))
    return (Table(file.name, kind, rows) if rows else None), notes + ([] if rows else [f"{file.name}: no rows"])


def _damage(kind: str, names: Sequence[str], line: Sequence[str]) -> str:
    if not line:
        return ""
    if len(line) != len(names):
        return f"{len(line)} cells for {len(names)} columns"
    cells = dict(zip(names, line, strict=True))
    for name in KINDS[kind][1]:
        try:
            value = float(cells[name])
        except ValueError:
            return f"{name}={cells[name]!r} is no number"
        if not 0 < value < math.inf:
            return f"{name}={cells[name]} must be above 0"
    return ""
