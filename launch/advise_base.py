"""What an advised run has in common with the runs of its sweep, unless something else is typed.

In: the words of the command line. Out: how the sweep whose rows are asked for makes a law of them, and the words of its
largest cell as far as they hold at every size: data, network, batch, optimizer, schedule. A law holds for runs made as
its rows were: of another vocabulary or context its losses are others, and without the base width of muP the learning
rate is another.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.sweep_plan import plan_beside

_KEPT = re.compile(r"(data|model|optimizer|schedule)(\.[\w.]+)?=|batch\.global_batch_size=")


def sweep_words(typed: Sequence[str]) -> tuple[list[str], str]:
    """(words to go before those that are typed, where they are from); none where the rows are of no sweep with a
    plan. Nothing of a section for which another choice is typed."""
    keys = {word.lstrip("+").partition("=")[0] for word in typed}
    asked = [Path(word.partition("=")[2]) for word in typed if word.startswith(("ledger=", "runs="))]
    file, plan = plan_beside(asked[0]) if asked else (None, {})
    cells = [cell for cell in _cells(plan) if cell.get("held_out") is not True]
    if not cells or "experiment" in keys:
        return [], ""
    largest = max(cells, key=lambda cell: (cell["n_params_matmul"], cell["tokens"]))
    words = [*_choice(plan.get("fit"), "fit"), *filter(_KEPT.match, largest["words"])]
    return [word for word in words if not _is_typed(word, keys)], f"{largest.get('run')}, the largest cell of {file}"


def _is_typed(word: str, keys: set[str]) -> bool:
    key = word.partition("=")[0]
    return key in keys or key.partition(".")[0] in keys


def _choice(tree: Any, key: str) -> list[str]:
    """How rows become a law, as words; what is null stays as it is."""
    match tree:
        case dict():
            return [word for name, value in tree.items() for word in _choice(value, f"{key}.{name}")]
        case str() | int() | float():
            return [f"{key}={json.dumps(tree)}"]
        case _:
            return []


def _cells(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that say what they are."""
    cells = plan.get("cells")
    return [cell for cell in cells if _says_what_it_is(cell)] if isinstance(cells, list) else []


def _says_what_it_is(cell: Any) -> bool:
    if not isinstance(cell, dict) or not isinstance(cell.get("words"), list):
        return False
    numbers = (cell.get("n_params_matmul"), cell.get("tokens"))
    return all(isinstance(n, int) for n in numbers) and all(isinstance(word, str) for word in cell["words"])
