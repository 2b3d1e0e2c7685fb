"""The end of a sweep, with the commands themselves: its cells have ended (their folders are made, on a known law), and
the held-out run is foretold, trained by a real process, and scored.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from conf.errors import ConfigError
from launch.forecast import history
from launch.ledger import read
from launch.sweep.cells import cells
from launch.sweep.costs import Cost
from launch.sweep.outcome import Outcome
from tests.launch.sweep.made import end
from tests.launch.sweep.words import TINY, sweep_of
from tests.runs import finish, start
from train.config import TrainConfig
from train.parallel import RankGrid
from train.setup import check
from train.summary import validation_sha256

WORDS = (
    *(word for word in TINY if not word.startswith(("sweep.shapes", "sweep.tokens"))),
    "sweep.shapes=[{d_model: 16, n_layers: 1}, {d_model: 24, n_layers: 2, n_heads: 3, n_kv_heads: 1}, "
    "{d_model: 32, n_layers: 2}, {d_model: 40, n_layers: 2}]",
    "sweep.tokens=[2560, 5120, 10240]",
    "sweep.held_out=[{d_model: 48, n_layers: 2, tokens: 5120}]",
    "fit={resamples: 40, rows: {min_tokens: 1}}",
)
HELD_OUT = "d48-l2-5.12k-s0-held-out"


@pytest.fixture(scope="module")
def swept(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Three sizes have ended, and of a fourth the first run diverged, so that its others never begin."""
    folder = tmp_path_factory.mktemp("held-out")
    (folder / "data").symlink_to(workplace / "data")
    found = cells(sweep_of(*WORDS))[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = hashes(found[0].config)
    for cell in found:
        if cell.config.model.d_model < 40:
            end(folder, cell, data=data)
        elif cell.name.startswith("d40-l2-2.56k"):
            end(folder, cell, "diverged", 4, data=data)
    code, printed = finish(start(folder, "sweep", *WORDS, "start=true", module="launch"), 300)
    assert code == 0, printed
    return folder, printed


def hashes(config: TrainConfig) -> dict[str, str]:
    """Of the data, as the held-out run will tell them: rows of other data would be refused."""
    setup = check(config, RankGrid(0, 1, 0, 1, 1, 1))
    return {
        "manifest_sha256": setup.manifest.sha256,
        "tokenizer_sha256": setup.manifest.tokenizer_sha256,
        "validation_sha256": validation_sha256(setup),
    }


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "sweeps" / "tiny" / "runs" / HELD_OUT / "summary.json").read_text())


def test_held_out_run_starts_though_a_chain_is_lost_and_only_after_it_is_foretold(swept: tuple[Path, str]):
    folder, printed = swept
    assert printed.count("start  ") == 1
    assert printed.count("lost: d40-l2-") == 2
    ((forecast, score),) = history(folder / "sweeps" / "tiny")
    assert forecast.run == HELD_OUT
    assert len(forecast.rows) == 9
    assert [one.run for one in forecast.dropped] == ["d40-l2-2.56k-s0"]
    assert score is not None
    assert score.measured is not None
    assert score.measured == summary(folder)["val_loss"]
    assert score.relative_error == pytest.approx(forecast.numbers.loss / score.measured - 1)
    places = [printed.index(words) for words in ("forecast 0001 of", "start  ", "done   ", "score of")]
    assert places == sorted(places)


def test_ledger_and_report_have_the_held_out_run_too(swept: tuple[Path, str]):
    sweep = swept[0] / "sweeps" / "tiny"
    assert HELD_OUT in {row.run_name for row in read(sweep / "ledger.jsonl")}
    assert HELD_OUT in (sweep / "report.html").read_text()


def test_a_seal_stands_whatever_is_trained_between_it_and_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As after a kill between the two: by then another cell has ended, and costs are expected to be others."""
    monkeypatch.chdir(tmp_path)
    config = sweep_of(*WORDS)
    *others, held_out = cells(config)[0]
    *others, late = (cell for cell in others if cell.config.model.d_model < 40)
    for cell in others:
        end(tmp_path, cell)
    outcome, told = Outcome(config, [*others, late, held_out]), list[str]()
    outcome.before(held_out, Cost(1.0, 1.0, None, ""), told.append)
    end(tmp_path, late)
    (sealed, _), *more = history(outcome.folder)
    outcome.before(held_out, Cost(2.0, 2.0, None, ""), told.append)
    assert told[0].startswith(f"forecast 0001 of {HELD_OUT}")
    assert told[1:] == [f"{HELD_OUT} was foretold on {sealed.written}: sweeps/tiny/forecasts/0001.json"]
    assert (history(outcome.folder), more) == ([(sealed, None)], [])
    sealed_file = outcome.folder / "forecasts" / "0001.json"
    sealed_file.write_text(sealed_file.read_text().replace("d16", "d17"))
    with pytest.raises(ConfigError):
        outcome.before(held_out, Cost(2.0, 2.0, None, ""), told.append)
