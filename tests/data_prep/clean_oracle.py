"""datatrove's filters as reference, fed with our words and sentences, and documents to compare on.

datatrove splits with spaCy or nltk, which are no dependency of ours; its filters take any WordTokenizer as `language`.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

pytest.importorskip("datatrove", reason="datatrove is the reference for the published rules (extra `test`)")

from datatrove.data import Document
from datatrove.utils.word_tokenizers import WordTokenizer

from data_prep.clean.c4 import n_sentences

TALE = """it was the best of times and that is what we have to be with when the age of wisdom turns into an age
of foolishness because every season of light has also been one of darkness for those who were there before us"""
PROSE: list[str] = list(TALE.split())
# Capital first, so that runs of words joined without blanks (as datatrove names them) tell the words apart.
SYLLABLES = ["Da", "Re", "Mio", "Fala", "So", "Tis", "Ofthe"]


class OurWords(WordTokenizer):
    """White space between words; as many sentences as ours counts (their places do not matter to the rules)."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        return [text] * n_sentences(text)

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))] * n_sentences(text)


OURS = OurWords()


def reference(kind: type, text: str, **settings: Any) -> tuple[str | None, str]:
    """(datatrove's reason to drop or None, the text that it leaves)."""
    document = Document(text=text, id="0")
    outcome = kind(language=OURS, **settings).filter(document)
    return (outcome[1] if isinstance(outcome, tuple) else None), document.text


def documents(seed: int, n: int) -> Iterator[str]:
    """Prose, lists, repetitions and noise, near every threshold on both sides.

    Left out is what ours decides otherwise, with reason: a sign alone that datatrove's list of punctuation lacks (`•`,
    `§`) is a word there; the blank inside `[citation needed]` makes a word there, where C4's own code counts words
    after citations are gone.
    """
    draw = random.Random(seed)
    for _ in range(n):
        lines = [_line(draw) for _ in range(draw.randint(1, 30))]
        repeats = draw.choice([0, 0, 1, 2, 6])
        for _ in range(repeats):
            lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
        yield "".join(line + draw.choice(["\n", "\n", "\n", "\n\n", "\n\n\n"]) for line in lines)


def _line(draw: random.Random) -> str:
    match draw.randrange(12):
        case 0:
            return draw.choice(["- ", "•", "  - "]) + _words(draw, PROSE, 1, 8)
        case 1:
            return _words(draw, PROSE, 3, 9) + draw.choice(["...", "…", " ..."])
        case 2:
            return draw.choice(["", "#", "##", "( 1 2 3 4 )", "3.14 2,72 10", "12 likes", "READ MORE NOW", "Home"])
        case 3:
            return _words(draw, SYLLABLES, 1, 14)
        case 4:
            return draw.choice(["Uses cookies and", "Javascript is", "Lorem ipsum here", "Seen[1]", "if (x) {"]) + (
                " " + _words(draw, PROSE, 1, 9) + ".[2]"
            )
        case 5:
            return "x" * draw.choice([5] * 20 + [999, 1000, 1001]) + " " + _words(draw, PROSE, 2, 6) + "."
        case _:
            return _words(draw, PROSE, 2, 25) + draw.choice([".", ".", "!", "?", '."', "", ",", "。"])


def _words(draw: random.Random, vocabulary: Sequence[str], least: int, most: int) -> str:
    return " ".join(draw.choices(vocabulary, k=draw.randint(least, most)))
