"""`launch ledger`: real runs that finished, stopped, went on, diverged or were killed become one table in three formats
that agree; damaged ones are named, and no row is lost.
"""

import csv
import dataclasses
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.app import App
from conf.compose import compose
from conf.errors import ConfigError
from launch.fit import fit
from launch.fit_config import FitConfig
from launch.ledger import collect, ledger, read, write
from launch.ledger_config import LedgerConfig
from launch.ledger_files import ENDINGS, beside, read_known
from launch.ledger_row import COLUMNS, LedgerRow, facts_of
from launch.ledger_run import row_of_summary
from launch.ledger_table import ledger_text
from launch.ledger_verdict import spike, with_edges
from launch.scaling.read_rows import row_of, rows_of_ledger, rows_of_runs
from launch.scaling.rows import RowRule, Verdict, split
from tests.launch.conftest import COST
from tests.launch.scaling.surfaces import summary
from tests.runs import finish, outcome, start
from train.history import read_stories


def of(folder: Path) -> dict[str, LedgerRow]:
    return {row.run_name: row for row in collect(folder)[0]}


def told(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def retell(run: Path, **changed: Any) -> None:
    (run / "summary.json").write_text(json.dumps(told(run) | changed))


def made_up(name: str, **changed: Any) -> LedgerRow:
    """A row that was never run."""
    fields = {"folder": f"runs/{name}", "seed": 0, "cell_sha256": "c", "peak_lr": 1e-3, "global_batch_size": 8}
    return dataclasses.replace(row_of_summary(summary(name, 10**8, 10**10)), **(fields | changed))


# --- real runs -------------------------------------------------------------------------------------------------------


def test_each_run_is_a_row_with_its_verdict_and_the_reason(made: Path):
    rows = of(made / "runs")
    assert {name: row.verdict for name, row in rows.items()} == {
        "done": Verdict.ok,
        "stopped": Verdict.partial,
        "hot": Verdict.diverged,
        "killed": Verdict.partial,
    }
    assert rows["done"].why == ""
    assert rows["stopped"].why == "preempted at step 7 of 50: stopped as asked"
    assert "non-finite" in rows["hot"].why
    assert "rank 1" in rows["killed"].why
    assert [row.flops_causal for row in collect(made / "runs")[0]] == sorted(row.flops_causal for row in rows.values())


def test_a_row_is_what_the_summary_and_the_configuration_say(made: Path):
    row, said = of(made / "runs")["done"], told(made / "runs/done")
    for name in ("n_params", "n_params_matmul", "tokens_seen", "unique_tokens", "epochs", "val_loss", "bits_per_byte"):
        assert getattr(row, name) == said[name], name
    assert (row.flops_causal, row.flops_full) == (said["flops_causal"], said["flops_full"])
    assert row.n_params_compute == said["flops_causal"] / 6 / said["tokens_seen"]
    assert (row.peak_lr, row.warmup_tokens, row.schedule, row.optimizer) == (3e-3, 2560, "cosine", "adamw")
    assert (row.d_model, row.n_layers, row.head_dim, row.d_ff, row.tokens_per_step) == (32, 2, 8, 64, 256)
    assert row.validation_sha256 == said["data"]["validation_sha256"]
    assert row.git_commit == said["git"]["commit"]
    assert row.device_hours == pytest.approx(sum(said["device_hours"].values()))
    assert row.cost_usd == row.cost_usd_own == pytest.approx(3600 * (row.device_hours or 0))
    assert (row.price_rule, row.price_date) == ("a dollar a second", "2026-11-01")


def test_hours_of_a_killed_run_are_those_that_its_ranks_have_lived(runs: Path):
    """Its summary knows of those until it was written."""
    in_summary = told(runs / "killed")["device_hours"]
    ended = runs / "killed/attempts/0001/ended.json"
    facts = json.loads(ended.read_text())
    ended.write_text(json.dumps(facts | {"ended": facts["ended"] + 3600}))
    row, story = of(runs)["killed"], read_stories(runs / "killed")[0]
    assert row.device_hours == pytest.approx(2 * story.seconds / 3600)
    assert (row.device_hours or 0) > 2, "two ranks, an hour more"
    assert row.device_hours_train == in_summary["train"]
    assert (row.device_hours_idle or 0) > 1.9
    assert row.cost_usd == pytest.approx(3600 * (row.device_hours or 0))


def test_totals_hold_over_a_kill_and_a_stop_and_later_starts(runs: Path, workplace: Path):
    """Every attempt's hours count, each step's FLOPs once."""
    (runs.parent / "data").symlink_to(workplace / "data")
    before = of(runs)
    assert outcome(runs.parent, "run.name=killed", "total_tokens=12_800", *COST)[0] == 0
    assert outcome(runs.parent, "run.name=stopped", *COST)[0] == 0
    after = of(runs)
    for name, ranks in (("killed", (2, 1)), ("stopped", (1, 1))):
        row, stories = after[name], read_stories(runs / name)
        lived = sum(n * story.seconds for n, story in zip(ranks, stories, strict=True)) / 3600
        assert (row.verdict, row.restarts, row.step) == (Verdict.ok, 1, 50)
        assert 0.9 * lived < (row.device_hours or 0) < 1.5 * lived, "from the start of each process, before its claim"
        assert (row.device_hours or 0) > (before[name].device_hours or 0)
        assert row.cost_usd == pytest.approx(3600 * (row.device_hours or 0))
    per_token = after["done"].flops_causal / after["done"].tokens_seen
    assert after["killed"].flops_causal == after["stopped"].flops_causal == pytest.approx(12_800 * per_token)


def test_the_command_writes_three_files_and_shows_the_table(runs: Path):
    code, printed = finish(start(runs.parent, "ledger", "runs=runs", "to=kept/all", module="launch"))
    assert code == 0, printed
    assert [file.name for file in sorted((runs.parent / "kept").iterdir())] == ["all.csv", "all.jsonl", "all.parquet"]
    line = next(line for line in printed.splitlines() if line.startswith("done"))
    row = of(runs)["done"]
    assert f"{row.val_loss:.4f} ± {row.val_loss_stderr:.4f}" in line
    assert "35.0k" in line
    assert "4  (1 ok, 1 diverged, 2 partial)" in printed
    total = sum(row.flops_causal for row in of(runs).values())
    assert f"{total:.4g} FLOPs" in printed
    code, printed = finish(start(runs.parent, "ledger", "runs=data", "to=x.csv", module="launch"))
    assert code == 2
    assert "without their endings" in printed


# --- damaged, nested, foreign ----------------------------------------------------------------------------------------


HURT = {
    "torn": (lambda run: (run / "summary.json").write_text('{"sche'), "cannot be read"),
    "another version": (lambda run: retell(run, schema_version=2), "schema version 2, this program reads 1"),
    "a list": (lambda run: (run / "summary.json").write_text("[]"), "holds no JSON object"),
    "no summary": (lambda run: (run / "summary.json").unlink(), "no summary.json"),
    "deep": (lambda run: (run / "summary.json").write_text("[" * 100_000), "cannot be read"),
    "words for numbers": (lambda run: retell(run, n_params="many"), 'n_params is "many", not a whole number'),
    "more than a count": (lambda run: retell(run, tokens_seen=10**20), "does not fit 64 bits"),
    "more than a float": (lambda run: retell(run, flops_causal=10**400), "too large"),
    "infinite FLOPs": (lambda run: retell(run, flops_full=math.inf), "flops_full=Infinity is no finite number"),
    "no loss key": (
        lambda run: (run / "summary.json").write_text(
            json.dumps({key: value for key, value in told(run).items() if key != "val_loss"})
        ),
        "lacks val_loss",
    ),
    "a list as model": (lambda run: retell(run, model=[1]), "model in summary.json is no mapping"),
    "hours of a stranger": (lambda run: retell(run, device_hours={"train": 1}), "lacks 'eval'"),
}


@pytest.mark.parametrize("what", HURT)
def test_a_damaged_summary_is_no_row_and_the_others_are(runs: Path, what: str):
    hurt, reason = HURT[what]
    hurt(runs / "done")
    rows, odd = collect(runs)
    assert {row.run_name for row in rows} == {"stopped", "hot", "killed"}
    assert [where for where, _ in odd] == [str(runs / "done")]
    assert reason in odd[0][1]
    assert str(runs / "done") in ledger_text(rows, odd)


@pytest.mark.parametrize(("loss", "word"), [(math.nan, "none"), (None, "none"), (math.inf, "inf")])
def test_a_run_that_finished_without_a_loss_has_diverged(runs: Path, loss: float | None, word: str):
    retell(runs / "done", val_loss=loss, train_loss=loss)
    row = of(runs)["done"]
    assert (row.verdict, row.val_loss, row.train_loss) == (Verdict.diverged, None, None)
    assert "it finished with a validation loss of" in row.why
    assert (word if loss is None or loss == math.inf else "nan") in row.why


def test_a_row_without_its_configuration_says_so(runs: Path):
    (runs / "done/config.yaml").unlink()
    row = of(runs)["done"]
    assert (row.verdict, row.peak_lr, row.schedule) == (Verdict.ok, None, None)
    assert "config.yaml cannot be used" in row.why


def test_labels_name_the_sweep_and_the_family(runs: Path):
    retell(runs / "done", labels={"sweep": "demo", "family": "recurrent", "b": "2"})
    row = of(runs)["done"]
    assert (row.sweep, row.family, row.labels["b"]) == ("demo", "recurrent", "2")


def test_nested_and_linked_runs_are_rows_copies_are_not(runs: Path, tmp_path: Path):
    shutil.copytree(runs / "done", runs / "stopped/old")
    (tmp_path / "elsewhere").mkdir()
    (runs / "hot").rename(tmp_path / "elsewhere/hot")
    (runs / "hot").symlink_to(tmp_path / "elsewhere/hot")
    (runs / "hot/loop").symlink_to(runs)
    (runs / "killed").rename(runs / "stopped/killed")
    rows, odd = collect(runs)
    assert sorted(row.run_name for row in rows) == ["done", "hot", "killed", "stopped"]
    assert odd == [
        (str(runs / "stopped/old"), f"the same run as {runs / 'done'} (name and config_sha256), no further on")
    ]


def test_a_folder_without_runs_is_refused_and_nothing_is_written(tmp_path: Path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(ConfigError, match="no run below it"):
        ledger(LedgerConfig(runs=str(tmp_path)))
    assert list(tmp_path.iterdir()) == [tmp_path / "notes"]


# --- three formats ---------------------------------------------------------------------------------------------------


def hard_rows() -> list[LedgerRow]:
    """What formats are tempted to change."""
    return [
        made_up("a", flops_full=3.0e25, flops_causal=7 / 3 * 1e25, tokens_seen=2**62 + 1, n_params=2**53 + 1),
        made_up("b", why='a "word", and\na line ☃', labels={"x": "1,2", "ü": '"'}, peak_lr=0.1 + 0.2, git_dirty=True),
        made_up("c", val_loss=None, val_loss_stderr=None, seed=None, git_dirty=False, verdict=Verdict.diverged),
    ]


def test_what_is_read_from_each_format_is_what_was_written(tmp_path: Path):
    rows = hard_rows()
    files = write(rows, tmp_path / "l.v1")
    assert [file.name for file in files] == ["l.v1.jsonl", "l.v1.csv", "l.v1.parquet"]
    by_flops = sorted(rows, key=lambda row: row.flops_causal)
    for file in files:
        assert read(file) == by_flops, file.suffix


def test_columns_keep_their_types_without_a_single_value(tmp_path: Path):
    for rows in ([], [dataclasses.replace(made_up("a"), peak_lr=None, branch_step=None, mfu=None)]):
        write(rows, tmp_path / "l")
        schema = pq.read_schema(tmp_path / "l.parquet")
        assert schema.names == [column.name for column in COLUMNS]
        for name in ("peak_lr", "mfu", "flops_full", "flops_causal", "cost_usd"):
            assert schema.field(name).type == pa.float64(), name
        for name in ("n_params", "tokens_seen", "branch_step"):
            assert schema.field(name).type == pa.int64(), name
        assert (schema.field("git_dirty").type, schema.field("labels").type) == (pa.bool_(), pa.string())
        assert all(read(beside(tmp_path / "l", ending)) == rows for ending in ENDINGS)


def test_other_programs_read_the_same_numbers(tmp_path: Path):
    write(hard_rows(), tmp_path / "l")
    frame = pq.read_table(tmp_path / "l.parquet").to_pandas()
    assert frame["flops_causal"].dtype == np.float64
    assert frame["flops_causal"].max() == 7 / 3 * 1e25 > 2**63
    with (tmp_path / "l.csv").open(newline="") as stream:
        cells = list(csv.DictReader(stream))
    assert [float(cell["flops_causal"]) for cell in cells] == frame["flops_causal"].tolist()
    assert {cell["git_dirty"] for cell in cells} == {"", "true", "false"}
    lines = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    assert [line["labels"] for line in lines] == [json.loads(cell["labels"]) for cell in cells]


def lines_of(rows: Sequence[LedgerRow], **changed: Any) -> str:
    return "".join(json.dumps(facts_of(row) | changed) + "\n" for row in rows)


def test_what_is_no_row_of_a_ledger_is_named(tmp_path: Path):
    good, file = lines_of([made_up("a")]), tmp_path / "l.jsonl"
    foreign, without = lines_of([made_up("b")], colour="red"), json.dumps({"schema_version": 1, "run_name": "c"})
    file.write_text(f"{good}{foreign}{without}\n[]\n{good}" + lines_of([made_up("d")], seed=1.5) + good[:100])
    rows, odd = read_known(file)
    assert [row.run_name for row in rows] == ["a"]
    reasons = dict(odd)
    assert reasons["l.jsonl, line 2"] == "unknown column 'colour'"
    assert "lacks n_params" in reasons["l.jsonl, line 3"]
    assert reasons["l.jsonl, line 4"] == "no JSON object"
    assert reasons["l.jsonl, line 5"] == "a again: the same run (name and config_sha256) as number 1"
    assert reasons["l.jsonl, line 6"] == "seed is 1.5, not a whole number or nothing"
    assert reasons["l.jsonl, line 7"].startswith("torn")
    with pytest.raises(ConfigError, match="6 problems"):
        read(file)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_ledger_of_another_version_is_refused_in_any_format(tmp_path: Path, ending: str):
    write([dataclasses.replace(made_up("a"), schema_version=2)], tmp_path / "l")
    with pytest.raises(ConfigError, match="schema version 2, this program reads 1"):
        read(beside(tmp_path / "l", ending))


def test_torn_files_are_told_from_whole_ones(tmp_path: Path):
    write(hard_rows(), tmp_path / "l")
    table, text = tmp_path / "l.parquet", tmp_path / "l.csv"
    text.write_text(text.read_text()[:-40])
    rows, odd = read_known(text)
    assert len(rows) == 2
    assert "torn, or foreign" in odd[0][1]
    table.write_bytes(table.read_bytes()[:-40])
    with pytest.raises(ConfigError, match="no Parquet file, or a damaged one"):
        read(table)
    for name in ("none.jsonl", "l.txt"):
        with pytest.raises(ConfigError, match=r"cannot be read|must end in"):
            read(tmp_path / name)


# --- nothing is lost -------------------------------------------------------------------------------------------------


def test_rows_whose_folders_are_gone_stay(runs: Path, capsys: pytest.CaptureFixture[str]):
    asked = LedgerConfig(runs=str(runs), to=str(runs.parent / "l"))
    ledger(asked)
    earlier = {row.run_name: row for row in read(runs.parent / "l.jsonl")}
    shutil.rmtree(runs / "done")
    (runs / "hot/summary.json").write_text("{")
    capsys.readouterr()
    ledger(asked)
    rows = {row.run_name: row for row in read(runs.parent / "l.parquet")}
    assert rows["done"] == dataclasses.replace(earlier["done"], folder_missing=True)
    assert rows["hot"] == earlier["hot"]
    printed = capsys.readouterr().out
    assert "their folders being gone: done" in printed
    assert "their folders being without a row this time: hot" in printed


def test_a_ledger_grows_over_several_folders(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "more").mkdir()
    (runs / "stopped").rename(tmp_path / "more/stopped")
    for folder in (runs, tmp_path / "more"):
        ledger(LedgerConfig(runs=str(folder), to=str(tmp_path / "l")))
    assert {row.run_name for row in read(tmp_path / "l.csv")} == {"done", "hot", "killed", "stopped"}
    assert "their folders being elsewhere: hot, killed, done" in capsys.readouterr().out


def test_rows_of_a_damaged_ledger_are_taken_from_the_files_beside_it(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    asked, record = LedgerConfig(runs=str(runs), to=str(tmp_path / "l")), tmp_path / "l.jsonl"
    for damage, words in ((50, "l.jsonl, line 1: torn"), (0, "l.parquet has rows that are not in the files before it")):
        write([made_up("old")], tmp_path / "l")
        record.write_text(record.read_text()[:damage])
        ledger(asked)
        assert all("old" in {row.run_name for row in read(beside(tmp_path / "l", ending))} for ending in ENDINGS)
        assert words in capsys.readouterr().out


def test_a_ledger_of_which_no_file_is_whole_is_left_alone(runs: Path, tmp_path: Path):
    for ending in ENDINGS:
        beside(tmp_path / "l", ending).write_text("x")
    with pytest.raises(ConfigError, match="its rows would be lost") as caught:
        ledger(LedgerConfig(runs=str(runs), to=str(tmp_path / "l")))
    assert len(caught.value.problems) == 4
    assert {beside(tmp_path / "l", ending).read_text() for ending in ENDINGS} == {"x"}


def test_a_ledger_lies_in_the_sweep_that_its_runs_belong_to(runs: Path):
    ledger(LedgerConfig(runs=str(runs)))
    assert (runs / "ledger.jsonl").is_file()
    (runs.parent / "plan.json").write_text("{}")
    ledger(LedgerConfig(runs=str(runs)))
    assert (runs.parent / "ledger.jsonl").is_file()


# --- verdicts --------------------------------------------------------------------------------------------------------


def losses(seed: int, n: int = 400, noise: float = 0.05) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (2.5 + 4.0 * np.exp(-np.arange(n) / 60)) * (1 + noise * rng.standard_normal(n))


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.2])
@pytest.mark.parametrize("n", [3, 12, 60, 400])
def test_losses_that_end_as_noisy_as_they_are_have_not_diverged(n: int, noise: float):
    for seed in range(20):
        made = losses(seed, n, noise).tolist()
        assert spike(made, made) == ""


def test_losses_that_end_high_have_diverged_and_a_spike_that_passed_has_not():
    ended, passed = losses(1), losses(1)
    ended[-12:] += 1.5
    passed[200:230] += 3.0
    assert "above the 2.4" in spike(ended.tolist(), ended.tolist())
    assert spike(passed.tolist(), passed.tolist()) == ""
    one = losses(1)
    one[-1] *= 3
    assert spike(one.tolist(), one.tolist()) == "", "a single step is noise"
    one[-1] = math.nan
    assert "not all finite" in spike(one.tolist(), one.tolist())


def test_a_spike_at_the_end_is_found_in_the_file_of_a_run(runs: Path):
    file = runs / "done/metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        if "loss" in row and row["step"] > 24:
            row["loss"] *= 3
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = of(runs)["done"]
    assert row.verdict == Verdict.diverged
    assert "its losses end at" in row.why
    file.unlink()
    assert of(runs)["done"].why == "no steps in metrics.jsonl: a spike at the end would not be seen"


def tuned(**of_rate: float | None) -> list[LedgerRow]:
    """Rows of one cell: their names end with the learning rate in thousandths; a loss of None has diverged."""
    return [
        made_up(
            name,
            peak_lr=int(name.split("_")[1]) / 1000,
            val_loss=loss,
            verdict=Verdict.diverged if loss is None else Verdict.ok,
        )
        for name, loss in of_rate.items()
    ]


def edges(rows: Sequence[LedgerRow]) -> dict[str, str]:
    return {row.run_name: row.why for row in with_edges(rows) if row.verdict == Verdict.edge}


def test_the_best_at_the_edge_of_what_was_tried_is_flagged_and_says_where_to_go():
    low = tuned(a_1=3.0, a_2=3.1, a_4=3.3)
    assert edges(low) == {"a_1": "try peak_lr below 0.001: the best of 3 tried, 0.001 to 0.004"}
    assert list(edges(tuned(a_1=3.2, a_2=3.1, a_4=3.0))) == ["a_4"]
    assert edges(tuned(a_1=3.2, a_2=3.0, a_4=3.1)) == {}
    assert edges(low[:2]) == {}, "two values are no search"
    assert edges([*low, *tuned(b_8=None)]).keys() == {"a_1"}
    assert edges(tuned(a_1=3.1, a_2=3.0, a_4=None)) == {}, "where a run diverged was tried"
    assert with_edges(with_edges(low)) == with_edges(low)
    assert edges([*with_edges(low), *tuned(more_0=9.0)]) == {}, "a value tried later takes the flag away"


def test_edges_are_of_cells_and_of_means_over_seeds():
    seeds = tuned(s_1=3.0, s_2=3.05, s_4=3.3) + [
        dataclasses.replace(row, run_name=f"{row.run_name}b", seed=1) for row in tuned(s_1=3.3, s_2=3.06, s_4=3.3)
    ]
    assert edges(seeds) == {}, "the lowest single loss is not the best mean"
    rows = tuned(a_1=3.0, a_2=3.1, a_4=3.3)
    other = [rows[0], dataclasses.replace(rows[1], cell_sha256="d"), rows[2]]
    assert edges(other) == {}
    partial = [rows[0], dataclasses.replace(rows[1], verdict=Verdict.partial), rows[2]]
    assert edges(partial) == {}
    batches = [made_up(f"b{b}", global_batch_size=b, val_loss=3 - b / 100) for b in (8, 16, 32)]
    assert edges(batches) == {"b32": "try global_batch_size above 32: the best of 3 tried, 8 to 32"}


def test_runs_of_several_batches_are_one_cell_though_none_can_end_where_the_others_do():
    def of_length(tokens: int, *batches: int) -> list[LedgerRow]:
        return [
            made_up(
                f"b{b}-{tokens}",
                global_batch_size=b,
                tokens_per_step=b * 32,
                total_steps=-(-tokens // (b * 32)),
                val_loss=3 - b / 100,
            )
            for b in batches
        ]

    rows = of_length(100_000, 8, 16, 32)
    assert [row.total_steps for row in rows] == [391, 196, 98]  # of 256, 512 and 1024 tokens
    assert edges(rows).keys() == {"b32-100000"}
    assert edges([*of_length(100_000, 8, 16), *of_length(101_100, 32)]) == {}, "of another length by more than a step"


def test_real_runs_that_differ_in_what_was_tuned_are_of_one_cell(runs: Path):
    """What else decides the loss makes another cell."""
    text = (runs / "done/config.yaml").read_text()
    one = of(runs)["done"]
    for old, new, is_same in (
        ("peak_lr: 0.003", "peak_lr: 0.001", True),
        ("seed: 0", "seed: 1", True),
        ("warmup_tokens: 2560", "warmup_tokens: 256", True),
        ("beta2: 0.95", "beta2: 0.9", False),
        ("total_tokens: 7680", "total_tokens: 7681", True),
        ("n_layers: 2", "n_layers: 3", False),
    ):
        assert old in text
        (runs / "done/config.yaml").write_text(text.replace(old, new))
        assert (of(runs)["done"].cell_sha256 == one.cell_sha256) is is_same, new


# --- totals and fits -------------------------------------------------------------------------------------------------


def test_a_shared_trunk_counts_once(runs: Path, capsys: pytest.CaptureFixture[str]):
    trunk, hours = told(runs / "done"), {"train": 0.5, "eval": 0.25, "checkpoint": 0.0, "idle": 0.25}
    retell(runs / "done", device_hours={kind: 2 * value for kind, value in hours.items()})
    shutil.copytree(runs / "done", runs / "branch")
    root = {"root": "done", "run": "done", "step": 15, "tokens": 3840, "device_hours": hours}
    retell(runs / "branch", run_name="branch", branch=root, cost_usd=7200.0)
    for name in ("hot", "stopped", "killed"):
        shutil.rmtree(runs / name)
    rows = of(runs)
    row = rows["branch"]
    assert (row.group, row.branch_from, row.branch_step) == ("done", "done", 15)
    assert (row.device_hours, row.device_hours_own, row.cost_usd, row.cost_usd_own) == (2.0, 1.0, 7200.0, 3600.0)
    assert row.flops_causal_own == trunk["flops_causal"] / 2
    ledger(LedgerConfig(runs=str(runs)))
    printed = capsys.readouterr().out
    assert "3.00  (4.00 if every run had been run alone)" in printed
    assert f"{1.5 * trunk['flops_causal']:.4g} FLOPs" in printed
    assert "$10,800" in printed
    alone = ledger_text([row], [])
    assert "not counted: what branch share with runs that are no rows here" in alone


def test_a_fit_sees_the_same_rows_in_folders_and_in_all_formats(runs: Path):
    files = write(collect(runs)[0], runs.parent / "l")
    for loss in ("val_loss", "bits_per_byte"):
        direct = rows_of_runs(runs, loss)[0]
        for file in files:
            assert repr(rows_of_ledger(file, loss)[0]) == repr(direct)  # NaN is no equal of itself
        summaries = {run.name: row_of(told(run), loss) for run in runs.iterdir()}
        assert repr(summaries["done"]) == repr(next(row for row in direct if row.run == "done"))


def test_edge_rows_are_used_by_a_fit_and_shown_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(with_edges(tuned(a_1=2.9, a_2=3.0, a_4=3.01)), tmp_path / "l")
    rows, _ = rows_of_ledger(tmp_path / "l.parquet", "val_loss")
    used, dropped = split(rows, RowRule())
    assert (len(used), dropped) == (3, [])
    with pytest.raises(ConfigError, match="3 usable rows"):
        fit(compose(App("launch_fit", FitConfig, {}), [f"ledger={tmp_path / 'l.csv'}"]))
    assert "the best of those tried, at their edge" in capsys.readouterr().out
