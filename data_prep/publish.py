"""The last stage: when every shard lies there, the balance of the corpus, the baselines and the manifest.

In: the plan's encode jobs, all finished. Out: `inputs.jsonl` (one line a span, with its counts), `token_bytes.npy`, and
`manifest.json`, written last. Shards of an earlier plan go only after that.
"""

import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_prep import vocabulary
from data_prep.baselines import baselines
from data_prep.encode import EncodeJob
from data_prep.files import DataError, published, sha256_file
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
from data_prep.shards import SCHEMA_VERSION, Sidecar, SpanCount, dtype_for, file_of, read_sidecar, remove_shard
from data_prep.tokenizer import Tokenizer

REPORTS = ("dedup.json", "decontaminate.json", "tokenizer_report.json")  # of stages that ran; part of the dataset


def publish(folder: Path, plan: Plan, jobs: Sequence[EncodeJob], tokenizer: Tokenizer, val_fraction: float) -> Manifest:
    sidecars = {(split, job.id): read_sidecar(job.stem(split)) for job in jobs for split in job.splits}
    sources = _balance(folder, jobs, sidecars)
    _require_both_splits(sources, val_fraction)
    token_bytes = tokenizer.token_bytes()
    with published(folder / TOKEN_BYTES) as stream:
        content = io.BytesIO()
        np.save(content, token_bytes, allow_pickle=False)
        stream.write(content.getvalue())
    val_stems = [job.stem("val") for job in jobs if "val" in job.splits]
    compressors = baselines(val_stems, tokenizer, token_bytes, val_fraction)
    shards = tuple(_shard_entry(folder, split, sidecar) for (split, _), sidecar in sidecars.items())
    names = [TOKENIZER, vocabulary.ORIGIN, TOKEN_BYTES, INPUTS, *(n for n in REPORTS if (folder / n).is_file())]
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
        files=tuple(FileEntry(name, (folder / name).stat().st_size, sha256_file(folder / name)) for name in names),
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


def _balance(
    folder: Path, jobs: Sequence[EncodeJob], sidecars: dict[tuple[str, str], Sidecar]
) -> tuple[SourceEntry, ...]:
    """Writes inputs.jsonl; returns the sums by source. Raises DataError when counts do not balance, or a sidecar does
    not tell of the spans that its task consists of."""
    entries: dict[str, SourceEntry] = {}
    inputs: dict[str, set[str]] = {}
    with published(folder / INPUTS) as stream:
        for job in jobs:
            for line in _span_lines(job, sidecars):
                stream.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
                inputs.setdefault(line["source"], set()).add(line["name"])
                entries[line["source"]] = _added(entries.get(line["source"]), line)
    return tuple(
        dataclasses.replace(entry, inputs=len(inputs[name]), changed=_changed(name, jobs))
        for name, entry in entries.items()
    )


def _span_lines(job: EncodeJob, sidecars: dict[tuple[str, str], Sidecar]) -> Iterator[dict]:
    by_split = {split: sidecars[split, job.id].spans for split in SPLITS if (split, job.id) in sidecars}
    for i, span in enumerate(job.slice.task.spans):
        counts = {split: spans[i] for split, spans in by_split.items()}
        line = _span_line(job.slice.source, counts)
        if (line["name"], line["start"], line["stop"]) != (span.input.name, span.start, span.stop):
            raise DataError(
                f"the sidecars of {job.id} do not tell of {span.input.name} where they should; remove them and rerun"
            )
        yield line


def _span_line(source: str, counts: dict[str, SpanCount]) -> dict:
    one = counts["train"]
    train, val = one.documents, counts["val"].documents if "val" in counts else 0
    if one.documents_in != train + val + sum(one.removed.values()):
        raise DataError(
            f"the counts of {one.name} do not balance: {one.documents_in} documents in, {train} + {val} written, "
            f"{one.removed} removed; remove its shards and rerun"
        )
    facts = dataclasses.asdict(one)
    del facts["documents"]
    return {"source": source, **facts, "train": train, "val": val}


def _added(entry: SourceEntry | None, line: dict) -> SourceEntry:
    before = entry or SourceEntry(line["source"], 0, 0, 0, 0, {}, {})
    return dataclasses.replace(
        before,
        documents_in=before.documents_in + line["documents_in"],
        train=before.train + line["train"],
        val=before.val + line["val"],
        removed=sum_by_key([before.removed, line["removed"]]),
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


def _shard_entry(folder: Path, split: str, sidecar: Sidecar) -> ShardEntry:
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
