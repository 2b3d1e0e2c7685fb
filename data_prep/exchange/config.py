"""What export and import can be asked to do: ordinary dataclasses, no heavy imports.

`problems()` returns contradictions, whatever the stage; `missing()` returns what the stage itself needs to start.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class PeerFormat(StrEnum):
    megatron = "megatron"
    datatrove = "datatrove"
    olmo = "olmo"
    nanogpt = "nanogpt"


@dataclass
class ExportConfig:
    """`stage=export`: a finished dataset in the layout of another program."""

    format: PeerFormat = PeerFormat.megatron
    """`megatron` .bin/.idx, `datatrove` .ds with .ds.index, `olmo` headerless .npy with .csv.gz, `nanogpt` .bin."""
    to: str = ""
    """Folder to make; it must not exist. On the dataset's own file system the payload is linked, elsewhere copied."""

    def missing(self) -> list[str]:
        return [] if self.to else ["export.to is empty; pass the folder to make: export.to=exported/NAME"]


@dataclass
class ImportConfig:
    """`stage=import`: another program's token files become a dataset, without tokenizing again."""

    paths: list[str] = field(default_factory=list[str])
    """Files or folders (every token file below); the payload is hard-linked where its bytes are already ours."""
    format: PeerFormat = PeerFormat.megatron
    """Which program wrote them."""
    tokenizer: str = ""
    """What made the ids: a SentencePiece .model, a Hugging Face tokenizer.json (byte-level or SentencePiece-like), or
    a .npy of the bytes of text that each id stands for (0 for control ids; its length is the vocabulary)."""
    tokenizer_sha256: str = ""
    """Digest of the tokenizer's own file; needed with a .npy, which cannot tell it."""
    eos_id: int | None = None
    """Id after every document; null takes that of the SentencePiece model."""
    bos_id: int | None = None
    """Id that may stand at the beginning of a document."""
    allow_ids: list[int] = field(default_factory=list[int])
    """Ids without text that may stand anywhere: `<unk>`, infilling marks, separators."""
    append_eos: bool = False
    """Writes `eos_id` after every document that does not end with it; the payload is then copied, not linked."""
    eos_scan: bool = False
    """Takes every `eos_id` as the end of a document. Only for nanogpt, whose files hold no boundaries."""
    val: list[str] = field(default_factory=list[str])
    """Globs over file names (`*/val/*`): files held out as the val split; none holds out nothing."""

    def problems(self) -> list[str]:
        found: list[str] = []
        if self.eos_scan and self.format is not PeerFormat.nanogpt:
            found.append(f"peer.eos_scan=true has no effect: {self.format.value} files hold boundaries; drop it")
        if self.tokenizer_sha256 and not self.tokenizer.endswith(".npy"):
            found.append("peer.tokenizer_sha256 is computed from peer.tokenizer; it is declared only beside a .npy")
        return found

    def missing(self) -> list[str]:
        found: list[str] = []
        if not self.paths or not all(self.paths):
            found.append("peer.paths names nothing; pass files or folders: peer.paths=[tokens/]")
        if not self.tokenizer:
            found.append("peer.tokenizer is empty; pass what made the ids: a .model, a tokenizer.json or a .npy")
        elif not self.tokenizer.endswith(".model") and self.eos_id is None:
            found.append("peer.eos_id is not given; only a SentencePiece .model tells it by itself")
        if self.tokenizer.endswith(".npy") and not self.tokenizer_sha256:
            found.append("peer.tokenizer_sha256 is empty; beside a .npy pass the digest of the tokenizer's own file")
        if self.format is PeerFormat.nanogpt and not self.eos_scan:
            found.append(
                "nanogpt files hold no document boundaries; peer.eos_scan=true takes every peer.eos_id as an end, "
                "which is right only if no text ever became that id"
            )
        return found
