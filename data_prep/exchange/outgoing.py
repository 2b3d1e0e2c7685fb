"""A finished dataset → the same tokens in another program's layout.

In: a dataset's folder. Out: a new folder with `train/` and `val/` (nanoGPT: train.bin, val.bin), published whole. The
payload is one file under two names (hard link) wherever the layouts agree byte for byte, and they do: only the small
index beside it differs. `crisol_export.json` says what was exported and how to open it. Memory: a block of an index.

Layouts: Megatron-LM megatron/core/datasets/indexed_dataset.py; datatrove pipeline/tokens/tokenizer.py
(TokenizedFile); dolma tokenizer/memmap_writer.py, read by OLMo-core data/utils.py; nanoGPT data/*/prepare.py.
"""

import csv
import gzip
import io
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from data_prep.exchange.config import ExportConfig, PeerFormat
from data_prep.exchange.indexes import Index
from data_prep.exchange.links import COPY_BYTES, folder_published, link_or_copy, say
from data_prep.exchange.peer_tokenizer import HF_TOKENIZER
from data_prep.files import DataError, publish_json, published
from data_prep.manifest import SPLITS, TOKENIZER, Manifest, ShardEntry
from data_prep.shards import EOS_POLICY, Sidecar, file_of, read_sidecar

RECORD = "crisol_export.json"
HOW_TO_OPEN = {
    PeerFormat.megatron: "--data-path train/NAME (each prefix is a pair .bin, .idx), or IndexedDataset('train/NAME')",
    PeerFormat.datatrove: "DatatroveFolderDataset('train', seq_len, '*.ds', token_size=2 or 4; see dtype)",
    PeerFormat.olmo: "NumpyFSLDatasetConfig(paths=[train/*.npy], dtype=see dtype); .npy here is raw, np.load fails",
    PeerFormat.nanogpt: "put train.bin and val.bin into data/NAME of nanoGPT; there are no document boundaries",
}
NOTES = {
    PeerFormat.olmo: "csv columns: start, end (tokens, end excluded), id (shard:document), src (input), line (number "
    "of the document among those that src gave to this shard, from 1)",
    PeerFormat.nanogpt: "nanoGPT's trainer reads uint16 at random places; the end-of-text id separates documents",
}


def export(dataset: Path, config: ExportConfig) -> Path:
    """Makes the folder `config.to` and returns it. Raises DataError for a damaged dataset, a target that exists, or a
    layout that cannot hold these tokens."""
    dataset, target = Path(dataset), Path(config.to)
    manifest = Manifest.load(dataset)
    manifest.check(dataset)
    _refuse(manifest, config.format)
    with folder_published(target) as folder:
        files = [file for split in SPLITS for file in _split(dataset, manifest, split, config.format, folder)]
        for name in (TOKENIZER, HF_TOKENIZER):
            if (dataset / name).is_file():
                link_or_copy(dataset / name, folder / name)
        publish_json(folder / RECORD, _record(manifest, config.format, files))
    linked = sum(file["linked"] for file in files)
    say(f"exported {len(files)} {config.format.value} files to {target}: {linked} linked, {len(files) - linked} copied")
    return target


def _refuse(manifest: Manifest, format: PeerFormat) -> None:
    if format is PeerFormat.nanogpt and manifest.dtype != "uint16":
        raise DataError(
            f"nanoGPT reads uint16 only, and this vocabulary of {manifest.vocab_size} ids needs {manifest.dtype}; "
            "export.format=megatron, datatrove or olmo can hold it"
        )


def _record(manifest: Manifest, format: PeerFormat, files: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "what": f"token ids in the layout of {format.value}, little-endian, exported by Crisol",
        "format": format.value,
        "how_to_open": HOW_TO_OPEN[format],
        "notes": NOTES.get(format, ""),
        "vocab_size": manifest.vocab_size,
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "eos_id": manifest.eos_id,
        "eos_policy": EOS_POLICY,
        "dataset_fingerprint": manifest.fingerprint,
        "manifest_sha256": manifest.sha256,
        "files": files,
    }


def _split(dataset: Path, manifest: Manifest, split: str, format: PeerFormat, folder: Path) -> list[dict[str, Any]]:
    """Exports one split; returns what each payload file is."""
    shards = manifest.shards_of(split)
    if format is PeerFormat.nanogpt:
        return [_one_stream(dataset, shards, folder / f"{split}.bin")] if shards else []
    return [_shard(dataset, shard, folder / split, format) for shard in shards]


def _shard(dataset: Path, shard: ShardEntry, folder: Path, format: PeerFormat) -> dict[str, Any]:
    stem, target = dataset / shard.name, folder / shard.name
    sidecar = read_sidecar(stem)
    ending = {PeerFormat.megatron: ".bin", PeerFormat.datatrove: ".ds", PeerFormat.olmo: ".npy"}[format]
    linked = link_or_copy(file_of(stem, ".bin"), file_of(target, ending))
    match format:
        case PeerFormat.megatron:
            link_or_copy(file_of(stem, ".idx"), file_of(target, ".idx"))
        case PeerFormat.datatrove:
            _datatrove_index(target, Index(stem, sidecar), sidecar)
        case _:
            _olmo_index(target, Index(stem, sidecar), sidecar)
    return _described(f"{shard.split}/{shard.name}{ending}", [shard], sidecar.dtype, linked)


def _described(name: str, shards: Sequence[ShardEntry], dtype: str, linked: bool) -> dict[str, Any]:
    return {
        "name": name,
        "dtype": dtype,
        "shards": [shard.name for shard in shards],
        "documents": sum(shard.documents for shard in shards),
        "tokens": sum(shard.tokens for shard in shards),
        "sha256": shards[0].bin_sha256 if len(shards) == 1 else "",
        "linked": linked,
    }


def _one_stream(dataset: Path, shards: tuple[ShardEntry, ...], target: Path) -> dict[str, Any]:
    """nanoGPT has one file a split: a link to a single shard, else all of them behind each other."""
    if len(shards) == 1:
        linked = link_or_copy(file_of(dataset / shards[0].name, ".bin"), target)
        return _described(target.name, shards, "uint16", linked)
    n_bytes = sum(shard.bin_bytes for shard in shards)
    say(f"{target.name}: nanoGPT reads one file a split, so {len(shards)} shards are copied ({n_bytes / 1e6:,.1f} MB)")
    with published(target) as stream:
        for shard in shards:
            with file_of(dataset / shard.name, ".bin").open("rb") as content:
                shutil.copyfileobj(content, stream, COPY_BYTES)
    return _described(target.name, shards, "uint16", linked=False)


def _datatrove_index(target: Path, index: Index, sidecar: Sidecar) -> None:
    """.ds.index: u64 token positions after each document; .ds.metadata: three lines, `tokenizer|token size` first."""
    with published(file_of(target, ".ds.index")) as stream:
        for ends in index.end_blocks():
            stream.write(ends.astype("<u8").tobytes())
    lines = (f"sha256:{sidecar.tokenizer_sha256}|{index.itemsize}", str(index.tokens), _metric(index.tokens))
    with published(file_of(target, ".ds.metadata")) as stream:
        stream.write("\n".join(lines).encode())


def _metric(n: int) -> str:
    """3_842_746 as `3.84 MT`."""
    value, unit = float(n), ""
    for larger in "kMGTP":
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}T"


def _olmo_index(target: Path, index: Index, sidecar: Sidecar) -> None:
    """.csv.gz: rows start,end,id,src,line without a heading. No clock in the gzip header: same dataset, same bytes."""
    origins = document_origins(sidecar)
    start = number = 0
    with published(file_of(target, ".csv.gz")) as stream, _gzip_text(stream) as text:
        rows = csv.writer(text)
        for ends in index.end_blocks():
            for end in ends.tolist():
                source, line = next(origins)
                rows.writerow((start, end, f"{target.name}:{number}", source, line))
                start, number = end, number + 1


def _gzip_text(stream: IO[bytes]) -> io.TextIOWrapper:
    packed = gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0, compresslevel=6)
    return io.TextIOWrapper(packed, encoding="utf-8", newline="")


def document_origins(sidecar: Sidecar) -> Iterator[tuple[str, int]]:
    """(input, number from 1 among the documents that it gave to this shard) of every document, in order."""
    for span in sidecar.spans:
        for line in range(1, span.documents + 1):
            yield span.name, line
