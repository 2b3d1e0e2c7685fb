"""The plan that a sweep has left beside its rows: how it makes a law of them, and what its cells are.

In: the path of a ledger, or of a folder of runs. Out: the file and what it says, or nothing; a file that is there and
cannot be read is told.
"""

import json
import sys
from pathlib import Path
from typing import Any

from conf.check import flatten, to_tree
from launch.fit_config import FitChoice


def plan_beside(rows: Path) -> tuple[Path | None, dict[str, Any]]:
    """Of the folder that holds the rows, or of the one above."""
    file = next((folder / "plan.json" for folder in (rows, rows.parent) if (folder / "plan.json").is_file()), None)
    return file, {} if file is None else _read(file)


def other_choice(rows: Path, choice: FitChoice) -> list[str]:
    """Where this choice of rows and counting is not that of the sweep, which its forecasts are made by."""
    file, plan = plan_beside(rows)
    theirs = plan.get("fit")
    if file is None or not isinstance(theirs, dict):
        return []
    mine, held = flatten(to_tree(choice)), flatten(theirs)
    names = [name for name in flatten(to_tree(FitChoice())) if name in held and held[name] != mine.get(name)]
    return [f"{name}={held[name]} (here {mine.get(name)})" for name in names]


def _read(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(tree, dict):
            return tree
        problem = "it holds no JSON object"
    except (OSError, ValueError, RecursionError) as error:
        problem = str(error)
    print(f"note: {file} cannot be read, and nothing is taken from it: {problem}", file=sys.stderr)
    return {}
