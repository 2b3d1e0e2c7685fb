"""The quick way of encoding against SentencePiece itself: the same ids, or it is not used."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from data_prep import memo
from data_prep.config import TokenizerConfig
from data_prep.files import DataError
from data_prep.memo import CUTS, Cut, Memo
from data_prep.tokenizer import Tokenizer, train
from tests.corpus import document

AWKWARD = [
    "",
    " ",
    "\n",
    "a",
    "   a  b   ",
    "\n\n  \n x",
    "x\n\n  \n",
    "</s><s> <unk><pad> <0x41>",
    "tabs\tand\r\nreturns\r\n",
    "\x00\x01 nul",
    "e\u0301 \ufb01 \u00a0\u3000\ufeff 12345 \U0001f600\u200d\U0001f525",
    "word" * 3000,
    " " * 5000 + "end" + "\n" * 5000,
    "\u4e2d\u6587 \u65e0\u7a7a\u683c" * 50,
]


@pytest.fixture(scope="module")
def model() -> bytes:
    texts = [document(random.Random(i)) for i in range(40)]
    return train(texts, TokenizerConfig(vocab_size=600))


def reference(model: bytes, text: bytes) -> list[int]:
    return sentencepiece.SentencePieceProcessor(model_proto=model).encode(text.decode())


def texts() -> Iterator[bytes]:
    rng = random.Random(1)
    alphabet = [" ", " ", "\n", "a", "the", "river", "\u2585", "\U0001f600", "\u00e9", "\t", "0", "</s>", "."]
    for _ in range(300):
        yield "".join(rng.choices(alphabet, k=rng.randrange(60))).encode()
    yield from (document(random.Random(1000 + i)).encode() for i in range(20))
    yield from (text.encode() for text in AWKWARD)


def test_ids_are_those_of_sentencepiece_for_every_text_alone_and_in_a_lot(model: bytes):
    tokenizer, lot = Tokenizer(model, "test"), list(texts())
    assert tokenizer.cut is CUTS[0]
    ids, lengths = tokenizer.encode_batch(lot)
    rows = np.split(ids, np.cumsum(lengths)[:-1])
    for text, row in zip(lot, rows, strict=True):
        assert row.tolist() == reference(model, text), text
        assert tokenizer.encode_batch([text])[0].tolist() == row.tolist()


def test_forgetting_changes_no_id(model: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memo, "MAX_PARTS", 50)
    tokenizer = Tokenizer(model, "test")
    for text in texts():
        assert tokenizer.encode_batch([text])[0].tolist() == reference(model, text)


def test_a_long_text_is_cut_into_pieces_and_gives_the_same_ids(model: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memo, "PIECE_BYTES", 100)
    tokenizer = Tokenizer(model, "test")
    for text in texts():
        assert tokenizer.encode_batch([text])[0].tolist() == reference(model, text)


def test_an_error_while_learning_leaves_no_number_without_ids(model: bytes):
    whole = Tokenizer(model, "test")
    fails = iter([True, False])

    def encode(parts):
        if next(fails):
            raise MemoryError
        return whole.reference(parts)

    quick = Memo(CUTS[0], encode, whole.token_bytes())
    with pytest.raises(MemoryError):
        quick.encode([b"the river"])
    assert quick.encode([b"the river"])[0].tolist() == reference(model, b"the river")


def other_model(tmp_path: Path, **settings: Any) -> bytes:
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(document(random.Random(i)) for i in range(20)) + "\nin 2024 and 2048" * 300)
    options: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 400,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["\n"],
        "minloglevel": 2,
    }
    prefix = tmp_path / "m"
    sentencepiece.SentencePieceTrainer.train(input=str(lines), model_prefix=str(prefix), **(options | settings))
    return prefix.with_suffix(".model").read_bytes()


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "unigram"},
        {"add_dummy_prefix": True},
        {"remove_extra_whitespaces": True},
        {"normalization_rule_name": "nmt_nfkc"},
        {"user_defined_symbols": []},
        {"user_defined_symbols": ["\n", "the river"]},
        {"split_by_whitespace": False},
        {"treat_whitespace_as_suffix": True},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_a_model_whose_parts_hang_together_is_encoded_whole(tmp_path: Path, settings: dict[str, Any]):
    content = other_model(tmp_path, **settings)
    tokenizer = Tokenizer(content, "test")
    assert tokenizer.cut is None
    for text in texts():
        if text and b"\xe2\x96\x85" not in text:
            assert tokenizer.encode_batch([text])[0].tolist() == reference(content, text)


def test_the_same_settings_may_be_cut(tmp_path: Path):
    assert Tokenizer(other_model(tmp_path), "").cut is CUTS[1]  # its digits may hang together
    assert Tokenizer(other_model(tmp_path, split_digits=True), "").cut is CUTS[0]


@pytest.mark.parametrize("cut", CUTS, ids=["finest", "blanks"])
def test_parts_make_up_the_text_and_every_border_is_one_that_may_be(cut: Cut):
    rng = random.Random(3)
    made = [bytes(rng.choices(range(256), k=40)) for _ in range(300)]
    made += ["".join(rng.choices(" \n\taZ09.,'\u201d\u00e9\u4e2d", k=30)).encode() for _ in range(2000)]
    for text in (*made, *texts()):
        parts = cut.part.findall(text)
        assert b"".join(parts) == text
        for left, right in itertools.pairwise(parts):
            assert cut.border.fullmatch(left[-1:] + right[:1]), (left, right)


def test_a_memo_that_gave_other_ids_would_be_found(model: bytes):
    tokenizer = Tokenizer(model, "test")

    def other(lots):
        """Each id of a letter becomes the next letter's: the bytes are right, the text is not."""
        rows = tokenizer.reference(lots)
        sizes = tokenizer.token_bytes()
        alike = np.flatnonzero(sizes == 1)[10:]
        return [np.where(np.isin(row, alike[:-1]), row + 1, row) for row in rows]

    tokenizer._memo = Memo(CUTS[0], other, tokenizer.token_bytes())
    with pytest.raises(DataError, match="other ids than SentencePiece"):
        tokenizer.compare_with_reference(b"xylophone zebra 12")
