"""A run's configuration → the words of a command line that go on with it, and the keys in which it differs from what is
chosen when nothing is said.

In: the configuration that a run's folder holds. Out: `key=value` words for `python -m train`, proved by composing them:
what comes out must be the configuration that went in, but for keys that may change and that stopped the run.
"""

import functools
import re
import shlex
from pathlib import Path
from typing import Any

from conf.check import flatten, to_tree
from conf.compose import App, compose
from conf.errors import ConfigError
from data_prep.files import DataError
from train.config import TrainConfig
from train.optimizer_config import OPTIONS
from train.run_folder import config_of

TRAIN = App("train", TrainConfig, OPTIONS)
_DROPPED = ("run.stop_at_step", "run.time_limit_seconds")
"""they said when to stop"""
_PLAIN = re.compile(r"[A-Za-z0-9_./:@-]+")


def differences(config: TrainConfig) -> list[tuple[str, Any, Any]]:
    """(key, its value, the default), of those that differ; a key without a counterpart has None there."""
    held, default = flatten(to_tree(config)), _default(config.run.name, _schedule(config))
    return [(key, held.get(key), default.get(key)) for key in held if held[key] != default.get(key, _MISSING)]


_MISSING = object()


def command(run: Path, world_size: int) -> str | None:
    """What to type to go on; None if no words are known that give this configuration."""
    script = run / "slurm" / "job.sh"
    if script.is_file():
        return shlex.join(["sbatch", f"--output={run.absolute()}/slurm/%j.log", str(script)])
    try:
        config = config_of(run)
        folder = Path(config.run.folder)
        config.run.folder = str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
        words = train_words(config)
    except (DataError, ConfigError):
        return None
    program = "python" if world_size == 1 else f"torchrun --nproc-per-node {world_size}"
    return None if words is None else f"{program} -m train {shlex.join(words)}"


def train_words(config: TrainConfig) -> list[str] | None:
    changed = [key for key, _, _ in differences(config) if key not in _DROPPED]
    held = flatten(to_tree(config))
    names = [key for key in changed if key != "run.name"]
    words = [f"run.name={config.run.name}", _schedule(config), *(f"{key}={spelled(held[key])}" for key in names)]
    try:
        made = flatten(to_tree(compose(TRAIN, words)))
    except ConfigError:
        return None
    for key in _DROPPED:
        held[key] = made[key] = None
    return words if made == held else None


def spelled(value: Any) -> str:
    """For Hydra's grammar."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str() if _PLAIN.fullmatch(value) and not _looks_like_another_type(value):
            return value
        case str():
            return f'"{_escaped(value)}"'
        case list():
            return f"[{','.join(map(spelled, value))}]"
        case _:
            return f"{{{','.join(f'{key}:{spelled(item)}' for key, item in value.items())}}}"


def _escaped(text: str) -> str:
    """Backslashes mean themselves to Hydra, but for those before a quote."""
    before_quotes = re.sub(r'(\\*)"', lambda found: f'{2 * found[1]}\\"', text)
    return re.sub(r"\\+$", lambda found: 2 * found[0], before_quotes)


def _looks_like_another_type(text: str) -> bool:
    return (
        text.lower() in ("null", "true", "false", "nan", "inf", "-inf")
        or re.fullmatch(r"[-+.\d][\d_.eE+-]*|.*:.*", text) is not None
    )


@functools.cache
def _default(name: str, schedule: str) -> dict[str, Any]:
    """What is chosen when nothing is said but the name, and which kind of schedule the keys are those of."""
    return flatten(to_tree(compose(TRAIN, [f"run.name={name}", schedule])))


def _schedule(config: TrainConfig) -> str:
    return f"schedule={config.schedule.kind}"
