"""What a foreign id stands for: enough of a tokenizer to check ids, count bytes of text and decode, not to encode.

In: a SentencePiece .model, a Hugging Face tokenizer.json, or a .npy with the bytes of text of each id. Out: a
`PeerTokenizer`, and the same again from a dataset's folder. No library of Hugging Face is needed: a tokenizer.json
lists its pieces, written in one of two ways. Byte-level (GPT-2, Llama 3, OLMo, Qwen): each character is a byte, by the
table of GPT-2's encoder.py. SentencePiece-like (Llama 2, Gemma): U+2581 is a blank and `<0x41>` a byte.
"""

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.exchange.config import ImportConfig
from data_prep.files import DataError
from data_prep.manifest import TOKENIZER, Manifest
from data_prep.tokenizer import BLANK_MARK, Tokenizer

HF_TOKENIZER = "tokenizer.hf.json"
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class PeerTokenizer:
    """`token_bytes`: (V,) uint16 bytes of text of each id, 0 for control ids. `content`: the file to keep beside the
    shards as `file_name`, empty when there is none. `pieces` or `model` decode; a .npy has neither."""

    sha256: str
    eos_id: int
    token_bytes: npt.NDArray[np.uint16]
    content: bytes = b""
    file_name: str = ""
    pieces: tuple[bytes, ...] = ()
    model: Tokenizer | None = None

    @property
    def vocab_size(self) -> int:
        return len(self.token_bytes)

    @property
    def can_decode(self) -> bool:
        return bool(self.model or self.pieces)

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        """The text; control ids give nothing, a lone part of a character gives U+FFFD. Without a tokenizer: the ids."""
        if self.model:
            return self.model.decode(ids)
        if self.pieces:
            return b"".join(self.pieces[id] for id in np.asarray(ids).tolist()).decode(errors="replace")
        return " ".join(map(str, np.asarray(ids).tolist()))

    def piece(self, id: int) -> str:
        """A name for one id."""
        if self.model:
            return self.model.piece(id)
        return self.pieces[id].decode(errors="backslashreplace") if self.pieces and self.pieces[id] else f"#{id}"


def load(config: ImportConfig) -> PeerTokenizer:
    """Raises DataError when the file is missing or is not of its kind, or when `eos_id` cannot be one."""
    path = Path(config.tokenizer)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read peer.tokenizer={path}: {error.strerror}") from error
    match path.suffix:
        case ".model":
            found = _sentencepiece(content, str(path))
        case ".json":
            found = _hugging_face(content, str(path))
        case ".npy":
            found = PeerTokenizer(config.tokenizer_sha256, -1, _table(content, path))
        case _:
            raise DataError(f"peer.tokenizer={path} must end in .model, .json or .npy")
    for id in [*config.allow_ids, *([] if config.bos_id is None else [config.bos_id])]:
        if not 0 <= id < found.vocab_size or found.token_bytes[id]:
            raise DataError(
                f"id {id} of peer.allow_ids or peer.bos_id needs no permission: only ids of the vocabulary "
                f"(0 ... {found.vocab_size - 1}) that stand for no text do"
            )
    return _with_eos(found, config.eos_id)


def of_dataset(folder: Path, manifest: Manifest) -> PeerTokenizer:
    """The tokenizer of a finished dataset, whatever it was made with. Raises DataError as `load` does."""
    for name, read in ((TOKENIZER, _sentencepiece), (HF_TOKENIZER, _hugging_face)):
        if (folder / name).is_file():
            return _with_eos(read((folder / name).read_bytes(), str(folder / name)), manifest.eos_id)
    table = folder / "token_bytes.npy"
    if not table.is_file():
        raise DataError(f"{table} is missing; the dataset is damaged")
    return PeerTokenizer(manifest.tokenizer_sha256, manifest.eos_id, _table(table.read_bytes(), table))


def token_bytes_file(tokenizer: PeerTokenizer) -> bytes:
    content = io.BytesIO()
    np.save(content, tokenizer.token_bytes, allow_pickle=False)
    return content.getvalue()


def _with_eos(found: PeerTokenizer, eos_id: int | None) -> PeerTokenizer:
    eos = found.eos_id if eos_id is None else eos_id
    if not 0 <= eos < found.vocab_size:
        raise DataError(f"peer.eos_id={eos} lies outside the vocabulary 0 ... {found.vocab_size - 1}")
    if n_bytes := int(found.token_bytes[eos]):
        raise DataError(
            f"peer.eos_id={eos} stands for {n_bytes} bytes of text, so it cannot mark the end of a document"
        )
    return dataclasses.replace(found, eos_id=eos)


def _sentencepiece(content: bytes, name: str) -> PeerTokenizer:
    model = Tokenizer(content, name)
    return PeerTokenizer(model.sha256, model.eos_id, model.token_bytes(), content, TOKENIZER, model=model)


def _table(content: bytes, path: Path) -> npt.NDArray[np.uint16]:
    try:
        table = np.load(io.BytesIO(content), allow_pickle=False)
    except ValueError as error:
        raise DataError(f"{path} is no NumPy file: {error}") from error
    if table.ndim != 1 or table.dtype.kind not in "iu" or not len(table) or table.min() < 0 or table.max() > 65_535:
        raise DataError(f"{path} must hold one row of integers 0 ... 65535, bytes of text for each id; it does not")
    return table.astype(np.uint16)


def _hugging_face(content: bytes, name: str) -> PeerTokenizer:
    try:
        tree = json.loads(content)
        pieces = _pieces(tree, name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{name} is not a tokenizer.json of Hugging Face ({type(error).__name__}: {error})") from error
    sizes = np.array([len(piece) for piece in pieces], np.uint16)
    return PeerTokenizer(hashlib.sha256(content).hexdigest(), -1, sizes, content, HF_TOKENIZER, tuple(pieces))


def _pieces(tree: dict[str, Any], name: str) -> list[bytes]:
    """The bytes of text of each id; special tokens and numbers without a piece have none."""
    to_bytes = _spelling(tree, name)
    vocabulary = tree["model"]["vocab"]
    if isinstance(vocabulary, list):  # unigram: [piece, score], the id is the place
        vocabulary = {piece: id for id, (piece, _) in enumerate(vocabulary)}
    pieces = [b""] * (1 + max([*vocabulary.values(), *(token["id"] for token in tree.get("added_tokens") or [])]))
    for piece, id in vocabulary.items():
        pieces[id] = to_bytes(piece)
    for token in tree.get("added_tokens") or []:
        pieces[token["id"]] = b"" if token["special"] else token["content"].encode()
    return pieces


def _spelling(tree: dict[str, Any], name: str):
    """How a piece is turned into bytes: by what the decoder and the pre-tokenizer say of themselves."""
    kinds = set(_types(tree.get("decoder"))) | set(_types(tree.get("pre_tokenizer")))
    if "ByteLevel" in kinds:
        table = _byte_level()
        return lambda piece: bytes(table[character] for character in piece)
    if (
        tree["model"].get("byte_fallback")
        or tree["model"].get("type") == "Unigram"
        or kinds & {"ByteFallback", "Metaspace"}
    ):
        return _sentencepiece_like
    raise DataError(
        f"{name}: its pieces are neither byte-level nor SentencePiece-like, so the text that an id stands for is "
        "unknown; pass peer.tokenizer=TABLE.npy with the bytes of each id, and peer.tokenizer_sha256"
    )


def _types(section: Any) -> list[str]:
    """Every `type` in a nested section."""
    if isinstance(section, list):
        return [kind for item in section for kind in _types(item)]
    if isinstance(section, dict):
        return [section["type"]] * ("type" in section) + [kind for item in section.values() for kind in _types(item)]
    return []


def _sentencepiece_like(piece: str) -> bytes:
    byte = BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(BLANK_MARK, " ").encode()


def _byte_level() -> dict[str, int]:
    """Character → byte: printable bytes are themselves, the others follow from U+0100 on in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
