"""What becomes of one document, and the view of its text that the rules share.

In: a text. Out: `Kept` or `Dropped`; `View` computes lines and words once, however many rules ask for them.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count

import numpy as np

from data_prep.clean.config import Words

_PUNCTUATION = r"!-/:-@\[-`{-~¡§«¶·»¿‐-‧‰-⁞、-〃〈-〠！-／：-＠［-｀｛-･"
_PART = rf"[^\s{_PUNCTUATION}]++"
# What spaCy's English rules come to, nearly: initials keep their point; dots and underscores inside a word and commas
# inside a number hold it together; what follows an apostrophe is a word; dots and dashes in a row are one mark.
_TOKENS = re.compile(
    rf"\b(?:[A-Z]|Mrs?|Dr|St)\.(?!\w)|(?:(?<=\w)['’])?{_PART}(?:[._]{_PART}|,(?=\d){_PART})*+|\.\.+|--+|[{_PUNCTUATION}]"
)


@dataclass(frozen=True, slots=True)
class Kept:
    utf8: bytes
    changes: dict[str, int] = field(default_factory=dict)
    """What was altered, by rule: lines, bytes, matches or characters as the key says. Empty: the text is as it came."""


@dataclass(frozen=True, slots=True)
class Dropped:
    reason: str
    """Stable name of the rule in snake_case: what counts are kept by."""
    detail: str
    """The figure against the threshold."""


class View:
    """One text, and what the rules read of it. `words` are counted by distinct word: `vocabulary[i]` occurs
    `occurrences[i]` times, and `ids` is the text as indices into the vocabulary.
    """

    def __init__(self, text: str, words: Words = Words.whitespace):
        self.text = text
        self._words = words

    @cached_property
    def words(self) -> list[str]:
        return self.text.split() if self._words is Words.whitespace else _TOKENS.findall(self.text)

    @cached_property
    def _numbered(self) -> tuple[list[str], np.ndarray]:
        number: defaultdict[str, int] = defaultdict(count().__next__)
        ids = np.fromiter(map(number.__getitem__, self.words), np.int64, len(self.words))
        return list(number), ids

    @property
    def vocabulary(self) -> list[str]:
        return self._numbered[0]

    @property
    def ids(self) -> np.ndarray:
        return self._numbered[1]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Characters of each word of the vocabulary."""
        return np.fromiter(map(len, self.vocabulary), np.int64, len(self.vocabulary))

    @cached_property
    def occurrences(self) -> np.ndarray:
        return np.bincount(self.ids, minlength=len(self.vocabulary))


def duplicates(pieces: list[str]) -> tuple[int, int]:
    """(how many pieces repeat an earlier one, characters in those)."""
    distinct = set(pieces)
    return len(pieces) - len(distinct), _characters(pieces) - _characters(distinct)


def above(reason: str, value: float, limit: float | None, what: str) -> Dropped | None:
    if limit is None or value <= limit:
        return None
    return Dropped(reason, f"{what} {_shown(value)} > {_shown(limit)}")


def below(reason: str, value: float, limit: float | None, what: str) -> Dropped | None:
    if limit is None or value >= limit:
        return None
    return Dropped(reason, f"{what} {_shown(value)} < {_shown(limit)}")


def _shown(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) and not value.is_integer() else f"{int(value)}"


def _characters(pieces: Iterable[str]) -> int:
    return sum(map(len, pieces))
