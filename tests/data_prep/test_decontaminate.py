import json
import pickle
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_prep.decontaminate import run
from data_prep.decontaminate.config import DecontaminateConfig
from data_prep.decontaminate.run import Plan, Stage
from data_prep.dedup import words
from data_prep.files import DataError

QUESTION = "Which river flows through the old town before it reaches the harbour and then the open sea"  # 17 words
SHORT = "Name the largest city that lies south of it"  # 9 words


@dataclass(frozen=True)
class Part:
    id: str
    documents: tuple[str, ...]
    source: str = "web"

    def texts(self) -> Iterator[bytes]:
        return (text.encode() for text in self.documents)

    @property
    def bytes(self) -> int:
        return sum(len(text.encode()) for text in self.documents)


def part(*documents: str, name: str = "a" * 16, source: str = "web") -> Part:
    return Part(name, documents, source)


def config(tmp_path: Path, items: Sequence[dict[str, Any]], **changes: Any) -> DecontaminateConfig:
    file = tmp_path / "quiz.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    made = DecontaminateConfig(files=[str(file)], fields=["question", "choices"], max_source_loss=1)
    for name, value in changes.items():
        setattr(made, name, value)
    assert made.problems() == []
    return made


def searched(settings: DecontaminateConfig, parts: Sequence[Part], folder: Path) -> Plan:
    made = run.plan(settings, parts, folder)
    for stage in Stage:
        for job in run.jobs(made, stage):
            if not job.finished():
                pickle.loads(pickle.dumps(job)).run(lambda n_bytes: None)
                assert job.finished()
    return made


def words_of(text: str) -> list[str]:
    return [word for piece in words.word_strings(text.encode()) for word in piece]


def shares_a_gram(document: str, item: str, n: int) -> bool:
    a, b = words_of(document), words_of(item)
    return any(a[i : i + n] == b[j : j + n] for i in range(len(a) - n + 1) for j in range(len(b) - n + 1))


def test_documents_that_share_thirteen_words_with_an_item_go(tmp_path: Path):
    inside = f"Intro. {QUESTION.upper().replace(' ', ', ')}! Answer: the Elbe."
    twelve = " ".join(QUESTION.split()[:12])
    documents = part(inside, f"{twelve} something else entirely and more of it", "nothing of the kind", QUESTION)
    made = searched(config(tmp_path, [{"question": QUESTION}]), [documents], tmp_path / "out")
    assert dict(run.removals(made, documents.id)) == {0: 5, 3: 5}


def test_a_text_of_fewer_words_is_searched_for_as_a_whole(tmp_path: Path):
    documents = part(f"So: {SHORT}?", SHORT, SHORT.rsplit(" ", 1)[0], f"{SHORT}s")
    made = searched(config(tmp_path, [{"question": SHORT}]), [documents], tmp_path / "out")
    assert dict(run.removals(made, documents.id)) == {0: 1, 1: 1}


def test_random_documents_agree_with_comparing_all_words(tmp_path: Path):
    draw = random.Random(0)
    items = [" ".join(f"w{draw.randrange(50)}" for _ in range(draw.randrange(4, 25))) for _ in range(40)]
    documents: list[str] = []
    for _ in range(200):
        text = [f"w{draw.randrange(50)}" for _ in range(draw.randrange(1, 60))]
        start = draw.randrange(len(text))
        text[start:start] = draw.choice(items).split()[: draw.randrange(0, 12)]
        documents.append(" ".join(text))
    settings = config(tmp_path, [{"question": item} for item in items], ngram=6, min_words=4)
    parts = [part(*documents[:90], name="1" * 16), part(*documents[90:], name="2" * 16)]
    made = searched(settings, parts, tmp_path / "out")
    found = {(p.id, i) for p in parts for i in run.removals(made, p.id)}
    expected = {
        (p.id, i)
        for p in parts
        for i, text in enumerate(p.documents)
        if any(shares_a_gram(text, item, min(6, len(item.split()))) for item in items)
    }
    assert 20 < len(expected) < 180
    assert found == expected


def test_min_matches_asks_for_more_than_one(tmp_path: Path):
    first, last = " ".join(QUESTION.split()[:13]), " ".join(QUESTION.split()[-13:])
    documents = part(first, f"{first} {first}", f"{first} ... {last}")
    made = searched(config(tmp_path, [{"question": QUESTION}], min_matches=2), [documents], tmp_path / "out")
    assert dict(run.removals(made, documents.id)) == {2: 2}


def test_the_report_names_items_and_where_they_were_found(tmp_path: Path):
    items = [{"question": QUESTION, "choices": ["yes", SHORT]}, {"question": "Too short?"}, {"choices": [f"x {SHORT}"]}]
    parts = [part(QUESTION, "other"), part(SHORT, name="b" * 16, source="books")]
    made = searched(config(tmp_path, items), parts, tmp_path / "out")
    report = json.loads(made.report.read_text())
    assert report["sources"] == {"web": {"documents": 2, "removed": 1}, "books": {"documents": 1, "removed": 1}}
    quiz = report["files"]["quiz.jsonl"]
    assert (quiz["items"], quiz["searched"], quiz["not_searched"]) == (3, 2, ["quiz.jsonl:2"])
    (found,) = quiz["found"]
    assert (found["item"], found["documents"]) == ("quiz.jsonl:1", 2)
    assert [(hit["source"], hit["document"], hit["grams"]) for hit in found["in"]] == [("web", 0, 5), ("books", 0, 1)]
    assert "quiz.jsonl" in run.table(report)


def test_equal_hashes_of_different_words_are_not_taken_for_a_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = words._combined

    def colliding(parts: Any) -> Any:
        return real(parts) * 0

    documents = part(QUESTION, "thirteen words that have nothing to do with what anybody asked for in there")
    monkeypatch.setattr(words, "_combined", colliding)
    made = searched(config(tmp_path, [{"question": QUESTION}]), [documents], tmp_path / "out")
    assert list(run.removals(made, documents.id)) == [0]


def test_matches_are_found_across_the_blocks_of_a_long_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(words, "BLOCK_BYTES", 64)
    filler = " ".join(f"f{i}" for i in range(100))
    documents = part(f"{filler} {QUESTION} {filler}", filler)
    made = searched(config(tmp_path, [{"question": QUESTION}]), [documents], tmp_path / "out")
    assert dict(run.removals(made, documents.id)) == {0: 5}


def test_the_brake_names_the_phrases_that_everybody_uses(tmp_path: Path):
    documents = part(*[f"{QUESTION} {i}" for i in range(6)], *["fine"] * 94)
    settings = config(tmp_path, [{"question": "An item."}, {"question": QUESTION}], max_source_loss=0.05)
    with pytest.raises(DataError, match=r"web would lose 6 of 100 documents.*quiz\.jsonl:2 in 6"):
        searched(settings, [documents], tmp_path / "out")
    with pytest.raises(DataError, match="no finished decontamination"):
        run.removals(run.plan(settings, [documents], tmp_path / "out"), documents.id)


def test_only_new_slices_are_read_when_slices_are_added(tmp_path: Path):
    settings = config(tmp_path, [{"question": QUESTION}])
    searched(settings, [part(QUESTION)], tmp_path / "out")
    grown = run.plan(settings, [part(QUESTION), part("new", name="b" * 16)], tmp_path / "out")
    assert [job.finished() for job in run.jobs(grown, Stage.scan)] == [True, False]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": 3}\n', r"quiz\.jsonl:1 has no text"),
        ('{"prompt": "x"}\n', r"quiz\.jsonl:1 has no text.*it has: prompt"),
        ("{\n", r"quiz\.jsonl:1 is not JSON"),
        ('{"question": "too short"}\n', r"no item of .*quiz\.jsonl has a text of decontaminate\.min_words=8"),
    ],
)
def test_evaluation_files_in_which_nothing_can_be_searched_are_refused(content: str, message: str, tmp_path: Path):
    settings = config(tmp_path, [])
    Path(settings.files[0]).write_text(content)
    with pytest.raises(DataError, match=message):
        searched(settings, [part("text")], tmp_path / "out")


def test_a_missing_evaluation_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"gone\.jsonl"):
        run.plan(DecontaminateConfig(files=[str(tmp_path / "gone.jsonl")]), [], tmp_path)


def test_a_text_file_is_one_item(tmp_path: Path):
    (tmp_path / "essay.txt").write_text(f"One\n{QUESTION}\n")
    settings = DecontaminateConfig(files=[str(tmp_path / "essay.txt")], max_source_loss=1)
    documents = part(f"and {QUESTION}", "no")
    made = searched(settings, [documents], tmp_path / "out")
    assert dict(run.removals(made, documents.id)) == {0: 5}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"ngram": 1, "min_words": 1}, "decontaminate.ngram=1"),
        ({"min_words": 14}, "decontaminate.min_words=14"),
        ({"min_matches": 0}, "decontaminate.min_matches=0"),
        ({"max_source_loss": 2.0}, "decontaminate.max_source_loss=2.0"),
        ({"files": ["a.csv"]}, "a.csv"),
        ({"files": ["a/x.txt", "b/x.txt"]}, "same name"),
        ({"fields": []}, "decontaminate.fields"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changes: dict[str, Any], key: str):
    (problem,) = DecontaminateConfig(**changes).problems()
    assert key in problem
