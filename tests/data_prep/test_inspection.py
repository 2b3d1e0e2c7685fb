"""What is in a dataset, against a slow and simple count of the same; and a page that holds whatever documents hold."""

import dataclasses
import html.parser
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep import harmless
from data_prep.config import OnBad
from data_prep.exchange.config import ImportConfig, PeerFormat
from data_prep.exchange.incoming import import_dataset
from data_prep.files import DataError
from data_prep.inspection import console
from data_prep.inspection.config import InspectConfig
from data_prep.inspection.corpus import Corpus
from data_prep.inspection.page import page, write_page
from data_prep.inspection.survey import EDGES, Survey, quantile, survey, vocabulary
from data_prep.inspection.tokenizer_report import drawn, tokenizer_report
from data_prep.manifest import Manifest, SourceEntry
from data_prep.shards import ShardReader
from data_prep.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def corpus_of(dataset: Path) -> Corpus:
    return Corpus(dataset)


@pytest.fixture(scope="module")
def seen(corpus_of: Corpus) -> Survey:
    return survey(corpus_of, InspectConfig(documents=4))


def rows(dataset: Path, split: str) -> list[tuple[str, int, list[int]]]:
    """(shard, document, ids) of a whole split."""
    shards = [ShardReader(dataset / shard.name) for shard in Manifest.load(dataset).shards_of(split)]
    return [(shard.stem.name, i, shard.document(i).tolist()) for shard in shards for i in range(shard.n_documents)]


# --- counts ----------------------------------------------------------------------------------------------------------


def test_counts_are_those_of_the_manifest_and_of_every_document(dataset: Path, seen: Survey):
    manifest = Manifest.load(dataset)
    for part in seen.parts:
        lengths = [len(ids) for _, _, ids in rows(dataset, part.split)]
        assert (part.documents, part.tokens) == (len(lengths), sum(lengths))
        assert part.text_bytes == manifest.text_bytes(part.split)
        for i, low in enumerate(EDGES[:-1]):
            inside = [n for n in lengths if low <= n < EDGES[i + 1]]
            assert (part.histogram[i], part.token_histogram[i]) == (len(inside), sum(inside))
    assert seen.total("tokens") == manifest.tokens("train") + manifest.tokens("val")


def test_quantiles_are_right_to_the_width_of_a_bin():
    rng = np.random.default_rng(0)
    lengths = np.round(rng.lognormal(6, 1.5, 20_000)).astype(np.int64) + 1
    histogram = np.bincount(np.searchsorted(EDGES, lengths, side="right") - 1, minlength=len(EDGES))
    for share in (0.05, 0.25, 0.5, 0.9, 0.99):
        assert quantile(histogram, share) == pytest.approx(np.quantile(lengths, share), rel=0.05, abs=1)
    assert quantile(np.zeros(len(EDGES), np.int64), 0.5) == 0


def test_longest_and_shortest_are_found(dataset: Path, seen: Survey):
    every = sorted(len(ids) for split in ("train", "val") for _, _, ids in rows(dataset, split))
    assert [excerpt.tokens for excerpt in seen.shortest] == every[:3]
    assert [excerpt.tokens for excerpt in seen.longest] == every[:-4:-1]


def test_frequencies_of_a_small_split_are_exact(dataset: Path, seen: Survey, tokenizer: Tokenizer):
    expected = Counter(id for _, _, ids in rows(dataset, "train") for id in ids)
    used = seen.vocabulary
    assert used.is_whole
    assert {use.id: use.count for use in used.top} == {use.id: expected[use.id] for use in used.top}
    assert [use.count for use in used.top] == sorted(expected.values(), reverse=True)[: len(used.top)]
    absent = [id for id in range(tokenizer.vocab_size) if not expected[id] and tokenizer.token_bytes()[id]]
    assert used.unused + used.unused_bytes == len(absent)
    counts = sorted(expected.values(), reverse=True)
    assert sum(counts[: used.half]) * 2 >= sum(counts) > sum(counts[: used.half - 1]) * 2


def test_a_sample_is_bounded_seeded_and_near_the_whole(corpus_of: Corpus, seen: Survey, monkeypatch):
    monkeypatch.setattr("data_prep.inspection.survey.CHUNK_TOKENS", 64)
    some = vocabulary(corpus_of, 6400, 1)
    assert not some.is_whole
    assert 6000 < some.sampled_tokens <= 6400
    assert (some.counts == vocabulary(corpus_of, 6400, 1).counts).all()
    assert {use.id: use.count for use in some.top} != {use.id: use.count for use in vocabulary(corpus_of, 6400, 2).top}
    whole = {use.id: use.count / seen.vocabulary.sampled_tokens for use in seen.vocabulary.top}
    assert all(abs(use.count / some.sampled_tokens - whole.get(use.id, 0.005)) < 0.02 for use in some.top[:8])


# --- documents -------------------------------------------------------------------------------------------------------


def test_every_offset_leads_to_its_document_and_input(dataset: Path, corpus: Path, corpus_of: Corpus):
    """From offset to text, against the text files that the dataset was made of."""
    position = 0
    for shard, document, ids in rows(dataset, "train"):
        for inside in {0, 1, len(ids) // 2, len(ids) - 1}:
            found = corpus_of.at_offset(f"train:{position + inside}", 10_000)
            assert (found.shard, found.document, found.position) == (shard, document, inside)
            assert (found.offset, found.tokens, found.cut_before, found.cut_after) == (position, len(ids), False, False)
        found = corpus_of.at_document(f"{shard}:{document}", 10_000)
        assert found.after == (corpus.parent / found.origins[0]).read_text()
        position += len(ids)


def test_an_excerpt_around_a_token_marks_it(dataset: Path, corpus_of: Corpus, tokenizer: Tokenizer):
    ids = rows(dataset, "train")[0][2]
    found = corpus_of.at_offset("train:100", 20)
    assert found.marked == tokenizer.piece(ids[100])
    assert (found.before, found.after) == (tokenizer.decode(ids[90:100]), tokenizer.decode(ids[101:110]))
    assert (found.cut_before, found.cut_after) == (True, True)


def test_drawn_documents_follow_the_seed_and_are_never_twice_the_same(corpus_of: Corpus):
    def places(n: int, seed: int):
        return [(excerpt.shard, excerpt.document) for excerpt in corpus_of.drawn(n, seed, 5)]

    assert places(5, 0) == places(5, 0) != places(5, 1)
    total = sum(shard.documents for shard in corpus_of.shards)
    assert len(set(places(10**6, 0))) == total


@pytest.mark.parametrize(
    ("key", "place", "message"),
    [
        ("document", "train-0:0", "no shard train-0 "),
        ("document", "SHARD:100000", r"has documents 0 \.\.\. \d+; 100000"),
        ("offset", "train:99999999", r"the train split of .* has \d+ tokens; position 99999999"),
        ("offset", "test:0", r"test split .* has 0 tokens.*splits: train, val"),
    ],
)
def test_places_that_are_not_there_are_refused(corpus_of: Corpus, key: str, place: str, message: str):
    place = place.replace("SHARD", corpus_of.shards[0].name)
    with pytest.raises(DataError, match=message):
        survey(corpus_of, dataclasses.replace(InspectConfig(), **{key: place}))


def test_the_configuration_tells_all_its_mistakes():
    config = InspectConfig(documents=-1, sample_tokens=0, document="x", offset="train", page="x.txt")
    assert len(config.problems()) == 5
    assert InspectConfig(document="train-0:1", offset="val:7", page="a.html").problems() == []


def test_a_dataset_without_a_tokenizer_shows_ids(tmp_path: Path):
    (tmp_path / "peer").mkdir()
    np.array([1, 2, 3, 0], "<u2").tofile(tmp_path / "peer/a.ds")
    np.array([4], "<u8").tofile(tmp_path / "peer/a.ds.index")
    np.save(tmp_path / "widths.npy", np.array([0, 1, 2, 3]))
    peer = ImportConfig([str(tmp_path / "peer")], PeerFormat.datatrove, str(tmp_path / "widths.npy"), "0" * 64, 0)
    import_dataset(tmp_path / "out", peer, OnBad.error)
    seen = survey(Corpus(tmp_path / "out"), InspectConfig(document="", documents=1))
    assert seen.drawn[0].after == "1 2 3 0"
    assert seen.drawn[0].origins == ("peer/a.ds",)
    assert "1 2 3 0" in page(seen)


# --- the page --------------------------------------------------------------------------------------------------------

NASTY = "</script><script>alert(1)</script></pre><b>\x00\x1b[31m\r\x85\u202eevil\u2028\ud800\ufffe &amp; \"'`"


class Reader(html.parser.HTMLParser):
    """Collects tags, attributes and text; checks that tags are closed in order."""

    VOID = ("meta", "br", "img", "link")

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs):
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs):
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag: str):
        assert self.open.pop() == tag

    def handle_data(self, data: str):
        self.text += data


@pytest.fixture(scope="module")
def nasty(seen: Survey) -> Survey:
    """A survey in which every text from outside is hostile."""
    excerpt = dataclasses.replace(
        seen.drawn[0], before=NASTY, marked=NASTY, after=NASTY, origins=(NASTY,), source=NASTY
    )
    use = dataclasses.replace(seen.vocabulary.top[0], piece=NASTY)
    return dataclasses.replace(
        seen,
        name=NASTY,
        parts=tuple(dataclasses.replace(part, source=NASTY) for part in seen.parts),
        losses={NASTY: {NASTY: 3}},
        vocabulary=dataclasses.replace(seen.vocabulary, top=(use,), unused_examples=(NASTY,)),
        drawn=(excerpt,),
        found=(excerpt,),
        manifest=dataclasses.replace(seen.manifest, options={NASTY: NASTY}),
    )


def test_hostile_text_stays_text_on_the_page(nasty: Survey, tmp_path: Path):
    write_page(tmp_path / "inspect.html", nasty)
    content = (tmp_path / "inspect.html").read_bytes().decode()
    read = Reader(content)
    assert read.open == []
    assert read.tags["script"] == 0
    assert "</script><script>alert(1)</script>" in read.text
    assert not harmless.UNSAFE.search(content)
    assert "U+202E" in read.text


def test_the_page_needs_nothing_from_anywhere(seen: Survey, tokenizer: Tokenizer):
    read = Reader(page(seen, [tokenizer_report(tokenizer, {"a": [b"text"]})]))
    assert not read.tags.keys() & {"script", "link", "img", "iframe", "object", "base", "form"}
    assert not {"src", "href", "onload", "onclick"} & {name for name, _ in read.attributes}
    assert "url(" not in page(seen)
    assert read.tags["svg"] == 3
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in read.attributes


def test_the_page_tells_the_figures_of_the_survey(seen: Survey):
    text = Reader(page(seen)).text
    assert f"{seen.total('tokens'):,}" in text
    assert all(excerpt.origins[0] in text for excerpt in seen.drawn)
    assert seen.manifest.fingerprint[:32] in text


def test_more_sources_than_colours_are_drawn_together(seen: Survey):
    parts = [dataclasses.replace(part, source=f"s{i:03d}") for part in seen.parts for i in range(40)]
    many = page(dataclasses.replace(seen, parts=tuple(parts)))
    assert all(f"s{i:03d}" in many for i in range(40))
    assert "33 others" in many
    assert len(many) < 400_000


def test_hostile_text_cannot_move_the_cursor_of_a_console(nasty: Survey):
    assert not harmless.UNSAFE.search(console.text(nasty))
    assert "\\x1b[31m" in console.text(nasty)


def test_losses_are_told_by_source_and_reason(corpus_of: Corpus):
    losses = {"web": {"duplicate": 30, "language": 10}, "books": {"duplicate": 1}}
    entries = tuple(SourceEntry(name, 1, 100, 50, 9, removed, {}) for name, removed in losses.items())
    corpus = Corpus(corpus_of.folder)
    corpus.manifest = dataclasses.replace(corpus.manifest, sources=entries)
    seen = survey(corpus, InspectConfig(documents=0))
    lines = [line.split() for line in console.text(seen).splitlines()]
    for source, reason, n, share in (("web", "duplicate", "30", "75.00"), ("books", "duplicate", "1", "100.00")):
        assert [source, reason, n, share, "%"] in lines
    text = Reader(page(seen)).text
    assert "41 documents" in text
    assert "language" in text


# --- the tokenizer ---------------------------------------------------------------------------------------------------


def test_the_report_counts_what_a_loop_counts(tokenizer: Tokenizer):
    texts = ["The old river finds the stone.", "Quiet  engines\nturn", "数字 Grüße"]
    report = tokenizer_report(tokenizer, {"mixed": [text.encode() for text in texts], "none": []})
    fit, none = report.fits
    ids = [tokenizer.encode(text).tolist() for text in texts]
    assert fit.tokens == sum(map(len, ids))
    assert (fit.documents, fit.bytes, fit.words) == (3, sum(len(text.encode()) for text in texts), 11)
    assert fit.fertility == fit.tokens / 11
    assert fit.bytes_per_token == fit.bytes / fit.tokens
    pieces = [tokenizer.piece(id) for row in ids for id in row]
    assert fit.byte_tokens == sum(piece.startswith("<0x") for piece in pieces) > 0
    assert (none.documents, none.bytes_per_token, none.fertility) == (0, 0, 0)
    assert report.is_safe
    assert report.controls == 4
    assert "mixed" in console.tokenizer_table([report, report])


def test_a_tokenizer_that_alters_text_or_leaks_control_ids_is_caught(tokenizer: Tokenizer):
    class Lossy(Tokenizer):
        def __init__(self):
            super().__init__(tokenizer.content, "lossy")

        def encode_each(self, texts):
            rows = super().encode_each([text.strip() for text in texts])
            return [np.array([2], np.int32) if text == b"</s>" else row for text, row in zip(texts, rows, strict=True)]

    report = tokenizer_report(Lossy(), {"a": [b" leading", b"plain"]})
    assert report.fits[0].altered == 1
    assert report.leaking == ("</s>",)
    assert not report.is_safe
    assert "can become a control id: </s>" in console.tokenizer_table([report])


def test_the_sample_is_bounded_and_does_not_depend_on_order_or_repetition():
    texts = [f"document {i} {'x' * (i % 50)}".encode() for i in range(500)]
    some = drawn(texts, 2000, 0)
    assert 1900 < sum(len(text) for text in some) <= 2000
    assert drawn(texts[::-1] * 2, 2000, 0) == some != drawn(texts, 2000, 1)
    assert drawn([("ä" * 100).encode()], 101, 0) == ["ä" * 50]
