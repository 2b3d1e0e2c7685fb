"""Where a large input can be cut, so that several workers share it, without reading it.

In: an input and a size. Out: offsets in stored bytes, and the spans between them. JSONL is cut anywhere (a line belongs
to the span that holds the byte before it), .zst at the starts of its frames, Parquet at its row groups; a gzip or
bzip2 file is one span, and so is every format whose borders are known only by reading.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise

from data_prep.inputs import Input, Span
from data_prep.sources.config import Jsonl, Parquet, Source
from data_prep.sources.parquet import row_group_starts
from data_prep.sources.stored import StoredFile
from data_prep.sources.zstd_frames import frame_starts


def spans_of(source: Source, item: Input, target_bytes: int) -> tuple[Span, ...]:
    """The input in spans of about `target_bytes`; one span for an input of no more than that."""
    borders = [0, *cuts(source, item, target_bytes), item.bytes]
    return tuple(Span(item, start, stop) for start, stop in pairwise(borders))


def cuts(source: Source, item: Input, target_bytes: int) -> list[int]:
    """Ascending offsets inside (0, bytes); the file is looked into only if it has more than `target_bytes`."""
    if item.bytes <= target_bytes:
        return []
    ending = item.url.rsplit(".", 1)[-1]
    match source:
        case Jsonl() if ending == "zst":
            with StoredFile(item.url) as file:
                return _apart(frame_starts(file, item.bytes), target_bytes, item.bytes)
        case Jsonl() if ending not in ("gz", "bz2"):
            return list(range(target_bytes, item.bytes, target_bytes))
        case Parquet():
            with StoredFile(item.url) as file:
                return _apart(row_group_starts(file)[1:], target_bytes, item.bytes)
        case _:
            return []


def _apart(starts: Iterable[int], target_bytes: int, end: int) -> list[int]:
    """Of these ascending offsets those that leave at least `target_bytes` between one and the next."""

    def chosen() -> Iterator[int]:
        last = 0
        for start in starts:
            if target_bytes <= start - last and start < end:
                yield start
                last = start

    return list(chosen())
