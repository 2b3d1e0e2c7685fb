"""The order of the stages: inputs → tokenizer → shards → baselines → manifest, each resumable, the manifest last.

In: a checked `DataPrepConfig`. Out: the dataset's `Manifest`, or None after `stage=tokenizer`. What lies finished in
`out` is used again when it is what was asked for, and refused, with the differing keys, when it is not.
"""

import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conf.compose import digest, flatten, to_tree
from data_prep import jobs, vocabulary
from data_prep.baselines import baselines
from data_prep.config import DataPrepConfig, Stage, TextFiles
from data_prep.document import Document, Outcome, refusing
from data_prep.encode import Encoder, encode_task, gate, spread
from data_prep.files import DataError, exclusive, publish_bytes, sha256_file
from data_prep.inputs import Input, find, fingerprint
from data_prep.manifest import (
    MANIFEST,
    SPLITS,
    TOKEN_BYTES,
    TOKENIZER,
    FileEntry,
    InputEntry,
    Manifest,
    ShardEntry,
)
from data_prep.progress import Progress
from data_prep.shards import SCHEMA_VERSION, InputCount, Sidecar, dtype_for, file_of, read_sidecar
from data_prep.sources import read
from data_prep.tokenizer import Tokenizer


def prepare(config: DataPrepConfig) -> Manifest | None:
    """Runs what `config.stage` asks for. Raises DataError for anything the data or the disk can cause."""
    folder = Path(config.out)
    if config.stage is Stage.verify:
        manifest = Manifest.load(folder)
        say(f"verified {manifest.verify(folder) / 1e6:,.1f} MB of {folder}: every checksum is right")
        return manifest
    inputs = find(config.source)
    _refuse_own_output(config, inputs)
    corpus = fingerprint(inputs)
    say(f"corpus: {len(inputs):,} files, {_n_bytes(inputs) / 1e6:,.1f} MB, fingerprint {corpus[:16]}")
    with exclusive(folder, "wait for it, or choose another out="):
        jobs.clear_temporaries(folder)
        if (folder / MANIFEST).exists():
            return _already_there(config, inputs, corpus)
        tokenizer = _tokenizer_stage(config, inputs, corpus)
        return None if config.stage is Stage.tokenizer else _encode_stage(config, inputs, corpus, tokenizer)


def _refuse_own_output(config: DataPrepConfig, inputs: Sequence[Input]) -> None:
    """A corpus that holds the dataset made from it would change with every run."""
    out = Path(config.out).resolve()
    inside = [item.name for item in inputs if item.path.resolve().is_relative_to(out)]
    if isinstance(config.source, TextFiles):  # every file below its folders is a document
        inside += [
            path for path in config.source.paths if Path(path).is_dir() and out.is_relative_to(Path(path).resolve())
        ]
    if inside:
        raise DataError(f"out={config.out} lies inside the corpus ({inside[0]}); choose a folder outside source.paths")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# --- what lies there already -----------------------------------------------------------------------------------------


def _already_there(config: DataPrepConfig, inputs: Sequence[Input], corpus: str) -> Manifest:
    manifest = Manifest.load(Path(config.out))
    asked = options_of(config)
    differing = [
        f"{key}: {_shown(manifest.options, key)} there, {_shown(asked, key)} asked for"
        for key in sorted(manifest.options.keys() | asked.keys())
        if manifest.options.get(key) != asked.get(key)
    ]
    if manifest.corpus_fingerprint != corpus:
        differing.append("the inputs: " + _changes(manifest.inputs, inputs))
    if differing:
        lines = "\n".join(f"  {line}" for line in differing)
        raise DataError(
            f"{config.out} holds another finished dataset:\n{lines}\nChoose another out=; or, to turn this one into "
            f"what you asked for, remove {Path(config.out, MANIFEST)} and run again (shards that fit are re-used)."
        )
    manifest.check(Path(config.out))
    say("this dataset is complete already; nothing to do")
    return manifest


def _shown(options: dict[str, Any], key: str) -> str:
    return json.dumps(options[key]) if key in options else "absent"


def _changes(before: Sequence[InputEntry], now: Sequence[Input]) -> str:
    old, new = {item.path: item.sha256 for item in before}, {item.name: item.sha256 for item in now}
    kinds = {
        "added": sorted(new.keys() - old.keys()),
        "removed": sorted(old.keys() - new.keys()),
        "changed": sorted(name for name in old.keys() & new.keys() if old[name] != new[name]),
    }
    return ", ".join(f"{len(names)} {kind} (first: {names[0]})" for kind, names in kinds.items() if names)


def options_of(config: DataPrepConfig) -> dict[str, Any]:
    """The keys that decide what the dataset is, flat. A given tokenizer is known by its content, not by its path."""
    flat = {key: value for key, value in flatten(to_tree(config)).items() if key not in ("out", "stage")}
    if config.tokenizer.model is None:
        return flat
    flat = {key: value for key, value in flat.items() if not key.startswith("tokenizer.")}
    return flat | {"tokenizer.model": "sha256:" + Tokenizer.load(Path(config.tokenizer.model)).sha256}


# --- tokenizer -------------------------------------------------------------------------------------------------------


def _tokenizer_stage(config: DataPrepConfig, inputs: Sequence[Input], corpus: str) -> Tokenizer:
    tokenizer = vocabulary.existing(config, corpus)
    if tokenizer is None and config.stage is Stage.encode:
        raise DataError(
            f"{config.out} holds no tokenizer for this corpus and these settings; run stage=tokenizer first"
        )
    if tokenizer is None:
        progress = Progress("reading ", _n_bytes(inputs))
        tokenizer = vocabulary.make(config, corpus, _observed(config, inputs, progress))
    vocabulary.publish(config, tokenizer, corpus)
    say(f"tokenizer: {tokenizer.vocab_size:,} pieces, sha256 {tokenizer.sha256[:16]}")
    return tokenizer


def _observed(config: DataPrepConfig, inputs: Sequence[Input], progress: Progress) -> Iterator[Outcome]:
    for item in inputs:
        for outcome in refusing(read(config.source, item), config.on_bad_document):
            n_bytes = len(outcome.text.encode()) if isinstance(outcome, Document) else 0
            progress.advance(outcome.end_byte, n_bytes, 0)
            yield outcome
        progress.file_done(item.bytes)
    progress.close()
    say("training the tokenizer")


# --- shards ----------------------------------------------------------------------------------------------------------


def _encode_stage(config: DataPrepConfig, inputs: tuple[Input, ...], corpus: str, tokenizer: Tokenizer) -> Manifest:
    folder = Path(config.out)
    encoder = Encoder(config.source, tokenizer, tokenizer.token_bytes(), config.val_fraction, config.on_bad_document)
    gate(encoder, spread(inputs))
    tasks = jobs.plan(inputs, config.task_bytes, encoder)
    to_do = [task for task in tasks if not jobs.finished(task, encoder, folder)]
    if len(to_do) < len(tasks):
        say(f"{len(tasks) - len(to_do)} of {len(tasks)} tasks are done already and used again")
    progress = Progress("encoding", sum(task.bytes for task in to_do))
    for task in to_do:
        encode_task(encoder, task.id, task.inputs, folder, progress)
    progress.close()
    return _publish(config, tasks, encoder, corpus)


def _publish(config: DataPrepConfig, tasks: Sequence[jobs.Task], encoder: Encoder, corpus: str) -> Manifest:
    """Strangers go only now, so that a run started with a mistyped option has not cost the shards of the right one."""
    folder = Path(config.out)
    sidecars = {
        (split, task.id): read_sidecar(folder / f"{split}-{task.id}") for split in encoder.splits for task in tasks
    }
    inputs = _input_entries(tasks, sidecars)
    _require_both_splits(config, inputs)
    stems = [folder / f"val-{task.id}" for task in tasks] if "val" in encoder.splits else []
    compressors = baselines(stems, encoder.tokenizer, encoder.token_bytes, config.val_fraction)
    _publish_token_bytes(folder, encoder)
    stale = jobs.strangers(tasks, encoder, folder)
    if stale:
        say(f"removing {len(stale)} shards of an earlier, unfinished plan: {', '.join(stale[:4])}")
        jobs.remove(stale, folder)
    options = options_of(config)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        fingerprint=digest([corpus, encoder.tokenizer.sha256, options]),
        corpus_fingerprint=corpus,
        tokenizer_sha256=encoder.tokenizer.sha256,
        vocab_size=encoder.tokenizer.vocab_size,
        dtype=dtype_for(encoder.tokenizer.vocab_size),
        eos_id=encoder.tokenizer.eos_id,
        options=options,
        documents_in=sum(entry.documents_in for entry in inputs),
        rejected=_sum_of_rejected(inputs),
        baselines=compressors,
        shards=tuple(_shard_entry(folder, split, sidecar) for (split, _), sidecar in sidecars.items()),
        files=tuple(_file_entry(folder, name) for name in (TOKENIZER, vocabulary.ORIGIN, TOKEN_BYTES)),
        inputs=inputs,
    ).publish(folder)
    manifest.check(folder)
    return manifest


def _input_entries(tasks: Sequence[jobs.Task], sidecars: dict[tuple[str, str], Sidecar]) -> tuple[InputEntry, ...]:
    """One entry per input, put together from the sidecars of its task. Raises DataError when the counts do not balance
    or an input is not there exactly once."""
    entries: list[InputEntry] = []
    for task in tasks:
        by_split = {split: sidecars[split, task.id].inputs for split in SPLITS if (split, task.id) in sidecars}
        for i, item in enumerate(task.inputs):
            counts = {split: inputs[i] for split, inputs in by_split.items()}
            entries.append(_input_entry(item, counts))
    return tuple(entries)


def _input_entry(item: Input, counts: dict[str, InputCount]) -> InputEntry:
    train, val = counts["train"].documents, counts["val"].documents if "val" in counts else 0
    documents_in, rejected = counts["train"].documents_in, counts["train"].rejected
    if any((count.path, count.sha256) != (item.name, item.sha256) for count in counts.values()):
        raise DataError(f"the sidecars do not tell of {item.name} where they should; remove its shards and rerun")
    if documents_in != train + val + sum(rejected.values()):
        raise DataError(
            f"the counts of {item.name} do not balance: {documents_in} documents in, {train} + {val} written, "
            f"{rejected} rejected; remove its shards and rerun"
        )
    return InputEntry(item.name, item.bytes, item.sha256, documents_in, train, val, rejected)


def _require_both_splits(config: DataPrepConfig, inputs: Sequence[InputEntry]) -> None:
    train, val = sum(entry.train for entry in inputs), sum(entry.val for entry in inputs)
    if train + val == 0:
        raise DataError(f"the corpus is empty: {len(inputs)} files, no document with text in them")
    if train == 0:
        raise DataError(f"all {val} documents fell into the held-out part; lower val_fraction={config.val_fraction}")
    if val == 0 and config.val_fraction > 0:
        raise DataError(
            f"none of the {train} documents fell into the held-out part (val_fraction={config.val_fraction}); "
            f"raise it ({min(0.5, 3 / train):.2g} would hold out about {max(1, round(train * min(0.5, 3 / train)))}), "
            "add documents, or hold out nothing with val_fraction=0"
        )


def _sum_of_rejected(inputs: Sequence[InputEntry]) -> dict[str, int]:
    total: dict[str, int] = {}
    for entry in inputs:
        for reason, n in entry.rejected.items():
            total[reason] = total.get(reason, 0) + n
    return dict(sorted(total.items()))


def _publish_token_bytes(folder: Path, encoder: Encoder) -> None:
    content = io.BytesIO()
    np.save(content, encoder.token_bytes, allow_pickle=False)
    publish_bytes(folder / TOKEN_BYTES, content.getvalue())


def _shard_entry(folder: Path, split: str, sidecar: Sidecar) -> ShardEntry:
    stem = folder / f"{split}-{sidecar.task}"
    record = file_of(stem, ".json")
    return ShardEntry(
        name=stem.name,
        split=split,
        task=sidecar.task,
        documents=sidecar.documents,
        tokens=sidecar.tokens,
        text_bytes=sidecar.text_bytes,
        bin_bytes=sidecar.bin_bytes,
        idx_bytes=sidecar.idx_bytes,
        json_bytes=record.stat().st_size,
        bin_sha256=sidecar.bin_sha256,
        idx_sha256=sidecar.idx_sha256,
        json_sha256=sha256_file(record),
    )


def _file_entry(folder: Path, name: str) -> FileEntry:
    return FileEntry(name, (folder / name).stat().st_size, sha256_file(folder / name))


def _n_bytes(inputs: Sequence[Input]) -> int:
    return sum(item.bytes for item in inputs)
