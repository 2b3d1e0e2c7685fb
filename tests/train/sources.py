"""Small sources with known documents, as shards on disk, without a tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from data_prep.files import sha256_file
from data_prep.manifest import FileEntry
from data_prep.shards import ShardHead, read_sidecar, shard_writer
from train.corpus import Corpus
from train.data_config import DataConfig, SourceConfig
from train.lineage import Phase, begin
from train.rows import Packs, PhaseRows, open_rows

EOS = 2


def write_shards(
    folder: Path,
    documents: Sequence[Sequence[int]],
    split: str = "train",
    first_id: int = 10,
    vocab_sizes: Sequence[int] = (60_000,),
):
    """(manifest, all tokens) of shards in which documents have these lengths (end-of-text included); ids count up.

    vocab_sizes: of the shards in turn; they decide how wide a shard's ids are.
    """
    entries, tokens = [], []
    next_id = first_id
    for i, lengths in enumerate(documents):
        name = f"{split}-{i:016x}"
        with shard_writer(folder / name, ShardHead("t", "", "k", vocab_sizes[i % len(vocab_sizes)], EOS)) as writer:
            for length in lengths:
                ids = np.arange(next_id, next_id + length - 1) % 60_000
                writer.add(ids, np.array([length - 1]), text_bytes=length - 1)
                tokens += [*ids.tolist(), EOS]
                next_id += length
        sidecar = read_sidecar(folder / name)
        entries.append(
            SimpleNamespace(
                name=name,
                split=split,
                tokens=sidecar.tokens,
                documents=sidecar.documents,
                bin_bytes=sidecar.bin_bytes,
                idx_bytes=sidecar.idx_bytes,
                bin_sha256=sidecar.bin_sha256,
                idx_sha256=sidecar.idx_sha256,
                source="",
            )
        )
    manifest = SimpleNamespace(
        files=[FileEntry(name, 0, sha256_file(folder / name)) for name in [f"{entry.name}.crc" for entry in entries]],
        dtype="uint16",
        tokenizer_sha256="k",
        shards=entries,
        shards_of=lambda asked, source=None: [e for e in entries if e.split == asked and source in (None, e.source)],
    )
    return manifest, np.array(tokens)


def corpus_of(folder: Path, name: str, documents: Sequence[Sequence[int]], first_id: int = 10, **config) -> Corpus:
    manifest, _ = write_shards(folder / name, documents, first_id=first_id)
    return Corpus(name, SourceConfig(str(folder / name), **config), manifest)  # type: ignore[arg-type]


def data_of(corpora: Sequence[Corpus], **keys) -> DataConfig:
    return DataConfig(sources={corpus.name: corpus.config for corpus in corpora}, **keys)


def slots_of(corpora: Sequence[Corpus], data: DataConfig, packs: Packs) -> dict[str, int]:
    if data.packing == "best_fit":
        return {corpus.digest: packs.of(corpus, data.seq_len).n_rows * data.seq_len for corpus in corpora}
    return {corpus.digest: corpus.tokens("train") for corpus in corpora}


def phase_of(corpora: Sequence[Corpus], global_batch_size: int = 4, **keys) -> Phase:
    data = data_of(corpora, **keys)
    return begin(data, global_batch_size, corpora, slots_of(corpora, data, Packs(None)))[0]


def rows_of(corpora: Sequence[Corpus], seed: int = 3, **keys) -> PhaseRows:
    return open_rows(phase_of(corpora, **keys), corpora, seed, Packs(None))
