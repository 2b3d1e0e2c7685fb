"""RefinedWeb's corrections of lines: in a text, out what is left of it, or the reason to drop it all.

Penedo et al. 2023, appendix G.2; what the paper leaves open (the share of upper case, the nouns of a counter) as in
DCLM's refinedweb configuration; settings in `config.RefinedWeb`. Blank lines stay where they are.
"""

import re
import string
from collections import Counter

from data_prep.clean.config import RefinedWeb
from data_prep.clean.outcome import Dropped, above

_ASCII_UPPERCASE = string.ascii_uppercase.encode()
_COUNTED = "likes|shares|comments|retweets|reposts|quotes|bookmarks|upvotes|downvotes|downloads|views|followers"  # DCLM
_COUNTER = re.compile(rf"\W*+\d[\d.,]*+[kmb]?\s++(?:{_COUNTED})\W*+", re.IGNORECASE)
_CUT_OUT = re.compile(r"^sign-in\s?|\s?read more\.\.\.$|\s?items in cart", re.IGNORECASE)


def refinedweb(text: str, rules: RefinedWeb, changes: Counter[str]) -> str | Dropped:
    """The text itself if no line is hit. `changes` counts, by rule, the lines that it removed or edited and bytes."""
    kept: list[str] = []
    words_removed = 0
    for line in text.split("\n"):
        left, rule = _judged(line, rules)
        if left is not None:
            kept.append(left)
        if rule:
            left = left or ""
            words_removed += len(line.split()) - len(left.split())
            changes[f"refinedweb_{rule}_lines"] += 1
            changes[f"refinedweb_{rule}_bytes"] += len(line.encode()) - len(left.encode())
    if words_removed == 0:
        return text
    share = words_removed / len(text.split())
    too_much = above("refinedweb_words_removed", share, rules.max_removed_words, "share of words removed with lines")
    return too_much or "\n".join(kept)


def _judged(line: str, rules: RefinedWeb) -> tuple[str | None, str]:
    """(what is left of the line or None, the rule that hit it or an empty string), in the order of the paper."""
    n_words = len(line.split())
    if n_words == 0:
        return line, ""
    if rules.max_uppercase is not None and _n_uppercase(line) / len(line) > rules.max_uppercase:
        return None, "uppercase"
    if rules.numeric and line.isdigit():
        return None, "numeric"
    if rules.counters and _COUNTER.fullmatch(line):
        return None, "counter"
    if rules.min_words_per_line is not None and n_words < rules.min_words_per_line:
        return None, "few_words"
    if rules.short_line_words is None or n_words > rules.short_line_words:
        return line, ""
    left = _CUT_OUT.sub("", line)
    return left if left.strip() else None, "edited" if left != line else ""


def _n_uppercase(line: str) -> int:
    if line.isascii():
        return len(line) - len(line.encode().translate(None, _ASCII_UPPERCASE))
    return sum(map(str.isupper, line))
