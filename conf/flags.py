"""The flags of the command line: those that look go to Hydra, which knows how to show a configuration.

In: the words after the program's name. Out: overrides, the folder of --config-dir, and whether only to look. Refused:
flags by which Hydra would run something itself (several jobs in one process; a pickle of an earlier job).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conf.app import CONF_FOLDER, App, forget_resolvers, opened, register, split_verbatim
from conf.errors import ConfigError

MULTIRUN_REFUSED = (
    "--multirun is refused: it would run all jobs in one process, and DeepSpeed's state does not outlive a job. Give "
    "one command a value, say in a loop of the shell"
)
REFUSED = {
    "-m": MULTIRUN_REFUSED,
    "--multirun": MULTIRUN_REFUSED,
    "--experimental-rerun": "--experimental-rerun is refused: it would unpickle a file, which can run any program",
}
LOOKING = ("-h", "--help", "--hydra-help", "--version", "--shell-completion", "-sc")
LOOKING_AT = ("-c", "--cfg", "-i", "--info", "-p", "--package")
"""which take a word"""
LOOKING_MORE = ("--resolve",)
CONFIG_DIR = ("-cd", "--config-dir")


@dataclass(frozen=True)
class Line:
    words: list[str]
    """overrides"""
    config_dir: Path | None
    flags: list[str]
    """for Hydra"""

    @property
    def looks(self) -> bool:
        return bool(self.flags)

    @property
    def completes(self) -> bool:
        """The words are not finished: the shell asks for their ends."""
        return bool({"-sc", "--shell-completion"} & set(self.flags))


def parsed(arguments: Sequence[str]) -> Line:
    """Raises ConfigError for a flag that does not exist here."""
    words: list[str] = []
    flags: list[str] = []
    config_dir: Path | None = None
    left = list(arguments)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=") if word.startswith("-") else (word, "", "")
        if not word.startswith("-"):
            words.append(word)
        elif name in REFUSED:
            raise ConfigError([REFUSED[name]])
        elif name in CONFIG_DIR:
            config_dir = Path(value if equals else _next(left, name))
        elif name in LOOKING_AT:
            flags += [name, value if equals else _next(left, name)]
        elif word in LOOKING or word in LOOKING_MORE:
            flags.append(word)
        else:
            raise ConfigError([f"unknown flag `{word}`; see --help, and write settings as key=value"])
    return Line(words, config_dir, flags)


def show(app: App, line: Line) -> None:
    """Lets Hydra print what was asked for."""
    import hydra

    register(app)
    forget_resolvers()
    words, _ = split_verbatim(app, line.words)
    folder = [] if line.config_dir is None else ["--config-dir", str(line.config_dir)]
    sys.argv[1:] = [*line.flags, *folder, *opened(app, words)]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF_FOLDER), config_name=app.config_name)(_nothing)()
    except SystemExit as ended:  # Hydra has said why
        sys.exit(ConfigError.exit_code if ended.code else 0)


def _next(left: list[str], flag: str) -> str:
    if not left:
        raise ConfigError([f"{flag} takes a word"])
    return left.pop(0)


def _nothing(config: object) -> None:
    """What Hydra would run, if it ran anything."""
