"""`launch fit` as a person uses it: a ledger in, tables and refusals out."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conf.app import App
from conf.compose import compose
from conf.errors import ConfigError
from launch.fit import fit
from launch.fit_config import FitChoice, FitConfig
from launch.forecast_numbers import numbers_at
from launch.scaling.analysis import fit_family
from launch.scaling.read_rows import rows_of_ledger
from launch.scaling.report import spans
from launch.scaling.rows import Row, split
from tests.launch.scaling.surfaces import TRUE, isoflop, ledger, summary

APP = App("launch_fit", FitConfig, {})


def sweep(family: str = "transformer", factor: float = 1.0) -> list[dict[str, Any]]:
    """20 runs on a known surface; `factor` times the compute for the same loss."""
    n, d, _ = isoflop()
    rng, made = np.random.default_rng(1), []
    for i, (a, b) in enumerate(zip(n, d, strict=True)):
        loss = float(TRUE.loss(a, b) * np.exp(0.003 * rng.standard_normal()))
        flops = {"flops_causal": factor * 6.3 * a * b, "flops_full": factor * 6.6 * a * b}
        made.append(summary(f"{family}-{i}", int(a), int(b), val_loss=loss, family=family, **flops))
    return made


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert fit(compose(APP, ["resamples=60", *words])) == 0
    return capsys.readouterr().out


def line(text: str, start: str) -> list[str]:
    return next(one for one in text.splitlines() if one.strip().startswith(start)).split()


def test_a_ledger_becomes_constants_with_intervals_and_a_prediction(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [*sweep(), summary("hot", 10**8, 10**10, schedule_finished=False)]
    text = shown(capsys, f"ledger={ledger(tmp_path / 'l.jsonl', rows)}", "at.flops=1e22")
    assert "20 rows used" in text
    assert line(text, "hot")[1:] == ["its", "schedule", "does", "not", "end", "there"]
    _, fitted, _, _, _, low, _, high, *_ = line(text, "a ")
    assert float(low) <= TRUE.n_exponent() <= float(high)
    assert float(fitted) == pytest.approx(TRUE.n_exponent(), abs=0.03)
    assert "starts agree" in text
    assert "60 resamples of 20 independent runs" in text
    for counting in ("matmul", "total", "non_embedding", "compute"):
        assert line(text, counting)
    assert "OUTSIDE what was sampled: N 2." in text
    best = TRUE.optimum(1e22 / 1.05)
    _are_those_of_a_forecast(text, rows_of_ledger(tmp_path / "l.jsonl", "val_loss")[0])
    assert float(line(text, "loss  ")[1]) == pytest.approx(float(TRUE.loss(*best)), rel=0.01)


def _are_those_of_a_forecast(text: str, rows: list[Row]) -> None:
    """Whatever the order in which rows are found."""
    choice = FitChoice(resamples=60)
    family = fit_family(split(rows[::-1], choice.rows)[0], choice)
    there = numbers_at(family, *map(float, family.fit.law.optimum(1e22, family.cost)))
    lines = [" ".join(one.split()) for one in text.splitlines()]
    assert f"loss {there.loss:.4g} {' '.join(spans(there.law_interval))} of the law" in lines
    assert f"loss {there.loss:.4g} {' '.join(spans(there.run_interval))} of one run: with the noise of runs" in lines
    assert f"E {there.law.E:.4g} {' '.join(spans(there.e_interval))}" in lines


def test_repeated_rows_and_another_family_have_their_own_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    repeats = [
        summary(
            f"rep-{epochs}", 10**8, epochs * 10**9, unique_tokens=10**9, val_loss=float(TRUE.loss(1e8, 1e9)) - 0.01 * i
        )
        for i, epochs in enumerate((4, 8, 16))
    ]
    file = ledger(tmp_path / "l.jsonl", [*sweep(), *sweep("recurrent", 2.0), *repeats])
    text = shown(capsys, f"ledger={file}")
    assert "repeated text (3 rows that repeat)" in text
    assert "FLOPs of recurrent / FLOPs of transformer" in text
    last = text.strip().splitlines()[-1].split()
    assert float(last[1]) == pytest.approx(2.0, rel=1e-3)


def test_rows_that_cannot_be_compared_or_fitted_are_refused(tmp_path: Path):
    mixed = ledger(
        tmp_path / "m.jsonl",
        [*sweep(), summary("other", 10**8, 10**10, data={"tokenizer_sha256": "u", "manifest_sha256": "v" * 64})],
    )
    with pytest.raises(ConfigError, match="2 tokenizers in one fit"):
        fit(compose(APP, [f"ledger={mixed}"]))
    two = ledger(tmp_path / "two.jsonl", sweep()[:2])
    with pytest.raises(ConfigError, match="2 usable rows"):
        fit(compose(APP, [f"ledger={two}"]))
    nans = ledger(tmp_path / "nan.jsonl", [one | {"val_loss": None} for one in sweep()])
    with pytest.raises(ConfigError, match="no row can be fitted"):
        fit(compose(APP, [f"ledger={nans}"]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "given: none of them"),
        (["runs=a", "ledger=b"], "given: runs= and ledger="),
        (["runs=a", "at.n_params=1e9"], "at.n_params and at.tokens go together"),
        (["runs=a", "resamples=3"], "resamples=3 must be 40"),
        (["runs=a", "loss=train_loss"], "val_loss or bits_per_byte"),
        (["runs=a", "rows.max_epochs=0.5"], "rows.max_epochs=0.5 must be at least 1"),
    ],
)
def test_what_cannot_be_asked_is_refused(words: list[str], said: str):
    with pytest.raises(ConfigError) as caught:
        compose(APP, words)
    assert said in str(caught.value)


def test_published_tables_are_refitted_from_the_command_line():
    carried = Path(__file__).parent / "tables" / "nanochat_isoflop_optima.csv"
    words = [sys.executable, "-m", "launch", "fit", f"reproduce={carried}"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[3])
    assert done.returncode == 0, done.stderr
    assert "3 of 3 numbers are met" in done.stdout


def test_tables_that_are_not_there_say_what_to_give(tmp_path: Path):
    with pytest.raises(ConfigError, match="is not there"):
        fit(compose(APP, ["reproduce=all", f"tables={tmp_path / 'none'}"]))


def test_another_choice_of_rows_than_that_of_the_sweep_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = ledger(tmp_path / "ledger.jsonl", sweep())
    choice = {"delta": 0.01, "rows": {"min_tokens": 5.0, "max_flops": None}, "later": 1}
    (tmp_path / "plan.json").write_text(json.dumps({"fit": choice}))
    asked = FitConfig(ledger=str(file), resamples=40)
    fit(asked)
    assert "goes by delta=0.01 (here 0.001), rows.min_tokens=5.0 (here 0.0); its" in capsys.readouterr().err
    (tmp_path / "plan.json").write_text("{")
    fit(asked)
    assert "plan.json cannot be read, and nothing is taken from it" in capsys.readouterr().err
