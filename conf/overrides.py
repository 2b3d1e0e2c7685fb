"""Words of the command line that Hydra would misunderstand, pass over in silence, or answer in words of its own.

In: overrides, and what there is to choose. Out: a problem for each that is refused, with the nearest right one.
"""

import difflib
import functools
import itertools
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.app import App, free_mappings
from conf.check import names_code, nearest
from conf.errors import ConfigError
from conf.plain import MAX_DEPTH, read_plain

LONGEST_WORD = 1 << 16
MOST_BARE = 1 << 14
"""characters outside of quotes"""
MOST_ITEMS = 1000
"""Hydra's parser takes the square of them: 1,000 cost a second, 20,000 more than five minutes"""
_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*+(?:'|\Z)|"(?:\\.|[^"\\])*+(?:"|\Z)""", re.DOTALL)
MOST_FILES = 1000


@dataclass(frozen=True)
class Choices:
    """groups: {group: its options}; free: the mappings with free names."""

    groups: dict[str, set[str]]
    free: tuple[str, ...]

    @staticmethod
    def of(app: App, folder: Path, more: Path | None) -> "Choices":
        """What the folders hold. Raises ConfigError when there is a file in `more` that could do more than choose."""
        groups = {group: {f"base_{option}" for option in options} for group, options in app.options.items()}
        for place in (folder, *([] if more is None else [_checked(more, folder)])):
            for file in _found(place, "*/**/*.yaml"):
                group = file.parent.relative_to(place).as_posix()
                groups.setdefault(group, set()).add(file.stem)
        return Choices(groups, tuple(free_mappings(app.schema)))

    def is_choice(self, word: str) -> bool:
        return word.partition("=")[0] in self.groups

    def is_free(self, key: str) -> bool:
        return any(key.startswith(f"{mapping}.") for mapping in self.free)


def refused(words: Iterable[str], choices: Choices) -> list[str]:
    """What is wrong with each word by itself."""
    return [problem for word in words if (problem := _too_much(word, choices) or _problem(word, choices))]


def repeated(words: Iterable[str], verbatim: Collection[str] = ()) -> list[str]:
    """Says of each key that is given several values which one holds; words that are equal, or add up, say nothing new.

    words: that are not refused. verbatim: keys whose values are text as typed.
    """
    values: dict[str, list[Any]] = {}
    for word in words:
        key, _, typed = word.partition("=")
        parsed = None if key in verbatim else _parsed(word)
        name, value = (key, typed) if parsed is None else (parsed.key_or_group, parsed.value())
        values.setdefault(name, []).append(value)
    return [
        f"`{key}` is given {len(given)} times: the last value holds, {_short(str(given[-1]))}"
        for key, given in values.items()
        if any(value != given[-1] for value in given) and not any(isinstance(value, dict) for value in given)
    ]


def unknown_keys(words: Iterable[str], choices: Choices, known: Collection[str]) -> list[str]:
    """Names each override whose key does not exist, with the nearest key that does: Hydra would advise to append it."""
    keys = [_parsed(word).key_or_group for word in words if not choices.is_choice(word)]
    return [
        f"unknown key `{key}`{nearest(key, sorted(known))}"
        for key in keys
        if known and key not in known and not choices.is_free(key)
    ]


def unplaced(tree: Collection[str], known: Collection[str], choices: Choices) -> list[str]:
    """Groups that came to be sections of their own, since the file that was chosen does not say where its keys belong.
    Its keys would be called unknown, one by one or all at once."""
    return [
        f"the file chosen by {group}=... must begin with the line `# @package _global_`: its keys are those of the "
        "whole configuration"
        for group in sorted({*tree} & choices.groups.keys() - {*known})
    ]


def _too_much(word: str, choices: Choices) -> str | None:
    """What would keep Hydra's parser busy for minutes, or is deeper than any setting."""
    key, _, value = word.partition("=")
    bare = _QUOTED.sub("", value) if len(word) <= LONGEST_WORD else ""
    steps = ((letter in "[{(") - (letter in "]})") for letter in bare)
    if (depth := max(itertools.accumulate(steps), default=0)) > MAX_DEPTH:
        return (
            f"`{_short(key)}` is given {depth:,} brackets inside of each other, at most {MAX_DEPTH} are read; a text "
            "with brackets in it needs quotes"
        )
    group = section if (section := key.lstrip("+").partition(".")[0]) in choices.groups else "experiment"
    limits = (
        (len(word), LONGEST_WORD, "characters"),
        (len(bare), MOST_BARE, "characters outside of quotes"),
        (bare.count(","), MOST_ITEMS, "commas"),
    )
    for number, limit, unit in limits:
        if number > limit:
            return (
                f"`{_short(word)}` has {number:,} {unit}, a word of the command line at most {limit:,}: put it into a "
                f"YAML file conf/{group}/NAME.yaml (or FOLDER/{group}/NAME.yaml with --config-dir FOLDER), and give "
                f"{group}=NAME"
            )
    return None


def _problem(word: str, choices: Choices) -> str | None:
    """The first thing wrong with it."""
    parsed = _parsed(word)
    if parsed is None:
        return f"`{_short(word)}` is not an override; write key=value, and quote a value with special characters"
    key: str = parsed.key_or_group
    if "_target_" in key.split("."):
        return names_code(key)
    if key.split(".")[0].split("/")[0] == "hydra":
        return f"`{key}` has no effect here: Hydra composes the configuration, and does nothing else"
    if parsed.is_delete() and not choices.is_free(key):
        return f"`{word}` takes nothing away: every key has a value; write {key}=VALUE"
    if parsed.is_sweep_override():
        return f"`{_short(word)}` gives several values, a run takes one; for a list write {key}=[1,2], and quote a text"
    return _choice_problem(word, parsed, choices) if key in choices.groups else None


def _choice_problem(word: str, parsed: Any, choices: Choices) -> str | None:
    group, options = parsed.key_or_group, choices.groups[parsed.key_or_group]
    asked = parsed.value()
    if parsed.is_add() or parsed.is_force_add():
        return f"`{word}`: write {group}={asked}, without +"
    if isinstance(asked, dict) or (isinstance(asked, str) and asked in options):
        return None
    ours = sorted(option for option in options if not option.startswith("base_"))
    close = difflib.get_close_matches(asked, ours, n=1) if isinstance(asked, str) else []
    meant = f"; did you mean `{close[0]}`?" if close else ""
    return f"`{_short(word)}` is no option of {group}{meant}; there are {', '.join(ours)}"


@functools.cache
def _parsed(word: str) -> Any:
    """Hydra's idea of the word; None if it has none."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(word)
    except (HydraException, ValueError, RecursionError):  # ValueError: a number of 5,000 digits
        return None


def _short(word: str) -> str:
    word = word.encode(errors="backslashreplace").decode()
    return word if len(word) <= 120 else f"{word[:120]}…"


# --- files of a user -------------------------------------------------------------------------------------------------


def _checked(folder: Path, ours: Path) -> Path:
    """Raises ConfigError unless every YAML file in the folder only chooses values, under a name that is not ours."""
    if not folder.is_dir():
        raise ConfigError([f"--config-dir={folder} is not a folder"])
    files = _found(folder, "**/*.yaml")
    problems = [problem for file in sorted(files) for problem in _file_problems(file)]
    problems += [
        f"{file} has the name of one of our own files: call it otherwise"
        for file in sorted(files)
        if (ours / file.relative_to(folder)).exists()
    ]
    if problems:
        raise ConfigError(problems)
    return folder


def _found(folder: Path, pattern: str) -> list[Path]:
    try:
        files = list(itertools.islice(folder.glob(pattern), MOST_FILES + 1))
    except OSError as error:  # as of a name that is too long, or a folder that vanished meanwhile
        place = error.filename if len(error.filename) <= 200 else f"{error.filename[:200]}…"
        raise ConfigError([f"--config-dir={folder} cannot be read: {place}: {error.strerror}"]) from None
    if len(files) > MOST_FILES:
        raise ConfigError([f"--config-dir={folder} holds more than {MOST_FILES:,} YAML files: name a smaller one"])
    return files


def _file_problems(file: Path) -> Sequence[str]:
    try:
        tree = read_plain(file)
    except OSError as error:
        return [f"{file} cannot be read: {error.strerror}"]
    except ConfigError as error:
        return error.problems
    if tree is None:
        return []
    if not isinstance(tree, dict):
        return [f"{file} is not a mapping"]
    return [f"{file}: {problem}" for problem in _tree_problems(tree)]


def _tree_problems(tree: Any, key: str = "") -> Iterable[str]:
    """Names code anywhere, settings of Hydra, and ways out of the folder."""
    if isinstance(tree, list):
        for i, item in enumerate(tree):
            yield from _tree_problems(item, f"{key}[{i}]")
    if not isinstance(tree, dict):
        return
    for name, value in tree.items():
        here = f"{key}.{name}" if key else name
        if name == "_target_":
            yield names_code(here)
        elif here == "hydra":
            yield "`hydra` has no effect here: Hydra composes the configuration, and does nothing else"
        elif here == "defaults" and ".." in str(value):
            yield "`defaults` leaves the folder with `..`"
        else:
            yield from _tree_problems(value, here)
