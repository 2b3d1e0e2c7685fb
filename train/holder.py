"""What the small files of an attempt say, believed only if all of it is of the right type. Standard library only.

In: `holder.json` and `ended.json` of an attempt's folder (train/attempt.py), whole, torn, or written by anybody. Out:
their facts, or {}: a file with a fact of another type has no more to say than one that is damaged.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TEXT, _COUNT, _SECONDS, _NONE = (str,), (int,), (int, float), (type(None),)
_HOLDER = {
    **dict.fromkeys(("host", "boot_id", "pid_namespace"), _TEXT),
    **dict.fromkeys(("slurm_job", "torchrun"), _TEXT + _NONE),
    **dict.fromkeys(("attempt", "pid", "slurm_restarts", "torchrun_restarts", "world_size"), _COUNT),
    **dict.fromkeys(("reached_before", "from_step", "saved_step"), _COUNT),
    "pid_started": _COUNT + _NONE,
    "started": _SECONDS,
    "hosts": (list,),
    "layout": (dict,),
}
_ENDED = {"how": _TEXT, "step": _COUNT, "ended": _SECONDS, "why": _TEXT + _NONE}
_LATEST = 253_402_214_400.0
"""seconds since 1970: the last day that a date can name; no count of ours comes near it"""


def read_holder(attempt: Path) -> dict[str, Any]:
    facts = read_facts(attempt / "holder.json", _HOLDER)
    return facts if all(map(_is_host, facts.get("hosts", []))) else {}


def read_ended(attempt: Path) -> dict[str, Any]:
    return read_facts(attempt / "ended.json", _ENDED)


def read_facts(path: Path, types: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """{} if there is no such file, no JSON object in it, or a fact that is not of one of the types given for it."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return found if all(_fits(found[key], types[key]) for key in found.keys() & types.keys()) else {}


def _fits(value: Any, types: tuple[type, ...]) -> bool:
    """Not a number of another kind: neither negative, nor beyond what counts and dates can be, nor NaN."""
    if type(value) in (int, float) and not 0 <= value <= _LATEST:
        return False
    return type(value) in types


def _is_host(entry: Any) -> bool:
    """[name, number of its ranks]"""
    match entry:
        case [str(), int(count)]:
            return 0 <= count <= 1 << 20
        case _:
            return False
