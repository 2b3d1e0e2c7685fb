"""What `clean` can be asked to do to one document: plain dataclasses whose defaults are the published thresholds.

In: nothing. Out: `CleanConfig`. Every rule set is off until its `enabled` is true, so that the default does nothing;
presets that turn rule sets on are the files of `conf/clean`. A threshold of null turns its single rule off. A setting
of a rule set that is off would have no effect and is refused.

Sources of the thresholds, named at each class: Gopher = Rae et al. 2021, arXiv:2112.11446; C4 = Raffel et al. 2020,
JMLR 21(140); RefinedWeb = Penedo et al. 2023, arXiv:2306.01116; DCLM = Li et al. 2024, arXiv:2406.11794; FineWeb =
Penedo et al. 2024, arXiv:2406.17557.
"""

import dataclasses
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class UnicodeForm(StrEnum):
    none = "none"
    nfc = "nfc"
    nfkc = "nfkc"


class ControlCharacters(StrEnum):
    keep = "keep"
    remove = "remove"


class Newlines(StrEnum):
    keep = "keep"
    lf = "lf"


class Words(StrEnum):
    whitespace = "whitespace"
    punctuation_apart = "punctuation_apart"


class Detector(StrEnum):
    resiliparse = "resiliparse"
    fasttext = "fasttext"


@dataclass
class UrlBlockList:
    """Drops pages by where they come from. A document without URL passes and is counted."""

    path: str | None = None
    """A UTF-8 text file, one entry a line, `#` begins a comment. `example.com` blocks that domain and all below it,
    `example.com/page` that page, and a word without dot or slash every URL that has it between non-letters."""


@dataclass
class Language:
    """Keeps documents in the languages named. FineWeb §3.3 and RefinedWeb §3.1 use fastText with a score of 0.65."""

    enabled: bool = False
    keep: list[str] = field(default_factory=lambda: ["en"])
    """Codes as the detector gives them: ISO 639-1 for resiliparse and fastText's lid.176."""
    detector: Detector = Detector.resiliparse
    """`resiliparse` is built in (extra `clean`); `fasttext` needs a model file of yours and the package fasttext."""
    max_rank: int = 1200
    """resiliparse: largest out-of-place rank (Cavnar & Trenkle 1994: a distance, not a probability) that counts as
    recognised; its documentation calls values above 1200 usually false."""
    model: str | None = None
    """fasttext: path of the model."""
    min_score: float = 0.65
    """fasttext: least probability of the best label."""

    def problems(self) -> list[str]:
        found: list[str] = []
        if self.enabled and not self.keep:
            found.append(
                "clean.language.keep names no language, so every document would be dropped; [en] keeps English"
            )
        if self.enabled and self.detector is Detector.fasttext and not self.model:
            found.append(
                "clean.language.detector=fasttext needs clean.language.model=FILE (lid.176 and GlotLID are downloads "
                "with licences of their own); clean.language.detector=resiliparse needs no file"
            )
        if self.enabled and self.detector is Detector.resiliparse and (self.model or self.min_score != 0.65):
            found.append(
                "clean.language.model and clean.language.min_score have no effect with detector=resiliparse; "
                "drop them or set clean.language.detector=fasttext"
            )
        if self.enabled and self.detector is Detector.fasttext and self.max_rank != 1200:
            found.append("clean.language.max_rank has no effect with detector=fasttext; set clean.language.min_score")
        return found


@dataclass
class GopherRepetition:
    """Gopher appendix A.1.1, Table A1: shares above which a document repeats itself. English was meant; any will do.

    A duplicate is every occurrence but the first. Shares of characters are of all characters of the document, white
    space included (as datatrove; Dolma divides by characters that are not white space, DCLM counts first occurrences
    as duplicates too; the paper says only "fraction of characters").
    """

    enabled: bool = False
    max_duplicate_lines: float | None = 0.30
    max_duplicate_paragraphs: float | None = 0.30
    max_duplicate_line_characters: float | None = 0.20
    max_duplicate_paragraph_characters: float | None = 0.20
    max_top_2gram: float | None = 0.20
    """Share of characters in the most frequent pair of words; likewise for three and four."""
    max_top_3gram: float | None = 0.18
    max_top_4gram: float | None = 0.16
    max_duplicate_5gram: float | None = 0.15
    """Share of characters in repeated runs of five words, none counted twice; likewise for six to ten."""
    max_duplicate_6gram: float | None = 0.14
    max_duplicate_7gram: float | None = 0.13
    max_duplicate_8gram: float | None = 0.12
    max_duplicate_9gram: float | None = 0.11
    max_duplicate_10gram: float | None = 0.10

    def problems(self) -> list[str]:
        return _not_shares("gopher_repetition", self)


@dataclass
class GopherQuality:
    """Gopher appendix A.1.1, "Quality Filtering": made for English.

    Where implementations differ the paper decides: *mean* word length (Dolma takes the median), two *different* stop
    words (Dolma and DCLM count repetitions). As in datatrove, what has no letter or digit is no word for the count
    and the mean.
    """

    enabled: bool = False
    min_words: int | None = 50
    max_words: int | None = 100_000
    min_mean_word_length: float | None = 3.0
    max_mean_word_length: float | None = 10.0
    max_hashes_per_word: float | None = 0.1
    max_ellipses_per_word: float | None = 0.1
    """Of `...` and `…` together."""
    max_bullet_lines: float | None = 0.9
    """Share of lines that begin with `•` or `-`."""
    max_ellipsis_lines: float | None = 0.3
    """Share of lines that end in `...` or `…`."""
    min_alphabetic_words: float | None = 0.8
    """Share of words with at least one letter."""
    min_stop_words: int | None = 2
    """How many of `stop_words` must occur at least once."""
    stop_words: list[str] = field(default_factory=lambda: ["the", "be", "to", "of", "and", "that", "have", "with"])

    def problems(self) -> list[str]:
        found = _not_shares("gopher_quality", self, ["max_bullet_lines", "max_ellipsis_lines", "min_alphabetic_words"])
        if self.min_words and self.max_words and self.min_words > self.max_words:
            found.append(f"clean.gopher_quality.min_words={self.min_words} exceeds max_words={self.max_words}")
        if self.min_stop_words and self.min_stop_words > len(set(self.stop_words)):
            found.append(
                f"clean.gopher_quality.min_stop_words={self.min_stop_words} cannot be met: "
                f"stop_words has {len(set(self.stop_words))}"
            )
        return found


@dataclass
class C4:
    """C4 §2.2, in the order of the authors' code (c4_utils.clean_page). Removes lines, then judges what is left.

    The paper and that code ask for 3 sentences a page and 5 words a line. Dodge et al. 2021 and datatrove have the two
    numbers exchanged; FineWeb was made that way, see conf/clean/fineweb_datatrove.yaml. Sentences are counted by their
    end marks, not by nltk's punkt, which needs a download. The paper's list of bad words is left out.
    """

    enabled: bool = False
    terminal_punctuation: bool = True
    """Removes lines that do not end in `.`, `?`, `!` or `"` (datatrove: or `'`), or that end in `...`."""
    min_words_per_line: int | None = 5
    max_word_length: int | None = 1000
    """Removes lines with a longer word (code only)."""
    citations: bool = True
    """Removes `[1]`, `[]`, `[edit]`, `[citation needed]` (code only)."""
    javascript: bool = True
    """Removes lines that name javascript."""
    policy: bool = True
    """Removes lines with a phrase such as `privacy policy` or `uses cookies`."""
    lorem_ipsum: bool = True
    """Drops documents with `lorem ipsum` in a line that would stay."""
    curly_bracket: bool = True
    """Drops documents with `{` in a line that would stay."""
    min_sentences: int | None = 3


@dataclass
class RefinedWeb:
    """RefinedWeb appendix G.2, "Line-wise corrections"; what it leaves open as in DCLM's refinedweb configuration.

    Lines that are mainly upper case, only digits, a counter (`3 likes`) or a single word are removed; of short lines
    `sign-in` at the beginning, `read more...` at the end and `items in cart` anywhere is cut out.
    """

    enabled: bool = False
    max_uppercase: float | None = 0.5
    """Share of a line's characters (DCLM; the paper says "mainly")."""
    numeric: bool = True
    counters: bool = True
    min_words_per_line: int | None = 2
    short_line_words: int | None = 10
    """Lines of at most so many words are edited."""
    max_removed_words: float | None = 0.05
    """Drops the document when more than this share of its words was removed."""

    def problems(self) -> list[str]:
        return _not_shares("refinedweb", self, ["max_uppercase", "max_removed_words"])


@dataclass
class FineWeb:
    """FineWeb §3.6. The paper's 0.1 for duplicated lines stands in its published code as 0.01, and that code has a
    fourth rule, on newlines: see conf/clean/fineweb_datatrove.yaml. Comparisons at equality are the code's.
    """

    enabled: bool = False
    min_punctuated_lines: float | None = 0.12
    """Share of lines, blank ones left out, that must end a sentence (Unicode's Sentence_Terminal)."""
    max_short_lines: float | None = 0.67
    short_line_characters: int = 30
    """A line of at most so many characters is short."""
    max_duplicate_line_characters: float | None = 0.1
    max_newlines_per_word: float | None = 0.3
    """In the code, not in the paper: finds lists."""

    def problems(self) -> list[str]:
        return _not_shares(
            "fineweb", self, ["min_punctuated_lines", "max_short_lines", "max_duplicate_line_characters"]
        )


@dataclass
class Pii:
    """Masks personal data as FineWeb §3.7 does: every match becomes one address reserved for documentation, whatever
    the order of documents (datatrove rotates through several).
    """

    emails: bool = False
    """E-mail addresses become email@example.com (RFC 2606)."""
    public_ips: bool = False
    """Public IP addresses become 192.0.2.1 (RFC 5737) or 2001:db8::1 (RFC 3849); private ones stay."""


@dataclass
class CleanConfig:
    """The rules apply in the order of these fields; the first that fails gives the reason."""

    unicode: UnicodeForm = UnicodeForm.none
    """`nfkc` also turns ligatures, full-width and superscript characters into plain ones. Mojibake is never mended."""
    newlines: Newlines = Newlines.keep
    """`lf` turns CRLF, CR, VT, FF, NEL, U+2028 and U+2029 into LF; most rules know no other line end."""
    control_characters: ControlCharacters = ControlCharacters.keep
    """`remove` takes out C0, DEL and C1 controls except tab and line ends. Direction marks and joiners stay."""
    url_block_list: UrlBlockList = field(default_factory=UrlBlockList)
    language: Language = field(default_factory=Language)
    words: Words = Words.whitespace
    """What a word is to Gopher and FineWeb: text between white space (as in Dolma, RedPajama and C4's code), or that
    with each punctuation mark a word of its own (nearly as the tokenizers of datatrove, with which FineWeb was made).
    The papers do not say. It matters most to `min_alphabetic_words`, which drops many more with marks apart."""
    gopher_repetition: GopherRepetition = field(default_factory=GopherRepetition)
    gopher_quality: GopherQuality = field(default_factory=GopherQuality)
    c4: C4 = field(default_factory=C4)
    refinedweb: RefinedWeb = field(default_factory=RefinedWeb)
    fineweb: FineWeb = field(default_factory=FineWeb)
    pii: Pii = field(default_factory=Pii)

    def problems(self) -> list[str]:
        """Settings that would have no effect; relations inside a rule set are the rule set's own."""
        found: list[str] = []
        for name in ("language", "gopher_repetition", "gopher_quality", "c4", "refinedweb", "fineweb"):
            rules: Any = getattr(self, name)
            if not rules.enabled and rules != type(rules)():
                default: Any = type(rules)()
                names = [item.name for item in dataclasses.fields(rules)]
                changed = ", ".join(key for key in names if getattr(rules, key) != getattr(default, key))
                found.append(
                    f"clean.{name}.{changed} has no effect while clean.{name}.enabled=false; "
                    f"set clean.{name}.enabled=true, or drop it"
                )
        using_words = (self.gopher_repetition, self.gopher_quality, self.fineweb)
        if self.words is not Words.whitespace and not any(rules.enabled for rules in using_words):
            found.append(
                f"clean.words={self.words} has no effect: none of gopher_repetition, gopher_quality, fineweb is enabled"
            )
        return found


def _not_shares(section: str, rules: Any, names: list[str] | None = None) -> list[str]:
    """Thresholds outside 0 ... 1; without `names` all of the section's numbers."""
    values = {item.name: getattr(rules, item.name) for item in dataclasses.fields(rules) if item.name != "enabled"}
    return [
        f"clean.{section}.{name}={value} must lie in 0 ... 1: it is a share; null turns the rule off"
        for name, value in values.items()
        if (names is None or name in names) and value is not None and not 0 <= value <= 1
    ]
