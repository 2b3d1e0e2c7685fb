"""SentencePiece, behind one door: nothing else in the project imports it.

In: texts. Out: ids and back, losing nothing: `decode(encode(x)) == x` for every text that UTF-8 can express, and the
sum of `token_bytes()[ids]` is exactly the text's length in bytes. Text that spells a control symbol (`</s>`, `<0x41>`)
becomes ordinary pieces. Also the training of a model with settings under which that holds.
"""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.config import TokenizerConfig
from data_prep.files import DataError

BLANK_MARK = "\u2581"  # stands for a blank inside the model, so a real one in the text would come back as a blank
LINE_BYTES = 4096  # the trainer silently drops a line above 4192 bytes
UNUSABLE_IN_TRAINING = re.compile(f"[\n{BLANK_MARK}\u2585]+")  # U+2585 is reserved: the trainer drops its whole line
TRAINER_THREADS = 4  # fixed, because sums in another order would give another unigram model

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
        if self.eos_id < 0:
            raise DataError(f"{name} has no end-of-text symbol (eos_id is -1); documents could not be told apart")
        self._mark_ids = self._byte_ids(BLANK_MARK)

    @staticmethod
    def load(path: Path) -> "Tokenizer":
        """Raises DataError when the file is missing, is no SentencePiece model, or has no end-of-text symbol."""
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read the tokenizer {path}: {error.strerror}") from error
        return Tokenizer(content, str(path))

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Ids of each text, (n,) int32, without control symbols. A text with half a surrogate pair is refused."""
        plain = [text if BLANK_MARK not in text else "" for text in texts]
        ids: list[npt.NDArray[np.int32]] = self._model.encode(plain, return_type="numpy", num_threads=1)
        return [self._encode_marked(text) if BLANK_MARK in text else row for text, row in zip(texts, ids, strict=True)]

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        return self.encode_batch([text])[0]

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        """The text; control symbols give nothing, a lone part of a multi-byte character gives U+FFFD."""
        return self._model.decode(np.asarray(ids).tolist())

    def piece(self, id: int) -> str:
        """The model's own name of an id: `▁` for a blank, `<0x0A>` for a byte, `</s>` for a control symbol."""
        return self._model.id_to_piece(id)

    def token_bytes(self) -> npt.NDArray[np.uint16]:
        """(V,) UTF-8 bytes of text that each id stands for; 0 for control symbols and the unknown piece."""
        return np.array([self._n_bytes(id) for id in range(self.vocab_size)], dtype=np.uint16)

    def _n_bytes(self, id: int) -> int:
        if self._model.is_control(id) or self._model.is_unknown(id):
            return 0
        if self._model.is_byte(id):
            return 1
        return len(self.piece(id).replace(BLANK_MARK, " ").encode())

    def _encode_marked(self, text: str) -> npt.NDArray[np.int32]:
        """The text is cut at every U+2581, which is spelled by its three bytes; decoding gives it back."""
        if self._mark_ids is None:
            raise DataError("the text holds U+2581, which this tokenizer has no byte pieces to spell (byte_fallback)")
        parts = self.encode_batch(text.split(BLANK_MARK))
        rows = [parts[0]]
        for part in parts[1:]:
            rows += [self._mark_ids, part]
        return np.concatenate(rows)

    def _byte_ids(self, text: str) -> npt.NDArray[np.int32] | None:
        ids = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in text.encode()]
        return np.array(ids, dtype=np.int32) if all(map(self._model.is_byte, ids)) else None


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
