import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from data_prep.config import ModelType, TokenizerConfig
from data_prep.files import DataError
from data_prep.tokenizer import LINE_BYTES, Tokenizer, train, training_lines

AWKWARD = [
    "",
    " ",
    "\n\n",
    "  two blanks, a tab\t, CRLF\r\nand a blank at the end ",
    "\x00 NUL \x00",
    "</s><s><unk><pad> <0x41> <0xE2>",
    "\u2581",
    "a\u2581b \u2581\u2581 c\u2581",
    "\u2581\u2581\u2581\n",
    "\ufeffa byte-order mark",
    "e\u0301 and é, ﬁ, Å, \u00a0\u3000\u2028\u0085\x0b\x0c",
    "\U0001f600\u200d\U0001f525 \U0010ffff \ufffd \u2585 \u2047",
    "0123456789 3.14 1e-9",
    "العربية 日本語 हिन्दी",
    "x" * 20_000,
    "\u2581 " * 3000,
]


def rows(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    return tokenizer.encode_each([text.encode() for text in texts])


@pytest.mark.parametrize("text", AWKWARD, ids=lambda text: repr(text[:20]))
def test_decoding_gives_back_every_text(tokenizer: Tokenizer, text: str):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", AWKWARD, ids=lambda text: repr(text[:20]))
def test_ids_stand_for_exactly_the_bytes_of_the_text(tokenizer: Tokenizer, text: str):
    assert tokenizer.token_bytes()[tokenizer.encode(text)].sum() == len(text.encode())


def test_every_plane_of_unicode_comes_back(tokenizer: Tokenizer):
    characters = [chr(i) for i in range(0, sys.maxunicode + 1, 97) if not 0xD800 <= i < 0xE000]
    text = "".join(characters)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_that_spells_a_control_symbol_never_becomes_one():
    """Trained on little else, so that the pieces have every reason to form."""
    text = "</s> <s>\n<unk><pad> <0x41>\n" * 50
    alike = "</s </st> <st> <unkn> <unk <pads> <0x4 <0x412>\n" * 50
    tokenizer = Tokenizer(train([text, alike], TokenizerConfig(vocab_size=294)), "adversarial")
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].all()  # control symbols stand for no bytes
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids.tolist())
    names = {tokenizer.piece(int(i)) for i in ids}
    assert not names & {"</s>", "<s>", "<unk>", "<pad>", "<0x41>"}


def test_ids_equal_sentencepiece_alone(tokenizer: Tokenizer, dataset: Path, corpus: Path):
    reference = sentencepiece.SentencePieceProcessor(model_file=str(dataset / "tokenizer.model"))
    texts = [file.read_text() for file in sorted(corpus.iterdir())]
    for text, ids in zip(texts, rows(tokenizer, texts), strict=True):
        assert ids.tolist() == reference.encode(text)


def test_a_batch_equals_its_texts_one_by_one(tokenizer: Tokenizer):
    for text, ids in zip(AWKWARD, rows(tokenizer, AWKWARD), strict=True):
        assert np.array_equal(ids, tokenizer.encode(text))
        assert ids.dtype == np.int32


def test_no_texts_give_no_ids(tokenizer: Tokenizer):
    ids, lengths = tokenizer.encode_batch([])
    assert (ids.tolist(), lengths.tolist()) == ([], [])


def test_control_ids_are_where_the_design_puts_them(tokenizer: Tokenizer):
    assert [tokenizer.piece(i) for i in range(4)] == ["<unk>", "<s>", "</s>", "<pad>"]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert tokenizer.piece(4) == "\n"
    assert tokenizer.token_bytes()[:5].tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("model_type", list(ModelType))
def test_training_twice_gives_the_same_bytes(corpus: Path, model_type: ModelType):
    texts = [file.read_text() for file in sorted(corpus.iterdir())]
    settings = TokenizerConfig(vocab_size=330, model_type=model_type)
    model = train(texts, settings)
    assert model == train(texts, settings)
    tokenizer = Tokenizer(model, "")
    assert tokenizer.vocab_size == 330
    assert [tokenizer.decode(ids) for ids in rows(tokenizer, AWKWARD)] == AWKWARD


@pytest.mark.parametrize("model_type", list(ModelType))
def test_a_vocabulary_larger_than_the_text_supports_names_the_largest_that_works(model_type: ModelType):
    text = ["the cat sat on the mat\n" * 5]
    with pytest.raises(DataError, match=r"tokenizer\.vocab_size=5000 is larger than the text supports") as caught:
        train(text, TokenizerConfig(vocab_size=5000, model_type=model_type))
    largest = int(str(caught.value).split("set tokenizer.vocab_size=")[1].split()[0])
    assert Tokenizer(train(text, TokenizerConfig(vocab_size=largest, model_type=model_type)), "").vocab_size == largest


def test_a_vocabulary_smaller_than_the_alphabet_names_the_smallest_that_works():
    text = ["".join(chr(0x4E00 + i) for i in range(500)) * 3]
    with pytest.raises(DataError, match=r"too small for the characters") as caught:
        train(text, TokenizerConfig(vocab_size=400))
    assert "set tokenizer.vocab_size=7" in str(caught.value)


@pytest.mark.parametrize("texts", [[], [""], ["\n\n\n"]])
def test_training_on_nothing_says_that_the_corpus_is_empty(texts: list[str]):
    with pytest.raises(DataError, match="the corpus is empty"):
        train(texts, TokenizerConfig(vocab_size=300))


@pytest.mark.parametrize(
    "text",
    ["zebra " * 2000, "\u2585 zebra zebra\n" * 50, "\tzebra\tzebra\n" * 50, "\u2581zebra\n" * 50, "zebra\x00\n" * 50],
    ids=["long line", "reserved character", "tabs", "blank mark", "NUL"],
)
def test_training_drops_no_line(text: str):
    """SentencePiece alone drops lines that are long or hold a reserved character, and says nothing."""
    filler = [f"the cat sat on the mat {i}\n" for i in range(200)]
    tokenizer = Tokenizer(train([*filler, text], TokenizerConfig(vocab_size=313)), "")
    pieces = {tokenizer.piece(i).strip("\u2581") for i in range(tokenizer.vocab_size)}
    assert "zebra" in pieces


def test_training_lines_keep_all_text_but_the_marks():
    text = "é" * 10_000 + "\nshort\u2581line\n\n" + "\U0001f600" * 3000
    lines = list(training_lines(text))
    assert "".join(lines) == text.replace("\n", "").replace("\u2581", "")
    assert max(len(line.encode()) for line in lines) <= LINE_BYTES


def test_a_file_that_is_no_model_is_refused(tmp_path: Path):
    file = tmp_path / "x.model"
    with pytest.raises(DataError, match="cannot read the tokenizer"):
        Tokenizer.load(file)
    file.write_bytes(b"not a model")
    with pytest.raises(DataError, match="not a SentencePiece model"):
        Tokenizer.load(file)
