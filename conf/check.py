"""Trees of plain values to checked dataclasses, and back.

In: a schema dataclass, and a tree of dicts, lists, text and numbers from anywhere: the command line, a file, the
folder of a run. Out: one instance of the schema, or a `ConfigError` that lists *every* problem found. Every key
without a reader is refused, and every value of the wrong type: nothing is converted on the way. Relations between
values belong to the dataclass that owns them: a method `problems()` that returns messages.
"""

import dataclasses
import difflib
import enum
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conf.errors import ConfigError
from conf.plain import read_plain

REQUIRED = "???"  # OmegaConf's mark for a value that must be given
_INVALID = object()  # stands for a value that was refused, so that what depends on it is not checked
_LARGEST = 2**63 - 1  # what a column of integers holds, here and in every reader of our files


def build(schema: type, tree: dict[str, Any]) -> Any:
    """Turns a tree of plain values into `schema`. Raises ConfigError on unknown keys, wrong types, broken relations."""
    problems: list[str] = []
    config = _build(schema, tree, "", problems)
    if problems:
        raise ConfigError(problems)
    return config


def to_tree(config: Any) -> dict[str, Any]:
    """The dataclass as plain dicts, lists, strings and numbers: what config.yaml holds and what digests are made of."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_yaml(config: Any) -> str:
    import yaml

    return yaml.safe_dump(to_tree(config), sort_keys=False, allow_unicode=True)


def read_config(schema: type, file: Path) -> Any:
    """Reads back what `to_yaml` wrote, or anybody else: plain YAML, without interpolation, and nothing is run.

    Raises OSError, and ConfigError that names the file.
    """
    tree = as_tree(read_plain(file))
    if tree is None:
        raise ConfigError([f"{file} is not a mapping"])
    return build(schema, tree)


def digest(tree: Any) -> str:
    """SHA-256 over the canonical JSON of a tree of plain values."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} becomes {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        section = as_tree(value)
        if section is None:
            flat[f"{prefix}{key}"] = value
        else:
            flat |= flatten(section, f"{prefix}{key}.")
    return flat


def defaults_of(schema: type) -> dict[str, Any]:
    """The defaults of a dataclass as plain values; a field without default becomes `???`, a union of kinds stays
    empty.
    """
    hints = typing.get_type_hints(schema)
    tree: dict[str, Any] = {}
    for field in dataclasses.fields(schema):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            tree[field.name] = defaults_of(typing.cast(type, hint))
        elif _kinds(hint):
            tree[field.name] = {}
        elif field.default is not dataclasses.MISSING:
            tree[field.name] = field.default.value if isinstance(field.default, enum.Enum) else field.default
        elif field.default_factory is not dataclasses.MISSING:
            tree[field.name] = field.default_factory()
        else:
            tree[field.name] = REQUIRED
    return tree


# --- checking --------------------------------------------------------------------------------------------------------


def _build(schema: type, tree: dict[str, Any], prefix: str, problems: list[str]) -> Any:
    hints = typing.get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for key in tree:
        if key == "_target_":
            problems.append(names_code(f"{prefix}_target_"))
        elif key not in fields:
            known = [prefix + name for name in fields]
            problems.append(f"unknown key `{prefix}{key}`{nearest(prefix + str(key), known)}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in tree and has_default:
            continue
        if tree.get(name, REQUIRED) == REQUIRED:
            problems.append(f"`{prefix}{name}` is required: pass {prefix}{name}=VALUE")
            values[name] = _INVALID
        else:
            values[name] = _value(hints[name], tree[name], f"{prefix}{name}", problems)
    if _INVALID in values.values():
        return _INVALID
    config = schema(**values)
    if hasattr(config, "problems"):
        problems.extend(config.problems())
    return config


def _value(hint: Any, value: Any, key: str, problems: list[str]) -> Any:
    """`value` as the type `hint`, without conversion (an int may stand for a float); a mismatch is noted as a
    problem.
    """
    kinds, section = _kinds(hint), as_tree(value)
    if kinds:
        kind = None if section is None else section.get("kind")
        if section is None or kind not in kinds:
            group = key.replace(".", "/")
            problems.append(f"`{key}` has no kind `{kind}`; choose one with {group}=" + " | ".join(sorted(kinds)))
            return _INVALID
        return _build(kinds[kind], section, f"{key}.", problems)
    if dataclasses.is_dataclass(hint):
        if section is None:
            problems.append(f"`{key}` is a section with keys of its own, not the value {_short(value)}")
            return _INVALID
        return _build(typing.cast(type, hint), section, f"{key}.", problems)
    if _holds_sections(hint):
        return _collection(hint, value, key, problems)
    alternatives = typing.get_args(hint) if _is_union(hint) else (hint,)
    for alternative in alternatives:
        if _fits(alternative, value):
            if isinstance(alternative, type) and issubclass(alternative, enum.Enum):
                return alternative(value)
            return float(value) if alternative is float else value
    problems.append(_wrong_type(alternatives, value, key))
    return _INVALID


def _holds_sections(hint: Any) -> bool:
    """True for a mapping from free names, and for a list of sections."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    return origin is dict or (origin is list and dataclasses.is_dataclass(arguments[0]))


def _collection(hint: Any, value: Any, key: str, problems: list[str]) -> Any:
    """Each element checked as a section (or a value) of its own, under the name `key.name` or `key[i]`."""
    item, section = typing.get_args(hint)[-1], as_tree(value)
    if typing.get_origin(hint) is list and isinstance(value, list):
        elements = typing.cast(list[Any], value)
        built: Any = [_value(item, element, f"{key}[{i}]", problems) for i, element in enumerate(elements)]
        return _INVALID if any(element is _INVALID for element in built) else built
    if typing.get_origin(hint) is list or section is None or any(type(name) is not str for name in section):
        wanted = "a list of sections" if typing.get_origin(hint) is list else "a mapping from names (text)"
        problems.append(f"`{key}` must be {wanted}, got {_short(value)}")
        return _INVALID
    if "_target_" in section:
        problems.append(names_code(f"{key}._target_"))
        return _INVALID
    built = {name: _value(item, element, f"{key}.{name}", problems) for name, element in section.items()}
    return _INVALID if any(element is _INVALID for element in built.values()) else built


def _fits(hint: Any, value: Any) -> bool:
    if hint is types.NoneType:
        return value is None
    if isinstance(value, int) and not isinstance(value, bool):
        return hint in (int, float) and abs(value) <= _LARGEST
    if hint is float:
        return isinstance(value, float) and math.isfinite(value)
    if hint is int:
        return False
    if hint is str:
        return isinstance(value, str) and _is_text(value)
    if typing.get_origin(hint) is list:
        (item,) = typing.get_args(hint)
        return isinstance(value, list) and all(_fits(item, element) for element in typing.cast(list[Any], value))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in [member.value for member in hint]
    return isinstance(value, hint)


def _is_text(value: str) -> bool:
    """Neither NUL nor half of a surrogate pair, which no file can be named by and no UTF-8 file can hold."""
    return not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value)


def _wrong_type(alternatives: Sequence[Any], value: Any, key: str) -> str:
    if isinstance(value, int) and abs(value) > _LARGEST:
        return f"`{key}` is out of range: a whole number has at most 63 bits ({_LARGEST})"
    if isinstance(value, str) and not _is_text(value):
        return f"`{key}` holds NUL or half of a surrogate pair: {value!a}"
    wanted = " or ".join(_type_name(alternative) for alternative in alternatives)
    found = "a number" if isinstance(value, float) else _type_name(type(value))
    message = f"`{key}` must be {wanted}, got {found} {_short(value)}"
    if str in alternatives and isinstance(value, int | float):
        message += f" (YAML reads it as a number; to keep it as text write {key}=\\'...\\')"
    if alternatives == (int,) and isinstance(value, float) and value.is_integer():
        message += f"; write {int(value):_}"
    if int in alternatives and key.endswith("_minutes") and isinstance(value, str):
        message += _in_minutes(value)
    return message


def _in_minutes(text: str) -> str:
    """What [days-]hours:minutes[:seconds] would be, as schedulers write times; nothing for any other text."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?", text)
    if match is None:
        return ""
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return f"; as days-hours:minutes:seconds that is {(days * 24 + hours) * 60 + minutes + (seconds > 0)} minutes"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}… ({len(text):,} characters)"


def _type_name(hint: Any) -> str:
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in hint)
    if typing.get_origin(hint) is list:
        return f"a list (each {_type_name(typing.get_args(hint)[0])})"
    names: dict[Any, str] = {
        int: "an integer",
        float: "a finite number",
        str: "text",
        bool: "true or false",
        types.NoneType: "null",
    }
    return names.get(hint) or f"a {hint.__name__}"


def as_tree(value: Any) -> dict[str, Any] | None:
    return typing.cast(dict[str, Any], value) if isinstance(value, dict) else None


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _kinds(hint: Any) -> dict[str, type]:
    """For a union of dataclasses: {the default of its field `kind`: the dataclass}; empty for any other type."""
    members = typing.get_args(hint) if _is_union(hint) else ()
    if not members or not all(dataclasses.is_dataclass(member) for member in members):
        return {}
    return {defaults_of(member)["kind"]: member for member in members}


def names_code(key: str) -> str:
    return f"`{key}` is refused: a configuration never names code to run"


def nearest(key: str, known: Sequence[str]) -> str:
    """A hint to the key that was meant: one of the same section if that section exists, else the closest of all."""
    section, _, leaf = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    candidates = siblings if siblings and section else {name: name for name in known}
    close = difflib.get_close_matches(leaf if candidates is siblings else key, candidates, n=1, cutoff=0.6)
    if close:
        return f"; did you mean `{candidates[close[0]]}`?"
    return f"; known here: {', '.join(sorted(siblings))}" if siblings else ""
