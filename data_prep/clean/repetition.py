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
    limits = {n: limit for n in range(5, 11) if (limit := getattr(rules, f"max_duplicate_{n}gram")) is not None}
    for grams in repeated(view.ids, 10):
        n = grams.n
        if n <= 4:
            share = top_characters(grams, ends) / size
            limit = getattr(rules, f"max_top_{n}gram")
            yield above(f"gopher_top_{n}gram", share, limit, f"share of characters in the top {n}-gram")
        if n >= 4 and _covered(grams, ends) / size <= min(limits.values(), default=1.0):
            return  # longer runs lie inside these, and duplicates are a part of them: no limit can be reached
        if n in limits:
            share = duplicate_characters(grams, ends) / size
            yield above(f"gopher_duplicate_{n}gram", share, limits[n], f"share of characters in duplicate {n}-grams")


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
    places, names, times = np.arange(size), ids, ids
    n_words = int(ids.max()) + 1 if size else 0
    for n in range(2, min(longest, size) + 1):
        inside = places + n <= size
        places, names, times = places[inside], names[inside], times[inside]
        if len(places):
            names, times = _numbered(names * n_words + ids[places + (n - 1)])
            again = times > 1
            places, names, times = places[again], names[again], times[again]
        yield Grams(n, places, names, times)


def _numbered(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the rank of each key among the distinct ones, how often it occurs): np.unique with less ado for short texts."""
    order = keys.argsort()
    ordered = keys[order]
    new = np.empty(len(keys), bool)
    new[0] = False
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    names = np.empty(len(keys), np.int64)
    names[order] = new.cumsum()
    return names, np.bincount(names)[names]


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


def _covered(grams: Grams, ends: np.ndarray) -> int:
    """Characters of all words that some repeated run of this length holds, first occurrences included."""
    if len(grams.places) == 0:
        return 0
    behind = grams.places + grams.n
    behind[:-1] = np.minimum(behind[:-1], grams.places[1:])
    return int((ends[behind] - ends[grams.places]).sum())


def _share(what: str, share: float, limit: float | None) -> Dropped | None:
    return above(f"gopher_duplicate_{what}", share, limit, f"share of duplicate {what.replace('_', ' ')}")
