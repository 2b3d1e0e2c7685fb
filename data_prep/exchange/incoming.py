"""Another program's token files → a dataset of ours, without tokenizing again.

In: `ImportConfig`. Out: the `Manifest` of the folder `out`: one shard for each payload file, hard-linked when its
bytes are what ours would be, rewritten when they are not, `manifest.json` last. On the way every id is checked:
inside the vocabulary; without text only where it was declared (the end-of-text id at the end of each document, and
nowhere else). The source is only read. A killed import goes on with the files that are not done.

Rewritten are: ids of another width (after the range check), llm.c files (their header), documents that lack the
end-of-text id under `append_eos`, and files with documents left out under `on_bad_document=skip`.
Memory: a block of a file, and 8 bytes for each document that is left out.
"""

import contextlib
import dataclasses
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from conf.check import digest, flatten, to_tree
from data_prep.blocks import BlockSums
from data_prep.config import OnBad
from data_prep.exchange import peer_tokenizer
from data_prep.exchange.config import ImportConfig
from data_prep.exchange.indexes import Row, write_megatron_index
from data_prep.exchange.links import link_or_copy, say
from data_prep.exchange.payload import Examined, control_message, examine, mended
from data_prep.exchange.peer_tokenizer import PeerTokenizer
from data_prep.exchange.peers import PeerFile, ends_of, find
from data_prep.files import DataError, exclusive, publish_bytes, publish_json, published
from data_prep.jobs import clear_temporaries
from data_prep.manifest import (
    INPUTS,
    MANIFEST,
    OUR_SHARD,
    TOKEN_BYTES,
    Manifest,
    content_fingerprint,
    shard_stems,
    sizes_in,
)
from data_prep.publish import file_entries, shard_entry, span_line, write_balance
from data_prep.shards import (
    EOS_POLICY,
    LONGEST_DOCUMENT,
    SCHEMA_VERSION,
    SUMS,
    Sidecar,
    SpanCount,
    dtype_for,
    file_of,
    read_sidecar,
    remove_shard,
    size_problems,
)

EMPTY, CONTROL_ID = "empty", "control_id_in_text"
SHARED_WIDTHS = {2: "uint16", 4: "int32"}  # int32 and uint32, int16 and uint16 agree on every id that is in range


@dataclass(frozen=True)
class Job:
    """One payload file on its way to one shard."""

    peer: PeerFile
    stem: Path
    split: str
    task: str

    @property
    def source(self) -> str:
        """The folder that was asked for, or the file."""
        return self.peer.name.split("/")[0]


def import_dataset(out: Path, config: ImportConfig, on_bad: OnBad) -> Manifest:
    """Raises DataError, naming the file, for everything that would make the dataset other than it says."""
    out = Path(out)
    if missing := config.missing():
        raise DataError("; ".join(missing))
    _refuse_own_output(out, config)
    tokenizer = peer_tokenizer.load(config)
    jobs = [_job(peer, out, config, tokenizer, on_bad) for peer in find(config)]
    if config.val and not any(job.split == "val" for job in jobs):
        raise DataError(f"peer.val={config.val} matches none of {len(jobs)} files (first: {jobs[0].peer.name})")
    if all(job.split == "val" for job in jobs):
        raise DataError(f"peer.val={config.val} matches every file, which leaves nothing to train on")
    with exclusive(out, "wait for it, or choose another out="):
        clear_temporaries(out)
        if (out / MANIFEST).exists():
            return _already_there(out, jobs)
        for job in jobs:
            if _finished(job, tokenizer):
                say(f"{job.peer.name}: done already, used again")
            else:
                _import_file(job, config, tokenizer, on_bad)
        return _publish(out, jobs, config, tokenizer)


def _refuse_own_output(out: Path, config: ImportConfig) -> None:
    inside = [path for path in config.paths if out.resolve().is_relative_to(Path(path).resolve())]
    if inside:
        raise DataError(f"out={out} lies inside peer.paths ({inside[0]}); choose a folder outside")


def _job(peer: PeerFile, out: Path, config: ImportConfig, tokenizer: PeerTokenizer, on_bad: OnBad) -> Job:
    """A shard is named by what decides its bytes: the file's name, size and time, tokenizer and rules."""
    state = peer.path.stat()
    rules = _rules(config, tokenizer) | {"on_bad_document": on_bad.value}
    task = digest([SCHEMA_VERSION, peer.name, state.st_size, state.st_mtime_ns, rules])[:16]
    split = "val" if any(fnmatchcase(peer.name, glob) for glob in config.val) else "train"
    return Job(peer, out / f"{split}-{task}", split, task)


def _rules(config: ImportConfig, tokenizer: PeerTokenizer) -> dict[str, Any]:
    kept = {key: value for key, value in to_tree(config).items() if key not in ("paths", "tokenizer", "val")}
    return kept | {"tokenizer_sha256": tokenizer.sha256, "eos_id": tokenizer.eos_id, "vocab_size": tokenizer.vocab_size}


def _already_there(out: Path, jobs: Sequence[Job]) -> Manifest:
    manifest = Manifest.load(out)
    if {shard.name for shard in manifest.shards} != {job.stem.name for job in jobs}:
        raise DataError(f"{out} holds another finished dataset (other files, tokenizer or rules); choose another out=")
    manifest.check(out)
    say("this dataset is complete already; nothing to do")
    return manifest


def _finished(job: Job, tokenizer: PeerTokenizer) -> bool:
    try:
        sidecar = read_sidecar(job.stem)
    except DataError:
        return False
    return not size_problems(job.stem, sidecar) and sidecar.tokenizer_sha256 == tokenizer.sha256


# --- one file --------------------------------------------------------------------------------------------------------


def _import_file(job: Job, config: ImportConfig, tokenizer: PeerTokenizer, on_bad: OnBad) -> None:
    _refuse_narrow(job.peer, tokenizer)
    with (
        tempfile.TemporaryFile(dir=job.stem.parent) as spool,
        _spooled(job.peer, tokenizer.eos_id, job.stem.parent) as (ends, empty),
    ):
        sums = BlockSums(spool)
        found = examine(job.peer, ends, tokenizer, config, sums)
        rejected = {reason: n for reason, n in ((EMPTY, empty), (CONTROL_ID, len(found.bad))) if n}
        if found.bad and on_bad is OnBad.error:
            raise DataError(control_message(job.peer, ends, found.bad, tokenizer, config))
        if found.lacking and not config.append_eos:
            raise DataError(
                f"{job.peer.path}: {found.lacking} of {len(ends)} documents do not end with eos_id={tokenizer.eos_id}; "
                "pass the id that ends them as peer.eos_id, or have it written: peer.append_eos=true"
            )
        state = job.peer.path.stat()
        record = SpanCount(
            name=job.peer.name,
            version=str(state.st_mtime_ns),
            start=0,
            stop=state.st_size,
            documents_in=len(ends) + empty,
            documents=len(ends) - len(found.bad),
            removed=rejected,
        )
        try:
            reasons = _why_rewritten(job.peer, found)
            if reasons:
                _rewrite(job, ends, found, record, tokenizer)
                say(f"{job.peer.name}: {record.documents:,} documents, rewritten ({', '.join(reasons)})")
            else:
                linked = _link(job, ends, found, record, tokenizer, sums)
                say(f"{job.peer.name}: {record.documents:,} documents, {'linked' if linked else 'copied'}")
        except BaseException:
            remove_shard(job.stem)
            raise


def _refuse_narrow(peer: PeerFile, tokenizer: PeerTokenizer) -> None:
    largest = np.iinfo(np.dtype(peer.dtype)).max
    if tokenizer.vocab_size - 1 > largest:
        raise DataError(
            f"{peer.path} stores ids as {np.dtype(peer.dtype).name}, which cannot hold the largest of this vocabulary "
            f"({tokenizer.vocab_size - 1}): the tokenizer is another, or ids were cut off when they were written"
        )


@contextlib.contextmanager
def _spooled(peer: PeerFile, eos_id: int, folder: Path) -> Iterator[tuple[Row, int]]:
    """(ends of the documents that hold tokens, in an unnamed temporary file; how many hold none)."""
    with tempfile.TemporaryFile(dir=folder) as spool:
        n, empty, last = 0, 0, 0
        for block in ends_of(peer, eos_id):
            lengths = np.diff(block, prepend=last)
            if len(lengths) and lengths.max() >= LONGEST_DOCUMENT:
                raise DataError(
                    f"{peer.path} has a document of {lengths.max()} tokens; the index holds {LONGEST_DOCUMENT - 1}"
                )
            kept = block[lengths > 0]
            spool.write(kept.astype("<i8").tobytes())
            n, empty = n + len(kept), empty + len(block) - len(kept)
            last = int(block[-1]) if len(block) else last
        spool.flush()
        yield Row(spool, "<i8", 0, n), empty


def _why_rewritten(peer: PeerFile, found: Examined) -> list[str]:
    reasons = {
        f"{np.dtype(peer.dtype).name} ids": np.dtype(peer.dtype).itemsize not in SHARED_WIDTHS,
        "its llm.c header is left out": peer.header_bytes > 0,
        f"end-of-text id written after {found.lacking} documents": found.lacking > 0,
        f"{len(found.bad)} documents left out": len(found.bad) > 0,
    }
    return [reason for reason, applies in reasons.items() if applies]


def _link(job: Job, ends: Row, found: Examined, record: SpanCount, tokenizer: PeerTokenizer, sums: BlockSums) -> bool:
    """The payload as it is under our name, our index and sidecar beside it."""
    dtype = SHARED_WIDTHS[np.dtype(job.peer.dtype).itemsize]
    linked = link_or_copy(job.peer.path, file_of(job.stem, ".bin"))
    _seal(job, ends, dtype, found.sha256, found.text_bytes, record, tokenizer, sums)
    return linked


def _rewrite(job: Job, ends: Row, found: Examined, record: SpanCount, tokenizer: PeerTokenizer) -> None:
    """Block by block; every id was found to fit before."""
    dtype = dtype_for(tokenizer.vocab_size)
    sha256, text_bytes, n_kept = hashlib.sha256(), 0, 0
    folder = job.stem.parent
    with tempfile.TemporaryFile(dir=folder) as spool, tempfile.TemporaryFile(dir=folder) as sums_spool:
        sums = BlockSums(sums_spool)
        with published(file_of(job.stem, ".bin")) as stream:
            for ids, new_ends in mended(job.peer, ends, found.bad, tokenizer.eos_id):
                content = ids.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
                stream.write(content)
                sha256.update(content)
                sums.update(content)
                text_bytes += int(tokenizer.token_bytes[ids].sum(dtype=np.int64))
                spool.write(new_ends.astype("<i8").tobytes())
                n_kept += len(new_ends)
        spool.flush()
        _seal(job, Row(spool, "<i8", 0, n_kept), dtype, sha256.hexdigest(), text_bytes, record, tokenizer, sums)


def _seal(
    job: Job,
    ends: Row,
    dtype: str,
    bin_sha256: str,
    text_bytes: int,
    record: SpanCount,
    tokenizer: PeerTokenizer,
    sums: BlockSums,
) -> None:
    """Index, block checksums (`sums` has those of the payload) and sidecar of a payload that lies there; the sidecar
    last."""
    sums.end_file()
    with published(file_of(job.stem, ".idx")) as stream:
        idx_sha256 = write_megatron_index(stream, ends, dtype, sums)
    sums.end_file()
    with published(file_of(job.stem, SUMS)) as stream:
        sums.copy_to(stream)
    sidecar = Sidecar(
        schema_version=SCHEMA_VERSION,
        task=job.task,
        source=job.source,
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        dtype=dtype,
        eos_policy=EOS_POLICY,
        eos_id=tokenizer.eos_id,
        documents=len(ends),
        tokens=ends[len(ends) - 1] if len(ends) else 0,
        text_bytes=text_bytes,
        bin_sha256=bin_sha256,
        idx_sha256=idx_sha256,
        spans=(record,),
    )
    publish_json(file_of(job.stem, ".json"), dataclasses.asdict(sidecar))


# --- the dataset -----------------------------------------------------------------------------------------------------


def _publish(out: Path, jobs: Sequence[Job], config: ImportConfig, tokenizer: PeerTokenizer) -> Manifest:
    sidecars = [read_sidecar(job.stem) for job in jobs]
    for name in sorted(shard_stems(sizes_in(out)) - {job.stem.name for job in jobs}):
        if OUR_SHARD.fullmatch(name):
            say(f"removing {name}, left by an unfinished import with other files or rules")
            remove_shard(out / name)
    publish_bytes(out / TOKEN_BYTES, peer_tokenizer.token_bytes_file(tokenizer))
    names = [TOKEN_BYTES]
    if tokenizer.file_name:
        publish_bytes(out / tokenizer.file_name, tokenizer.content)
        names.append(tokenizer.file_name)
    if not any(job.split == "val" for job in jobs):
        say("warning: nothing is held out, so there is no validation loss; name whole files with peer.val=[GLOB]")
    manifest = _manifest(out, jobs, sidecars, config, tokenizer, names).publish(out)
    manifest.check(out)
    return manifest


def _manifest(
    out: Path,
    jobs: Sequence[Job],
    sidecars: Sequence[Sidecar],
    config: ImportConfig,
    tokenizer: PeerTokenizer,
    names: Sequence[str],
) -> Manifest:
    options = flatten({"peer": _rules(config, tokenizer) | {"val": config.val}})
    pairs = list(zip(jobs, sidecars, strict=True))
    sources = write_balance(out, (span_line(it.source, {job.split: it.spans[0]}) for job, it in pairs))
    shards = tuple(shard_entry(out, job.split, sidecar) for job, sidecar in pairs)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        fingerprint=content_fingerprint(tokenizer.sha256, shards),
        plan=digest([options, [job.task for job in jobs]]),
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        dtype="int32" if any(sidecar.dtype == "int32" for sidecar in sidecars) else "uint16",  # the widest of all
        eos_id=tokenizer.eos_id,
        options=options,
        baselines={},
        sources=sources,
        shards=shards,
        files=file_entries(out, [*names, INPUTS, *(f"{shard.name}{SUMS}" for shard in shards)]),
    )
