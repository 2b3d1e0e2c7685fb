"""Logs: every step once, nothing of ours stops on a log that cannot be written, and the console line."""

import io
import json
import sys
from pathlib import Path

import pytest

from tests.runs import step_row
from train.batch import solve_batch
from train.errors import FencedError
from train.metrics import Console, DeviceSeconds, Stopwatch
from train.metrics_file import MetricsFile, last_step, read_rows

ROW = {"step": 1, "loss": 5.0, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_second": 1000.0, "mfu": 0.5}


def test_rewinding_forgets_later_steps_and_a_torn_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(step_row(step)) + "\n" for step in (1, 2, 3)) + '{"step": 4, "lo')
    file = MetricsFile(path)
    assert file.rewind(2) == [step_row(3)]
    file.append(step_row(3, loss=2.0))
    assert read_rows(path) == [step_row(1), step_row(2), step_row(3, loss=2.0)]
    assert capsys.readouterr().out == ""  # an end that is cut short is what a kill leaves


def test_floats_come_back_to_the_last_bit(tmp_path: Path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.rewind(0)
    values = [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308]
    file.append(step_row(1, values=values))
    assert read_rows(tmp_path / "metrics.jsonl")[0]["values"] == values


def test_a_log_that_cannot_be_written_warns_and_the_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "folder").write_text("a file")
    file = MetricsFile(tmp_path / "folder" / "metrics.jsonl")
    file.append(ROW)
    assert file.rows == [ROW]
    assert "training goes on" in capsys.readouterr().err


def test_a_run_that_is_anothers_now_is_not_written_and_that_is_no_mere_warning(tmp_path: Path):
    def insist() -> None:
        if is_fenced:
            raise FencedError("attempt 1 is over")

    is_fenced = False
    file = MetricsFile(tmp_path / "metrics.jsonl", insist)
    file.append(ROW)
    before, is_fenced = (tmp_path / "metrics.jsonl").read_bytes(), True
    for write in (lambda: file.append(ROW), file.sync, lambda: file.rewind(0)):
        with pytest.raises(FencedError):
            write()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("", 0),
        (f'{json.dumps(step_row(3))}\n{json.dumps(step_row(4))}\n{{"step": 5, "lo', 4),
        ("x\n" * 100_000 + json.dumps(step_row(7)) + "\n", 7),
        ("\0\xff", 0),
    ],
    ids=["empty", "cut short", "long", "no text"],
)
def test_the_last_step_is_read_from_the_end_of_the_file(tmp_path: Path, text: str, step: int):
    (tmp_path / "metrics.jsonl").write_text(text)
    assert last_step(tmp_path / "metrics.jsonl") == step
    assert last_step(tmp_path / "nothing") == 0


def test_time_is_charged_to_its_purpose_for_all_devices(monkeypatch: pytest.MonkeyPatch):
    clock = iter([13.0, 15.0, 16.0])
    monkeypatch.setattr("train.metrics.time.perf_counter", lambda: next(clock))
    spent = DeviceSeconds(train=100.0)
    watch = Stopwatch(spent, n_devices=4, started=10.0)
    assert watch.charge("idle") == 3.0
    watch.charge("train")
    watch.charge("eval")
    assert spent == DeviceSeconds(train=108.0, eval=4.0, idle=12.0)
    assert spent.hours()["train"] == pytest.approx(0.03)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def console() -> Console:
    plan = solve_batch(global_batch_size=8, micro_batch_size=8, dp_size=1, seq_len=10, total_tokens=80 * 25)
    return Console(plan, every_steps=10)


def test_at_a_terminal_one_line_is_written_over(console: Console, monkeypatch: pytest.MonkeyPatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    for step in range(1, 26):
        console.step(ROW | {"step": step})
    console.say("saved")
    console.close()
    assert screen.getvalue().count("\r") == 25
    assert screen.getvalue().count("\n") == 2
    last = screen.getvalue().split("\r")[-1]
    for part in ("step     25/25", "loss 5.0000", "1,000 tokens/s", "MFU 50.0%", "ETA 00:00"):
        assert part in last


def test_away_from_a_terminal_one_line_every_so_many_steps(console: Console, capsys: pytest.CaptureFixture[str]):
    for step in range(1, 26):
        console.step(ROW | {"step": step})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["10/25", "20/25", "25/25"]
