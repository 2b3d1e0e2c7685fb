"""Numbers and texts as people read them in a table: short, with units, and never wider than the place they have.

A character may take two cells of a terminal, or none; all widths here are in cells. What comes from a file goes through
`data_prep.harmless.plain` before it is measured or shown.
"""

import itertools
import math
import statistics
import unicodedata
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
NOT_A_NUMBER = "×"


def width(text: str) -> int:
    return sum(map(_cells, text))


def _cells(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, cells: int) -> str:
    """As much of it as fits, with … where it was cut."""
    if width(text) <= cells:
        return text
    kept, used = "", 1
    for character in text:
        used += _cells(character)
        if used > cells:
            break
        kept += character
    return f"{kept}…" if cells > 0 else ""


def fit(text: str, cells: int, *, right: bool = False) -> str:
    """Exactly so wide."""
    text = cut(text, cells)
    room = " " * (cells - width(text))
    return room + text if right else text + room


def table(rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Columns as wide as their widest cell; those in `left` begin at the left, the others end at the right."""
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = (fit(cell, widths[i], right=i not in left) for i, cell in enumerate(row))
        return "  ".join(cells).rstrip()

    return list(map(line, rows))


def number(value: float | None, digits: int = 3) -> str:
    """With so many digits: 12 345 as `12.3k`."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * (1 - 0.5 * 10**-digits):
            return f"{_significant(max(1.0, abs(value / size)) * (1 if value > 0 else -1), digits)}{letter}"
    return _significant(value, digits)


def _significant(value: float, digits: int) -> str:
    whole = len(str(int(abs(value))))
    return f"{value:.{max(0, digits - whole)}f}" if abs(value) >= 1 or value == 0 else f"{value:.{digits}g}"


def fixed(value: float | None, decimals: int = 3) -> str:
    if value is None:
        return "-"
    return f"{value:.{decimals}f}" if math.isfinite(value) else number(value)


def share(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.1%}"


def duration(seconds: float | None) -> str:
    """In its two largest units: `2d 3h`, `3h 07m`, `4m 05s`, `12s`."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    whole = max(0, round(seconds))
    for size, unit, smaller, its_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // smaller:02d}{its_unit}"
    return f"{whole}s"


def usd(value: float | None) -> str:
    if value is None:
        return "-"
    return f"${value:,.0f}" if value >= 1000 else f"${value:.2f}" if value >= 0.01 or value == 0 else "<$0.01"


def size(n_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if n_bytes < 1024 or unit == "TiB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    raise AssertionError


def bar(done: float, cells: int) -> str:
    """A bar of so many cells, to an eighth of one."""
    eighths = round(min(1.0, max(0.0, done)) * cells * 8)
    parts = " ▏▎▍▌▋▊▉"
    full = "█" * (eighths // 8)
    return (full + (parts[eighths % 8] if eighths % 8 else "")).ljust(cells, "░")


def spark(values: Sequence[float], cells: int) -> str:
    """The last values as a line of blocks, each the median of its share of them, so that single spikes leave no trace;
    shares far off the middle half (by three times its width) are cut off. A share without any number is ×."""
    n_cells = min(cells, len(values))
    if n_cells < 1:
        return " " * cells
    bounds = [len(values) * i // n_cells for i in range(n_cells + 1)]
    medians = [_median(values[a:b]) for a, b in itertools.pairwise(bounds)]
    low, high = _range([value for value in medians if value is not None])
    return "".join(_block(value, low, high) for value in medians).ljust(cells)


def _range(values: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(values) or [0.0]
    first, third = ordered[len(ordered) // 4], ordered[3 * len(ordered) // 4]
    reach = 3 * (third - first)
    kept = [value for value in ordered if first - reach <= value <= third + reach]
    return kept[0], kept[-1]


def _median(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.median(finite) if finite else None


def _block(value: float | None, low: float, high: float) -> str:
    if value is None:
        return NOT_A_NUMBER
    if high <= low:
        return BLOCKS[len(BLOCKS) // 2]
    at = (value - low) / (high - low) * (len(BLOCKS) - 1)
    return BLOCKS[round(min(len(BLOCKS) - 1.0, max(0.0, at)))]
