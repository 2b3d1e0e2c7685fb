"""Masking, block list, languages and characters, each for itself."""

import ipaddress
import sys
from collections import Counter
from pathlib import Path

import pytest

from conf.errors import ConfigError
from data_prep.clean.characters import with_policies
from data_prep.clean.config import (
    CleanConfig,
    ControlCharacters,
    Detector,
    Language,
    Newlines,
    Pii,
    UnicodeForm,
)
from data_prep.clean.language import Recogniser
from data_prep.clean.outcome import Dropped
from data_prep.clean.pii import masked
from data_prep.clean.urls import BlockList
from data_prep.files import DataError

ALL_PII = Pii(emails=True, public_ips=True)


def masked_text(text: str) -> str:
    return masked(text, ALL_PII, Counter())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mail jane.doe+x@mail.example.co.uk.", "mail email@example.com."),
        ("<a@b.org>,(c_d@e-f.de) 'g@h.io'", "<email@example.com>,(email@example.com) 'email@example.com'"),
        ("élodie@société.fr", "email@example.com"),
        ("a@b.org@c.org", "email@example.com@c.org"),
        ("mailto:..x.y@z.com", "mailto:..email@example.com"),
        ("x.@y.com, @user, user@localhost, a @ b.c", "x.@y.com, @user, user@localhost, a @ b.c"),
        ("npm i react@18.2.0 and a@b.T", "npm i react@18.2.0 and a@b.T"),
        ("8.8.8.8, 10.0.0.1, 127.0.0.1, 192.168.1.1", "192.0.2.1, 10.0.0.1, 127.0.0.1, 192.168.1.1"),
        ("999.1.1.1 v1.2.3.4.5 1.2.3.4x 01.2.3.4", "999.1.1.1 v1.2.3.4.5 1.2.3.4x 01.2.3.4"),
        ("http://8.8.4.4:80/x, at 8.8.4.4.", "http://192.0.2.1:80/x, at 192.0.2.1."),
        ("2606:4700:4700::1111 and fe80::1 at 12:30:45", "2001:db8::1 and fe80::1 at 12:30:45"),
        ("2001:db8::1 std::vector 2020:12:24", "2001:db8::1 std::vector 2020:12:24"),
    ],
)
def test_addresses_of_persons_and_public_hosts_are_masked_and_nothing_else(text: str, expected: str):
    assert masked_text(text) == expected


def test_masking_does_not_depend_on_what_was_masked_before():
    assert masked_text("a@b.org c@d.org") == "email@example.com email@example.com"
    assert masked_text("c@d.org") == "email@example.com"


def test_masks_are_addresses_reserved_for_documentation_so_masking_twice_alters_nothing():
    text = masked_text("x@y.org 8.8.8.8 2606:4700::1")
    assert masked_text(text) == text
    assert not ipaddress.ip_address("192.0.2.1").is_global


def test_plain_addresses_are_found_as_by_datatrove():
    pytest.importorskip("datatrove", reason="reference for masking (extra `test`)")
    from datatrove.pipeline.formatters import PIIFormatter

    theirs = PIIFormatter(email_replacement="email@example.com", ip_replacement="192.0.2.1")
    for text in (
        "Write to john.smith@company.com, or to info@shop.example.org!",
        "(o'neil@x.ie) first_last%tag@sub.domain.museum; q=a@b.cc&r",
        "Servers 1.1.1.1, 172.16.0.9 and 93.184.216.34:8080 answered.",
        "None here: a@, @b.com, 1.2.3, 300.1.1.1, 256.256.256.256",
    ):
        assert masked_text(text) == theirs.format(text)


def test_each_kind_is_masked_only_if_asked():
    text = "a@b.org 8.8.8.8"
    assert masked(text, Pii(emails=True), Counter()) == "email@example.com 8.8.8.8"
    assert masked(text, Pii(public_ips=True), Counter()) == "a@b.org 192.0.2.1"


@pytest.fixture
def blocks(tmp_path: Path) -> BlockList:
    path = tmp_path / "block.txt"
    path.write_text(
        "# ours\nBad.Example  # all of it\n.dotted.example\nhttps://ok.example/page/#top\ncasino\nbücher.example\n"
    )
    return BlockList(str(path))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://bad.example/", "url_blocked_domain"),
        ("https://a.b.BAD.example:8080/x?y", "url_blocked_domain"),
        ("http://user:pw@bad.example./x", "url_blocked_domain"),
        ("bad.example", "url_blocked_domain"),
        ("http://x.dotted.example", "url_blocked_domain"),
        ("http://xn--bcher-kva.example/a", "url_blocked_domain"),
        ("http://BÜCHER.example/a", "url_blocked_domain"),
        ("http://notbad.example/", None),
        ("http://bad.example.org/", None),
        ("http://ok.example/bad.example", None),
        ("http://ok.example/page", "url_blocked_page"),
        ("https://OK.example/page/#part", "url_blocked_page"),
        ("http://ok.example/page/two", None),
        ("http://ok.example/best-casino_games", "url_blocked_word"),
        ("http://ok.example/casinos", None),
        ("http://[::1]:80/", None),
        ("not a url at all", None),
        ("://///", None),
    ],
)
def test_urls_are_blocked_by_domain_page_and_word(blocks: BlockList, url: str, reason: str | None):
    blocked = blocks.blocks(url)
    assert (blocked.reason if blocked else None) == reason


def test_a_missing_block_list_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"none\.txt.*clean\.url_block_list\.path"):
        BlockList(str(tmp_path / "none.txt"))


ENGLISH = "The lake lies in a valley that was cut by ice, and its water is cold even in the month of August."
GERMAN = "Der See liegt in einem Tal, das vom Eis geschnitten wurde, und sein Wasser ist auch im August kalt."


def test_languages_are_told_apart_and_short_texts_are_unsure():
    pytest.importorskip("resiliparse", reason="the detector (extra `clean`)")
    english = Recogniser(Language(enabled=True))
    assert english.refuses(ENGLISH) is None
    german = english.refuses(GERMAN)
    assert german == Dropped("language_other", "de, not en")
    assert Recogniser(Language(enabled=True, keep=["de", "en"])).refuses(GERMAN) is None
    strict = Recogniser(Language(enabled=True, max_rank=100)).refuses(ENGLISH)
    assert strict is not None
    assert strict.reason == "language_unsure"
    for text in ("abc", "", "。。。", "\0", "\u200f"):
        assert english.refuses(text) is None or isinstance(english.refuses(text), Dropped)


def test_an_unknown_language_code_is_refused_before_it_drops_everything():
    pytest.importorskip("resiliparse", reason="the detector (extra `clean`)")
    with pytest.raises(ConfigError, match=r"english.*it knows af"):
        Recogniser(Language(enabled=True, keep=["english"]))


def test_a_missing_package_or_model_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "resiliparse.parse.lang", None)
    with pytest.raises(ConfigError, match=r"crisol\[clean\]"):
        Recogniser(Language(enabled=True))
    monkeypatch.setitem(sys.modules, "fasttext", None)
    with pytest.raises(ConfigError, match="fasttext-numpy2-wheel"):
        Recogniser(Language(enabled=True, detector=Detector.fasttext, model=str(tmp_path / "x.bin")))


def test_a_fasttext_model_of_the_user_decides_by_its_score(tmp_path: Path):
    fasttext = pytest.importorskip("fasttext", reason="needs fasttext-numpy2-wheel")
    lines = [f"__label__en {ENGLISH}", f"__label__de {GERMAN}"] * 50
    (tmp_path / "train.txt").write_text("\n".join(lines))
    try:
        model = fasttext.train_supervised(str(tmp_path / "train.txt"), epoch=5, lr=0.05, thread=1, minn=0, maxn=0)
    except RuntimeError as error:
        pytest.skip(f"this build of fasttext cannot train the model to test with: {error}")
    model.save_model(str(tmp_path / "m.bin"))
    rules = Language(enabled=True, detector=Detector.fasttext, model=str(tmp_path / "m.bin"), min_score=0.3)
    assert Recogniser(rules).refuses(ENGLISH + "\n" + ENGLISH) is None
    refused = Recogniser(rules).refuses(GERMAN)
    assert refused == Dropped("language_other", "de, not en")
    rules.min_score = 1.1
    unsure = Recogniser(rules).refuses(ENGLISH)
    assert unsure is not None
    assert unsure.reason == "language_unsure"
    (tmp_path / "m.bin").write_bytes(b"no model")
    with pytest.raises(DataError, match="is not a fastText model"):
        Recogniser(rules)


def altered(text: str, **policies) -> tuple[str, dict[str, int]]:
    changes: Counter[str] = Counter()
    return with_policies(text, CleanConfig(**policies), changes), dict(changes)


def test_unicode_forms_are_those_of_the_standard():
    assert altered("e\u0301 ﬁ ²", unicode=UnicodeForm.nfc) == ("é ﬁ ²", {"documents_normalized": 1})
    assert altered("e\u0301 ﬁ ²", unicode=UnicodeForm.nfkc) == ("é fi 2", {"documents_normalized": 1})
    assert altered("é plain", unicode=UnicodeForm.nfc) == ("é plain", {})
    assert altered("FranÃ§ais", unicode=UnicodeForm.nfkc)[0] == "FranÃ§ais"  # mojibake is not mended


def test_line_ends_become_lf_and_str_splitlines_agrees():
    text = "a\r\nb\rc\vd\fe\x85f\u2028g\u2029h\n\r\n"
    lf, changes = altered(text, newlines=Newlines.lf)
    assert lf == "a\nb\nc\nd\ne\nf\ng\nh\n\n"
    assert lf.splitlines() == text.splitlines()
    assert changes == {"newlines_converted": 8}


def test_control_characters_go_but_tabs_line_ends_and_direction_marks_stay():
    text = "a\0b\tc\x1bd\x7fe\x9ff\r\n\x85\u200f\u2067\ufeff"
    left, changes = altered(text, control_characters=ControlCharacters.remove)
    assert left == "ab\tcdef\r\n\x85\u200f\u2067\ufeff"
    assert changes == {"control_characters_removed": 4}
