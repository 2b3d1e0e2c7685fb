"""Gopher's quality rules: in a view of one text, out the first rule that it breaks, or None.

Rae et al. 2021, appendix A.1.1 "Quality Filtering"; thresholds and choices in `config.GopherQuality`.
"""

import re
from collections.abc import Iterator

import numpy as np

from data_prep.clean.config import GopherQuality
from data_prep.clean.outcome import Dropped, View, above, below

_LETTER_OR_DIGIT = re.compile(r"[^\W_]")
_BULLETS = ("•", "-")
_ELLIPSES = ("...", "…")


def gopher_quality(view: View, rules: GopherQuality) -> Dropped | None:
    return next((broken for broken in _broken(view, rules) if broken), None)


def _broken(view: View, rules: GopherQuality) -> Iterator[Dropped | None]:
    """One outcome a rule, lazily, in datatrove's order, which follows the paper's text."""
    n_words = len(view.words)
    proper, lettered = _kinds(view.vocabulary)
    n_proper = int(view.occurrences[proper].sum())
    yield below("gopher_too_few_words", n_proper, rules.min_words, "words")
    yield above("gopher_too_many_words", n_proper, rules.max_words, "words")
    if n_proper == 0:  # the remaining rules are shares of words
        return
    mean = int((view.occurrences * view.lengths)[proper].sum()) / n_proper
    yield below("gopher_short_words", mean, rules.min_mean_word_length, "mean word length")
    yield above("gopher_long_words", mean, rules.max_mean_word_length, "mean word length")
    text = view.text
    yield above("gopher_hashes", text.count("#") / n_words, rules.max_hashes_per_word, "hashes per word")
    ellipses = sum(map(text.count, _ELLIPSES))
    yield above("gopher_ellipses", ellipses / n_words, rules.max_ellipses_per_word, "ellipses per word")
    lines = text.splitlines()
    bullets = sum(line.lstrip().startswith(_BULLETS) for line in lines)
    yield above("gopher_bullet_lines", bullets / len(lines), rules.max_bullet_lines, "share of bullet lines")
    endings = sum(line.rstrip().endswith(_ELLIPSES) for line in lines)
    yield above("gopher_ellipsis_lines", endings / len(lines), rules.max_ellipsis_lines, "share of lines with ellipsis")
    share = int(view.occurrences[lettered].sum()) / n_words
    yield below("gopher_few_alphabetic_words", share, rules.min_alphabetic_words, "share of words with a letter")
    found = len(set(rules.stop_words).intersection(view.vocabulary))
    yield below("gopher_few_stop_words", found, rules.min_stop_words, "different stop words")


def _kinds(vocabulary: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """For each word: has it a letter or digit, has it a letter."""
    lettered = np.fromiter(map(str.isalpha, vocabulary), bool, len(vocabulary))
    proper = lettered.copy()
    for i in np.flatnonzero(~lettered).tolist():
        lettered[i] = any(map(str.isalpha, vocabulary[i]))
        proper[i] = lettered[i] or _LETTER_OR_DIGIT.search(vocabulary[i]) is not None
    return proper, lettered
