"""The folder of one run: where its files lie, whose configuration it holds, and what happened to it (events.jsonl)."""

import contextlib
import fnmatch
import functools
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conf.check import digest, flatten, read_config, to_tree, to_yaml
from conf.errors import ConfigError
from data_prep.files import DataError, publish_bytes
from train.attempt import Attempt
from train.checkpoint.folders import folder_name, remove, steps_found
from train.checkpoint.manifest import parse, read_bytes, read_manifest
from train.config import FREE_TO_CHANGE, REBASED, TrainConfig
from train.console import tell
from train.errors import CheckpointError


class RunFolder:
    def __init__(self, config: TrainConfig):
        self.path = Path(config.run.folder) / config.run.name
        self.config_yaml = self.path / "config.yaml"
        self.plan_json = self.path / "plan.json"
        self.summary_json = self.path / "summary.json"
        self.metrics_jsonl = self.path / "metrics.jsonl"
        self.events_jsonl = self.path / "events.jsonl"
        self.tokenizer_model = self.path / "tokenizer.model"
        self.samples_txt = self.path / "samples.txt"
        self.samples = self.path / "samples"
        self.curve_svg = self.path / "loss.svg"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.attempts = self.path / "attempts"
        self.attempt: Attempt | None = None
        """the one in which this process holds the folder: set at the claim, on every rank"""
        self._waiting: list[str] = []
        """lines that could not be written to events.jsonl yet"""

    def differences(self, config: TrainConfig) -> list[str]:
        """What this configuration would change in a run that the folder already holds; empty if it may go on.

        Keys that are FREE_TO_CHANGE do not count. Touches nothing.
        """
        try:
            config_held = read_config(TrainConfig, self.config_yaml)
            is_whole = self.config_yaml.read_bytes() == to_yaml(config_held).encode()
        except FileNotFoundError:
            return []
        except OSError as error:
            return [f"{self.config_yaml} cannot be read: {error.strerror}"]
        except ConfigError as error:
            return [self._not_as_written("; ".join(error.problems))]
        held, asked = identity(config_held), identity(config)
        if config.data.rebase:
            held, asked = unrebased(held), unrebased(asked)
        changed = [
            f"{key} {held.get(key)!r} → {asked.get(key)!r}"
            for key in sorted(held.keys() | asked.keys())
            if held.get(key) != asked.get(key)
        ]
        if not changed:
            return []
        if not is_whole:
            return [self._not_as_written(f"as it stands there: {', '.join(changed)}")]
        return [
            f"run.name={self.path.name} already holds another run ({self.path}): {', '.join(changed)}. "
            "Choose another run.name, or take these keys back to continue it"
            + (", or let the data change from here on: data.rebase=true" if unrebased(held) == unrebased(asked) else "")
        ]

    def _not_as_written(self, problem: str) -> str:
        return (
            f"{self.config_yaml} is damaged, or another version of this program wrote it: {problem}. It can be removed "
            "if this command is the one that the run was begun with: it is written anew, and the newest checkpoint, "
            "which has the hash of its own configuration, refuses any other"
        )

    def newest_state(self) -> tuple[int, dict[str, Any]] | None:
        """(step, state) of the newest checkpoint whose state.json is as it was written; its tensors are not looked at.

        For what must be known before torch is: None if there is no such checkpoint.
        """
        for step in steps_found(self.checkpoints):
            path = self.checkpoints / folder_name(step)
            with contextlib.suppress(CheckpointError):
                content, manifest = read_bytes(path / "state.json"), read_manifest(path)
                facts = manifest.files["state.json"]
                if manifest.step == step and facts.sha256 == hashlib.sha256(content).hexdigest():
                    return step, parse(path / "state.json", content)
        return None

    def clear(self) -> None:
        """Removes what a killed process was writing."""
        for leftover in self.path.glob(".*.tmp*"):
            remove(leftover)

    def describe(self, config: TrainConfig, tokenizer: Path) -> None:
        """Writes the configuration and a copy of the tokenizer, if the dataset has one: from here on the folder is this
        run's."""
        publish_bytes(self.config_yaml, to_yaml(config).encode())
        if tokenizer.is_file():
            publish_bytes(self.tokenizer_model, tokenizer.read_bytes())

    def note(self, event: str, **facts: Any) -> None:
        """Appends to events.jsonl, unless a later attempt has the folder. A log that cannot be written never stops a
        run; the line goes with the next one."""
        if self.attempt is None or not self.attempt.is_current():
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        row = {"time": now, "attempt": self.attempt.number, "event": event, **facts}
        is_failing = bool(self._waiting)
        self._waiting.append(json.dumps(row) + "\n")
        try:
            with self.events_jsonl.open("a") as stream:
                while self._waiting:
                    stream.write(self._waiting[0])
                    stream.flush()
                    self._waiting.pop(0)
        except OSError as error:
            if not is_failing:
                tell(f"warning: {self.events_jsonl}: {error.strerror}; its lines are written later")
            if self._waiting[0] != "\n":  # for a part of the line may be there
                self._waiting.insert(0, "\n")
            return
        if is_failing:
            tell(f"{self.events_jsonl} is written again, nothing is missing from it")

    def count(self, event: str) -> int:
        try:
            with self.events_jsonl.open(errors="replace") as stream:
                return sum(f'"event": "{event}"' in line for line in stream)
        except OSError:
            return 0


def config_of(run: Path) -> TrainConfig:
    """The configuration that a run's folder holds, with `run` naming that folder. Raises DataError if it holds none."""
    try:
        config: TrainConfig = read_config(TrainConfig, run / "config.yaml")
    except OSError as error:
        raise DataError(f"{run} is not a run's folder: config.yaml cannot be read ({error.strerror})") from None
    config.run.folder, config.run.name = str(run.absolute().parent), run.absolute().name
    return config


def identity(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide the numbers: a run continues only where all of them are equal."""
    return {key: value for key, value in flatten(to_tree(config)).items() if not _named(key, FREE_TO_CHANGE)}


def unrebased(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that stay when the data change."""
    return {key: value for key, value in settings.items() if not _named(key, REBASED)}


@functools.cache  # asked of every key, several times with every save
def _named(key: str, patterns: tuple[str, ...]) -> bool:
    """By a key, by a section with its dot, or by a pattern with `*`."""
    return any(
        fnmatch.fnmatchcase(key, pattern) or (pattern.endswith(".") and key.startswith(pattern)) for pattern in patterns
    )


def config_sha256(config: TrainConfig) -> str:
    return digest(identity(config))


def rest_sha256(config: TrainConfig) -> str:
    """Of what no rebase may change."""
    return digest(unrebased(identity(config)))
