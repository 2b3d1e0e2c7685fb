"""How fast rows are found and read, on this machine: `python -m tests.benchmarks.loader`.

Shards are made in a temporary folder and read from a warm cache by one process; figures are tokens in CPU seconds, so
other work on the machine disturbs them little. The target is 10 M tokens/s a process at T = 2048 with a mixture of
three and packing on, a start below one second for 10 000 shards of 10^12 tokens, and 500 000 documents/s of packing.
"""

import dataclasses
import hashlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from data_prep.blocks import sums_bytes, sums_of
from data_prep.files import sha256_file
from data_prep.manifest import FileEntry, Manifest, ShardEntry
from data_prep.shards import SCHEMA_VERSION, SUMS, file_of, megatron_index
from train.batch import solve_batch
from train.corpus import Corpus, load_corpora
from train.data import TrainBatches
from train.data_config import DataConfig, SourceConfig
from train.fingerprint import fingerprint
from train.lineage import Phase, begin
from train.packing import WINDOW, best_fit, pieces_of
from train.rows import Packs, open_rows

SEQ_LEN = 2048
BATCH = 64
DOCUMENT_TOKENS = 700  # median; log-normal, as web text is


def document_lengths(n: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).lognormal(np.log(DOCUMENT_TOKENS), 1.1, n)
    return np.clip(drawn, 2, None).astype(np.int32)


def made_corpus(folder: Path, name: str, weight: float, seed: int, n_shards: int = 4, documents: int = 4000) -> Corpus:
    """uint16 shards of random ids."""
    entries = []
    (folder / name).mkdir(parents=True)
    for i in range(n_shards):
        lengths = document_lengths(documents, seed * 100 + i)
        stem = folder / name / f"train-{i:016x}"
        ids = np.random.default_rng(i).integers(0, 50_000, int(lengths.sum()), dtype=np.uint16)
        index = b"".join(megatron_index(lengths, "uint16"))
        for ending, content in (
            (".bin", ids.tobytes()),
            (".idx", index),
            (SUMS, sums_of(ids.tobytes()) + sums_of(index)),
        ):
            file_of(stem, ending).write_bytes(content)
        digest = f"{name}{i}"
        entries.append(
            SimpleNamespace(
                name=stem.name,
                tokens=ids.size,
                documents=documents,
                bin_bytes=ids.nbytes,
                idx_bytes=len(index),
                bin_sha256=digest,
                idx_sha256="",
            )
        )
    sums = [file_of(folder / name / entry.name, SUMS) for entry in entries]
    manifest = SimpleNamespace(
        dtype="uint16",
        tokenizer_sha256="t",
        shards=entries,
        files=[FileEntry(file.name, file.stat().st_size, sha256_file(file)) for file in sums],
        shards_of=lambda split, source=None: entries if split == "train" else [],
    )
    return Corpus(name, SourceConfig(str(folder / name), weight=weight), manifest)  # type: ignore[arg-type]


def phase_of(corpora: list[Corpus], packs: Packs, **keys) -> Phase:
    data = DataConfig(sources={corpus.name: corpus.config for corpus in corpora}, seq_len=SEQ_LEN, **keys)
    slots = {corpus.digest: corpus.tokens("train") for corpus in corpora}
    if data.packing == "best_fit":
        slots = {corpus.digest: packs.of(corpus, SEQ_LEN).n_rows * SEQ_LEN for corpus in corpora}
    return begin(data, BATCH, corpora, slots)[0]


def loader_rate(corpora: list[Corpus], seconds: float = 1.0, hashed: bool = False, **keys) -> float:
    """Tokens per CPU second of one process."""
    packs = Packs(None, say=lambda _: None)
    rows = open_rows(phase_of(corpora, packs, **keys), corpora, 0, packs)
    plan = solve_batch(global_batch_size=BATCH, micro_batch_size=8, dp_size=1, seq_len=SEQ_LEN, total_tokens=10**12)
    batches = TrainBatches(rows, plan, 0)
    for step in range(40):  # warms the cache
        list(batches.micro_batches(step))
    step, started = 0, time.process_time()
    while time.process_time() - started < seconds:
        batch = list(batches.micro_batches(step))
        if hashed:
            fingerprint(batch, 0)
        step += 1
    return step * plan.tokens_per_step / (time.process_time() - started)


def packing_rate(n: int = 300_000) -> tuple[float, float]:
    """(documents per CPU second, fill) of best fit at T = 2048."""
    lengths = document_lengths(n, 0)
    started = time.process_time()
    _, pairs = pieces_of(0, lengths, SEQ_LEN)
    rows = sum(best_fit(pairs[i : i + WINDOW], SEQ_LEN)[1] for i in range(0, len(pairs), WINDOW))
    return n / (time.process_time() - started), float(pairs.sum()) / (rows * SEQ_LEN)


def large_manifest(folder: Path, n_shards: int = 10_000, tokens: int = 10**12) -> Path:
    """A manifest.json of shards, and their files in these sizes, which hold nothing."""
    entry = ShardEntry(**{f.name: 0 if f.type is int else "" for f in dataclasses.fields(ShardEntry)})  # type: ignore[arg-type]
    shards = [
        dataclasses.replace(
            entry,
            name=f"train-{i:016x}",
            split="train",
            documents=100_000,
            tokens=tokens // n_shards,
            bin_bytes=2 * (tokens // n_shards),
            bin_sha256=f"{i:064x}",
        )
        for i in range(n_shards)
    ]
    facts = {
        f.name: {"int": 0, "str": "t"}.get(getattr(f.type, "__name__", ""), ()) for f in dataclasses.fields(Manifest)
    }
    facts |= {"schema_version": SCHEMA_VERSION, "dtype": "uint16", "options": {}, "baselines": {}}
    crc_bytes = sums_bytes((shards[0].bin_bytes, shards[0].idx_bytes))
    digest = hashlib.sha256(bytes(crc_bytes)).hexdigest()
    sums = tuple(FileEntry(f"{shard.name}{SUMS}", crc_bytes, digest) for shard in shards)
    folder.mkdir(parents=True, exist_ok=True)
    for entry in (*sums, *(entry for shard in shards for entry in shard.files())):
        with (folder / entry.name).open("wb") as stream:
            stream.truncate(entry.bytes)
    Manifest(**facts | {"shards": tuple(shards), "files": sums}).publish(folder)
    return folder


def start_seconds(folder: Path, look: bool) -> float:
    """CPU seconds from the manifest on disk to the rows of a step far into the run. look: as the first process, which
    compares the size of every file with the manifest."""
    started = time.process_time()
    (corpus,) = load_corpora(DataConfig(sources={"a": SourceConfig(str(folder))}), look=look)
    phase = phase_of([corpus], Packs(None))
    rows = open_rows(phase, [corpus], 0, Packs(None))
    rows.pieces(np.arange(10**8, 10**8 + BATCH, dtype=np.int64))
    return time.process_time() - started


def measured(folder: Path) -> Iterator[tuple[str, str]]:
    corpora = [made_corpus(folder, name, weight, i) for i, (name, weight) in enumerate([("a", 5), ("b", 3), ("c", 2)])]
    cases = {
        "one source, concatenated": (corpora[:1], {}),
        "mixture of three, concatenated": (corpora, {}),
        "mixture of three, best fit": (corpora, {"packing": "best_fit"}),
        "mixture of three, concatenated, masks": (corpora, {"mask_documents": True}),
        "mixture of three, best fit, masks": (corpora, {"packing": "best_fit", "mask_documents": True}),
        "mixture of three, best fit, hashed": (corpora, {"packing": "best_fit", "hashed": True}),
    }
    for name, (chosen, keys) in cases.items():
        yield name, f"{loader_rate(chosen, **keys) / 1e6:.1f} M tokens/s"
    rate, fill = packing_rate()
    yield "best-fit packing", f"{rate / 1e3:,.0f} k documents/s, {fill:.3%} full"
    large = large_manifest(folder / "large")
    yield "start, 10 000 shards of 10^12 tokens", f"{start_seconds(large, look=False):.2f} s"
    yield "the same, first process: 40 000 files", f"{start_seconds(large, look=True):.2f} s"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, value in measured(Path(folder)):
            print(f"{name:<40} {value}", flush=True)


if __name__ == "__main__":
    main()
