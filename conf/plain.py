"""YAML as plain data: what a stranger may have written, read without surprises and without anything being run.

In: the bytes of a file. Out: dicts with text keys, lists, strings, numbers, true, false, null. Refused, with the line:
everything by which a small file becomes a large tree (anchors, aliases, merge keys, deep nesting), names code (tags),
or says something else than it seems to (a key given twice, `24:00:00` read as 86400, `010` read as 8).
"""

import re
from pathlib import Path
from typing import Any

import yaml

from conf.errors import ConfigError

MAX_BYTES = 1 << 20
"""a configuration has a few kilobytes"""
MAX_DEPTH = 32
_NOT_AS_IT_SEEMS = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
"""octal and base 60, as YAML 1.1 has them"""


def read_plain(file: Path) -> Any:
    """Raises OSError, and ConfigError that names the file."""
    with file.open("rb") as stream:
        return parse_plain(stream.read(MAX_BYTES + 1), str(file))


def parse_plain(content: bytes, name: str) -> Any:
    """`name` is what messages call it. Raises ConfigError."""
    if len(content) > MAX_BYTES:
        raise ConfigError([f"{name} has more than {MAX_BYTES:,} bytes: that is no configuration"])
    try:
        return _PlainLoader(content.decode()).get_single_data()
    except UnicodeDecodeError as error:
        raise ConfigError([f"{name} is not UTF-8 (byte {error.start})"]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2026-13-45 looks like a date
        raise ConfigError([f"{name} is not YAML that can be used: {_in_one_line(error)}"]) from None


class _PlainLoader(yaml.SafeLoader):
    def __init__(self, text: str):
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise self._refused("an anchor or alias (& and *) is refused: write the value out", event)
        if getattr(event, "tag", None) is not None:
            raise self._refused(f"the tag {event.tag} is refused: values are plain", event)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._refused(f"nested deeper than {MAX_DEPTH} levels", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode) and event.implicit[0] and _NOT_AS_IT_SEEMS.fullmatch(node.value):
            number = self.construct_object(node)
            raise self._refused(f"{node.value} would be read as {number}: write the number, or quote the text", event)
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise self._refused("a key must be text; quote it", key)
            if key.value in seen:
                raise self._refused(f"the key `{key.value}` is given twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    @staticmethod
    def _refused(problem: str, place: Any) -> yaml.YAMLError:
        return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


def _in_one_line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
