"""From YAML and the command line to checked dataclasses: the only file that speaks Hydra and OmegaConf.

In: the YAML tree beside this file (and that of `--config-dir`), the defaults of a schema dataclass, and overrides such
as `optimizer.lr=3e-4`. Out: one instance of the schema, or a `ConfigError` that lists *every* problem found.

Hydra composes; we decide. Hydra alone accepts `+typo=1` and `~key`, turns `name=2026_11_20` into an integer and one
value into a pair, so the schema is handed to it as plain values (nothing is converted on the way), what it would pass
over in silence is refused before (`conf/overrides.py`), and `conf/check.py` checks every key and value after. Of
interpolations only `${key}` works: there is no resolver, so no environment variable ends in a saved configuration.
"""

import os
import re
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conf.app import CONF_FOLDER, App, forget_resolvers, opened, register, split_verbatim
from conf.check import as_tree, build, defaults_of
from conf.errors import ConfigError
from conf.flags import parsed, show
from conf.overrides import Choices, refused, repeated, unknown_keys, unplaced

EXIT_INTERRUPTED = 130
EXIT_READER_LEFT = 141  # as a shell tells of SIGPIPE


def entry(
    app: App,
    task: Callable[[Any], int | None],
    is_said: Callable[[Exception], bool] = lambda error: False,
    speaks: Callable[[], bool] = lambda: True,
) -> None:
    """Runs `task(config)` for the command line at hand and leaves the process with its exit code.

    `is_said` is asked about every error; True means that another process tells it on the console. What is no error is
    told by those that `speaks` is true of.

    Flags that only look (--help, --cfg job, shell completion) go to Hydra; everything that runs is composed here, so
    that mistakes are answered in our words: exit 2 for the configuration, else the error's own code.
    """
    os.umask(os.umask(0o077) | 0o002)  # whatever it is: no file of ours may be changed by everybody
    try:
        line = parsed(sys.argv[1:])
        if not line.looks:
            config = compose(app, line.words, line.config_dir)
            for words in repeated(line.words, app.verbatim) if speaks() else []:
                print(f"note: {words}", file=sys.stderr)
            sys.exit(task(config) or 0)
        if not line.completes:
            _tree(app, line.words, line.config_dir)  # so that mistakes are answered in our words
        show(app, line)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from what is saved", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output left: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_READER_LEFT)
    except Exception as error:
        hushed, code = is_said(error), getattr(error, "exit_code", None)
        if code is None:
            raise
        if not hushed:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(code)


def compose(app: App, words: Sequence[str], config_dir: Path | None = None) -> Any:
    """The checked configuration for these overrides; `config_dir` holds more YAML files to choose.

    Raises ConfigError with every problem found.
    """
    return build(app.schema, _tree(app, words, config_dir))


def _tree(app: App, words: Sequence[str], config_dir: Path | None) -> dict[str, Any]:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    choices = Choices.of(app, CONF_FOLDER, config_dir)
    overrides, typed = split_verbatim(app, words)
    problems = refused(overrides, choices)
    if problems:
        raise ConfigError(problems)
    register(app)
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_FOLDER)):
        forget_resolvers()
        try:
            tree = _composed(app, opened(app, overrides), config_dir) | typed
        except Exception as error:  # Hydra answers a bad override with its own errors, ValueError or AssertionError
            defaults = _defaults(app, [word for word in overrides if choices.is_choice(word)], config_dir)
            raise ConfigError(unknown_keys(overrides, choices, defaults) or [_in_our_words(error)]) from None
    if problems := unplaced(tree, defaults_of(app.schema), choices):
        raise ConfigError(problems)
    return tree


def _composed(app: App, words: Sequence[str], config_dir: Path | None) -> dict[str, Any]:
    from hydra import compose as hydra_compose
    from omegaconf import OmegaConf

    more = [] if config_dir is None else [f"hydra.searchpath=['{config_dir.resolve().as_uri()}']"]
    config = hydra_compose(app.config_name, [*words, *more])
    return typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def _defaults(app: App, choices: Sequence[str], config_dir: Path | None) -> set[str]:
    """All keys there are, sections included; none when not even the choices can be composed."""
    try:
        return _sections(_composed(app, choices, config_dir))
    except Exception:
        return set()


def _sections(tree: dict[str, Any], prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for key, value in tree.items():
        keys.add(prefix + key)
        section = as_tree(value)
        if section is not None:
            keys |= _sections(section, f"{prefix}{key}.")
    return keys


def _in_our_words(error: BaseException) -> str:
    from omegaconf.errors import UnsupportedInterpolationType

    key = getattr(error, "full_key", None)
    place = f"`{key}`: " if key else ""
    if isinstance(error, UnsupportedInterpolationType):
        return (
            f"{place}{_one_line(error)}: refused. Of interpolations only ${{key}} works, since a configuration is "
            "saved and logged: nothing of the environment may end in it. Write the value; the shell fills in $NAME"
        )
    if isinstance(error, RecursionError):
        return "an override is nested too deeply"
    return place + _one_line(error)


def _one_line(error: BaseException) -> str:
    text = re.split(r"\n\s*full_key|\nConfig search path|\nAvailable options", str(error))[0]
    text = re.sub(r"\nTo append .*", "", text)  # Hydra's advice would be refused by us
    if error.__cause__ is not None:
        text += f" {_one_line(error.__cause__)}"
    return " ".join(text.split())
