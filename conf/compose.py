"""From YAML and the command line to checked dataclasses: the only file that speaks Hydra and OmegaConf.

In: the YAML tree beside this file, the defaults of a schema dataclass, and overrides such as `optimizer.lr=3e-4`.
Out: one instance of the schema, or a `ConfigError` that lists *every* problem found.

Hydra composes; we decide. Hydra alone accepts `+typo=1`, turns `name=2026_11_20` into an integer and one value into a
pair, so the schema is handed to it as plain values (nothing is converted on the way) and `build` then refuses every key
without a reader and every value of the wrong type. Relations between values belong to the dataclass that owns them: a
method `problems()` that returns messages.
"""

import dataclasses
import difflib
import enum
import hashlib
import json
import math
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONF_FOLDER = Path(__file__).resolve().parent
EXIT_INTERRUPTED = 130
EXIT_READER_LEFT = 141  # as a shell tells of SIGPIPE
MULTIRUN_REFUSED = (
    "error: --multirun is refused: it would run all jobs in one process, and DeepSpeed's state does not outlive a job; "
    "nothing was started. Give one command a value, say in a loop of the shell."
)
REQUIRED = "???"  # OmegaConf's mark for a value that must be given
_INVALID = object()  # stands for a value that was refused, so that what depends on it is not checked


class ConfigError(Exception):
    """What the user asked for cannot be run. Carries all problems, one message each."""

    exit_code = 2

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        noun = "problem" if len(self.problems) == 1 else "problems"
        lines = [f"{len(self.problems)} {noun} in the configuration; nothing was started."]
        lines += [f"  {i}. {problem}" for i, problem in enumerate(self.problems, 1)]
        super().__init__("\n".join(lines))


@dataclass(frozen=True)
class App:
    """One entry point: the primary YAML file, its schema, and the schemas of groups whose options differ in kind.

    `options` maps a group to {option: dataclass}; each is registered as `base_<option>` in that group, and each of
    these dataclasses carries a field `kind` whose default names it. The values of `verbatim` keys are text that is
    taken as typed: Hydra's grammar would strip the blank at the end of a prompt and stumble over its brackets.
    """

    config_name: str
    schema: type
    options: dict[str, dict[str, type]]
    verbatim: tuple[str, ...] = ()


def entry(
    app: App, task: Callable[[Any], int | None], is_said: Callable[[Exception], bool] = lambda error: False
) -> None:
    """Runs `task(config)` for the command line at hand and leaves the process with its exit code.

    `is_said` is asked about every error; True means that another process tells it on the console.

    Hydra's own flags (--help, --cfg job, --config-dir, shell completion) go to Hydra; a plain list of overrides is
    composed here, so that mistakes are answered in our words: exit 2 for the configuration, else the error's own code.
    """
    words = sys.argv[1:]

    def checked(config_of: Callable[[], Any]) -> None:
        try:
            sys.exit(task(config_of()) or 0)
        except Exception as error:
            hushed, code = is_said(error), getattr(error, "exit_code", None)
            if code is None:
                raise
            if not hushed:
                print(f"error: {error}", file=sys.stderr)
            sys.exit(code)
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on from what is saved", file=sys.stderr)
            sys.exit(EXIT_INTERRUPTED)

    if {"-m", "--multirun"} & set(words):
        print(MULTIRUN_REFUSED, file=sys.stderr)
        sys.exit(ConfigError.exit_code)
    try:
        if any(word.startswith("-") for word in words):
            _through_hydra(app, checked)
        else:
            checked(lambda: compose(app, words))
    except BrokenPipeError:  # the reader of our output left: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_READER_LEFT)


def compose(app: App, overrides: Sequence[str]) -> Any:
    """The checked configuration for these overrides. Raises ConfigError with every problem found."""
    return build(app.schema, _compose_tree(app, overrides))


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


def from_yaml(schema: type, text: str) -> Any:
    """Reads back what `to_yaml` wrote. Plain YAML: no interpolation, no resolvers, nothing is run."""
    import yaml

    try:
        tree = _as_tree(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError([f"the saved configuration is not YAML: {_one_line(error)}"]) from None
    if tree is None:
        raise ConfigError(["the saved configuration is not a mapping"])
    return build(schema, tree)


def digest(tree: Any) -> str:
    """SHA-256 over the canonical JSON of a tree of plain values."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} becomes {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        section = _as_tree(value)
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


# --- composition ---------------------------------------------------------------------------------------------------


def _register(app: App) -> None:
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name=f"base_{app.config_name}", node=defaults_of(app.schema))
    for group, options in app.options.items():
        for option, schema in options.items():
            store.store(group=group, name=f"base_{option}", node=defaults_of(schema))


def _split_verbatim(app: App, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(words for Hydra, {verbatim key: its text})."""
    typed = dict(word.split("=", 1) for word in words if word.split("=", 1)[0] in app.verbatim and "=" in word)
    return [word for word in words if word.split("=", 1)[0] not in typed], typed


def _opened(app: App, words: Sequence[str]) -> list[str]:
    """The words, with Hydra's `++` before those that may name a new key of a mapping with free names (a source of a
    mixture): Hydra would refuse it; what is in the mapping is checked by `build` like everything else."""
    free = _free_mappings(app.schema)

    def reaches(key: str, value: str) -> bool:
        inside = any(key == mapping or key.startswith(f"{mapping}.") for mapping in free)
        return inside or (value.startswith("{") and any(mapping.startswith(f"{key}.") for mapping in free))

    return [f"++{word}" if reaches(*word.partition("=")[::2]) else word for word in words]


def _free_mappings(schema: type, prefix: str = "") -> list[str]:
    """Keys of the fields that are mappings from free names."""
    found: list[str] = []
    for name, hint in typing.get_type_hints(schema).items():
        if typing.get_origin(hint) is dict:
            found.append(prefix + name)
        elif dataclasses.is_dataclass(hint):
            found += _free_mappings(typing.cast(type, hint), f"{prefix}{name}.")
    return found


def _compose_tree(app: App, words: Sequence[str]) -> dict[str, Any]:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    _register(app)
    overrides, typed = _split_verbatim(app, words)
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_FOLDER)):

        def composed(chosen: Sequence[str]) -> dict[str, Any]:
            config = hydra_compose(app.config_name, list(chosen))
            return typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))

        try:
            return composed(_opened(app, overrides)) | typed
        except Exception as error:  # Hydra answers a bad override with its own errors, ValueError or AssertionError
            problems = _unknown_keys(app, overrides, composed) or [_one_line(error)]
            raise ConfigError(problems) from None


def _unknown_keys(app: App, overrides: Sequence[str], composed: Callable[[Sequence[str]], dict[str, Any]]) -> list[str]:
    """Names each override whose key does not exist, with the nearest key that does: Hydra would advise to append it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    groups = {folder.name for folder in CONF_FOLDER.iterdir() if folder.is_dir()}
    problems: list[str] = []
    choices: list[str] = []
    keys: list[str] = []
    for word in overrides:
        try:
            parsed = OverridesParser.create().parse_override(word)
        except HydraException:
            return [f"`{word}` is not an override; write key=value, and quote a value with special characters"]
        if parsed.key_or_group in groups:
            choices.append(word)
        else:
            keys.append(parsed.key_or_group)
    try:
        known = composed(choices)
    except Exception:
        return []
    sections = _sections(known)
    free = _free_mappings(app.schema)
    for key in keys:
        if key not in sections and not any(key.startswith(f"{mapping}.") for mapping in free):
            problems.append(f"unknown key `{key}`{_nearest(key, sorted(sections))}")
    return problems


def _sections(tree: dict[str, Any], prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for key, value in tree.items():
        keys.add(prefix + key)
        section = _as_tree(value)
        if section is not None:
            keys |= _sections(section, f"{prefix}{key}.")
    return keys


def _nearest(key: str, known: Sequence[str]) -> str:
    """A hint to the key that was meant: one of the same section if that section exists, else the closest of all."""
    section, _, leaf = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    candidates = siblings if siblings and section else {name: name for name in known}
    close = difflib.get_close_matches(leaf if candidates is siblings else key, candidates, n=1, cutoff=0.6)
    if close:
        return f"; did you mean `{candidates[close[0]]}`?"
    return f"; known here: {', '.join(sorted(siblings))}" if siblings else ""


def _one_line(error: BaseException) -> str:
    text = str(error).split("\nfull_key")[0].split("\nConfig search path")[0]
    text = re.sub(r"\nTo append .*", "", text)  # Hydra's advice would be refused by us
    if error.__cause__ is not None:
        text += f" {_one_line(error.__cause__)}"
    return " ".join(text.split())


def _through_hydra(app: App, checked: Callable[[Callable[[], Any]], None]) -> None:
    import hydra
    from omegaconf import DictConfig, OmegaConf

    _register(app)
    words, typed = _split_verbatim(app, sys.argv[1:])
    sys.argv[1:] = _opened(app, words)

    def run(config: DictConfig) -> None:
        tree = typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True)) | typed
        checked(lambda: build(app.schema, tree))

    hydra.main(version_base="1.3", config_path=str(CONF_FOLDER), config_name=app.config_name)(run)()


# --- checking --------------------------------------------------------------------------------------------------------


def _build(schema: type, tree: dict[str, Any], prefix: str, problems: list[str]) -> Any:
    hints = typing.get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for key in tree:
        if key == "_target_":
            problems.append(f"`{prefix}_target_` is refused: a configuration never names code to run")
        elif key not in fields:
            known = [prefix + name for name in fields]
            problems.append(f"unknown key `{prefix}{key}`{_nearest(prefix + str(key), known)}")
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
    kinds, section = _kinds(hint), _as_tree(value)
    if kinds:
        kind = None if section is None else section.get("kind")
        if section is None or kind not in kinds:
            group = key.replace(".", "/")
            problems.append(f"`{key}` has no kind `{kind}`; choose one with {group}=" + " | ".join(sorted(kinds)))
            return _INVALID
        return _build(kinds[kind], section, f"{key}.", problems)
    if dataclasses.is_dataclass(hint):
        if section is None:
            problems.append(f"`{key}` is a section with keys of its own, not the value {value!r}")
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
    item, section = typing.get_args(hint)[-1], _as_tree(value)
    if typing.get_origin(hint) is list and isinstance(value, list):
        elements = typing.cast(list[Any], value)
        built: Any = [_value(item, element, f"{key}[{i}]", problems) for i, element in enumerate(elements)]
        return _INVALID if any(element is _INVALID for element in built) else built
    if typing.get_origin(hint) is list or section is None or any(type(name) is not str for name in section):
        wanted = "a list of sections" if typing.get_origin(hint) is list else "a mapping from names (text)"
        problems.append(f"`{key}` must be {wanted}, got {value!r}")
        return _INVALID
    built = {name: _value(item, element, f"{key}.{name}", problems) for name, element in section.items()}
    return _INVALID if any(element is _INVALID for element in built.values()) else built


def _fits(hint: Any, value: Any) -> bool:
    if hint is types.NoneType:
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if typing.get_origin(hint) is list:
        (item,) = typing.get_args(hint)
        return isinstance(value, list) and all(_fits(item, element) for element in typing.cast(list[Any], value))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in [member.value for member in hint]
    return isinstance(value, hint)


def _wrong_type(alternatives: Sequence[Any], value: Any, key: str) -> str:
    wanted = " or ".join(_type_name(alternative) for alternative in alternatives)
    found = "a number" if isinstance(value, float) else _type_name(type(value))
    message = f"`{key}` must be {wanted}, got {found} {value!r}"
    if str in alternatives and isinstance(value, int | float):
        message += f" (YAML reads it as a number; to keep it as text write {key}=\\'...\\')"
    if alternatives == (int,) and isinstance(value, float) and value.is_integer():
        message += f"; write {int(value):_}"
    return message


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


def _as_tree(value: Any) -> dict[str, Any] | None:
    return typing.cast(dict[str, Any], value) if isinstance(value, dict) else None


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _kinds(hint: Any) -> dict[str, type]:
    """For a union of dataclasses: {the default of its field `kind`: the dataclass}; empty for any other type."""
    members = typing.get_args(hint) if _is_union(hint) else ()
    if not members or not all(dataclasses.is_dataclass(member) for member in members):
        return {}
    return {defaults_of(member)["kind"]: member for member in members}
