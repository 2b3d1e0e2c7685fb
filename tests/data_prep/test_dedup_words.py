import unicodedata

import numpy as np
import pytest

from data_prep.dedup import words
from data_prep.dedup.words import Windows, grams, word_blocks, word_strings

TEXTS = [
    "The quick brown fox; the QUICK brown dog!",
    "snake_case e-mail don't 3.14 x2",
    "Größe, Ⅷ, ﬁne — naïve Ελλάδα ΣΊΣΥΦΟΣ",
    "हिन्दी में लिखा हुआ पाठ",
    "漢字かな交じり文 and English ไทย",
    "",
    " \n\t .,;!",
    "one",
    "a b c d e f g",
]


def reference_words(text: str) -> list[str]:
    """Character by character, from the definition."""
    found, current = [], ""
    for character in unicodedata.normalize("NFKC", text):
        is_letter = unicodedata.category(character)[0] in "LMN"
        alone = is_letter and any(first <= ord(character) <= last for first, last in words.ALONE)
        if current and (alone or not is_letter):
            found.append(current)
            current = ""
        if alone:
            found.append(character.lower())
        elif is_letter:
            current += character.lower()[0]
    return [*found, current] if current else found


def reference_grams(text: str, n: int) -> list[tuple[str, ...]]:
    found = reference_words(text)
    if len(found) < n:
        return [tuple(found)] if found else []
    return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]


def hashes_of(texts: list[str], n: int) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in texts]
    for block in grams([text.encode() for text in texts], n):
        parts = np.split(block.hashes, np.cumsum(block.counts)[:-1])
        for document, part in zip(block.documents.tolist(), parts, strict=True):
            found[document] += part.tolist()
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_runs_of_letters_marks_and_digits(text: str):
    assert [word for piece in word_strings(text.encode()) for word in piece] == reference_words(text)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("block_bytes", [32, 64, 1 << 18])
def test_equal_grams_have_equal_hashes_and_different_ones_do_not(
    n: int, block_bytes: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(words, "BLOCK_BYTES", block_bytes)
    random = np.random.default_rng(n)
    vocabulary = ["alpha", "beta", "Gamma", "δέλτα", "x", "字"]
    drawn = [" ".join(random.choice(vocabulary, size)) for size in (0, 1, 2, 3, 4, 5, 6, 7, 300)]
    texts = [*(text for text in TEXTS if "かな" not in text or block_bytes > 64), *drawn]
    names: dict[int, tuple[str, ...]] = {}
    for text, hashes in zip(texts, hashes_of(texts, n), strict=True):
        expected = reference_grams(text, n)
        assert len(hashes) == len(expected)
        for gram, name in zip(hashes, expected, strict=True):
            assert names.setdefault(gram, name) == name
    assert len(names) == len(set(names.values()))


def test_a_text_of_one_run_longer_than_a_block_is_cut_between_characters(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(words, "BLOCK_BYTES", 32)
    pieces = list(word_strings(("é" * 50).encode()))
    assert "".join(word for piece in pieces for word in piece) == "é" * 50
    assert len(pieces) > 1


def test_order_case_and_punctuation():
    one, two, three = hashes_of(["red green blue", "Red, GREEN -- blue.", "green red blue"], 3)
    assert one == two
    assert one != three


def test_windows_over_blocks_are_those_over_the_whole(monkeypatch: pytest.MonkeyPatch):
    text = " ".join(f"w{i % 37}" for i in range(400)).encode()
    whole = next(iter(grams([text], 4))).hashes
    monkeypatch.setattr(words, "BLOCK_BYTES", 50)
    windows = Windows(4)
    parts = [windows.over(block).hashes for block in word_blocks([text])]
    assert len(parts) > 10
    np.testing.assert_array_equal(np.concatenate(parts), whole)
