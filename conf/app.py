"""What an entry point is to Hydra: its schemas, its groups, and which of its words Hydra must be helped with."""

import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conf.check import defaults_of

CONF_FOLDER = Path(__file__).resolve().parent
RESOLVERS = (
    *("oc.env", "oc.create", "oc.decode", "oc.deprecated", "oc.select", "oc.dict.keys", "oc.dict.values"),
    *("hydra", "now", "python_version"),
)
"""all that OmegaConf and Hydra bring along"""


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


def register(app: App) -> None:
    """Tells Hydra the schemas."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name=f"base_{app.config_name}", node=defaults_of(app.schema))
    for group, options in app.options.items():
        for option, schema in options.items():
            store.store(group=group, name=f"base_{option}", node=defaults_of(schema))


def forget_resolvers() -> None:
    """From here on `${name:...}` is an error in this process, whatever holds it."""
    from omegaconf import OmegaConf

    for name in RESOLVERS:
        OmegaConf.clear_resolver(name)


def split_verbatim(app: App, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(words for Hydra, {verbatim key: its text})."""
    typed = dict(word.split("=", 1) for word in words if word.split("=", 1)[0] in app.verbatim and "=" in word)
    return [word for word in words if word.split("=", 1)[0] not in typed], typed


def opened(app: App, words: Sequence[str]) -> list[str]:
    """The words, with Hydra's `++` before those that may name a new key of a mapping with free names (a source of a
    mixture): Hydra would refuse it; what is in the mapping is checked by `build` like everything else."""
    free = free_mappings(app.schema)

    def reaches(key: str, value: str) -> bool:
        inside = any(key == mapping or key.startswith(f"{mapping}.") for mapping in free)
        return inside or (value.startswith("{") and any(mapping.startswith(f"{key}.") for mapping in free))

    return [f"++{word}" if reaches(*word.partition("=")[::2]) else word for word in words]


def free_mappings(schema: type, prefix: str = "") -> list[str]:
    """Keys of the fields that are mappings from free names."""
    found: list[str] = []
    for name, hint in typing.get_type_hints(schema).items():
        if typing.get_origin(hint) is dict:
            found.append(prefix + name)
        elif dataclasses.is_dataclass(hint):
            found += free_mappings(typing.cast(type, hint), f"{prefix}{name}.")
    return found
