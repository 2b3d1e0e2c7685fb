"""The whole cleaner: presets, order, bookkeeping, bad input."""

import pickle
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from conf.compose import App, compose
from conf.errors import ConfigError
from data_prep.clean.cleaner import Cleaner, fingerprint
from data_prep.clean.config import C4, CleanConfig, GopherQuality, GopherRepetition, Newlines, Pii, Words
from data_prep.clean.outcome import Dropped, Kept
from data_prep.files import DataError

PRESETS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "clean").glob("*.yaml"))
PAGE = (
    "The lake lies in a valley that was cut by ice, and its water is cold even in August.\n"
    "Most of the people who live there keep sheep or work in the two hotels by the shore.\n"
    "They say that a bell can be heard under the water when the wind comes from the north.\n"
    "Nobody has ever found the bell, but every child can tell you how it came to be there.\n"
    "Write to lake@valley.example.net with what you have heard, or ask the server at 8.8.8.8 about it.\n"
)


@dataclass
class OnlyClean:
    clean: CleanConfig = field(default_factory=CleanConfig)


def configured(*words: str) -> CleanConfig:
    from hydra.core.config_store import ConfigStore

    defaults = ["base_only_clean", {"clean": "none"}, "_self_"]
    ConfigStore.instance().store("only_clean", {"defaults": defaults})
    return compose(App("only_clean", OnlyClean, {}), words).clean


def problems_of(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        configured(*words)
    return caught.value.problems


def cleaned(text: str, config: CleanConfig, url: str = "") -> Kept | Dropped:
    return Cleaner(config).clean(text.encode(), url)


def reason_of(text: str, config: CleanConfig) -> str:
    outcome = cleaned(text, config)
    return outcome.reason if isinstance(outcome, Dropped) else ""


# --- configuration --------------------------------------------------------------------------------------------------


def test_the_default_does_nothing():
    assert configured() == CleanConfig()
    utf8 = "  \r\n\0\ufeff".encode()
    kept = Cleaner(CleanConfig()).clean(utf8, "http://a.example")
    assert kept == Kept(utf8)
    assert isinstance(kept, Kept)
    assert kept.utf8 is utf8


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_composes_and_keeps_good_prose(name: str):
    config = configured(f"clean={name}")
    assert (config == CleanConfig()) is (name == "none")
    if config.language.enabled:
        pytest.importorskip("resiliparse", reason="the preset recognises languages (extra `clean`)")
    kept = cleaned(PAGE, config)
    assert isinstance(kept, Kept), kept


def test_a_single_threshold_is_overridable():
    changed = ["clean.gopher_quality.min_words=20", "clean.gopher_repetition.max_top_2gram=null"]
    config = configured("clean=gopher", *changed)
    assert config.gopher_quality == GopherQuality(enabled=True, min_words=20)
    assert config.gopher_repetition == GopherRepetition(enabled=True, max_top_2gram=None)
    thirty = "the people of the valley have heard it " * 3 + "and most that live there can tell you"
    assert reason_of(thirty, CleanConfig(gopher_quality=GopherQuality(enabled=True))) == "gopher_too_few_words"
    assert isinstance(cleaned(thirty, CleanConfig(gopher_quality=config.gopher_quality)), Kept)


def test_fineweb_is_the_paper_and_fineweb_datatrove_its_code():
    paper, code = configured("clean=fineweb"), configured("clean=fineweb_datatrove")
    assert not paper.c4.terminal_punctuation
    assert (paper.c4.min_sentences, paper.c4.min_words_per_line) == (3, 5)
    assert (code.c4.min_sentences, code.c4.min_words_per_line) == (5, 3)
    assert paper.fineweb.max_duplicate_line_characters == 0.1
    assert code.fineweb.max_duplicate_line_characters == 0.01
    assert (paper.words, code.words) == (Words.whitespace, Words.punctuation_apart)
    assert code.pii == paper.pii == Pii(emails=True, public_ips=True)


def test_settings_without_effect_and_impossible_ones_are_refused_by_name():
    assert "clean.gopher_quality.enabled=true" in problems_of("clean.gopher_quality.min_words=20")[0]
    assert "clean.words" in problems_of("clean.words=punctuation_apart")[0]
    found = problems_of(
        "clean=fineweb",
        "clean.gopher_repetition.max_duplicate_lines=30",
        "clean.gopher_quality.min_stop_words=9",
        "clean.language.detector=fasttext",
        "clean.language.keep=[]",
    )
    for key in ("max_duplicate_lines=30", "min_stop_words=9", "language.model", "language.keep"):
        assert any(key in problem for problem in found), key
    assert "did you mean `clean.c4.min_sentences`" in problems_of("clean=c4", "clean.c4.min_sentence=1")[0]


def test_the_configuration_imports_nothing_heavy():
    code = "import sys, data_prep.clean.config; assert not {'numpy', 'resiliparse'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


# --- decisions and bookkeeping ----------------------------------------------------------------------------------------


def test_what_was_altered_is_counted_and_a_text_that_was_not_is_the_same_object():
    config = CleanConfig(newlines=Newlines.lf, pii=Pii(emails=True, public_ips=True))
    utf8 = PAGE.encode()
    kept = Cleaner(config).clean(utf8, "")
    assert isinstance(kept, Kept)
    assert b"email@example.com" in kept.utf8
    assert b"192.0.2.1" in kept.utf8
    expected = {"pii_emails": 1, "pii_ips": 1, "documents_altered": 1, "net_bytes_removed": len(utf8) - len(kept.utf8)}
    assert kept.changes == expected
    untouched = Cleaner(config).clean(b"Nothing here.\n", "")
    assert untouched == Kept(b"Nothing here.\n")


def test_rules_apply_in_the_documented_order():
    config = configured("clean=gopher", "clean.c4.enabled=true", "clean.fineweb.enabled=true")
    assert reason_of("Home {\n" * 9, config) == "gopher_duplicate_lines"
    assert reason_of("the old mill of the town {\n", config) == "gopher_top_2gram"
    assert reason_of(PAGE + "int main() { return 0; } is what it says on the wall of the inn.\n", config) == (
        "c4_curly_bracket"
    )


def test_a_cleaner_decides_alike_in_another_process(tmp_path: Path):
    block = tmp_path / "block.txt"
    block.write_text("blocked.example\n")
    config = configured("clean=gopher", f"clean.url_block_list.path={block}")
    here, there = Cleaner(config), pickle.loads(pickle.dumps(Cleaner(config)))
    for url in ("http://www.blocked.example/x", "http://other.example", ""):
        assert here.clean(PAGE.encode(), url) == there.clean(PAGE.encode(), url)
    assert here.clean(PAGE.encode(), "http://www.blocked.example/x") == Dropped("url_blocked_domain", "blocked.example")


def test_the_fingerprint_follows_the_content_of_files_not_their_place(tmp_path: Path):
    for name, content in (("a", "x.example\n"), ("b", "x.example\n"), ("c", "y.example\n")):
        (tmp_path / name).write_text(content)
    a, b, c = (fingerprint(configured(f"clean.url_block_list.path={tmp_path / name}")) for name in "abc")
    assert a == b != c
    assert len({a, c, fingerprint(configured()), fingerprint(configured("clean=gopher"))}) == 4
    with pytest.raises(DataError, match=r"none\.txt"):
        fingerprint(configured(f"clean.url_block_list.path={tmp_path}/none.txt"))


def test_a_document_emptied_by_its_rules_is_dropped_as_empty():
    config = CleanConfig(c4=C4(enabled=True, min_sentences=None))
    assert reason_of("Home\nAbout us\n", config) == "empty"
    assert reason_of(" \u2003\n\t", config) == "empty"


# --- bad input --------------------------------------------------------------------------------------------------------

BAD = {
    "nul": "\0" * 3000,
    "only punctuation": "!?.,;" * 2000,
    "no blanks": "abcdefghij" * 10_000,
    "no blanks, one letter": "x" * 100_000,
    "direction marks": "\u200f\u202e\u2067" * 3000,
    "combining": "e" + "\u0301" * 10_000,
    "crlf": "A line of the text that ends as Windows likes it.\r\n" * 400,
    "line separators": "A line of the text that ends with its own sign.\u2028" * 400,
    "many lines": "ab\n" * 100_000,
    "blank lines": "\n" * 100_000,
    "three characters": "abc",
    "dots": "." * 100_000 + "x",
    "dots and quotes": ".\"')" * 30_000 + "x",
    "at signs": "@" * 100_000,
    "addresses": "a@b." * 30_000,
    "long local": "a." * 50_000 + "@x.org",
    "long domain": "a@" + "b." * 50_000,
    "long label": "a@" + "b-" * 50_000,
    "digits": "1." * 50_000,
    "colons": "2001:" * 30_000,
    "hex": "2fff:" + "f" * 100_000,
    "counter": "1" + ",1" * 100_000 + "k" + " " * 100_000 + "like",
    "counter of signs": "-" * 100_000 + "1",
    "citations": "[" * 100_000 + "1" * 1000 + "]",
    "read more": "read more.." * 10_000,
    "same words": "word " * 100_000,
    "two words": "word other " * 50_000,
}


@pytest.fixture(scope="module")
def cleaners() -> list[Cleaner]:
    """FineWeb as it is; and everything on at once with thresholds that never drop, so that all rules see the text."""
    pytest.importorskip("resiliparse", reason="recognises languages (extra `clean`)")
    return [Cleaner(configured("clean=fineweb")), Cleaner(_dropping_nothing())]


@pytest.mark.parametrize("name", BAD)
def test_no_input_is_slow_or_raises(name: str, cleaners: list[Cleaner]):
    text = BAD[name]
    for cleaner in cleaners:
        began = time.process_time()
        outcome = cleaner.clean(text.encode(), "")
        seconds = time.process_time() - began
        assert isinstance(outcome, Kept | Dropped)
        assert seconds < 2, f"{seconds:.1f} s for {len(text)} characters"


def _dropping_nothing() -> CleanConfig:
    more = ["clean.unicode=nfkc", "clean.control_characters=remove", "clean.refinedweb.enabled=true"]
    config = configured("clean=fineweb", *more)
    config.language.enabled = False
    config.words = Words.punctuation_apart
    for rules in (config.gopher_repetition, config.gopher_quality, config.c4, config.refinedweb, config.fineweb):
        for key in vars(rules):
            if key.startswith(("max_duplicate", "max_top")):
                setattr(rules, key, 1.0e9)  # computed, never exceeded
            elif key.startswith(("min_", "max_")):
                setattr(rules, key, None)
    return config


def test_a_line_of_fifty_megabytes_and_a_million_lines_take_seconds():
    cleaner = Cleaner(configured("clean=gopher", "clean.c4.enabled=true"))
    for text in ("x" * 50_000_000, "ab cd\n" * 1_000_000):
        began = time.process_time()
        assert isinstance(cleaner.clean(text.encode(), ""), Dropped)
        assert time.process_time() - began < 6
