"""Mixtures, packing, rebases and traces in real runs: the same data whatever happens, and every one of them accounted
for."""

import json
from pathlib import Path

import pytest

from tests.corpus import write_corpus
from tests.runs import curve, finish, outcome, rows, start

SHORT = ("total_tokens=5120", "evaluation.every_steps=100", "schedule.warmup_tokens=512")  # 20 steps of 256 tokens
MIXTURE = "data={folder: null, sources: {old: {folder: data/tiny, weight: 3}, new: {folder: data/more, weight: 1}}}"


@pytest.fixture(scope="module")
def more(workplace: Path) -> Path:
    """A second dataset beside data/tiny, with the same tokenizer."""
    write_corpus(workplace / "texts-more", n_documents=40, seed=1)
    words = ("source=text", "source.paths=[texts-more]", "out=data/more", "val_fraction=0.1")
    code, printed = finish(
        start(workplace, *words, "tokenizer.model=data/tiny/tokenizer.model", module="data_prep"),
    )
    assert code == 0, printed
    return workplace / "data" / "more"


def hashes(run: Path) -> list[str]:
    return [row["batch_hash"] for row in rows(run) if "loss" in row]


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_a_packed_and_masked_mixture_is_the_same_data_on_any_ranks_and_after_a_stop(here: Path, more: Path):
    words = (*SHORT, MIXTURE, "data.packing=best_fit", "data.mask_documents=true")
    code, printed = outcome(here, *words, "run.name=whole")
    assert code == 0, printed
    assert outcome(here, *words, "run.name=parts", "run.stop_at_step=7")[0] == 0
    assert outcome(here, *words, "run.name=parts")[0] == 0
    assert outcome(here, *words, "run.name=two", "batch.micro_batch_size=2", ranks=2)[0] == 0
    runs = {name: here / "runs" / name for name in ("whole", "parts", "two")}
    assert len(set(hashes(runs["whole"]))) == 20
    assert hashes(runs["whole"]) == hashes(runs["parts"]) == hashes(runs["two"])
    assert curve(runs["whole"]) == curve(runs["parts"])
    assert [row["loss"] for row in rows(runs["two"]) if "loss" in row] == pytest.approx(
        [row["loss"] for row in rows(runs["whole"]) if "loss" in row], rel=1e-4
    )
    sources = read(runs["whole"] / "summary.json")["sources"]
    assert {name: source["tokens_seen"] for name, source in sources.items()} == {"old": 120 * 32, "new": 40 * 32}
    assert all(source["epochs"] > 0 for source in sources.values())
    last = [row for row in rows(runs["whole"]) if "loss" in row][-1]
    assert last["source_tokens"] == {"old": 3840, "new": 1280}
    assert 0 < last["n_targets"] <= 256


def table(printed: str) -> list[dict[str, str]]:
    """The rows of a trace by column; every cell but the last is without blanks."""
    head, *lines = [line.split(maxsplit=8) for line in printed.replace("its tokens", "range").splitlines()]
    return [dict(zip(head, line, strict=False)) for line in lines]


def test_a_rebase_goes_on_from_where_each_source_stands_and_is_traced(here: Path, more: Path):
    first = (*SHORT, "run.name=grown")
    rest = (*first, MIXTURE, "data.seq_len=16", "batch.global_batch_size=12")
    assert outcome(here, *first, "run.stop_at_step=10")[0] == 0
    run = here / "runs" / "grown"

    code, message = outcome(here, *rest)
    assert code == 2
    assert "data.seq_len 32 → 16" in message
    assert "data.rebase=true" in message
    code, message = outcome(here, *rest, "data.rebase=true", "optimizer.peak_lr=1e-4")
    assert code == 2
    assert "optimizer.peak_lr 0.003 → 0.0001" in message

    assert outcome(here, *rest, "data.rebase=true", "run.stop_at_step=13")[0] == 0  # and again, as a queue would
    code, printed = outcome(here, *rest, "data.rebase=true")
    assert code == 0, printed
    steps = [row for row in rows(run) if "loss" in row]
    assert [row["tokens_seen"] for row in steps] == [256 * s for s in range(1, 11)] + [
        2560 + 192 * s for s in range(1, 15)
    ]  # 5120 tokens, rounded up to a whole step
    state = read(max((run / "checkpoints").iterdir()) / "state.json")
    assert [phase["first_step"] for phase in state["data"]["phases"]] == [0, 10]
    assert state["data"]["phases"][1]["sources"][0]["consumed"] == 2560

    documents: set[str] = set()
    for step in (10, 11):
        code, printed = finish(start(here, "run=runs/grown", f"step={step}", "text=true", module="train.trace"))
        assert code == 0, printed
        found = table(printed)
        assert sum(int(line["tokens"]) for line in found) == (256 if step == 10 else 192)
        assert {line["source"] for line in found} == ({"data"} if step == 10 else {"old", "new"})
        assert all(line["input"].endswith(".txt") for line in found)
        documents |= {line["document"] for line in found}
    document = min(documents)
    code, printed = finish(start(here, "run=runs/grown", f"document={document}", module="train.trace"))
    assert code == 0, printed
    assert {"10", "11"} & {line["step"] for line in table(printed)}


def test_caps_and_weights_are_answered_before_anything_starts(here: Path, more: Path):
    capped = MIXTURE.replace("weight: 1}", "weight: 1, max_epochs: 0.01}")
    code, message = outcome(here, *SHORT, capped, "run.name=a")
    assert code == 2
    assert "data.sources.new.max_epochs=0.01, but the run would read it" in message
    code, message = outcome(here, *SHORT, MIXTURE.replace("weight: 1}", "weight: 0.3333333}"), "run.name=a")
    assert code == 2
    assert "Nearest such weights" in message
    assert not (here / "runs").exists()


def test_a_mixture_is_evaluated_on_the_held_out_text_of_all_its_sources(here: Path, more: Path):
    assert outcome(here, *SHORT, MIXTURE, "run.name=a", "run.stop_at_step=2")[0] == 0
    code, printed = finish(start(here, "run=runs/a", "max_sequences=4", module="train.evaluate"))
    assert code == 0, printed
    assert "over 128 tokens of data/tiny, data/more" in printed


def test_a_rebase_never_begins_before_a_damaged_checkpoint_unasked(here: Path, more: Path):
    """The phase would begin at an older step than the one that was asked to go on from."""
    assert outcome(here, *SHORT, "run.name=hurt", "run.stop_at_step=12")[0] == 0
    newest = here / "runs" / "hurt" / "checkpoints" / "step-00000012"
    (newest / "master-00000.safetensors").write_bytes(b"")
    rebase = (*SHORT, MIXTURE, "run.name=hurt", "data.rebase=true", "run.stop_at_step=11")
    code, message = outcome(here, *rebase)
    assert code == 4, message
    assert "a newer checkpoint than" in message
    assert "folder: data/tiny" in (here / "runs" / "hurt" / "config.yaml").read_text()
    newest.rename(here / "aside")
    code, message = outcome(here, *rebase)
    assert code == 0, message
    state = read(here / "runs" / "hurt" / "checkpoints" / "step-00000011" / "state.json")
    assert [phase["first_step"] for phase in state["data"]["phases"]] == [0, 10]


def test_a_run_that_repeats_a_part_of_its_data_goes_on_bit_for_bit_and_is_accounted_for(here: Path):
    """Of 60 rows that it sees, 160 are read; stopped in the middle of an epoch, and on two ranks."""
    words = (*SHORT, "data.unique_tokens=1_920")
    code, printed = outcome(here, *words, "run.name=whole")
    assert code == 0, printed
    assert "2.67 epochs of 1,920" in printed
    assert "1,920 of them, drawn at random (data.unique_tokens), and repeated: 2.67 epochs by the end" in printed
    assert outcome(here, *words, "run.name=parts", "run.stop_at_step=11")[0] == 0
    assert outcome(here, *words, "run.name=parts")[0] == 0
    assert outcome(here, *words, "run.name=two", "batch.micro_batch_size=2", ranks=2)[0] == 0
    runs = {name: here / "runs" / name for name in ("whole", "parts", "two")}
    assert curve(runs["whole"]) == curve(runs["parts"])
    assert hashes(runs["whole"]) == hashes(runs["parts"]) == hashes(runs["two"])
    summary = read(runs["parts"] / "summary.json")
    assert (summary["tokens_seen"], summary["unique_tokens"], summary["epochs"]) == (5120, 1920, 5120 / 1920)
    assert summary["sources"]["data"]["unique_tokens"] == 1920
    assert summary["sources"]["data"]["tokens"] > 5120
    assert read(runs["whole"] / "plan.json")["epochs"] == 5120 / 1920
    code, printed = finish(start(here, "run=runs/parts", module="train.audit"))
    assert (code, "it balances" in printed) == (0, True), printed
    for other in ("data.unique_tokens=1_952", "data.unique_tokens=null"):
        code, message = outcome(here, *words, other, "run.name=whole")
        assert (code, "already holds another run" in message) == (2, True)
    code, printed = finish(start(here, "run=runs/whole", "step=20", module="train.trace"))
    assert code == 0, printed
    document = table(printed)[0]["document"]
    code, printed = finish(start(here, "run=runs/whole", f"document={document}", module="train.trace"))
    assert "20" in {line["step"] for line in table(printed)}
