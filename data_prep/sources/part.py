"""One span of an open file, as the formats see it: its blocks, its lines, and what its records are called."""

from collections.abc import Iterator

from data_prep.document import Rejected
from data_prep.inputs import Span
from data_prep.sources import stream
from data_prep.sources.stored import StoredFile


class Part:
    def __init__(self, span: Span, file: StoredFile):
        self.span = span
        self.file = file
        self.begins_file = span.start == 0
        self.prefix = prefix_of(span)
        self.end_byte = 0
        """Stored bytes of the span read so far, as of the last block that was given."""

    def blocks(self, max_expansion: int) -> Iterator[bytes]:
        start, stop = self.span.start, self.span.stop
        for block in stream.blocks(self.file, start, stop, max_expansion):
            self.end_byte = min(self.file.furthest, stop) - start
            yield block

    def lines(self, max_expansion: int, limit: int) -> Iterator[bytes | int]:
        """See `stream.lines`."""
        rest = stream.blocks(self.file, self.span.stop, self.span.input.bytes, max_expansion)
        return stream.lines(self.blocks(max_expansion), rest, self.begins_file, limit)

    def broken(self, error: stream.BrokenFileError, number: int) -> Rejected:
        """What ends a file whose record `number` could not be read."""
        return Rejected(error.reason, f"{self.prefix}{number}", self.span.stop - self.span.start, error.detail)


def prefix_of(span: Span) -> str:
    """What stands before the number of a record: `name:`, or `name@START+` in a span that does not begin its file."""
    return f"{span.input.name}:" if span.start == 0 else f"{span.input.name}@{span.start}+"
