"""The live table: what fits into a terminal of any size, what stands out, and a terminal that is left as it was."""

import contextlib
import fcntl
import math
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from launch import words
from launch.frame import ALARM, Line, ansi, bare, frame
from launch.look_config import WatchConfig
from launch.run_view import RunView, State
from tests.runs import finish, start

NOW = 1_795_000_000.0
LOSSES = [8.0 * math.exp(-i / 60) + 2 for i in range(240)]


def view(name: str = "a", state: State = State.running, **facts: object) -> RunView:
    usual: dict[str, object] = {"step": 500, "total_steps": 1000, "loss": 2.5, "recent_losses": LOSSES}
    usual |= {"tokens_per_second": 12345.6, "mfu": 0.417, "eta_seconds": 4000.0, "cost_usd": 12.5, "attempt": 2}
    usual |= {
        "event": "saved step 500",
        "event_time": NOW - 61,
        "host": "n1",
        "bits_per_byte": 1.25,
        "memory_gib": 70.0,
    }
    return RunView(name, Path("runs") / name, state, **(usual | facts))  # pyright: ignore[reportArgumentType]


MANY = [
    view("lost-one", State.lost, concern="ended without a word, or its machine was lost; Slurm ended job 7: NODE_FAIL"),
    view("a name that is far too long for any column of a terminal 日本語の名前", State.saving, loss=math.nan),
    view("日本語", State.queued, event="job 17 waits: Priority: jobs of a higher priority go first", eta_seconds=None),
    view("new", State.starting, step=None, loss=None, recent_losses=[], cost_usd=None, event=None, mfu=None),
    view("huge", loss=1e30, tokens_per_second=3.2e9, cost_usd=1_234_567.0, eta_seconds=9e6, step=10**9),
    view("nothing", State.foreign, step=None, total_steps=None, loss=None, recent_losses=[], event=None),
    *(view(f"done-{i}", State.finished, eta_seconds=None) for i in range(40)),
]


def lines_of(views: Sequence[RunView], width: int, height: int) -> list[Line]:
    return frame(views, width, height, NOW, "runs", None)


@pytest.mark.parametrize("width", [1, 7, 20, 40, 60, 79, 80, 81, 100, 132, 160, 200, 400])
@pytest.mark.parametrize("height", [1, 2, 5, 24, 60, 200])
def test_no_frame_is_wider_or_higher_than_its_terminal(width: int, height: int):
    """Names in letters of two cells, figures without bounds, and missing ones included."""
    for views in ([], MANY[:1], MANY):
        lines = frame(views, width, height, NOW, "a/folder/of/runs", "squeue failed: " + "x" * 300)
        assert len(lines) <= height
        assert max((words.width(bare(line)) for line in lines), default=0) <= width


@pytest.mark.parametrize("width", [80, 100, 132, 200])
def test_columns_stand_below_their_heads_on_usual_terminals(width: int):
    lines = [bare(line) for line in lines_of([view("first"), view("second", step=7)], width, 24)]
    for head, cell in (
        ("state", "running"),
        ("tok/s", "12.3k"),
        ("MFU", "41.7%"),
        ("ETA", "1h 06m"),
        ("cost", "$12.50"),
    ):
        at = lines[1].index(head)
        row = lines[2]
        found = row.index(cell)
        assert found == at or found + len(cell) == at + len(head), f"{head!r} over {row!r}"


def test_a_wide_terminal_shows_more_than_a_narrow_one():
    narrow, wide = (bare(lines_of([view()], width, 24)[1]) for width in (80, 200))
    assert set(narrow.split()) < set(wide.split())
    for head in ("run", "state", "progress", "loss", "trend", "tok/s", "MFU", "ETA", "cost"):
        assert head in narrow
    assert {"b/byte", "GiB", "try", "host"} <= set(wide.split())


def test_the_last_event_stands_below_its_run_with_its_age():
    lines = [bare(line) for line in lines_of([view()], 80, 24)]
    assert lines[3] == "  └ saved step 500  1m 01s ago"


def test_a_run_that_needs_a_person_stands_out_and_keeps_its_line_where_there_is_little_room():
    lines = lines_of(MANY, 80, 12)
    alarmed = [text.strip() for line in lines for text, style in line if style == ALARM]
    assert alarmed == ["1 needs you", "lost"]
    printed = [bare(line) for line in lines]
    assert printed[3].startswith("  ! ended without a word")
    assert re.fullmatch(r"… \d+ more; a higher window shows them", printed[-1])
    shown = sum(bool(re.match(r"\S", line)) for line in printed[2:-1])
    assert int(printed[-1].split()[1]) == len(MANY) - shown


def test_a_spark_line_shows_the_trend_whatever_spikes_and_gaps_are_in_it():
    falling = words.spark(LOSSES, 12)
    assert list(falling) == sorted(falling, reverse=True)
    assert falling[0] == "█"
    assert falling[-1] == "▁"
    spiky = list(LOSSES)
    spiky[100] = 1e9
    assert words.spark(spiky, 12) == falling, "one spike of 240"
    spiky[100:118] = [1e9] * 18  # most of a block
    rest = [block for i, block in enumerate(words.spark(spiky, 12)) if i != 5]
    assert len(set(rest)) >= 6, "the others still tell of the trend"
    assert words.spark([math.nan] * 120 + LOSSES[:120], 4)[:2] == "××"
    assert words.spark([math.inf, math.nan], 2) == "××"
    assert words.spark([3.0] * 9, 3) == "▅▅▅"
    assert words.spark([], 4) == "    "
    assert words.spark([1.0], 4) == "▅   "


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0312, "0.0312"), (7.5, "7.50"), (999, "999"), (999.6, "1.00k"), (12345, "12.3k"), (3.2e9, "3.20B")],
)
def test_numbers_have_three_digits(value: float, text: str):
    assert words.number(value).startswith(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (60, "1m 00s"), (3599.6, "1h 00m"), (90_000, "1d 01h"), (None, "-"), (math.inf, "-")],
)
def test_durations_are_told_in_two_units(seconds: float | None, text: str):
    assert words.duration(seconds) == text


# --- the command -----------------------------------------------------------------------------------------------------


def test_away_from_a_terminal_each_change_is_a_plain_line(made: Path):
    code, printed = finish(start(made, "watch", "once=true", module="launch"))
    assert "q ends" not in printed, "no key does anything"
    assert code == 0, printed
    assert "\033" not in printed
    assert all(name in printed for name in ("done", "stopped", "hot", "killed"))
    process = start(made, "watch", "every_seconds=0.2", module="launch")
    assert process.stdout is not None
    first = [process.stdout.readline() for _ in range(4)]
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    code, rest = finish(process)
    assert (code, rest) == (0, ""), "nothing changed, and Ctrl-C is an end as good as any"
    assert any(re.match(r"\d\d:\d\d:\d\d  killed: failed  step 1\d/50  loss ", line) for line in first)


class Terminal:
    """`launch watch` in a terminal of ours."""

    def __init__(self, folder: Path, columns: int, lines: int):
        child, self.master = pty.fork()
        if child == 0:
            os.chdir(folder)
            environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
            os.execve(sys.executable, [sys.executable, "-m", "launch", "watch", "every_seconds=0.2"], environment)
        self.child, self.seen = child, ""
        self.resize(columns, lines)
        self.before = termios.tcgetattr(self.master)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def wait_for(self, text: str) -> None:
        until = time.monotonic() + 120
        while text not in self.seen:
            assert time.monotonic() < until, repr(self.seen[-2000:])
            self.read()

    def read(self, seconds: float = 0.2) -> None:
        if select.select([self.master], [], [], seconds)[0]:
            with contextlib.suppress(OSError):  # its end
                self.seen += os.read(self.master, 1 << 16).decode(errors="replace")

    def end(self) -> int:
        """Its exit code; whatever it said last is read."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            self.read()
            done, state = os.waitpid(self.child, os.WNOHANG)
            if done:
                self.read()
                return os.waitstatus_to_exitcode(state)
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)
        pytest.fail("watch did not end")

    def last_screen(self, words: str) -> list[str]:
        """The newest that is whole and has these words."""
        until = time.monotonic() + 120
        while True:
            whole = [part.partition("\033[J") for part in self.seen.split("\033[H")]
            if found := [screen for screen, end, _ in whole if end and words in screen]:
                return [re.sub(r"\033\[[0-9;?]*[A-Za-z]", "", line) for line in found[-1].split("\r\n")]
            assert time.monotonic() < until, repr(self.seen[-2000:])
            self.read()


@pytest.mark.parametrize("how", ["q", "\x03", "SIGTERM"])
def test_the_terminal_is_as_it_was_however_the_table_ends(made: Path, how: str):
    terminal = Terminal(made, 80, 24)
    terminal.wait_for("killed")
    assert termios.tcgetattr(terminal.master)[3] & termios.ICANON == 0, "keys come at once"
    if how == "SIGTERM":
        os.kill(terminal.child, signal.SIGTERM)
    else:
        os.write(terminal.master, how.encode())
    assert terminal.end() == 0
    assert termios.tcgetattr(terminal.master) == terminal.before
    assert terminal.seen.rstrip().endswith("\033[?25h\033[?1049l"), "the cursor is back, and so is the first screen"


def test_the_table_follows_the_size_of_its_window(made: Path):
    terminal = Terminal(made, 80, 24)
    assert "host" not in terminal.last_screen("killed")[1]
    terminal.resize(200, 6)
    assert len(terminal.last_screen("host")) <= 6
    os.write(terminal.master, b"q")
    assert terminal.end() == 0


def test_a_look_every_tenth_of_a_second_is_refused():
    assert WatchConfig(every_seconds=0.1).problems()


def test_styles_are_closed_where_they_end():
    assert ansi([("a", "1;31"), ("b", "")]) == "\033[1;31ma\033[0mb"
