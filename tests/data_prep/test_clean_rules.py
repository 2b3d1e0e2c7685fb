"""The rule sets decide as datatrove's, document by document, given the same words and sentences."""

import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from data_prep.clean.c4 import c4, n_sentences
from data_prep.clean.config import C4, FineWeb, GopherQuality, GopherRepetition, RefinedWeb, Words
from data_prep.clean.fineweb import TERMINAL, fineweb
from data_prep.clean.gopher import gopher_quality
from data_prep.clean.outcome import Dropped, View
from data_prep.clean.refinedweb import refinedweb
from data_prep.clean.repetition import duplicate_characters, gopher_repetition, repeated
from tests.data_prep.clean_oracle import documents, reference

N_DOCUMENTS = 300
GOPHER_QUALITY = {
    "gopher_short_doc": "gopher_too_few_words",
    "gopher_long_doc": "gopher_too_many_words",
    "gopher_below_avg_threshold": "gopher_short_words",
    "gopher_above_avg_threshold": "gopher_long_words",
    "gopher_too_many_hashes": "gopher_hashes",
    "gopher_too_many_ellipsis": "gopher_ellipses",
    "gopher_too_many_bullets": "gopher_bullet_lines",
    "gopher_too_many_end_ellipsis": "gopher_ellipsis_lines",
    "gopher_below_alpha_threshold": "gopher_few_alphabetic_words",
    "gopher_enough_stop_words": "gopher_few_stop_words",
}
GOPHER_REPETITION = {
    "dup_para_frac": "gopher_duplicate_paragraphs",
    "dup_para_char_frac": "gopher_duplicate_paragraph_characters",
    "dup_line_frac": "gopher_duplicate_lines",
    "dup_line_char_frac": "gopher_duplicate_line_characters",
    **{f"top_{n}_gram": f"gopher_top_{n}gram" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"gopher_duplicate_{n}gram" for n in range(5, 11)},
}
FINEWEB = {
    "empty": "empty",
    "line_punct_ratio": "fineweb_few_punctuated_lines",
    "short_line_ratio": "fineweb_short_lines",
    "char_dup_ratio": "fineweb_duplicate_line_characters",
    "list_ratio": "fineweb_list",
}


def theirs(name: str) -> type:
    from datatrove.pipeline import filters

    return getattr(filters, name)


def agree(kind: str, names: dict[str, str], ours: Callable[[str], Dropped | None], texts: list[str], **settings) -> set:
    """Asserts equal decisions and reasons; gives the reasons that occurred."""
    seen: set[str] = set()
    for text in texts:
        reason, _ = reference(theirs(kind), text, **settings)
        broken = ours(text)
        assert (broken.reason if broken else None) == (names[reason] if reason else None), text
        seen.add(broken.reason if broken else "kept")
    return seen


def words_lines(word: str, n: int) -> str:
    return " ".join([word] * n)


STOP = "the and of to "
BY_HAND = [
    STOP + words_lines("house", 45),
    STOP + words_lines("house", 46),
    STOP + words_lines("house", 100_000),
    STOP + words_lines("ab", 60),
    STOP + words_lines("abcdefghijklmn", 60),
    STOP + words_lines("house", 60) + "#" * 7,
    STOP + words_lines("house", 60) + " ..." * 8,
    "\n".join(["- the house and garden"] * 20),
    "\n".join(["the house and garden of the people who live in there"] * 6 + ["that is so, and then..."] * 4),
    STOP + words_lines("house 12 34", 30),
    words_lines("the", 60),
    "",
    "\n",
    "a",
    "... !!! ???",
    "word\n\n\n\nword\n\nword",
    "x\n" * 50,
    "\n\nA\n\nB\n\nA\n",
    "é\u0301 \u202eabc \u200f" + STOP * 20,
    "Run of five words here. Six or more are those. Not one is left behind. " * 2
    + " ".join(f"{a}{b}" for a in "abcdefgh" for b in "ijklmn"),
    "一二三四五六七八九十" * 30,
]


def test_gopher_quality_decides_as_datatrove():
    texts = [text for text in [*documents(1, N_DOCUMENTS), *BY_HAND] if text.strip("\n .!?")]
    seen = agree("GopherQualityFilter", GOPHER_QUALITY, lambda t: gopher_quality(View(t), GopherQuality()), texts)
    assert seen == {*GOPHER_QUALITY.values(), "kept"}


def test_gopher_repetition_decides_as_datatrove():
    texts = [text for text in [*documents(2, 3 * N_DOCUMENTS), *BY_HAND] if text]
    seen = agree(
        "GopherRepetitionFilter", GOPHER_REPETITION, lambda t: gopher_repetition(View(t), GopherRepetition()), texts
    )
    assert seen == {*GOPHER_REPETITION.values(), "kept"}


def test_fineweb_decides_as_datatrove():
    texts = [*documents(3, N_DOCUMENTS), *BY_HAND]
    seen = agree(
        "FineWebQualityFilter", FINEWEB, lambda t: fineweb(View(t), FineWeb()), texts, char_duplicates_ratio=0.1
    )
    assert seen == {*FINEWEB.values(), "kept"}


def test_sentence_ends_are_those_of_datatrove():
    from datatrove.utils.text import TERMINAL_PUNCTUATION

    assert TERMINAL == TERMINAL_PUNCTUATION


@pytest.mark.parametrize(
    ("rules", "settings"),
    [
        (C4(), {"min_num_sentences": 3, "min_words_per_line": 5}),
        (C4(terminal_punctuation=False, min_words_per_line=3, min_sentences=5), {"filter_no_terminal_punct": False}),
    ],
)
def test_c4_leaves_the_same_text_as_datatrove(rules: C4, settings: dict):
    seen: Counter[str | None] = Counter()
    for text in [*documents(4, N_DOCUMENTS), *BY_HAND]:
        reason, left = reference(theirs("C4QualityFilter"), text, **settings)
        ours = c4(text, rules, Counter())
        if reason:
            assert isinstance(ours, Dropped), text
            assert ours.reason == f"c4_{reason}"
        else:
            assert ours == left
        seen[reason] += 1
    assert set(seen) == {None, "lorem_ipsum", "curly_bracket", "too_few_sentences"}


def test_every_line_that_c4_removes_is_counted():
    text = (
        "One two three four five.\n\nHome\nWe use cookies to serve you better.\nEnable javascript to see this page.\n"
    )
    text += "Cite[1] this as you like it, please. And more.\n" + "y" * 1001 + " ends here.\nLast one has five words!"
    changes: Counter[str] = Counter()
    left = c4(text, C4(), changes)
    assert isinstance(left, str)
    assert left == "One two three four five.\nCite this as you like it, please. And more.\nLast one has five words!"
    assert {key: n for key, n in changes.items() if key.endswith("_lines")} == {
        "c4_blank_lines": 1,
        "c4_unpunctuated_lines": 1,
        "c4_policy_lines": 1,
        "c4_javascript_lines": 1,
        "c4_long_word_lines": 1,
    }
    removed = sum(n for key, n in changes.items() if key.endswith("_bytes"))
    assert removed + len("[1]") == len(text) - len(left)


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("", 0),
        ("No mark", 1),
        ("One. Two? Three!", 3),
        ('He said "No." Then "Yes!" and left', 3),
        ("At 3.14 no end...", 1),
        ("Wait... what", 2),
        ("今日は。明日は？", 2),
    ],
)
def test_sentences_are_counted_by_their_end_marks(text: str, n: int):
    assert n_sentences(text) == n


def naive_duplicate_characters(words: list[str], n: int) -> int:
    """The paper's words: characters of n-grams seen before, none of them counted twice."""
    seen: set[tuple[str, ...]] = set()
    total = i = 0
    while i + n <= len(words):
        gram = tuple(words[i : i + n])
        if gram in seen:
            total += len("".join(gram))
            i += n
        else:
            seen.add(gram)
            i += 1
    return total


def test_repeated_runs_are_found_as_by_counting_every_one():
    draw = random.Random(5)
    for _ in range(200):
        words = draw.choices(["a", "b", "cc", "aa", "dog"][: draw.randint(1, 5)], k=draw.randint(0, 60))
        view = View(" ".join(words))
        ends = np.concatenate(([0], np.cumsum(view.lengths[view.ids]))) if words else np.zeros(1, int)
        found = list(repeated(view.ids, 10))
        assert [grams.n for grams in found] == list(range(2, min(10, len(words)) + 1))
        for grams in found:
            runs = [tuple(words[i : i + grams.n]) for i in range(len(words) - grams.n + 1)]
            counts = Counter(runs)
            assert grams.places.tolist() == [i for i, run in enumerate(runs) if counts[run] > 1]
            assert grams.times.tolist() == [counts[run] for run in runs if counts[run] > 1]
            assert duplicate_characters(grams, ends) == naive_duplicate_characters(words, grams.n)


def test_runs_of_different_words_differ_though_their_letters_agree():
    """datatrove joins the words of a run without blanks, so that `ab c` and `a bc` are one to it."""
    words = ["p", "q", "r", "s", "ab", "c", "p", "q", "r", "s", "a", "bc"]
    view = View(" ".join(words))
    assert [len(grams.places) for grams in repeated(view.ids, 6)] == [6, 4, 2, 0, 0]


def test_refinedweb_removes_and_edits_lines_as_the_paper_lists_them():
    prose = "\n".join(f"line {i} of a page that says something in several words" for i in range(30))
    noise = "BUY NOW OR NEVER\n1234567\n3 likes\n1.5K Views\nHome\n\nSign-in to see the rest\nSee here Read more..."
    changes: Counter[str] = Counter()
    left = refinedweb(f"{prose}\n{noise}\nTwo items in cart", RefinedWeb(max_removed_words=None), changes)
    assert left == f"{prose}\n\nto see the rest\nSee here\nTwo"
    assert {key: n for key, n in changes.items() if key.endswith("_lines")} == {
        "refinedweb_uppercase_lines": 1,
        "refinedweb_numeric_lines": 1,
        "refinedweb_counter_lines": 2,
        "refinedweb_few_words_lines": 1,
        "refinedweb_edited_lines": 3,
    }
    dropped = refinedweb(f"{prose}\n{noise}\n" + "HERE AND NOW\n" * 9, RefinedWeb(), Counter())
    assert isinstance(dropped, Dropped)
    assert dropped.reason == "refinedweb_words_removed"


def test_refinedweb_drops_above_a_twentieth_of_the_words():
    for upper, kept in ((5, True), (6, False)):
        text = "ordinary words in lower case " * 19 + "\n" + " ".join(["UPPER"] * upper)
        assert isinstance(refinedweb(text, RefinedWeb(), Counter()), str) is kept  # 95 + 5, then 95 + 6 words


def test_punctuation_apart_makes_each_mark_a_word():
    view = View("J. Mr. Don’t (well-known): 3.14, 1,000 a,b x_y... -- वर्ष。「ok」'tis", Words.punctuation_apart)
    assert view.words == [
        *("J.", "Mr.", "Don", "’t", "(", "well", "-", "known", ")", ":", "3.14", ",", "1,000", "a", ",", "b", "x_y"),
        *("...", "--", "वर्ष", "。", "「", "ok", "」", "'", "tis"),
    ]


def test_the_detail_gives_the_figure_and_the_threshold():
    broken = gopher_quality(View("the end of it"), GopherQuality())
    assert broken == Dropped("gopher_too_few_words", "words 4 < 50")
