"""Which tasks a preparation consists of: the inputs listed, cut into spans, dealt into tasks. Nothing is read but
sizes, and in large files the places where they may be cut.

In: the configuration. Out: a `Plan`, kept in `work/plan.json`, so that the elements of a job array need not list a
large corpus again and all speak of the same tasks.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.check import digest, flatten, to_tree
from data_prep import jobs
from data_prep.config import DataPrepConfig
from data_prep.files import DataError, publish_bytes, sha256_file
from data_prep.inputs import Input, Span, find
from data_prep.jobs import Task
from data_prep.manifest import INPUTS
from data_prep.shards import SCHEMA_VERSION, read_json
from data_prep.sources.config import TextFiles

PLAN = "plan.json"
NOT_THE_DATASET = (
    "out",
    "stage",
    "workers",
    "task",
    "n_tasks",
    "update",
    "keep_dropped",
    "source.paths",
    "dedup.memory_bytes",
    "dedup.max_source_loss",
    "dedup.max_cluster_share",
    "decontaminate.max_source_loss",
)
LOOKING = ("inspect.", "export.", "peer.")


@dataclass(frozen=True)
class Plan:
    options: dict[str, Any]
    paths: list[str]
    """as asked for; what they mean is in the tasks"""
    tasks: tuple[Task, ...]

    @property
    def sha256(self) -> str:
        return digest([self.options, [task.id for task in self.tasks]])

    @property
    def inputs(self) -> list[Input]:
        """In the order of the corpus."""
        return list(dict.fromkeys(span.input for task in self.tasks for span in task.spans))

    @property
    def bytes(self) -> int:
        return sum(task.bytes for task in self.tasks)

    def publish(self, folder: Path) -> None:
        inputs = self.inputs
        number = {item: i for i, item in enumerate(inputs)}
        tree = {
            "schema_version": SCHEMA_VERSION,
            "options": self.options,
            "paths": self.paths,
            "inputs": [dataclasses.astuple(item) for item in inputs],
            "tasks": [[[number[span.input], span.start, span.stop] for span in task.spans] for task in self.tasks],
        }
        content = (json.dumps(tree) + "\n").encode()
        if not (folder / PLAN).is_file() or (folder / PLAN).read_bytes() != content:
            publish_bytes(folder / PLAN, content)


def make(config: DataPrepConfig) -> Plan:
    """Lists the corpus. Raises DataError: none found, missing or unreadable, named twice, or `out` inside it."""
    from data_prep.sources.spans import spans_of

    inputs = find(config.source)
    _refuse_own_output(config, inputs)
    spans = [span for item in inputs for span in spans_of(config.source, item, config.task_bytes)]
    return Plan(options_of(config), _paths(config), jobs.plan(spans, config.task_bytes, reading_of(config)))


def load(config: DataPrepConfig) -> Plan:
    """The plan that `stage=plan` left. Raises DataError when there is none, or when it was made for other options."""
    file = Path(config.out, "work", PLAN)
    if not file.is_file():
        raise DataError(f"{config.out} holds no plan for its tasks to be dealt out; run the same with stage=plan first")
    tree = read_json(file)
    differing = differences(
        tree["options"] | {"source.paths": tree["paths"]}, options_of(config) | {"source.paths": _paths(config)}
    )
    if differing:
        lines = "\n".join(f"  {line}" for line in differing)
        raise DataError(
            f"the plan in {config.out} was made for other options:\n{lines}\nRun stage=plan with these first."
        )
    inputs = [Input(*item) for item in tree["inputs"]]
    groups = [tuple(Span(inputs[i], start, stop) for i, start, stop in task) for task in tree["tasks"]]
    reading = reading_of(config)
    return Plan(tree["options"], tree["paths"], tuple(jobs.task_of(group, reading) for group in groups))


def differences(there: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """One line for each option that is not the same."""
    return [
        f"{key}: {_shown(there, key)} there, {_shown(asked, key)} asked for"
        for key in sorted(there.keys() | asked.keys())
        if there.get(key) != asked.get(key)
    ]


def options_of(config: DataPrepConfig) -> dict[str, Any]:
    """The keys that decide what the dataset is, flat. Files named are known by their content, not by their path."""
    tree = to_tree(config)
    tree["decontaminate"]["files"] = [_content(name) for name in config.decontaminate.files]
    tree["clean"]["url_block_list"]["path"] = _content(config.clean.url_block_list.path)
    tree["clean"]["language"]["model"] = _content(config.clean.language.model)
    flat = {
        key: value for key, value in flatten(tree).items() if key not in NOT_THE_DATASET and not key.startswith(LOOKING)
    }
    if config.tokenizer.model is None:
        return flat
    from data_prep.tokenizer import Tokenizer

    flat = {key: value for key, value in flat.items() if not key.startswith("tokenizer.")}
    return flat | {"tokenizer.model": "sha256:" + Tokenizer.load(Path(config.tokenizer.model)).sha256}


def _paths(config: DataPrepConfig) -> list[str]:
    return list(getattr(config.source, "paths", []))


def _content(file: str | None) -> str | None:
    try:
        return file and "sha256:" + sha256_file(Path(file))
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error


def reading_of(config: DataPrepConfig) -> dict[str, Any]:
    """The options that decide what documents a span holds."""
    return {key: value for key, value in to_tree(config)["source"].items() if key != "paths"}


def _refuse_own_output(config: DataPrepConfig, inputs: Sequence[Input]) -> None:
    """A corpus that holds the dataset made from it would change with every run."""
    out = Path(config.out).resolve()
    inside = [item.name for item in inputs if "://" not in item.url and Path(item.url).resolve().is_relative_to(out)]
    if isinstance(config.source, TextFiles):  # every file below its folders is a document
        paths = [path.split("=", 1)[-1] for path in config.source.paths]
        inside += [path for path in paths if Path(path).is_dir() and out.is_relative_to(Path(path).resolve())]
    if inside:
        raise DataError(f"out={config.out} lies inside the corpus ({inside[0]}); choose a folder outside source.paths")


def _shown(options: dict[str, Any], key: str) -> str:
    return json.dumps(options[key]) if key in options else "absent"


def changes(folder: Path, plan: Plan) -> str:
    """In words: which inputs were added, removed or altered since the dataset in `folder` was published."""
    with (folder / INPUTS).open(encoding="utf-8") as stream:
        lines = map(json.loads, stream)
        old = {line["name"]: line["version"] for line in lines}
    new = {item.name: item.version for item in plan.inputs}
    kinds = {
        "added": sorted(new.keys() - old.keys()),
        "removed": sorted(old.keys() - new.keys()),
        "changed": sorted(name for name in old.keys() & new.keys() if old[name] != new[name]),
    }
    found = [f"{len(names)} {kind} (first: {names[0]})" for kind, names in kinds.items() if names]
    return ", ".join(found) or "cut into other spans"
