"""Views of runs → the lines of a table that fills a terminal of any size: text with styles, no terminal needed.

In: views in the order of their urgency, the size in cells, the time. Out: at most `height` lines, each at most `width`
wide. Narrow ones leave columns out, the last event stands in a line of its own where there is room; what does not fit
below is counted in the last line.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launch import words
from launch.run_view import ALIVE, STEPPING, RunView, State

PLAIN, DIM, BOLD, RED, GREEN, YELLOW, BLUE, CYAN = "", "2", "1", "1;31", "32", "33", "34", "36"
"""SGR parameters (ECMA-48): colours of the reader's own palette, so dark and light terminals both fit"""
ALARM = "1;37;41"

Span = tuple[str, str]
"""(text, style)"""
Line = list[Span]

_STATE_STYLE = {
    State.queued: YELLOW,
    State.starting: CYAN,
    State.running: GREEN,
    State.saving: CYAN,
    State.stopped: BLUE,
    State.finished: PLAIN,
    State.foreign: DIM,
}
_MORE_THAN_SECONDS = 3600.0


@dataclass(frozen=True)
class Column:
    head: str
    cells: int
    text: Callable[[RunView, int], str]
    importance: int
    """the least important ones are left out first"""
    right: bool = True
    style: str = PLAIN
    grows: int = 0
    """how many cells more it takes where there is room"""


def frame(
    views: Sequence[RunView],
    width: int,
    height: int,
    now: float,
    folder: str,
    problem: str | None,
    *,
    keys: str = "  q ends",
) -> list[Line]:
    """problem: what is wrong with the queue, if it is. keys: those that do something; none where it is printed once."""
    title = _title(views, width, now, folder, keys)
    if not views:
        return [title, [("", PLAIN)], [(words.cut(f"no runs in {folder} yet", width), DIM)]][:height]
    columns = _columns(width)
    head = [(words.cut(" ".join(words.fit(c.head, c.cells, right=c.right) for c in columns), width), DIM)]
    room = height - 3 - (problem is not None)
    wants = [_wants_a_line(view, now) for view in views]
    n_shown, with_lines = _share_out(wants, room)
    body: list[Line] = []
    for i, view in enumerate(views[:n_shown]):
        body.append(_row(view, columns))
        if with_lines[i]:
            body.append(_second(view, width, now))
    hidden = len(views) - n_shown
    foot = f"… {hidden} more; a higher window shows them" if hidden else ""
    lines = [title, head, *body]
    lines += [[(words.cut(foot, width), DIM)]] if foot else []
    lines += [[(words.cut(problem, width), YELLOW)]] if problem else []
    return [_within(line, width) for line in lines[: max(1, height)]]


def _title(views: Sequence[RunView], width: int, now: float, folder: str, keys: str) -> Line:
    alive = sum(view.state in ALIVE for view in views)
    troubled = sum(view.needs_a_person for view in views)
    spent = sum(view.cost_usd or 0.0 for view in views)
    told = f"{len(views)} runs in {folder}, {alive} running"
    cost = f", {words.usd(spent)} in all" if spent else ""
    clock = time.strftime("%H:%M:%S", time.localtime(now))
    alarm = f" {troubled} {'needs' if troubled == 1 else 'need'} you " if troubled else ""
    room = width - words.width(alarm) - len(clock) - len(keys) - 2
    text = words.cut(f"{told}{cost}", max(0, room - 1))
    gap = " " * max(1, room - words.width(text))
    line = [(text, BOLD), (" " if alarm else "", PLAIN), (alarm, ALARM), (gap, PLAIN), (f"{clock}{keys}", DIM)]
    return _within(line, width)


# --- columns ---------------------------------------------------------------------------------------------------------


def _columns(width: int) -> list[Column]:
    """Those that fit, by importance; then the ones that may grow share what is left."""
    columns = [
        Column("run", 12, lambda view, n: words.cut(view.name, n), 0, right=False, style=BOLD, grows=18),
        Column("state", 8, lambda view, n: str(view.state), 0, right=False),
        Column("progress", 8, lambda view, n: _bar(view, n), 2, right=False, style=BLUE, grows=22),
        Column("", 4, lambda view, n: "" if view.done is None else f"{view.done:.0%}", 1),
        Column("loss", 5, lambda view, n: _loss(view.loss), 1),
        Column("trend", 8, lambda view, n: words.spark(view.recent_losses, n), 3, right=False, style=CYAN, grows=16),
        Column("b/byte", 6, lambda view, n: words.fixed(view.bits_per_byte, 3), 8),
        Column("tok/s", 6, lambda view, n: _of_now(view, words.number(view.tokens_per_second)), 4),
        Column("MFU", 5, lambda view, n: _of_now(view, words.share(view.mfu)), 5),
        Column("GiB", 5, lambda view, n: "-" if view.memory_gib is None else f"{view.memory_gib:.1f}", 11),
        Column("ETA", 7, lambda view, n: words.duration(view.eta_seconds), 2),
        Column("cost", 6, lambda view, n: words.usd(view.cost_usd), 6),
        Column("try", 3, lambda view, n: "-" if view.attempt is None else str(view.attempt), 9),
        Column("host", 12, lambda view, n: words.cut(view.host or "-", n), 10, right=False, grows=8),
    ]
    shown = list(columns)
    while _wide(shown) > width and len(shown) > 2:
        shown.remove(max(shown, key=lambda column: column.importance))
    return _grown(shown, width)


def _wide(columns: Sequence[Column]) -> int:
    return sum(column.cells for column in columns) + len(columns) - 1


def _grown(columns: list[Column], width: int) -> list[Column]:
    """Each by its share."""
    left, wanted = width - _wide(columns), sum(column.grows for column in columns)
    if left <= 0 or not wanted:
        return columns
    part = min(1.0, left / wanted)
    more = [int(column.grows * part) for column in columns]
    return [
        Column(c.head, c.cells + n, c.text, c.importance, c.right, c.style) for c, n in zip(columns, more, strict=True)
    ]


def _row(view: RunView, columns: Sequence[Column]) -> Line:
    line: Line = []
    for i, column in enumerate(columns):
        text = words.fit(column.text(view, column.cells), column.cells, right=column.right)
        style = _state_style(view) if column.head == "state" else DIM if view.state == State.foreign else column.style
        line += ([(" ", PLAIN)] if i else []) + [(text, style)]
    return line


def _state_style(view: RunView) -> str:
    return ALARM if view.needs_a_person else _STATE_STYLE.get(view.state, PLAIN)


def _bar(view: RunView, cells: int) -> str:
    return words.bar(view.done or 0.0, cells) if view.done is not None else ""


def _loss(value: float | None) -> str:
    return words.fixed(value, 3)[:5].rstrip(".") if value is not None else "-"


def _of_now(view: RunView, text: str) -> str:
    return text if view.state in STEPPING else "-"


# --- second lines ----------------------------------------------------------------------------------------------------


def _wants_a_line(view: RunView, now: float) -> int:
    """2: must, 1: would like one, 0: needs none."""
    if view.needs_a_person:
        return 2
    return 0 if view.event is None or view.state == State.foreign else 1


def _share_out(wants: Sequence[int], room: int) -> tuple[int, list[bool]]:
    """(how many runs are shown, which of them have a second line). Lines that must be come with their runs, the others
    only when all runs have their place."""
    lines = [False] * len(wants)
    shown, left = 0, max(0, room)
    for i, urgency in enumerate(wants):
        if left < 1:
            break
        shown, left = shown + 1, left - 1
        if urgency == 2 and left > 0:
            lines[i], left = True, left - 1
    for i in range(shown):
        if wants[i] == 1 and left > 0:
            lines[i], left = True, left - 1
    return shown, lines


def _second(view: RunView, width: int, now: float) -> Line:
    text = view.concern or view.event or ""
    age = "" if view.event_time is None else f"{words.duration(max(0.0, now - view.event_time))} ago"
    arrow = "  ! " if view.concern else "  └ "
    room = width - len(arrow) - len(age) - 2
    style = RED if view.concern else DIM
    return _within([(arrow, style), (words.cut(text, max(0, room)), style), (f"  {age}", DIM)], width)


def _within(line: Line, width: int) -> Line:
    kept: Line = []
    for text, style in line:
        text = words.cut(text, width) if words.width(text) > width else text
        width -= words.width(text)
        if text:
            kept.append((text, style))
    return kept


def ansi(line: Line) -> str:
    return "".join(f"\033[{style}m{text}\033[0m" if style else text for text, style in line)


def bare(line: Line) -> str:
    return "".join(text for text, _ in line).rstrip()
