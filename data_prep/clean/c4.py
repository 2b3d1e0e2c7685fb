"""C4's rules: in a text, out what is left of it after its lines were judged, or the reason to drop it all.

Raffel et al. 2020, §2.2, in the order of the authors' c4_utils.clean_page; settings in `config.C4`. A line is what
str.splitlines gives; blanks at its ends and blank lines go, as in that code.
"""

import re
from collections import Counter

from data_prep.clean.config import C4
from data_prep.clean.outcome import Dropped, below

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_END_MARKS = (".", "?", "!", '"')
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
# A run of marks with its closing quotes and brackets before a blank or the end; a mark of East Asian or Indic scripts.
_SENTENCE_END = re.compile(r"""(?<![.?!…])[.?!…]++["')\]”’»]*+(?=\s|$)|[。！？।॥۔؟]++""")


def c4(text: str, rules: C4, changes: Counter[str]) -> str | Dropped:
    """The lines that stay, joined by LF. `changes` counts removed lines, their bytes, and citations, by rule."""
    kept: list[str] = []
    sentences = 0
    for original in text.splitlines():
        line, rule = _judged(original.strip(), rules, changes)
        if rule in ("lorem_ipsum", "curly_bracket"):
            return Dropped(f"c4_{rule}", f"in the line {line[:80]!r}")
        if rule:
            changes[f"c4_{rule}_lines"] += 1
            changes[f"c4_{rule}_bytes"] += len(original.encode()) + 1
        else:
            kept.append(line)
            if rules.min_sentences is not None and sentences < rules.min_sentences:
                sentences += n_sentences(line)
    if short := below("c4_too_few_sentences", sentences, rules.min_sentences, "sentences"):
        return short
    return "\n".join(kept).strip()


def n_sentences(text: str) -> int:
    """Ends of sentences in the text, and one more if something stands behind the last: "a simple count of end marks",
    as c4_utils calls it (its code counts with nltk's punkt, which needs a download).
    """
    behind = 0
    n = 0
    for match in _SENTENCE_END.finditer(text):
        n, behind = n + 1, match.end()
    return n + bool(text[behind:].strip())


def _judged(line: str, rules: C4, changes: Counter[str]) -> tuple[str, str]:
    """(the line without citations, the rule that removes it or drops its document, or an empty string)."""
    limit = rules.max_word_length
    if limit and len(line) > limit and max(map(len, line.split())) > limit:
        return line, "long_word"
    if rules.citations and "[" in line:
        line, n = _CITATION.subn("", line)
        if n:
            changes["c4_citations"] += n
    if rules.terminal_punctuation and (not line.endswith(_END_MARKS) or line.endswith("...")):
        return line, "unpunctuated" if line else "blank"
    if rules.min_words_per_line and len(line.split(None, rules.min_words_per_line)) < rules.min_words_per_line:
        return line, "few_words" if line else "blank"
    lower = line.lower()
    if rules.lorem_ipsum and "lorem ipsum" in lower:
        return line, "lorem_ipsum"
    if rules.javascript and "javascript" in lower:
        return line, "javascript"
    if rules.curly_bracket and "{" in line:
        return line, "curly_bracket"
    if rules.policy and any(phrase in lower for phrase in _POLICY):
        return line, "policy"
    return line, ""
