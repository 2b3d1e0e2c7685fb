"""The sources of a run as they lie on disk: found, compared with each other, and known by what they hold. No torch.

In: the data section. Out: one `Corpus` for each source, or DataError. Reads manifests and tokenizers only.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.files import DataError
from data_prep.manifest import TOKEN_BYTES, Manifest
from train.data_config import DataConfig, SourceConfig
from train.stream import TokenStream, shards_of


@dataclass(frozen=True)
class Corpus:
    """One source: a dataset, or one label inside it."""

    name: str
    config: SourceConfig
    manifest: Manifest

    @property
    def folder(self) -> Path:
        return Path(self.config.folder)

    @cached_property
    def digest(self) -> str:
        """Of what the data and their order depend on: the shards' ids, their documents, and the tokenizer."""
        content = [self.manifest.tokenizer_sha256]
        for split in ("train", "val"):
            shards = shards_of(self.manifest, split, self.config.source)
            content += [f"{split} {shard.tokens} {shard.bin_sha256} {shard.idx_sha256}" for shard in shards]
        return hashlib.sha256("\n".join(content).encode()).hexdigest()

    def tokens(self, split: str) -> int:
        return sum(shard.tokens for shard in shards_of(self.manifest, split, self.config.source))

    def text_bytes(self, split: str) -> int:
        return sum(shard.text_bytes for shard in shards_of(self.manifest, split, self.config.source))

    def token_bytes(self) -> NDArray[np.uint16]:
        """(V,) bytes of text that each id stands for. Raises DataError when the file is not what was written."""
        return np.load(io.BytesIO(self.manifest.read(self.folder, TOKEN_BYTES)), allow_pickle=False)

    def stream(self, split: str) -> TokenStream:
        return TokenStream(self.folder, self.manifest, split, self.config.source)


def load_corpora(data: DataConfig, *, look: bool = True) -> list[Corpus]:
    """look: every file's size is compared with the manifest's; one process of a run is enough for that, and each shard
    is compared again when it is opened.

    Raises DataError where a dataset is missing or damaged, where two have different tokenizers, or where two sources
    hold the same shard (it would be read twice).
    """
    manifests: dict[str, Manifest] = {}
    for source in data.mixture.values():
        if source.folder not in manifests:
            manifests[source.folder] = Manifest.load(Path(source.folder))
            if look:
                manifests[source.folder].check(Path(source.folder))
    corpora = [Corpus(name, source, manifests[source.folder]) for name, source in data.mixture.items()]
    for corpus in corpora[1:]:
        _refuse_other_tokenizer(corpora[0], corpus)
    _refuse_empty(corpora)
    _refuse_overlap(corpora)
    return corpora


def _refuse_other_tokenizer(first: Corpus, other: Corpus) -> None:
    if first.manifest.tokenizer_sha256 != other.manifest.tokenizer_sha256:
        raise DataError(
            f"{first.folder} and {other.folder} were made with different tokenizers: an id would mean two things. "
            "Prepare one of them anew with the tokenizer.model of the other."
        )


def _refuse_empty(corpora: Sequence[Corpus]) -> None:
    for corpus in corpora:
        if corpus.config.source is not None and not corpus.tokens("train"):
            labels = sorted({shard.source for shard in corpus.manifest.shards})
            raise DataError(
                f"data.sources.{corpus.name}.source={corpus.config.source} is no source of {corpus.folder}, which has: "
                f"{', '.join(labels)}"
            )


def _refuse_overlap(corpora: Sequence[Corpus]) -> None:
    holder: dict[str, str] = {}
    for corpus in corpora:
        for shard in shards_of(corpus.manifest, "train", corpus.config.source):
            if (other := holder.setdefault(shard.bin_sha256, corpus.name)) != corpus.name:
                raise DataError(
                    f"the sources {other} and {corpus.name} both hold the tokens of {shard.name}: they would be read "
                    "twice. Give each a label of its own (data.sources.NAME.source), or leave one out."
                )
