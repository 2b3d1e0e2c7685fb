"""Predictions beside published rows: a handful carried here (rows.csv; each names its source), all of them where the
tables are."""

import csv
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from conf.errors import ConfigError
from launch.performance.constants import Constants
from launch.performance.fitted import FITTED
from launch.performance.hardware import hardware_named, kind_of
from launch.performance.memory import memory
from launch.performance.published import Row, read
from launch.performance.reproduce import Scored, meant, quantiles, report, reproduce, score_all
from launch.performance.stacks import stack_of
from launch.plan_table import HELD_OUT
from tests.benchmarks.calibrate_plan import PRIORS, fit

ROOT = Path(__file__).resolve().parents[3]
ROWS = Path(__file__).parent / "rows.csv"
TABLES = ROOT.parent / "shared/data/performance"
HEAD, *LINES = ROWS.read_text().splitlines()


def scored(path: Path) -> list[Scored]:
    found, unscored = score_all(read(path), Constants())
    assert unscored == []
    return found


def table(tmp_path: Path, *lines: str) -> Path:
    (tmp_path / "table.csv").write_text("\n".join((HEAD, *lines)) + "\n")
    return tmp_path / "table.csv"


def errors(found: list[Scored], of: str, held_out: bool = False) -> list[float]:
    return [getattr(one, of) for one in found if getattr(one, of) is not None and (one.row.held_out or not held_out)]


def test_published_speeds_and_memory_are_met():
    found = scored(ROWS)
    assert quantiles(errors(found, "seconds"))[0] < 0.10
    assert max(map(abs, errors(found, "seconds"))) < 0.35
    assert max(map(abs, errors(found, "bytes"))) < 0.10


@pytest.mark.skipif(not TABLES.is_dir(), reason=f"the published tables are not at {TABLES}")
def test_all_published_tables_are_met():
    found = scored(TABLES)
    middle, high = quantiles(errors(found, "seconds", held_out=True))
    assert middle < 0.10
    assert high < 0.35
    assert quantiles(errors(found, "bytes"))[0] < 0.10
    assert sum(one.row.held_out for one in found) > 50


@pytest.mark.skipif(not TABLES.is_dir(), reason=f"the published tables are not at {TABLES}")
def test_the_constants_are_those_of_the_fit():
    """Nobody turned them by hand after it."""
    shipped = Constants()
    rows = [row for row in read(TABLES) if row.tokens_per_second and not row.kept_out]
    assert {row.digest for row in rows} == FITTED
    fitted = fit(rows, shipped, 3)
    assert {name: getattr(shipped, name) for name in PRIORS} == {
        name: pytest.approx(getattr(fitted, name), rel=0.03) for name in PRIORS
    }


def test_what_did_not_fit_is_never_called_fitting():
    too_large = [one for one in scored(ROWS) if one.fitted is False]
    assert len(too_large) == 2
    assert not any(one.fits for one in too_large)
    text = report(read(ROWS), Constants())
    assert "of 2 layouts that do not fit by their source, 0 are called fitting" in text
    assert "\n  called too large: GPT 22B, 8 x A100-80, T 2048, bf16: 106.1 GiB" in text


def test_a_source_that_says_so_counts_as_not_fitting(tmp_path: Path):
    line = next(line for line in LINES if "modded-nanogpt" in line).replace("torch 2.5 compile", "OOM at this size")
    one = scored(table(tmp_path, line))[0]
    assert one.fitted is False
    assert one.fits
    assert "CALLED FITTING: GPT 124M" in report([one.row], Constants())


def test_which_rows_are_held_out_depends_on_nothing_but_their_content(tmp_path: Path):
    rows = read(ROWS)
    backwards = read(table(tmp_path, *reversed(LINES)))
    assert {row.name: row.kept_out for row in rows} == {row.name: row.kept_out for row in backwards}
    assert {row.held_out for row in rows if row.tokens_per_second} == {True, False}
    for row in rows:
        assert row.held_out == (row.kept_out or not row.tokens_per_second), "carried rows are of the calibration"


def test_a_row_of_another_table_is_one_that_no_constant_saw(tmp_path: Path):
    fitted = next(row for row in read(ROWS) if not row.held_out)
    assert fitted.tokens_per_second is not None
    lines = [line for line in LINES if f",{fitted.tokens_per_second:g}," in line]
    assert [row.held_out for row in read(table(tmp_path, *lines))] == [False]
    again = lines[0].replace(f",{fitted.tokens_per_second:g},", f",{fitted.tokens_per_second:.4f},")
    assert [row.held_out for row in read(table(tmp_path, again))] == [False]
    other = lines[0].replace(f",{fitted.tokens_per_second:g},", f",{fitted.tokens_per_second * 1.01:g},")
    assert [row.held_out for row in read(table(tmp_path, other))] == [True]


def test_a_fit_follows_its_rows():
    """Rows that were all twice as slow would make every speed that they depend on smaller."""
    rows = [row for row in read(ROWS) if row.tokens_per_second and not row.kept_out]
    as_published, slower = (fit([_slowed(row, factor) for row in rows], Constants(), 2) for factor in (1, 2))
    assert set(PRIORS) <= set(vars(slower))
    assert slower.matmul_hopper < as_published.matmul_hopper
    assert slower.matmul_ampere < as_published.matmul_ampere
    assert slower.passes_fused > as_published.passes_fused


def _slowed(row: Row, factor: float) -> Row:
    assert row.tokens_per_second is not None
    return dataclasses.replace(row, tokens_per_second=row.tokens_per_second / factor)


def test_an_unstated_micro_batch_is_the_fastest_that_fits():
    one = next(one for one in scored(ROWS) if one.row.file == "rows.csv" and "GPT 70B" in one.row.name)
    assert len(one.row.layouts) > 10
    assert one.fits
    assert one.job.layout.virtual_stages > 1
    small = dataclasses.replace(hardware_named("H100-80"), memory_bytes=40 * 2**30)
    other = meant(one.row, small, Constants())
    assert not memory(one.job).fits(small)
    assert memory(other).fits(small)


@pytest.mark.parametrize(
    ("of", "into", "reason"),
    [
        ("H100-96", "Q100-1", "the GPU kind 'Q100-1' is described by none of conf/cluster: a100_40"),
        (",12,768,", ",,768,", "does not state layers"),
        (",1024,8,", ",1024,8,3,", "n_gpus=8 does not divide by tp x pp x cp = 3"),
        (",bf16,", ",nvfp4,", "precision=nvfp4 cannot be predicted"),
        ("462106.9", "fast", "could not convert string to float"),
        ("GPT 124M", "Mixtral 8x7B", "is a mixture of experts, which is not predicted"),
        ("8,GPT 124M", "zero,GPT 124M", "could not convert string to float"),
        ("12,768,6,", "12,768,7,", "has no network that could be"),
        ("462106.9", "-3", "tokens_s_gpu=-3 must be above 0"),
    ],
)
def test_a_row_that_cannot_be_predicted_is_named_with_the_reason(of: str, into: str, reason: str, tmp_path: Path):
    line = next(line for line in LINES if of in line and ("modded" in line or "H100-96" in of)).replace(of, into, 1)
    if "3," in into:  # one cell more: take away the empty one that follows
        line = line.replace(into, into.rstrip(","), 1)
    text = report(read(table(tmp_path, line, LINES[0])), Constants())
    assert "1 predicted, 1 not" in text
    assert "\n  not predicted: table.csv:" in text
    assert reason in text


@pytest.mark.parametrize(
    ("source", "note", "precision", "name"),
    [
        ("arXiv 2104.04473 T1 / Megatron-LM README 2021", "", "fp16", "Megatron-LM, 2021"),
        ("Megatron-LM README, core r0.8.0", "", "bf16", "Megatron core"),
        ("llm-foundry benchmarking/README", "", "amp_bf16", "llm-foundry, 2023, autocast"),
        ("llm-foundry benchmarking/README", "", "bf16", "llm-foundry, 2023, bf16"),
        ("torchtitan benchmarks 2024-12", "eager; FSDP2", "bf16", "FSDP, eager"),
        ("torchtitan benchmarks 2024-12", "compile; FSDP2", "bf16", "FSDP, compiled"),
        ("nobody knows", "", "bf16", "one node, compiled"),
    ],
)
def test_a_source_is_known_by_its_name(source: str, note: str, precision: str, name: str):
    assert stack_of(source, note, precision).name == name


def test_tables_that_are_none_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no table of published speeds \(no CSV file\)"):
        read(tmp_path)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match=r"other.csv lacks the columns hidden, hw, layers"):
        read(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read(tmp_path / "missing.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"bytes.csv is no CSV file"):
        read(tmp_path / "bytes.csv")


def test_a_file_of_another_kind_beside_tables_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    table(tmp_path, LINES[0])
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    reproduce(str(tmp_path))
    assert "not compared: other.csv: no such table, it lacks the columns hidden, hw" in capsys.readouterr().out


def test_the_command_prints_each_table_and_the_totals(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "launch", "plan", f"reproduce={ROWS}"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in ("nanotron v0.5", "worst row", "unseen", "\nmemory", "\nall "):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("H100 SXM5 80GB", "H100-80"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("NVIDIA H100 80GB HBM3", "H100-80"),
        ("h200", "H200"),
        ("H800", "H800-80"),
        ("B200-180", "B200-180"),
        ("H100 PCIe", "H100 PCIe"),
        ("GH200", "GH200"),
        ("MI300X", "MI300X"),
        ("V100", "V100"),
        ("", ""),
    ],
)
def test_a_gpu_is_known_however_its_name_is_written(name: str, kind: str):
    """Other boards of the same chip are other GPUs."""
    assert kind_of(name) == kind


def test_columns_that_say_less_may_be_missing(tmp_path: Path):
    (tmp_path / "few.csv").write_text("hw,n_gpus,layers,hidden,seq,step_s,global_batch\nH100,8,12,768,1024,0.15,512\n")
    one = scored(tmp_path)[0]
    assert one.row.tokens_per_second == pytest.approx(512 * 1024 / 0.15 / 8)
    assert one.seconds is not None


@pytest.mark.skipif(not TABLES.is_dir(), reason=f"the published tables are not at {TABLES}")
def test_how_sure_a_prediction_is_said_to_be_is_what_the_tables_say():
    unseen = errors(scored(TABLES), "seconds", held_out=True)
    middle, high = quantiles(unseen)
    assert (len(unseen), round(middle, 3), round(high, 3)) == HELD_OUT


def test_a_line_that_was_torn_is_named_and_not_taken_for_one_that_states_little(tmp_path: Path):
    whole, torn = LINES[0], LINES[0].rsplit(",", 3)[0]
    first, second = read(table(tmp_path, whole, torn))
    assert first.problem == ""
    columns = len(next(csv.reader([HEAD])))
    assert second.problem == f"line 3: has {columns - 3} cells, and the table {columns} columns"
