"""Text: the whole file, uncompressed if need be, is one document, its bytes taken as UTF-8 and nothing else touched: no
newline is translated, a byte-order mark stays.
"""

from collections.abc import Iterator

from data_prep.document import Outcome, Rejected, outcome_of_bytes, too_long
from data_prep.sources.config import PythonSite, PythonStdlib, TextFiles
from data_prep.sources.part import Part
from data_prep.sources.stream import BrokenFileError

PLAIN_EXPANSION = 2
"""Source code is stored as it is: it cannot expand."""


def read_text(source: PythonStdlib | PythonSite | TextFiles, part: Part) -> Iterator[Outcome]:
    name, limit = part.span.input.name, source.max_document_bytes
    expansion = source.max_expansion if isinstance(source, TextFiles) else PLAIN_EXPANSION
    blocks: list[bytes] = []
    size = 0
    try:
        for block in part.blocks(expansion):
            size += len(block)
            blocks.append(block)
            if size > limit:
                yield too_long(size, limit, name, part.span.stop, at_least=True)
                return
        yield outcome_of_bytes(b"".join(blocks), name, part.span.stop)
    except BrokenFileError as error:
        yield Rejected(error.reason, name, part.span.stop, error.detail)
