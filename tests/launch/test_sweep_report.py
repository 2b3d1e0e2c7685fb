"""A sweep's page: its numbers are those of the analysis; it is made at any time and says what it lacks; its pictures
lie beside it as files."""

import dataclasses
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.files import DataError
from launch.fit_config import FitChoice
from launch.ledger import collect, write
from launch.pictures import standalone
from launch.scaling.analysis import analyse, predict
from launch.scaling.bootstrap import interval
from launch.scaling.read_rows import rows_of_runs
from launch.scaling.rows import RowRule, Verdict, split
from launch.sweep_charts import size_for
from launch.sweep_folder import curves, read_sweep
from launch.sweep_forecasts import told_forecasts
from launch.sweep_law import HELD_OUT, Findings, findings
from launch.sweep_more_charts import tuned
from launch.sweep_report import Content, gathered, made, write_sweep_report
from launch.sweep_tables import totals
from launch.sweep_verdicts import sweep_verdicts
from tests.launch.sweep_folders import SIZES, TRUE, MadeSweep, complete, forecast, scored
from tests.launch.test_report import checked

OF_THE_LAW = ("The law", "The surface", "The frontier", "Loss against size at equal compute", "Residuals",
              "How sure the constants are", "Counted differently")  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with something for every section, its page and pictures made."""
    folder = complete(tmp_path_factory.mktemp("sweeps") / "whole")
    forecast(folder, 1, "n492k-d4000k", 1.62)
    scored(folder, 1, "n492k-d4000k", 1.62, 1.5725)
    forecast(folder, 2, "target", 1.489)
    scored(folder, 2, "target", 1.489, 1.4847)
    return folder


@pytest.fixture(scope="module")
def content(whole: Path) -> Content:
    return gathered(whole)


@pytest.fixture(scope="module")
def page(whole: Path, content: Content) -> str:
    write = pytest.MonkeyPatch()
    write.setattr("launch.sweep_report.gathered", lambda folder: content)  # the same, without a second fit
    write_sweep_report(whole)
    write.undo()
    return checked((whole / "report.html").read_text())


@pytest.fixture
def small(tmp_path: Path) -> MadeSweep:
    """Too few rows for a law: pages of it cost nothing."""
    return MadeSweep(tmp_path / "small").grid(SIZES[:2], (500_000, 1_000_000))


def missing(content: Content) -> dict[str, str]:
    return {section.title: section.why for section in content.sections if section.is_empty}


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_the_numbers_on_the_page_are_those_of_the_analysis(whole: Path, page: str):
    rows, _ = rows_of_runs(whole / "runs", "val_loss")
    used, _ = split([row for row in rows if row.run != "target"], RowRule(name="[!l]*"))
    for row in used:
        assert not row.run.startswith(("lr", "epochs", "hot", "target"))
    found = analyse(_grouped(used, whole), FitChoice(resamples=40))
    law, laws = found.family.fit.law, found.family.constants
    for name in ("E", "A", "B", "alpha", "beta"):
        span = interval(getattr(laws, name))
        cells = (f"{float(getattr(law, name)):.4g}", f"{span.low80:.4g} to {span.high80:.4g}",
                 f"{span.low95:.4g} to {span.high95:.4g}")  # fmt: skip
        assert f"<td class=left>{name}</td><td>{'</td><td>'.join(cells)}</td>" in page
    assert f"Mean error {found.family.fit.error:.2%} over {len(used)} rows" in page
    for counted in found.countings:
        assert f"<td>{float(counted.fit.law.alpha):.3f}</td><td>{float(counted.fit.law.beta):.3f}</td>" in page
    target = next(row for row in rows if row.run == "target")
    at = predict(found.family, None, float(target.n_params_matmul), float(target.tokens))
    assert f"<td>{at.loss:.4f}</td><td>{at.run_interval.low95:.4g} to {at.run_interval.high95:.4g}</td>" in page
    assert f"<td>{target.loss:.4f}</td><td>{at.loss / target.loss - 1:+.2%}</td>" in page


def _grouped(rows: list[Any], folder: Path) -> list[Any]:
    """As the plan groups them: what branches from one run is drawn together."""
    plan = json.loads((folder / "plan.json").read_text())
    group = {cell["run"]: cell["group"] for cell in plan["cells"]}
    return [dataclasses.replace(row, group=group[row.run]) for row in rows]


def test_a_held_out_run_is_never_among_the_rows_of_the_law(content: Content):
    assert "target" not in {row.run for row in content.found.used}
    assert ("target", HELD_OUT) in content.found.dropped
    assert [row.run for row, _ in content.found.held] == ["target"]


def test_every_section_is_there_when_its_data_is(content: Content, page: str):
    assert missing(content) == {}
    for section in content.sections:
        assert f"<h2>{section.title}</h2>" in page
    assert "<h2>Not on this page</h2>" not in page
    assert "1 of 2 inside 80 %, 1 of 2 inside 95 %" in page
    assert "n108k: 2 sizes below it" in page


def test_what_branches_share_is_paid_once(small: MadeSweep):
    sweep = read_sweep(small.plan())
    by_run = {cell.run: cell for cell in sweep.cells}
    root, branch = by_run["n26k-d1000k"], by_run["n26k-d500k"]
    assert root.own_hours == pytest.approx(sum(root.hours.values()))
    assert branch.own_hours == pytest.approx(0.4 * sum(branch.hours.values()))
    assert branch.own_usd == pytest.approx(0.4 * branch.summary["cost_usd"])
    seconds = 3600 * sum(cell.own_hours or 0 for cell in sweep.cells)
    assert f"it cost {seconds:.0f}s of device time" in made(small.path)


def test_an_optimum_on_the_edge_of_what_was_tried_is_flagged_and_one_inside_is_not(whole: Path, page: str):
    (one,) = tuned(read_sweep(whole))
    assert one.best == (0.024, 2048)
    assert one.edges == ["the best learning rate, 0.024, is the highest tried"]
    assert "tuning at an edge: N 52k, 750k tokens: the best learning rate, 0.024, is the highest tried" in page
    assert page.count(" ★") == 1


# --- at any time -----------------------------------------------------------------------------------------------------


def test_a_sweep_that_has_only_a_plan_shows_its_cells_and_what_is_missing(tmp_path: Path):
    sweep = MadeSweep(tmp_path / "new")
    sweep.path.mkdir()
    sweep.grid(SIZES[:2], (500_000, 1_000_000), status=None)
    page = checked(made(sweep.plan()))
    assert "0 of 4 cells finished (4 not started)" in page
    assert "no law yet (0 usable rows)" in page
    assert "<td class=left>Loss against compute</td><td class=left>no run has a loss yet</td>" in page
    assert "<h2>Cells</h2>" in page


def test_with_too_few_rows_the_curves_are_shown_and_the_page_says_what_a_law_needs(small: MadeSweep):
    content = gathered(small.plan())
    page = checked(made(small.path))
    assert "lines: validation loss of 4 runs; marks: validation loss at the end of a run" in page
    assert ">validation loss, nats per token<" in page
    assert "4 usable rows; E + A/N^alpha + B/D^beta has five constants and needs at least 6" in page
    assert page.count("<polyline") >= 4
    absent = missing(content)
    assert set(OF_THE_LAW) <= set(absent)
    assert "needs at least 6" in absent["The surface"]
    assert absent["Forecast and outcome"] == "no forecast is sealed yet"
    assert absent["Rolling origin"] == "no score holds a rolling origin yet"
    assert absent["Learning rate and batch"] == "no size was run with more than one learning rate or batch"
    assert absent["Repeated text"] == "no usable row repeats its text"
    assert absent["Rows not used"] == "all rows are used"


def test_lines_of_training_are_told_from_marks_of_validation(small: MadeSweep):
    for file in small.path.glob("runs/*/metrics.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows if "val_loss" not in row))
    page = checked(made(small.plan()))
    assert (
        "lines: training loss of 4 runs (smoothed; too few evaluations for a line of those); marks: validation" in page
    )
    assert ">loss, nats per token<" in page


def test_what_is_spent_is_compared_with_what_was_predicted_once_all_is_over(small: MadeSweep):
    assert totals(read_sweep(small.plan())).count(" x<") == 2
    small.cell("later", 492_000, 8_000_000, status=None)
    assert totals(read_sweep(small.plan())).count(" x<") == 1, "of the finished cells alone"


def test_cells_that_go_on_failed_or_were_left_out_are_there_with_the_reason(small: MadeSweep):
    small.cell("hot", 52_000, 2_000_000, status="diverged")
    small.cell("dear", 492_000, 8_000_000, left_out="would pass the cap of 2 device-hours")
    small.cell("later", 492_000, 8_000_000, status=None)
    (small.path / "runs" / "empty").mkdir()
    content = gathered(small.plan())
    states = {cell.run: cell.state for cell in content.sweep.cells}
    assert (states["hot"], states["dear"], states["later"]) == ("diverged", "left out", "not started")
    dropped = dict(content.found.dropped)
    assert dropped["hot"] == "diverged"
    assert "there is no summary yet" in dropped["empty"]
    assert "dear" not in dropped
    page = checked(made(small.path))
    assert "would pass the cap of 2 device-hours" in page
    assert "1 diverged" in page


def test_runs_without_a_plan_are_shown_with_the_usual_choice_and_that_is_said(small: MadeSweep):
    page = checked(made(small.path))  # its plan was never written
    assert "plan.json is not there" in page
    assert "the defaults of `launch fit` are shown" in page
    assert "4 of 4 cells finished" in page


def test_rows_of_the_ledger_stand_in_for_run_folders_that_are_gone(small: MadeSweep):
    rows, _ = collect(small.path / "runs")
    row = next(row for row in rows if row.run_name == "n26k-d500k")
    write([dataclasses.replace(row, run_name="gone", device_hours_own=0.5, cost_usd_own=1.0)], small.path / "ledger")
    cells = {cell.run: cell for cell in read_sweep(small.plan()).cells}
    assert cells["gone"].row is not None
    assert (cells["gone"].own_hours, cells["gone"].own_usd) == (0.5, 1.0)


def test_edges_that_the_ledger_tells_of_reach_the_page(small: MadeSweep):
    rows, _ = collect(small.path / "runs")
    write([dataclasses.replace(row, verdict=Verdict.edge, why="try less") for row in rows], small.path / "ledger")
    cells = read_sweep(small.plan()).cells
    assert {cell.row.verdict for cell in cells if cell.row is not None} == {Verdict.edge}


def test_damaged_files_are_named_and_the_page_is_made_all_the_same(small: MadeSweep):
    folder = small.plan()
    (folder / "runs/n26k-d500k/summary.json").write_text("{torn")
    (folder / "runs/n52k-d500k/metrics.jsonl").write_bytes(b"\x00\xff not rows\n[1]\n")
    forecast(folder, 1, "target", 1.5)
    scored(folder, 1, "target", 1.5, 1.49).write_text("[]")
    (folder / "forecasts/0002.json").write_text("")
    page = checked(made(folder))
    for name in ("n26k-d500k/summary.json cannot be read", "0001.score.json is no JSON object", "0002.json cannot"):
        assert f"Not read: {name}" in page or f"/{name}" in page, name
    wrong = json.loads((folder / "runs/n52k-d1000k/summary.json").read_text()) | {"schema_version": 7}
    (folder / "runs/n52k-d1000k/summary.json").write_text(json.dumps(wrong))
    assert "schema version 7, this program reads 1" in made(folder)
    (folder / "plan.json").write_text("\x00")
    assert "plan.json cannot be read" in checked(made(folder))


def test_a_choice_that_cannot_be_read_is_not_replaced_by_another(small: MadeSweep):
    small.fit = {"countng": "matmul"}
    found = findings(read_sweep(small.plan()))
    assert found.analysis is None
    assert "no other choice is made in its place" in found.why
    assert "countng" in made(small.path)


def test_rows_of_two_tokenizers_are_refused_with_both_names(tmp_path: Path):
    sweep = MadeSweep(tmp_path / "mixed").grid(SIZES[:3], (500_000, 1_000_000, 2_000_000))
    file = sweep.path / "runs/n26k-d500k/summary.json"
    summary = json.loads(file.read_text())
    summary["data"]["tokenizer_sha256"] = "x" * 64
    file.write_text(json.dumps(summary))
    page = checked(made(sweep.plan()))
    assert "rows of 2 tokenizers in one fit" in page


def test_it_is_asked_for_by_the_sweeps_folder(small: MadeSweep):
    """Of another command `sweep` is a choice among conf/sweep."""
    small.plan()
    words = [sys.executable, "-m", "launch", "report", f"sweep={small.path}"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert f"{small.path}/report.html: small, 4 of 4 cells finished" in done.stdout


def test_a_folder_that_is_no_sweep_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"no sweep's folder: it has neither plan\.json nor runs/"):
        made(tmp_path)


def test_hostile_names_stay_words(small: MadeSweep):
    evil = "x<script>alert(1)<\u202e'\"&"
    small.cell(evil, 108_000, 500_000)
    small.cell("dear", 1, 1, left_out=evil, family=evil)
    folder = small.plan(name=evil, written=evil)
    forecast(folder, 1, evil, 1.5, baselines=[{"name": evil, "loss": 1.4, "words": evil}])
    (folder / "runs" / f"{evil}2").mkdir()
    page = checked(made(folder))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "\u202e" not in page
    for picture in (one for section in gathered(folder).sections for one in section.pictures if one.svg):
        assert "<script" not in standalone(picture)
        ET.fromstring(standalone(picture))


def test_a_plan_that_points_out_of_the_folder_reads_nothing_there(small: MadeSweep):
    small.cells.append(small.cells[0] | {"run": "../../elsewhere"})
    sweep = read_sweep(small.plan())
    assert "plan.json: cell 5 names no run" in sweep.damage
    assert len(sweep.cells) == 4


# --- forecasts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measured", "judgement", "words"),
    [
        (None, "neutral", "1.5000 (95 %: 1.4400 to 1.5600); not scored yet"),
        (1.49, "good", "error +0.67%, inside the 80 % interval, inside the 95 % interval, "
                       "better than 3 of 3 simpler rules: it passes; the goal is met"),
        (1.48, "good", "it passes; the goal (1 %, inside 80 %) is not met"),
        (1.40, "bad", "outside the 95 % interval, better than 2 of 3 simpler rules: it does not pass"),
    ],
)  # fmt: skip
def test_the_verdict_says_first_how_the_forecast_did(
    small: MadeSweep, measured: float | None, judgement: str, words: str
):
    folder = small.plan()
    forecast(folder, 1, "target", 1.5)
    if measured is not None:
        scored(folder, 1, "target", 1.5, measured)
    first = _verdicts(folder)[0]
    assert first.judgement == judgement
    assert words in first.text


def test_an_altered_forecast_proves_nothing(small: MadeSweep):
    folder = small.plan()
    file = forecast(folder, 1, "target", 1.5)
    file.write_text(file.read_text().replace("1.5", "1.45"))
    first = _verdicts(folder)[0]
    assert first.judgement == "bad"
    assert "ALTERED" in first.text
    assert "forecasts/0001.json was altered" in made(folder)


def test_a_held_out_run_that_began_without_a_forecast_is_told(small: MadeSweep):
    small.cell("target", 492_000, 1_000_000, held_out=True, status=None)
    assert "no forecast is sealed yet; held out: target" in _verdicts(small.plan())[0].text
    small.cells.pop()
    small.cell("target", 492_000, 1_000_000, held_out=True)
    first = _verdicts(small.plan())[0]
    assert (first.judgement, first.text) == ("bad", "no forecast was sealed, though target, held out, has begun")


def _verdicts(folder: Path) -> list[Any]:
    sweep = read_sweep(folder)
    told = told_forecasts(folder, sweep.damage)
    nothing = Findings(sweep.choice, [], [], None, "", [], [], None, {}) if sweep.choice else findings(sweep)
    return sweep_verdicts(sweep, nothing, told)


# --- many and large --------------------------------------------------------------------------------------------------


def test_a_hundred_runs_of_a_hundred_thousand_rows_are_read_in_part(tmp_path: Path):
    sweep = MadeSweep(tmp_path / "many")
    for i in range(100):
        sweep.cell(f"run{i}", SIZES[0], 500_000 + 1000 * i, n_rows=2)
    lines = [
        json.dumps({"step": i, "tokens_seen": i, "flops_causal": 1e5 * i, "flops_full": 1e5 * i, "loss": 2 + 50 / i})
        for i in range(1, 100_001)
    ]
    lines.insert(50_000, json.dumps({"step": 5, "tokens_seen": 5, "flops_causal": 5e5, "val_loss": 2.0}))
    large = sweep.path / "runs/run0/metrics.jsonl"
    large.write_text("\n".join(lines) + "\n")
    for i in range(1, 100):
        (sweep.path / f"runs/run{i}/metrics.jsonl").unlink()
        os.link(large, sweep.path / f"runs/run{i}/metrics.jsonl")
    started = time.process_time()
    found = curves(read_sweep(sweep.plan()))
    page = made(sweep.path)
    assert time.process_time() - started < 60
    assert len(found) == 100
    assert found[0].measured == "training"
    assert found[0].points[-1][0] > 0.95e10
    late = [(flops, loss) for flops, loss in found[0].points if flops > 1e9]
    assert len(late) > 20
    assert all(abs(loss - 2 - 50e5 / flops) < 0.01 for flops, loss in late)
    assert len(page) < 3_000_000


# --- pictures --------------------------------------------------------------------------------------------------------


def test_pictures_lie_beside_the_page_as_files_that_need_nothing(whole: Path, page: str):
    names = {path.stem for path in (whole / "pictures").glob("*.svg")}
    assert {"curves", "isoflop", "surface", "frontier-n", "residuals-d", "profile-E", "forecasts", "cost"} <= names
    for path in (whole / "pictures").glob("*.svg"):
        assert "var(" not in path.read_text()
        root = ET.fromstring(path.read_text())
        assert not {"script", "image", "use", "foreignObject"} & {one.tag.split("}")[-1] for one in root.iter()}


def test_without_the_package_that_draws_them_there_are_no_png_files_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: MadeSweep
):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    folder = small.plan()
    (folder / "pictures").mkdir()
    (folder / "pictures/surface.svg").write_text("of an earlier page")
    said = write_sweep_report(folder)
    assert any("no PNG files, only SVG: the package resvg-py" in line for line in said)
    assert "No PNG files, only SVG: the package resvg-py" in (folder / "report.html").read_text()
    assert {path.name for path in (folder / "pictures").iterdir()} == {"curves.svg", "cost.svg"}


def test_the_surface_of_a_known_law_has_its_levels_where_the_law_has_them():
    d = np.array([1e6, 4e6])
    n = size_for(TRUE, 2.0, d)
    assert TRUE.loss(n, d) == pytest.approx([2.0, 2.0])
    assert np.isinf(size_for(TRUE, 0.71, d)).all()
