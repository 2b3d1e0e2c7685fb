"""A run's page: made of any run in any state, whole or damaged; what it says; and that nothing in it can do harm."""

import html.parser
import json
import re
import time
from pathlib import Path

import pytest

from conf.errors import ConfigError
from data_prep.files import DataError
from launch.charts import Band, Chart, Series, smoothed
from launch.expected import expected
from launch.look_config import ReportConfig
from launch.report import made as page_of
from launch.report import report
from launch.report_charts import layers, learning, slowest_ranks
from launch.run_view import RunView
from launch.runs import Runs
from launch.verdicts import compared, verdicts
from tests.runs import step_row


def view_of(folder: Path, name: str) -> RunView:
    return Runs(folder).one(name)


class Tags(html.parser.HTMLParser):
    """Every tag that is opened is closed, and none is one that loads or runs."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(page: str) -> str:
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    assert not tags.seen & {"script", "img", "link", "iframe", "object", "form", "a", "image", "use", "foreignobject"}
    assert not {name for name in tags.attributes if name.startswith("on") or name in ("src", "href", "xlink:href")}
    return page


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("done", "finished: all 30 steps"),
        ("stopped", "stopped at step 7 of 50 (14.0%); it saved, and the same command goes on"),
        ("hot", "diverged at step"),
        ("killed", "failed at step 12 of 50 (24.0%): rank 1 on"),
    ],
)
def test_a_page_is_made_of_every_run_and_says_first_how_it_stands(made: Path, name: str, first: str):
    page = checked(page_of(view_of(made / "runs", name)))
    verdict = re.search(r'<p class="verdict \w+">(.*?)</p>', page)
    assert verdict is not None
    assert verdict[1].startswith(first)
    for section in ("How it learnt", "How fast it was", "The plan, and what came", "Attempts", "Configuration"):
        assert f"<h2>{section}</h2>" in page


def test_the_page_of_a_finished_run_compares_it_with_its_baselines_and_its_plan(
    made: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(made)  # its dataset was named from here
    page = page_of(view_of(made / "runs", "done"))
    bits = json.loads((made / "runs/done/summary.json").read_text())["bits_per_byte"]
    assert f"{bits:.4f} bits per byte on the validation text: " in page
    assert "gzip -9" in page
    assert "What it writes" in page
    assert "<td class=left>time of a step</td>" in page
    assert "the dataset&#x27;s manifest" in page


def test_a_run_on_two_ranks_shows_how_they_differ(made: Path):
    assert "<h2>How the ranks differ</h2>" in page_of(view_of(made / "runs", "killed"))
    assert "<h2>How the ranks differ</h2>" not in page_of(view_of(made / "runs", "done"))


def test_what_only_some_runs_record_is_shown_where_it_is_there(runs: Path):
    facts = {"memory_gib": 61.5, "source_loss": {"web": 2.0, "code": 1.5}, "grad_norms": {"blocks.0": 0.1, "head": 2.0}}
    lines = [json.dumps(step_row(step, **facts)) for step in range(1, 31)]
    lines.append(json.dumps({"step": 30, "tokens_seen": 240, "val_loss": 2.0, "bits_per_byte": 1.0,
                             "source_val_loss": {"web": 2.0, "code": float("nan")}}))  # fmt: skip
    (runs / "done/metrics.jsonl").write_text("\n".join(lines))
    environment = {"torch": "2.13", "gpus": [{"name": "<b>H200</b>"}]}
    (runs / "done/attempts/0001/environment.json").write_text(json.dumps(environment))
    page = checked(page_of(view_of(runs, "done")))
    for words in ("Memory", "By source", "By layer", ">web<", "blocks.0", "as attempt 1 found it", "&lt;b&gt;H200"):
        assert words in page, words


def test_hostile_words_in_names_samples_and_events_stay_words(runs: Path):
    evil = "</pre><script>alert(1)</script>\x1b[2J\u202e<img src=x onerror=alert(1)>'\""
    run = runs / "done"
    (run / "samples.txt").write_text(evil)
    with (run / "events.jsonl").open("a") as stream:
        stream.write(json.dumps({"time": "2026-11-21T10:00:00Z", "attempt": 1, "event": evil, "x": evil}) + "\n")
    rows = (run / "metrics.jsonl").read_text().splitlines()
    rows.append(json.dumps(json.loads(rows[-2]) | {"source_loss": {evil: 1.0}, "step": 30, "tokens_seen": 7680}))
    (run / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("a dollar a second", "<script>"))
    plan = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps(plan | {"price": {"usd_per_device_hour": 1, "rule": evil, "date": evil}}))
    run.rename(runs / "x<script>y&'\"")
    page = checked(page_of(view_of(runs, "x<script>y&'\"")))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", page)


def test_a_page_is_published_whole_where_it_is_asked_for(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    target = tmp_path / "new" / "page.html"
    assert report(ReportConfig(run="done", folder=str(made / "runs"), to=str(target))) == 0
    assert str(target) in capsys.readouterr().out
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]
    with pytest.raises(DataError, match="no run 'none'"):
        report(ReportConfig(run="none", folder=str(made / "runs")))
    with pytest.raises(ConfigError):
        raise ConfigError(ReportConfig(run="done", to="page.txt").problems())


def test_a_page_of_a_hundred_thousand_steps_is_no_larger_than_a_browser_likes(runs: Path):
    with (runs / "done/metrics.jsonl").open("w") as stream:
        stream.writelines(json.dumps(step_row(step, loss=3.0 + step % 7)) + "\n" for step in range(1, 100_001))
    began = time.process_time()
    page = page_of(view_of(runs, "done"))
    assert len(page) < 1_000_000
    assert time.process_time() - began < 60


# --- judgements and drawings -----------------------------------------------------------------------------------------


def plan(seconds: float, how: str = "predicted") -> dict[str, object]:
    return {"total_steps": 100, "seconds": seconds, "tokens_per_step": 8, "mfu_is": how, "expected_mfu": 1.0}


@pytest.mark.parametrize(
    ("planned", "how", "judgement", "words"),
    [
        (100.0, "predicted", "good", "a step takes 1 s, as the plan predicted (1 s)"),
        (20.0, "predicted", "bad", "a step takes 1 s, 5.0 times what the plan predicted (0.2 s)"),
        (20.0, "assumed", "neutral", "a step takes 1 s, 5.0 times what the plan assumed (0.2 s)"),
        (400.0, "predicted", "good", "a step takes 1 s, 4.0 times less than the plan predicted (4 s)"),
    ],
)
def test_a_plan_is_judged_by_the_time_of_a_step(made: Path, planned: float, how: str, judgement: str, words: str):
    rows = [step_row(step) for step in range(1, 11)]  # of a second each
    found = verdicts(view_of(made / "runs", "done"), [], rows, expected(plan(planned, how), {}), {}, 0)
    assert (judgement, words) in [(one.judgement, one.text) for one in found]


def test_only_what_both_sides_know_is_compared(made: Path):
    view = view_of(made / "runs", "done")
    rows = [step_row(1, memory_gib=2.0)]
    assert [one.name for one in compared(view, rows, expected({}, {}))] == []
    of_memory = compared(view, rows, expected({"memory": {"weights": 2**30}}, {}))
    assert [(one.planned, one.came, one.ratio) for one in of_memory] == [("1.0 GiB", "2.0 GiB", 2.0)]


def test_planned_memory_is_that_of_the_fuller_moment_and_of_tensors_alone():
    """What the update needs comes when activations are gone; what no allocator counts is in no row."""
    gib = 2**30
    parts = {"weights": 4 * gib, "optimizer": 8 * gib, "activations": 6 * gib, "update": 5 * gib, "reserve": 2 * gib}
    assert expected({"memory": parts}, {}).tensor_bytes == 18 * gib
    assert expected({"memory": parts | {"update": 7 * gib}}, {}).tensor_bytes == 19 * gib
    assert expected({"memory": [1]}, {}).tensor_bytes is None


def prediction(**changes: object) -> dict[str, object]:
    parts = {"matmul": 1.5, "attention": 0.5, "pipeline": 0.0, "total": 2.0}
    memory = {"weights": 2**30, "reserve": 2**31, "total": 3 * 2**30}
    return {
        "schema_version": 1, "n_devices": 8, "step_seconds": parts, "tokens_per_second": 4.0, "mfu": 0.5,
        "memory_bytes": memory,
    } | changes  # fmt: skip


def test_a_prediction_made_before_the_run_stands_in_for_what_the_plan_assumed():
    planned = plan(100.0, "assumed") | {"machine": {"n_devices": 8}, "device_hours": 10.0, "cost_usd": 30.0}
    found = expected(planned, prediction())
    assert (found.how, found.step_seconds, found.tokens_per_second, found.mfu) == ("predicted", 2.0, 4.0, 0.5)
    assert (found.device_hours, found.cost_usd, found.tensor_bytes) == (20.0, 60.0, 2**30)
    assert found.step_parts == {"matmul": 1.5, "attention": 0.5}
    assert expected(planned, {}).step_seconds == 1.0


@pytest.mark.parametrize(
    "held", [{"step_seconds": None}, {"step_seconds": {"total": float("nan")}}, {"step_seconds": 3}]
)
def test_a_prediction_that_says_nothing_leaves_the_plan_as_it_is(held: dict[str, object]):
    planned = plan(100.0, "assumed") | {"machine": {"n_devices": 8}}
    assert expected(planned, prediction(**held)) == expected(planned, {})


def test_a_prediction_for_other_devices_is_named_and_not_compared(runs: Path):
    planned = json.loads((runs / "done/plan.json").read_text())
    (runs / "done/prediction.json").write_text(json.dumps(prediction(n_devices=64)))
    page = checked(page_of(view_of(runs, "done")))
    assert f"prediction.json is for 64 devices, the run has {planned['machine']['n_devices']}" in page
    (runs / "done/prediction.json").write_text(json.dumps(prediction(n_devices=planned["machine"]["n_devices"])))
    page = checked(page_of(view_of(runs, "done")))
    assert "the predicted step, by part" in page
    assert "matrix products" in page


def test_the_ranks_that_were_slowest_most_often_are_told():
    rows = [step_row(step, slowest_rank=rank) for step, rank in enumerate((3, 3, 0, 3), start=1)]
    assert slowest_ranks([*rows, step_row(5, slowest_rank=float("nan"))]) == [(3, 3, 0.75), (0, 1, 0.25)]
    assert slowest_ranks([step_row(1)]) == []


def test_a_plan_that_counts_more_attention_than_the_run_is_told_of(runs: Path):
    said = "the plan counts attention over whole rows, the run inside documents alone"
    assert said not in page_of(view_of(runs, "done"))
    held = (runs / "done/config.yaml").read_text()
    assert "mask_documents: false" in held
    (runs / "done/config.yaml").write_text(held.replace("mask_documents: false", "mask_documents: true"))
    assert said in page_of(view_of(runs, "done"))


def test_loss_is_drawn_against_compute_where_rows_tell_it():
    told, untold = ([step_row(step, **facts) for step in range(1, 9)] for facts in ({"flops_causal": 10**16}, {}))
    titles = [[name for svg, name in learning(rows, []) if svg] for rows in (told, untold)]
    assert [any("compute" in name for name in names) for names in titles] == [True, False]


def test_layers_are_drawn_in_the_order_of_the_network():
    names = [f"blocks.{i}" for i in (0, 1, 2, 10)]
    rows = [step_row(step, weight_norms=dict.fromkeys(names, 1.0)) for step in (1, 2)]
    drawn = layers(rows)[1][0]
    assert [drawn.index(f">{name}<") for name in names] == sorted(drawn.index(f">{name}<") for name in names)


def test_a_curve_of_many_points_keeps_its_spikes_and_is_cut_off_where_it_leaves_the_frame():
    points = [(float(i), 1.0 + (1000.0 if i == 5000 else 0.0)) for i in range(10_000)]
    drawn = Chart("t", "x", [Series("", points, 0, is_faint=True), Series("mean", smoothed(points), 1)]).svg()
    assert len(drawn) < 40_000
    heights = [float(pair.split(",")[1]) for line in re.findall(r'points="([^"]+)"', drawn) for pair in line.split()]
    assert min(heights) >= 0
    assert len(set(heights)) > 1, "the spike is there"


def test_values_that_are_no_numbers_break_a_line_and_are_marked():
    points = [(1.0, 1.0), (2.0, 2.0), (3.0, float("nan")), (4.0, 2.0), (5.0, float("inf")), (6.0, 1.0), (7.0, 1.5)]
    drawn = Chart("t", "x", [Series("a", points, 0)]).svg()
    assert drawn.count("<polyline") == 3
    assert drawn.count('class="gap"') == 2
    assert "nan" not in drawn


def test_charts_of_nothing_of_one_point_and_of_one_value_are_drawn_or_left_out():
    assert Chart("t", "x", []).svg() == ""
    assert Chart("t", "x", [Series("a", [], 0)]).svg() == ""
    assert Chart("t", "x", [Series("a", [(1.0, float("nan"))], 0)]).svg() == ""
    for points in ([(1.0, 0.0)], [(1.0, 5.0), (2.0, 5.0)], [(0.0, -1e-9), (1e12, 1e9)]):
        for is_log in (False, True):
            for from_zero in (False, True):
                Chart("t", "x", [Series("a", points, 0)], [Band([], 1)], is_log=is_log, from_zero=from_zero).svg()
