"""The last stage: when every shard lies there, the balance of the corpus, the baselines and the manifest.

In: the plan's encode jobs, all finished. Out: `inputs.jsonl` (one line a span, with its counts), `token_bytes.npy`, and
`manifest.json`, written last. Shards of an earlier plan go only after that.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import vocabulary
from data_prep.baselines import baselines
from data_prep.encode import EncodeJob
from data_prep.files import DataError, publish_bytes, published, sha256_file
from data_prep.manifest import (
    INPUTS,
    OUR_SHARD,
    SPLITS,
    TOKEN_BYTES,
    TOKENIZER,
    FileEntry,
    Manifest,
    ShardEntry,
    SourceEntry,
    content_fingerprint,
    shard_stems,
    sizes_in,
    sum_by_key,
)
from data_prep.plan import Plan
from data_prep.shards import SCHEMA_VERSION, SUMS, Sidecar, SpanCount, dtype_for, file_of, read_sidecar, remove_shard
from data_prep.tokenizer import Tokenizer


def publish(
    folder: Path,
    plan: Plan,
    jobs: Sequence[EncodeJob],
    tokenizer: Tokenizer,
    val_fraction: float,
    reports: Iterable[tuple[str, bytes]],
) -> Manifest:
    """`reports`: (name, content) of further files that belong to the dataset."""
    sidecars = {(split, job.id): read_sidecar(job.stem(split)) for job in jobs for split in job.splits}
    balance = write_balance(folder, _lines(jobs, sidecars))
    sources = tuple(dataclasses.replace(entry, changed=_changed(entry.name, jobs)) for entry in balance)
    _require_both_splits(sources, val_fraction)
    token_bytes = tokenizer.token_bytes()
    with published(folder / TOKEN_BYTES) as stream:
        np.save(stream, token_bytes, allow_pickle=False)
    val_stems = [job.stem("val") for job in jobs if "val" in job.splits]
    compressors = baselines(val_stems, tokenizer, token_bytes, val_fraction)
    shards = tuple(shard_entry(folder, split, sidecar) for (split, _), sidecar in sidecars.items())
    names = [TOKENIZER, vocabulary.ORIGIN, TOKEN_BYTES, INPUTS]
    for name, content in reports:
        publish_bytes(folder / name, content)
        names.append(name)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        fingerprint=content_fingerprint(tokenizer.sha256, shards),
        plan=plan.sha256,
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        dtype=dtype_for(tokenizer.vocab_size),
        eos_id=tokenizer.eos_id,
        options=plan.options,
        baselines=compressors,
        sources=sources,
        shards=shards,
        files=file_entries(folder, [*names, *(f"{shard.name}{SUMS}" for shard in shards)]),
    ).publish(folder)
    remove_strangers(folder, manifest)
    manifest.check(folder)
    return manifest


def remove_strangers(folder: Path, manifest: Manifest) -> list[str]:
    """Removes our shards that the manifest does not know: left by a run with other inputs. Returns their names."""
    known = {shard.name for shard in manifest.shards}
    stale = sorted(stem for stem in shard_stems(sizes_in(folder)) - known if OUR_SHARD.fullmatch(stem))
    for stem in stale:
        remove_shard(folder / stem)
    return stale


def write_balance(folder: Path, lines: Iterable[dict[str, Any]]) -> tuple[SourceEntry, ...]:
    """Writes inputs.jsonl, a line a span; returns the sums by source, in the order of the corpus."""
    entries: dict[str, SourceEntry] = {}
    inputs: dict[str, set[str]] = {}
    with published(folder / INPUTS) as stream:
        for line in lines:
            stream.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
            source = line["source"]
            inputs.setdefault(source, set()).add(line["name"])
            entries[source] = _added(entries.get(source, SourceEntry(source, 0, 0, 0, 0, {}, {})), line)
    return tuple(dataclasses.replace(entry, inputs=len(inputs[name])) for name, entry in entries.items())


def span_line(source: str, counts: Mapping[str, SpanCount]) -> dict[str, Any]:
    """One span's balance, from what it gave to the shard of each split. Raises DataError when it does not balance."""
    facts = dataclasses.asdict(next(iter(counts.values())))
    del facts["documents"]
    train, val = (counts[split].documents if split in counts else 0 for split in SPLITS)
    if facts["documents_in"] != train + val + sum(facts["removed"].values()):
        raise DataError(
            f"the counts of {facts['name']} do not balance: {facts['documents_in']} documents in, {train} + {val} "
            f"written, {facts['removed']} removed; remove its shards and rerun"
        )
    return {"source": source, **facts, "train": train, "val": val}


def shard_entry(folder: Path, split: str, sidecar: Sidecar) -> ShardEntry:
    stem = folder / f"{split}-{sidecar.task}"
    record = file_of(stem, ".json")
    return ShardEntry(
        name=stem.name,
        split=split,
        task=sidecar.task,
        source=sidecar.source,
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


def file_entries(folder: Path, names: Iterable[str]) -> tuple[FileEntry, ...]:
    return tuple(FileEntry(name, (folder / name).stat().st_size, sha256_file(folder / name)) for name in names)


def _lines(jobs: Sequence[EncodeJob], sidecars: Mapping[tuple[str, str], Sidecar]) -> Iterator[dict[str, Any]]:
    """Raises DataError when a sidecar does not tell of the spans that its task consists of."""
    for job in jobs:
        by_split = {split: sidecars[split, job.id].spans for split in job.splits}
        for i, span in enumerate(job.slice.task.spans):
            counts = {split: spans[i] for split, spans in by_split.items()}
            place = {(count.name, count.start, count.stop) for count in counts.values()}
            if place != {(span.input.name, span.start, span.stop)}:
                raise DataError(
                    f"the sidecars of {job.id} do not tell of {span.input.name} where they should; remove them and run "
                    "again"
                )
            yield span_line(job.slice.source, counts)


def _added(entry: SourceEntry, line: dict[str, Any]) -> SourceEntry:
    return dataclasses.replace(
        entry,
        documents_in=entry.documents_in + line["documents_in"],
        train=entry.train + line["train"],
        val=entry.val + line["val"],
        removed=sum_by_key([entry.removed, line["removed"]]),
    )


def _changed(source: str, jobs: Sequence[EncodeJob]) -> dict[str, int]:
    mine = [job.cleaned for job in jobs if job.slice.source == source and job.cleaned is not None]
    return sum_by_key(tally.changes for cleaned in mine for tally in cleaned.tallies())


def _require_both_splits(sources: Sequence[SourceEntry], val_fraction: float) -> None:
    train, val = sum(entry.train for entry in sources), sum(entry.val for entry in sources)
    if train + val == 0:
        removed = sum_by_key(entry.removed for entry in sources)
        raise DataError(f"the corpus is empty: no document with text is left; removed: {removed or 'none'}")
    if train == 0:
        raise DataError(f"all {val} documents fell into the held-out part; lower val_fraction={val_fraction}")
    if val == 0 and val_fraction > 0:
        raise DataError(
            f"none of the {train} documents fell into the held-out part (val_fraction={val_fraction}); "
            f"raise it ({min(0.5, 3 / train):.2g} would hold out about {max(1, round(train * min(0.5, 3 / train)))}), "
            "add documents, or hold out nothing with val_fraction=0"
        )
