"""A forecast is sealed before the run, believed only unaltered, and scored once."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conf.errors import ConfigError
from launch.fit_config import FitChoice
from launch.forecast import Forecast, code_sha256, history, require_sealed, score, seal
from launch.forecast_numbers import LARGEST, NEAREST, POWER
from launch.forecast_record import hashed, read_chain
from launch.forecast_score import LIMIT, scored
from launch.forecast_text import ALTERED, ForecastConfig, forecast, forecast_text, score_text
from launch.scaling.rows import Counting, RowRule, Verdict
from tests.launch.scaling.surfaces import row
from tests.launch.sweeps import HELD_OUT, LAW, SIZES, held_out, left_behind, outcome, rows_of

ROOT = Path(__file__).resolve().parents[2]
CHOICE = FitChoice(resamples=40)
ROWS = rows_of(noise=0.004)
FEW = rows_of(noise=0.004, sizes=SIZES[-3:])
"""three sizes: no rolling origin, so they are scored at once"""


@pytest.fixture(scope="session")
def sealed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sweep = tmp_path_factory.mktemp("sealed")
    prepared(sweep / "runs" / "large")
    seal(sweep, held_out(sweep, predicted_device_hours=0.5), FEW, CHOICE)
    return sweep


def prepared(run: Path) -> None:
    """As it is before the first step."""
    (run / "checkpoints").mkdir(parents=True)
    (run / "prediction.json").write_text("{}")


@pytest.fixture
def sweep(sealed_once: Path, tmp_path: Path) -> Path:
    """With one forecast of the run `large`."""
    return Path(shutil.copytree(sealed_once, tmp_path / "sweep"))


def written(sweep: Path, name: str = "0001") -> dict[str, Any]:
    return json.loads((sweep / "forecasts" / f"{name}.json").read_text())


def rewritten(sweep: Path, tree: dict[str, Any], name: str = "0001") -> None:
    (sweep / "forecasts" / f"{name}.json").write_text(json.dumps(tree))


def close_to(one: Forecast, share: float) -> float:
    """A loss so much (relative) below the forecast."""
    return one.numbers.loss / (1 + share)


def test_a_forecast_says_what_it_stands_on_and_holds_the_truth(tmp_path: Path):
    rows = [*ROWS, row("short", 10**5, 10**5, loss=2.5), row("hot", 10**5, 10**6, schedule_finished=False)]
    choice = replace(CHOICE, rows=RowRule(min_tokens=5e5))
    made = seal(tmp_path, held_out(tmp_path), rows, choice)
    truth = float(LAW.loss(*map(float, HELD_OUT)))
    assert made.numbers.run_interval.holds(truth, 95)
    assert made.numbers.loss == pytest.approx(truth, rel=0.02)
    assert made.numbers.run_interval.high95 > made.numbers.law_interval.high95
    assert made.numbers.run_interval.low95 < made.numbers.run_interval.low80 < made.numbers.loss
    assert made.numbers.independent_runs == 5
    assert made.numbers.outside[0].startswith("N 2.11 times the largest sampled")
    assert sorted(made.rows, key=str) == sorted(ROWS, key=str), "names and values"
    assert {one.run: one.reason.split(",")[0] for one in made.dropped} == {
        "short": "1e+05 tokens",
        "hot": "its schedule does not end there",
    }
    assert made.code_sha256 == code_sha256()
    assert made.target.run_folder == "runs/large", "seen from the sweep, so that it can be moved"
    assert "assumed 0.5%" in made.seed_spread.words
    assert history(tmp_path) == [(made, None)]
    text = forecast_text(made)
    for words in ("95 % interval", "n26k-d500k", "not used: hot: its schedule", "without a law", made.sha256):
        assert words in text


def test_the_three_naive_baselines_are_those_worked_out_by_hand(sweep: Path):
    found = {one.name: one for one in history(sweep)[0][0].baselines}
    largest = next(row for row in FEW if row.run == "n492k-d4000k")
    assert (found[LARGEST].loss, found[LARGEST].words) == (largest.loss, largest.run)
    assert (found[NEAREST].loss, found[NEAREST].words) == (largest.loss, largest.run)
    on = [row for row in FEW if row.run in found[POWER].words.split(" through ")[1].split(", ")]
    x, y = np.log([row.flops_causal for row in on]), np.log([row.loss for row in on])
    b, a = np.linalg.lstsq(np.stack([x, np.ones(len(x))], axis=1), y, rcond=None)[0]
    assert found[POWER].loss == pytest.approx(np.exp(a + b * np.log(6.3 * HELD_OUT[0] * HELD_OUT[1])))


def test_seeds_that_were_run_give_the_spread_and_a_flat_law_has_no_e(tmp_path: Path):
    again = [replace(r, run=f"{r.run}-s2", group=f"{r.group}-s2", seed=2, loss=r.loss * 1.01) for r in FEW[:4]]
    flat = [replace(r, loss=3.0 * float(r.n_params_matmul * r.tokens) ** -0.05) for r in [*FEW, *again]]
    made = seal(tmp_path, held_out(tmp_path), [*FEW, *again], CHOICE)
    assert made.seed_spread.sd == pytest.approx(np.log(1.01) / np.sqrt(2))
    assert made.seed_spread.words == "measured: 4 cells with several seeds"
    power = [row(r.run, r.n_params_matmul, r.tokens, loss=r.loss, group=r.group) for r in flat[: len(FEW)]]
    without = seal(tmp_path, held_out(tmp_path, "other"), power, CHOICE)
    assert not without.numbers.e_identified
    assert "NOT IDENTIFIED" in forecast_text(without)


def test_asked_the_same_again_it_returns_what_is_sealed_and_another_is_refused(sweep: Path):
    first = written(sweep)
    target = held_out(sweep, predicted_device_hours=0.5)
    left_behind(sweep, outcome())  # the run may be over by then: a sweep that goes on asks again
    assert seal(sweep, target, list(reversed(FEW)), CHOICE).sha256 == first["sha256"]
    assert seal(sweep, target, [*FEW, outcome()], CHOICE).sha256 == first["sha256"], "its own row is not used"
    for rows, choice, what in (
        (FEW, replace(CHOICE, counting=Counting.total), "how rows become a law"),
        (FEW[1:], CHOICE, "the rows"),
    ):
        with pytest.raises(ConfigError, match=f"with other content: {what} changed since"):
            seal(sweep, target, rows, choice)
    with pytest.raises(ConfigError, match="with other content: the run changed"):
        seal(sweep, replace(target, config_sha256="d" * 64), FEW, CHOICE)
    assert written(sweep) == first


@pytest.mark.parametrize(
    "name", ["summary.json", "metrics.jsonl", "events.jsonl", "checkpoints/step-1", "attempts/0001"]
)
def test_a_run_that_has_begun_is_not_forecast(tmp_path: Path, name: str):
    target = held_out(tmp_path)
    file = target.run_folder / name
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    with pytest.raises(ConfigError, match=f"large has begun: .*holds {name.split('/')[0]}"):
        seal(tmp_path, target, FEW, CHOICE)
    assert history(tmp_path) == []


def test_what_is_only_prepared_does_not_count_as_begun(sweep: Path):
    assert (sweep / "runs" / "large" / "checkpoints").is_dir()
    assert history(sweep)[0][0].run == "large"


def test_rows_that_carry_no_law_or_are_of_two_kinds_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="2 usable rows"):
        seal(tmp_path, held_out(tmp_path), FEW[:2], CHOICE)
    with pytest.raises(ConfigError, match="2 validation sets in one fit"):
        seal(tmp_path, held_out(tmp_path), [*FEW[1:], replace(FEW[0], validation="w" * 64)], CHOICE)
    assert history(tmp_path) == []


def test_a_held_out_run_may_start_only_as_forecast(sweep: Path):
    assert require_sealed(sweep, "large", "c" * 64).run == "large"
    with pytest.raises(ConfigError, match="no forecast of other is sealed"):
        require_sealed(sweep, "other", "c" * 64)
    with pytest.raises(ConfigError, match="has the configuration dddddddddddd, its sealed forecast is of cccccccccccc"):
        require_sealed(sweep, "large", "d" * 64)


def test_a_number_changed_by_hand_is_noticed(sweep: Path, capsys: pytest.CaptureFixture[str]):
    tree = written(sweep)
    tree["numbers"]["loss"] += 0.01
    rewritten(sweep, tree)
    with pytest.raises(ConfigError, match=r"0001\.json was altered: it says SHA-256"):
        require_sealed(sweep, "large", "c" * 64)
    with pytest.raises(ConfigError, match="was altered"):
        score(sweep, "large", outcome(), FEW)
    assert forecast(ForecastConfig(str(sweep))) == ALTERED
    assert "ALTERED" in capsys.readouterr().out


def test_another_layout_of_the_same_content_is_no_alteration(sweep: Path):
    rewritten(sweep, dict(reversed(written(sweep).items())))
    assert require_sealed(sweep, "large", "c" * 64)


@pytest.mark.parametrize("text", ["", "[]", '{"schema_version": 2}', "{"])
def test_a_file_that_is_no_forecast_is_named(sweep: Path, text: str):
    (sweep / "forecasts" / "0001.json").write_text(text)
    records, problems = read_chain(sweep)
    assert records == []
    assert problems[0].startswith("forecasts/0001.json cannot be read")


def test_forecasts_hang_together(sweep: Path):
    """Three forecasts and a score: none can be taken away, exchanged or rewritten unnoticed."""
    left_behind(sweep, outcome())
    score(sweep, "large", outcome(), FEW)
    for name in ("second", "third"):
        seal(sweep, held_out(sweep, name), FEW, CHOICE)
    assert [one.number for one, _ in history(sweep)] == [1, 2, 3]
    whole = {file: file.read_bytes() for file in (sweep / "forecasts").glob("*.json")}

    def told(change: Any) -> str:
        change(sweep / "forecasts")
        problems = read_chain(sweep)[1]
        for file, content in whole.items():
            file.write_bytes(content)
        for file in {*(sweep / "forecasts").glob("*.json")} - whole.keys():
            file.unlink()
        return "; ".join(problems)

    assert "0002.json is gone" in told(lambda folder: (folder / "0002.json").unlink())
    assert "0001.score.json is gone" in told(lambda folder: (folder / "0001.score.json").unlink())
    assert "0001.json is gone" in told(lambda folder: (folder / "0001.json").unlink())
    other = hashed(written(sweep, "0002") | {"written": "2020-01-01T00:00:00+00:00"})
    assert "0003.json was sealed after the forecast" in told(lambda folder: rewritten(sweep, other, "0002"))
    better = hashed(written(sweep, "0001.score") | {"relative_error": 0.0})
    assert "0001.score.json is another one" in told(lambda folder: rewritten(sweep, better, "0001.score"))
    assert "sealed as number 2" in told(lambda folder: shutil.copy(folder / "0002.json", folder / "0004.json"))
    assert "0004.json is gone" in told(
        lambda folder: shutil.copy(folder / "0001.score.json", folder / "0004.score.json")
    )
    assert "neither a forecast nor a score" in told(lambda folder: shutil.copy(folder / "0002.json", folder / "2.json"))


def test_a_score_is_worked_out_from_what_was_sealed(sweep: Path):
    one = history(sweep)[0][0]
    made = outcome(loss=close_to(one, 0.008))
    left_behind(sweep, made, branch={"device_hours": {"train": 0.1}})
    found = score(sweep, "large", made, FEW)
    assert found.relative_error == pytest.approx(0.008)
    assert found.error_in_seed_spreads == pytest.approx(np.log(1.008) / 0.005)
    assert found.limit == LIMIT
    assert found.failures == []
    assert (found.passed, found.goal_met, found.inside_80) == (True, True, True)
    assert found.device_hours == pytest.approx(0.5)
    naive = one.baselines[0].loss
    assert naive is not None
    assert found.skills[0].skill == pytest.approx(1 - 0.008 / (naive / made.loss - 1))
    assert history(sweep) == [(one, found)]
    text = score_text(one, found)
    for words in ("GOAL MET", "error +0.80%", "+1.6 seed spreads", "cost: 0.5 device-hours, 0.5 predicted (+0%)"):
        assert words in text


def test_a_forecast_passes_only_within_the_limit_inside_and_better_than_all_baselines(sweep: Path):
    one = history(sweep)[0][0]

    def failures(made: Any = None, of: Forecast = one) -> list[str]:
        made = made or outcome(loss=close_to(of, 0.001))
        left_behind(sweep, made)
        return scored(sweep, of, made, FEW, "now").failures

    assert failures() == []
    assert "error +1.60%, more than 1.50%" in failures(outcome(loss=close_to(one, 0.016)))
    assert "error -1.60%, more than 1.50%" in failures(outcome(loss=close_to(one, -0.016)))
    noisy = replace(one, seed_spread=replace(one.seed_spread, sd=0.01))
    assert not any("more than" in why for why in failures(outcome(loss=close_to(one, 0.016)), noisy))
    assert "outside the 95 % interval" in failures(outcome(loss=one.numbers.run_interval.low95 * 0.99))
    wide = replace(one.numbers.run_interval, low95=0.92 * one.numbers.loss, high95=1.09 * one.numbers.loss)
    assert "useless" in failures(None, replace(one, numbers=replace(one.numbers, run_interval=wide)))[0]
    lucky = replace(one.baselines[1], loss=close_to(one, 0.0011))
    assert failures(None, replace(one, baselines=[one.baselines[0], lucky])) == [f"no better than the {POWER}"]
    none = replace(lucky, loss=None, words="no envelope")
    assert failures(None, replace(one, baselines=[none])) == [f"there is no {POWER} to be compared with: no envelope"]


def test_a_run_that_diverged_or_stopped_early_is_scored_as_that(sweep: Path):
    one = history(sweep)[0][0]
    bad = outcome(loss=float("nan"), verdict=Verdict.diverged, schedule_finished=False)
    left_behind(sweep, bad, status="diverged")
    found = score(sweep, "large", bad, FEW)
    assert (found.verdict, found.measured, found.relative_error, found.inside_95) == ("diverged", None, None, None)
    assert found.failures[0] == "the run diverged"
    assert not found.passed
    assert not found.goal_met
    assert "large ended diverged: there is no loss to compare" in score_text(one, found)
    early = outcome(verdict=Verdict.partial, schedule_finished=False, tokens=10**6)
    left_behind(sweep, early, status="failed")
    assert scored(sweep, one, early, FEW, "now").failures == ["the run's schedule did not finish (1,000,000 tokens)"]
    left_behind(sweep, early, status="preempted", step=5, total_steps=9)
    with pytest.raises(ConfigError, match="large is preempted at step 5 of 9: it is scored once"):
        scored(sweep, one, early, FEW, "now")


def test_another_run_than_the_one_forecast_is_not_scored(sweep: Path):
    left_behind(sweep, outcome(), config_sha256="e" * 64)
    with pytest.raises(ConfigError, match=r"the configuration eeee.*another run than the one forecast"):
        score(sweep, "large", outcome(), FEW)
    left_behind(sweep, outcome())
    with pytest.raises(ConfigError, match="has tokens 3000000"):
        score(sweep, "large", outcome(tokens=3_000_000), FEW)
    with pytest.raises(ConfigError, match=r"the row's loss is 1\.0, val_loss of summary\.json"):
        score(sweep, "large", outcome(loss=1.0), FEW)
    with pytest.raises(ConfigError, match="2 validation sets"):
        score(sweep, "large", outcome(validation="w" * 64), FEW)
    shutil.rmtree(sweep / "runs")
    with pytest.raises(ConfigError, match=r"cannot be scored: .*summary\.json cannot be read"):
        score(sweep, "large", outcome(), FEW)
    assert history(sweep)[0][1] is None


def test_a_run_is_scored_once_and_rows_that_changed_since_are_told(sweep: Path):
    left_behind(sweep, outcome())
    now = [replace(FEW[0], loss=9.0), *FEW[2:]]
    found = score(sweep, "large", outcome(), now)
    assert found.notes[0].startswith("the ledger has changed since")
    assert set(found.notes[1:]) == {
        f"{FEW[0].run}, one of the sealed rows, had loss {FEW[0].loss:.6g}, now 9",
        f"{FEW[1].run}, one of the sealed rows, is gone from the ledger",
    }
    assert score(sweep, "large", outcome(), FEW) == found
    with pytest.raises(ConfigError, match=r"was scored on .* with loss .*; now it has 1\.2"):
        score(sweep, "large", outcome(loss=1.2), FEW)


def test_a_seal_younger_than_the_run_is_none(sweep: Path):
    folder = left_behind(sweep, outcome())
    (folder / "events.jsonl").write_text('{"event": "started", "time": "2020-01-01T00:00:00+00:00"}\n')
    assert "before its forecast was sealed" in scored(sweep, history(sweep)[0][0], outcome(), FEW, "now").failures[0]


def test_rolling_origin_forecasts_each_size_from_the_smaller_ones(tmp_path: Path):
    target = held_out(tmp_path)
    one = seal(tmp_path, target, rows_of(noise=0.004, sizes=SIZES[:4]), CHOICE)
    left_behind(tmp_path, outcome())
    found = score(tmp_path, "large", outcome(), one.rows)
    assert [(origin.run, origin.n_sizes) for origin in found.origins] == [
        (f"n228k-d{d}k", 3) for d in (500, 1000, 2000, 4000)
    ]
    assert all(abs(origin.predicted / origin.measured - 1) < 0.05 for origin in found.origins)
    assert sum(origin.inside_95 for origin in found.origins) >= 3
    assert "of 4 runs" in score_text(one, found)


def test_the_verb_shows_the_history_and_checks_it(sweep: Path):
    left_behind(sweep, outcome())
    score(sweep, "large", outcome(), FEW)
    words = [sys.executable, "-m", "launch", "forecast", f"sweep={sweep}"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "one forecast, none altered; the last is " + written(sweep)["sha256"] in done.stdout
    assert "inside: " in done.stdout
    with pytest.raises(ConfigError, match="it has no folder forecasts"):
        forecast(ForecastConfig(str(sweep / "none")))
