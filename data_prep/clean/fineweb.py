"""FineWeb's rules: in a view of one text, out the first rule that it breaks, or None.

Penedo et al. 2024, §3.6; thresholds and choices in `config.FineWeb`.
"""

from collections.abc import Iterator

from data_prep.clean.config import FineWeb
from data_prep.clean.outcome import Dropped, View, above, below, duplicates

# Code points with Unicode's property Sentence_Terminal (PropList.txt), and the Khmer signs U+17D6, U+17D9, U+17DA.
_SENTENCE_TERMINAL = """
21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736 17d4-17d6
17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e 1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049
2e2e 2e3c 2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb
fe52 fe56-fe57 ff01 ff0e ff1f ff61 10a56-10a57 10f55-10f59 10f86-10f89 11047-11048 110be-110c1 11141-11143
111c5-111c6 111cd 111de-111df 11238-11239 1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642
1173c-1173e 11944 11946 11a42-11a43 11a9b-11a9c 11c41-11c42 11ef7-11ef8 11f43-11f44 16a6e-16a6f 16af5
16b37-16b38 16b44 16e98 1bc9f 1da88
"""


def fineweb(view: View, rules: FineWeb) -> Dropped | None:
    return next((broken for broken in _broken(view, rules) if broken), None)


def _broken(view: View, rules: FineWeb) -> Iterator[Dropped | None]:
    lines = [line for line in view.text.split("\n") if line and not line.isspace()]
    if not lines:
        yield Dropped("empty", "no line holds more than white space")
        return
    punctuated = sum(line[-1] in TERMINAL for line in lines) / len(lines)
    yield below("fineweb_few_punctuated_lines", punctuated, rules.min_punctuated_lines, "share of punctuated lines")
    short = sum(len(line) <= rules.short_line_characters for line in lines) / len(lines)
    yield above("fineweb_short_lines", short, rules.max_short_lines, "share of short lines")
    newlines = view.text.count("\n")
    share = duplicates(lines)[1] / (len(view.text) - newlines)
    limit = rules.max_duplicate_line_characters
    yield above("fineweb_duplicate_line_characters", share, limit, "share of characters in duplicate lines")
    yield above("fineweb_list", newlines / len(view.words), rules.max_newlines_per_word, "newlines per word")


def _characters(ranges: str) -> frozenset[str]:
    bounds = [item.partition("-") for item in ranges.split()]
    return frozenset(chr(code) for low, _, high in bounds for code in range(int(low, 16), int(high or low, 16) + 1))


TERMINAL = _characters(_SENTENCE_TERMINAL)
