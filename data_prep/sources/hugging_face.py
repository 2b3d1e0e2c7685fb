"""Datasets of the Hugging Face hub or of a local folder, streamed through `datasets`: one input a shard of the dataset.

In: what `load_dataset` takes, or a folder that `save_to_disk` wrote. Out: inputs, and their rows. A shard's size and
version are those of the file that it is made of; where files and shards are not one to one, every shard has its share
of the bytes, and a version made of all files. Nothing that goes wrong on the way is passed over: it ends the job.
"""

import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from data_prep.document import Outcome, Rejected
from data_prep.files import DataError
from data_prep.inputs import Input, Span
from data_prep.sources import stored
from data_prep.sources.columns import check_columns, outcomes_of
from data_prep.sources.config import HuggingFace
from data_prep.sources.part import prefix_of
from data_prep.sources.stream import BrokenFileError

BATCH_ROWS = 512
T = TypeVar("T")


def shards(source: HuggingFace) -> Iterator[Input]:
    """Raises DataError: no such dataset, configuration or split, or no way to reach it. Says which revision of the hub
    it is, if none was asked for."""
    dataset, files = _opened(source)
    if source.revision is None and (commits := _commits(files)):
        print(
            f"source.revision is not given: {source.dataset} is read as it is now; source.revision={commits[0]} asks "
            "for the same for ever",
            file=sys.stderr,
        )
    yield from _shards(source, dataset, files)


def read_shard(source: HuggingFace, span: Span) -> Iterator[Outcome]:
    """All of a shard: spans of one are not made. Raises DataError also for what is wrong in its files."""
    dataset, files = _opened(source)
    if span.input not in tuple(_shards(source, dataset, files)):
        raise DataError(f"{span.input.name} of source.dataset={source.dataset} changed since it was listed; run again")
    shard = dataset.shard(num_shards=dataset.num_shards, index=int(span.input.url.rpartition("#")[2]))
    tables = shard.with_format("arrow").iter(batch_size=BATCH_ROWS)
    number, seen, prefix = 0, 0, prefix_of(span)
    try:
        while (table := _accessed(source, lambda: next(tables, None))) is not None:
            check_columns(table.schema, source)
            seen = min(span.stop, seen + table.nbytes)  # stored bytes are not told of; these are the nearest
            for batch in table.to_batches():
                yield from outcomes_of(batch, source, prefix, number, seen)
                number += batch.num_rows
    except BrokenFileError as error:
        yield Rejected(error.reason, f"{prefix}{number + 1}", span.stop, error.detail)


def _commits(files: list[str]) -> list[str]:
    """By which the hub's files are named: hf://datasets/OWNER/NAME@COMMIT/path."""
    return [found[1] for file in files if (found := re.match(r"hf://[^@]*@([0-9a-f]{40})/", file))]


def _shards(source: HuggingFace, dataset: Any, files: list[str]) -> Iterator[Input]:
    label = source.dataset.rstrip("/").rpartition("/")[2]
    known = [stored.facts(file) for file in files]
    if len(known) != dataset.num_shards:
        size = sum(n_bytes for n_bytes, _ in known) // dataset.num_shards
        version = hashlib.sha256(repr([source.revision, *known]).encode()).hexdigest()[:16]
        known = [(size, version)] * dataset.num_shards
    for i, (n_bytes, version) in enumerate(known):
        name = f"{label}/{source.split}-{i:05d}"
        yield Input(f"{source.dataset}#{i}", name, label, n_bytes, version)


def _opened(source: HuggingFace) -> tuple[Any, list[str]]:
    """(an IterableDataset, the files that it is made of)."""
    saved = Path(source.dataset, source.split)
    for folder in (Path(source.dataset), saved):
        if (folder / "state.json").is_file():
            return _accessed(source, lambda folder=folder: _from_disk(folder))
    return _accessed(source, lambda: _streaming(source))


def _from_disk(folder: Path) -> tuple[Any, list[str]]:
    import datasets

    dataset: Any = datasets.load_from_disk(str(folder))
    files = [file["filename"] for file in dataset.cache_files]
    return dataset.to_iterable_dataset(num_shards=max(1, len(files))), files


def _streaming(source: HuggingFace) -> tuple[Any, list[str]]:
    import datasets

    builder: Any = datasets.load_dataset_builder(source.dataset, source.name, revision=source.revision)
    dataset = builder.as_streaming_dataset(split=source.split)
    files = (builder.config.data_files or {}).get(source.split, [])
    return dataset, [file.rpartition("::")[2] for file in files]


def _accessed(source: HuggingFace, access: Callable[[], T]) -> T:
    try:
        return access()
    except Exception as error:
        raise DataError(
            f"source.dataset={source.dataset} (name={source.name}, split={source.split}): "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
