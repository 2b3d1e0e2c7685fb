"""SentencePiece, behind one door: nothing else in the project imports it.

In: texts as UTF-8. Out: ids and back, losing nothing: `decode(encode(x)) == x` for every valid UTF-8, and the sum of
`token_bytes()[ids]` is exactly the text's length in bytes. Text that spells a control symbol (`</s>`, `<0x41>`) becomes
ordinary pieces. Also the training of a model with settings under which that holds.

SentencePiece is the reference. Where a BPE model allows it, a text is cut into parts and every distinct part is
encoded once (`data_prep.memo`): the same ids, several times as fast.
"""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.config import TokenizerConfig
from data_prep.files import DataError
from data_prep.memo import Cut, Memo, cut_for

BLANK_MARK = "\u2581"  # stands for a blank inside the model, so a real one in the text would come back as a blank
BLANK_MARK_UTF8 = BLANK_MARK.encode()
LINE_BYTES = 4096  # the trainer silently drops a line above 4192 bytes
UNUSABLE_IN_TRAINING = re.compile(f"[\n{BLANK_MARK}\u2585]+")  # U+2585 is reserved: the trainer drops its whole line
CHECKED_BYTES = 2048  # of each lot are encoded by SentencePiece again; about 1 % of the time
TRAINER_THREADS = 4  # fixed, because sums in another order would give another unigram model
BPE = 2  # codes of the model file (sentencepiece_model.proto)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

LOSSLESS = {
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "allow_whitespace_only_pieces": True,
    "split_digits": True,
    "user_defined_symbols": ["\n"],
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": 3,
}

Ids = npt.NDArray[np.int32]


class Tokenizer:
    """A loaded model. Make it with `Tokenizer.load`."""

    def __init__(self, content: bytes, name: str):
        import sentencepiece

        self.content = content
        self.sha256 = hashlib.sha256(content).hexdigest()
        try:
            self._model: Any = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise DataError(f"{name} is not a SentencePiece model ({_first_line(error)})") from error
        self.vocab_size: int = self._model.vocab_size()
        self.bos_id: int = self._model.bos_id()
        self.eos_id: int = self._model.eos_id()
        self.pad_id: int = self._model.pad_id()
        self.unk_id: int = self._model.unk_id()
        if self.eos_id < 0:
            raise DataError(f"{name} has no end-of-text symbol (eos_id is -1); documents could not be told apart")
        self._mark_ids = self._byte_ids(BLANK_MARK)
        model = _proto(content)
        self._token_bytes = np.array([_text_bytes(piece) for piece in model.pieces], dtype=np.uint16)
        cut = _cut_of(model)
        self._memo = Memo(cut, self.reference, self._token_bytes) if cut and self._mark_ids is not None else None

    @staticmethod
    def load(path: Path) -> "Tokenizer":
        """Raises DataError when the file is missing, is no SentencePiece model, or has no end-of-text symbol."""
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read the tokenizer {path}: {error.strerror}") from error
        try:
            return _of(content)
        except DataError:
            return Tokenizer(content, str(path))  # the same again, with the file's name in the message

    def encode_batch(self, texts: Sequence[bytes]) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Ids of all texts one after the other, (n,) int32, without control symbols, and how many each text has.

        `texts`: valid UTF-8. Raises DataError when one holds U+2581 and the model has no byte pieces to spell it.
        """
        marked = [i for i, text in enumerate(texts) if BLANK_MARK_UTF8 in text]
        if not marked:
            return self._encode_plain(texts)
        rows: list[Ids] = []
        for i, text in enumerate(texts):
            rows.append(self._encode_marked(text) if i in marked else self._encode_plain([text])[0])
        return np.concatenate(rows), np.array([len(row) for row in rows], dtype=np.int64)

    def encode_each(self, texts: Sequence[bytes]) -> list[Ids]:
        """One row of ids for each text."""
        ids, lengths = self.encode_batch(texts)
        ends = np.cumsum(lengths).tolist()
        return [ids[end - n : end] for end, n in zip(ends, lengths.tolist(), strict=True)]

    def encode(self, text: str) -> Ids:
        return self.encode_each([text.encode()])[0]

    def reference(self, texts: Sequence[bytes]) -> list[Ids]:
        """What SentencePiece itself gives for texts free of U+2581: one row of ids for each."""
        return self._model.encode(list(texts), return_type="numpy", num_threads=1)

    @property
    def cut(self) -> Cut | None:
        """How texts are cut into parts that are encoded once; None if each text is encoded as a whole."""
        return self._memo.cut if self._memo else None

    def compare_with_reference(self, text: bytes, at_most: int = CHECKED_BYTES) -> None:
        """Raises DataError if the quick way gives other ids than SentencePiece for the text's first `at_most` bytes."""
        if self._memo is None or BLANK_MARK_UTF8 in text:
            return
        start = text[:at_most].decode(errors="ignore").encode()
        (expected,) = self.reference([start])
        found, _ = self._memo.encode([start])
        if not np.array_equal(found, expected):
            raise DataError(
                f"the quick way of encoding gave other ids than SentencePiece for {start[:80]!r}...: please report it"
            )

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        """The text; control symbols give nothing, a lone part of a multi-byte character gives U+FFFD."""
        return self._model.decode(np.asarray(ids).tolist())

    def piece(self, id: int) -> str:
        """The model's own name of an id: `▁` for a blank, `<0x0A>` for a byte, `</s>` for a control symbol."""
        return self._model.id_to_piece(id)

    def token_bytes(self) -> npt.NDArray[np.uint16]:
        """(V,) UTF-8 bytes of text that each id stands for; 0 for control symbols and the unknown piece."""
        return self._token_bytes

    def _encode_plain(self, texts: Sequence[bytes]) -> tuple[Ids, npt.NDArray[np.int64]]:
        if self._memo is not None:
            return self._memo.encode(texts)
        rows = self.reference(texts)
        ids = np.concatenate(rows) if rows else np.empty(0, dtype=np.int32)
        return ids, np.array([len(row) for row in rows], dtype=np.int64)

    def _encode_marked(self, text: bytes) -> Ids:
        """The text is cut at every U+2581, which is spelled by its three bytes; decoding gives it back."""
        if self._mark_ids is None:
            raise DataError("the text holds U+2581, which this tokenizer has no byte pieces to spell (byte_fallback)")
        parts = text.split(BLANK_MARK_UTF8)
        ids, lengths = self._encode_plain(parts)
        rows = np.split(ids, np.cumsum(lengths)[:-1])
        return np.concatenate([rows[0], *(np.concatenate([self._mark_ids, row]) for row in rows[1:])])

    def _byte_ids(self, text: str) -> Ids | None:
        ids = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in text.encode()]
        return np.array(ids, dtype=np.int32) if all(map(self._model.is_byte, ids)) else None


@lru_cache(maxsize=2)
def _of(content: bytes) -> Tokenizer:
    """A process needs few models, and each more than once."""
    return Tokenizer(content, "the tokenizer")


def _cut_of(model: Any) -> Cut | None:
    """How texts may be cut so that encoding part by part gives the ids of the whole; None if they may not be.

    BPE only joins neighbours whose union is a piece, so a border that no piece spans is never crossed. Newline must be
    a symbol of its own, and nothing may be normalised, added or removed at the ends of a text. A unigram model compares
    sums over the whole text in float32, so its ties may fall otherwise.
    """
    rules = model.normalizer_spec
    as_they_are = not (rules.precompiled_charsmap or rules.add_dummy_prefix or rules.remove_extra_whitespaces)
    symbols = {piece.piece for piece in model.pieces if piece.type == USER_DEFINED}
    if model.trainer_spec.model_type != BPE or not as_they_are or not rules.escape_whitespaces or symbols != {"\n"}:
        return None
    return cut_for(
        piece.piece.replace(BLANK_MARK, " ").encode() for piece in model.pieces if piece.type in (NORMAL, UNUSED)
    )


def _text_bytes(piece: Any) -> int:
    if piece.type in (CONTROL, UNKNOWN):
        return 0
    return 1 if piece.type == BYTE else len(piece.piece.replace(BLANK_MARK, " ").encode())


def _proto(content: bytes) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    model: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]  made at import
    model.ParseFromString(content)
    return model


def train(texts: Iterable[str], settings: TokenizerConfig) -> bytes:
    """The content of a .model file; the same texts and settings give the same bytes.

    Raises DataError when there is nothing to learn from, or when the texts cannot support `vocab_size`.
    """
    import sentencepiece

    lines = [line for text in texts for line in training_lines(text)]
    if not lines:
        raise DataError("the corpus is empty: outside the held-out part there is no text to train a tokenizer on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=settings.model_type.value,
            vocab_size=settings.vocab_size,
            num_threads=TRAINER_THREADS,
            minloglevel=2,
            **LOSSLESS,
        )
    except RuntimeError as error:
        raise _training_error(error, settings) from error
    return model.getvalue()


def training_lines(text: str) -> Iterator[str]:
    """Cuts a text into lines of at most LINE_BYTES, free of what makes the trainer drop a line.

    Newline is a symbol of its own, so no piece could span it anyway; a cut elsewhere costs one pair in thousands.
    """
    for line in UNUSABLE_IN_TRAINING.split(text):
        if len(line) * 4 <= LINE_BYTES or len(line.encode()) <= LINE_BYTES:
            if line:
                yield line
        else:
            step = LINE_BYTES // 4
            yield from (line[start : start + step] for start in range(0, len(line), step))


def _training_error(error: RuntimeError, settings: TokenizerConfig) -> DataError:
    message = str(error)
    if largest := re.search(r"value <= (\d+)", message):
        return DataError(
            f"tokenizer.vocab_size={settings.vocab_size} is larger than the text supports: it gives at most "
            f"{largest[1]} pieces; set tokenizer.vocab_size={largest[1]} or less, or add text"
        )
    if needed := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return DataError(
            f"tokenizer.vocab_size={settings.vocab_size} is too small for the characters of this text; "
            f"set tokenizer.vocab_size={needed[1]} or more"
        )
    if "too small" in message or "!sentences_.empty()" in message:
        return DataError(f"the corpus holds too little text to train a tokenizer on ({_first_line(error)})")
    return DataError(f"the tokenizer could not be trained: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
