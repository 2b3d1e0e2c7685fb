"""`launch watch`: all runs of a folder in a table that renews itself.

In: a folder of runs, a terminal. Out: the table on the terminal's second screen, which is left when `q` or Ctrl-C ends
it, or any error: the terminal is then as it was. Where there is no terminal: the table once, then a line for each run
of which something has changed.
"""

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from launch import words
from launch.frame import ansi, bare, frame
from launch.look_config import WatchConfig
from launch.run_view import STEPPING, RunView
from launch.runs import Runs

_ENTER = "\033[?1049h\033[?25l"  # the second screen, without a cursor
_LEAVE = "\033[?25h\033[?1049l"
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\033[H", "\033[0m\033[K", "\033[J"
_NOT_A_TERMINAL_WIDTH = 160
_TICK_SECONDS = 0.25
"""between two looks at the size of the window"""


def watch(config: WatchConfig) -> int:
    runs = Runs(Path(config.folder))
    if config.once:
        return _once(runs)
    if sys.stdin.isatty() and sys.stdout.isatty():
        _live(runs, config.every_seconds)
        return 0
    with contextlib.suppress(KeyboardInterrupt):
        _changes(runs, config.every_seconds)
    return 0


def _once(runs: Runs) -> int:
    is_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else _NOT_A_TERMINAL_WIDTH
    views = runs.refresh(wait=True)
    for line in frame(views, width, 3 + 2 * len(views), time.time(), str(runs.folder), runs.problem, keys=""):
        print(ansi(line) if is_terminal else bare(line))
    return 0


# --- away from a terminal --------------------------------------------------------------------------------------------


def _changes(runs: Runs, every_seconds: float) -> None:
    seen: dict[str, object] = {}
    while True:
        for view in runs.refresh():
            now = (view.state, view.step, view.event, view.concern)
            if seen.get(view.name) != now:
                print(f"{time.strftime('%H:%M:%S')}  {_in_a_line(view)}", flush=True)
            seen[view.name] = now
        time.sleep(every_seconds)


def _in_a_line(view: RunView) -> str:
    parts = [f"{view.name}: {view.state}"]
    if view.step is not None:
        parts.append(f"step {view.step}/{view.total_steps or '?'}")
    if view.loss is not None:
        parts.append(f"loss {words.fixed(view.loss)}")
    if view.state in STEPPING and view.tokens_per_second is not None:
        parts.append(f"{words.number(view.tokens_per_second)} tokens/s, MFU {words.share(view.mfu)}")
    if view.eta_seconds is not None:
        parts.append(f"ETA {words.duration(view.eta_seconds)}")
    if view.cost_usd is not None:
        parts.append(words.usd(view.cost_usd))
    if said := view.concern or view.event:
        parts.append(said)
    return "  ".join(parts)


# --- at a terminal ---------------------------------------------------------------------------------------------------


def _live(runs: Runs, every_seconds: float) -> None:
    views: Sequence[RunView] = []
    problem: str | None = None
    drawn_size, looked = (0, 0), -float("inf")
    with contextlib.suppress(KeyboardInterrupt), _screen() as stopped:
        while True:
            if time.monotonic() - looked >= every_seconds:
                views, problem = runs.refresh(), runs.problem
                looked, drawn_size = time.monotonic(), (0, 0)
            size = os.get_terminal_size(sys.stdout.fileno())
            if tuple(size) != drawn_size or stopped.is_back:
                _draw([ansi(line) for line in frame(views, *size, time.time(), str(runs.folder), problem)])
                drawn_size, stopped.is_back = tuple(size), False
            if _key(min(_TICK_SECONDS, every_seconds)) in ("q", "Q", "\x03", "\x04", "\x1b"):
                return


def _draw(lines: Sequence[str]) -> None:
    """In one piece, over what stands there: nothing flickers."""
    text = f"{_REST_OF_LINE}\r\n".join(lines)
    _write(f"{_HOME}{text}{_REST_OF_LINE}{_REST_OF_SCREEN}")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _key(seconds: float) -> str:
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    if not ready:
        return ""
    pressed = os.read(sys.stdin.fileno(), 32).decode(errors="replace")
    return pressed or "\x04"  # the end of the input: nobody is there any more


class _Stopped:
    """By Ctrl-Z, and back since."""

    is_back = False


@contextlib.contextmanager
def _screen() -> Iterator[_Stopped]:
    """The second screen, and keys at once, for the time of the block. However it ends, or is stopped, the terminal is
    as it was."""
    before = termios.tcgetattr(sys.stdin)
    stopped = _Stopped()

    def enter() -> None:
        tty.setcbreak(sys.stdin)
        _write(_ENTER)

    def leave() -> None:
        _write(_LEAVE)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)

    def stop(number: int, _: FrameType | None) -> None:
        leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        enter()
        stopped.is_back = True

    def end(number: int, _: FrameType | None) -> None:
        raise KeyboardInterrupt

    held = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    held[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, stop)
    try:
        enter()
        yield stopped
    finally:
        leave()
        for number, handler in held.items():
            signal.signal(number, handler)
