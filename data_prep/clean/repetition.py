"""Gopher's repetition rules: in a view of one text, out the first rule that it breaks, or None.

Rae et al. 2021, appendix A.1.1 and Table A1; thresholds and choices in `config.GopherRepetition`.

Speed: an n-gram can repeat only where the (n-1)-gram that begins it repeats, so each length looks only at the places
that the length before found. In prose hardly any place is left after 4-grams; the cost is one sort of the pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_prep.clean.config import GopherRepetition
from data_prep.clean.outcome import Dropped, View, above, duplicates


def gopher_repetition(view: View, rules: GopherRepetition) -> Dropped | None:
    return next((broken for broken in _broken(view, rules) if broken), None)


def _broken(view: View, rules: GopherRepetition) -> Iterator[Dropped | None]:
    size = len(view.text)
    paragraphs = _paragraphs(view.text.strip())
    n, characters = duplicates(paragraphs)
    yield _share("paragraphs", n / len(paragraphs), rules.max_duplicate_paragraphs)
    yield _share("paragraph_characters", characters / size, rules.max_duplicate_paragraph_characters)
    lines = _lines(view.text)
    n, characters = duplicates(lines)
    yield _share("lines", n / len(lines), rules.max_duplicate_lines)
    yield _share("line_characters", characters / size, rules.max_duplicate_line_characters)
    ends = np.concatenate(([0], np.cumsum(view.lengths[view.ids])))  # characters before each word, blanks left out
    for grams in repeated(view.ids, 10):
        if grams.n <= 4:
            limit = getattr(rules, f"max_top_{grams.n}gram")
            share = top_characters(grams, ends) / size
            yield above(f"gopher_top_{grams.n}gram", share, limit, f"characters in the top {grams.n}-gram")
        elif (limit := getattr(rules, f"max_duplicate_{grams.n}gram")) is not None:
            share = _duplicate_share(grams, ends, size, limit)
            yield _share(f"{grams.n}gram", share, limit)


@dataclass(frozen=True)
class Grams:
    """Where the words of a text repeat in runs of n: `places` ascending, all that begin a run that occurs twice or
    more; `names` tells the runs apart (int64, same length); `times` says how often each place's run occurs.
    """

    n: int
    places: np.ndarray
    names: np.ndarray
    times: np.ndarray


def repeated(ids: np.ndarray, longest: int) -> Iterator[Grams]:
    """The repeated runs of 2, 3 ... `longest` words of a text given as word numbers; stops where the text is shorter.

    A run's name is unique for its length: (name of its first n-1 words, last word) is one 64-bit key, numbered anew.
    """
    size = len(ids)
    places, names = np.arange(size), ids
    n_words = int(ids.max()) + 1 if size else 0
    for n in range(2, min(longest, size) + 1):
        inside = places + n <= size
        places, names = places[inside], names[inside]
        _, names, times = np.unique(names * n_words + ids[places + n - 1], return_inverse=True, return_counts=True)
        times = times[names]
        again = times > 1
        places, names, times = places[again], names[again], times[again]
        yield Grams(n, places, names, times)


def top_characters(grams: Grams, ends: np.ndarray) -> int:
    """Occurrences times length (blanks between its words included) of the most frequent run, of several the first."""
    if len(grams.places) == 0:  # nothing repeats: the first run of the text, once
        return int(ends[grams.n]) + grams.n - 1
    first = int(np.argmax(grams.times))
    place = grams.places[first]
    return int(grams.times[first]) * int(ends[place + grams.n] - ends[place] + grams.n - 1)


def duplicate_characters(grams: Grams, ends: np.ndarray) -> int:
    """Characters of runs that occurred before, read from left to right, none counted twice: after a repeated run the
    reading goes on behind it.
    """
    seen: set[int] = set()
    total = behind = 0
    for place, name in zip(grams.places.tolist(), grams.names.tolist(), strict=True):
        if place < behind:
            continue
        if name in seen:
            behind = place + grams.n
            total += int(ends[behind] - ends[place])
        else:
            seen.add(name)
    return total


def _paragraphs(text: str) -> list[str]:
    """What two or more line feeds part, in a text that neither begins nor ends with one."""
    return [piece for part in text.split("\n\n") if (piece := part.lstrip("\n"))] or [""]


def _lines(text: str) -> list[str]:
    """What one or more line feeds part; a line feed at either end parts an empty line off, as datatrove counts."""
    ends = [""] * (text.startswith("\n") + text.endswith("\n"))
    return [line for line in text.split("\n") if line] + ends


def _duplicate_share(grams: Grams, ends: np.ndarray, size: int, limit: float) -> float:
    """The share of duplicate characters, or 0 where even all repeated runs together stay within the limit."""
    covered = np.zeros(len(ends) - 1, bool)
    for step in range(grams.n):
        covered[grams.places + step] = True
    if int(np.diff(ends)[covered].sum()) / size <= limit:
        return 0.0
    return duplicate_characters(grams, ends) / size


def _share(what: str, share: float, limit: float | None) -> Dropped | None:
    words = what.replace("_", " ").replace("gram", "-gram characters")
    return above(f"gopher_duplicate_{what}", share, limit, f"share of duplicate {words}")
