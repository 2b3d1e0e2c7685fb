"""One span of an input in, its documents out in the order of the file, each a `Document` or a counted `Rejected`.

The documents of all spans of an input, one span after another, are those of the whole input, wherever `spans` cut it.
Each format is one function in a file of its own.
"""

from collections.abc import Iterator

from data_prep.document import Outcome
from data_prep.files import DataError
from data_prep.inputs import Input, Span
from data_prep.sources import stored
from data_prep.sources.arrow import read_arrow
from data_prep.sources.config import (
    Arrow,
    Csv,
    HuggingFace,
    Jsonl,
    Parquet,
    PythonSite,
    PythonStdlib,
    Source,
    TextFiles,
    Warc,
    Wet,
)
from data_prep.sources.crawl import read_crawl
from data_prep.sources.hugging_face import read_shard
from data_prep.sources.jsonl import read_jsonl
from data_prep.sources.parquet import read_parquet
from data_prep.sources.part import Part
from data_prep.sources.rows import read_rows
from data_prep.sources.text import read_text


def read(source: Source, span: Span) -> Iterator[Outcome]:
    """Raises DataError when the file cannot be had, or is not the one that was planned."""
    if isinstance(source, HuggingFace):
        yield from read_shard(source, span)
        return
    _refuse_changed(span.input)
    with stored.StoredFile(span.input.url) as file:
        yield from _outcomes(source, Part(span, file))
    _refuse_changed(span.input)


def _outcomes(source: Source, part: Part) -> Iterator[Outcome]:
    match source:
        case PythonStdlib() | PythonSite() | TextFiles():
            return read_text(source, part)
        case Jsonl():
            return read_jsonl(source, part)
        case Csv():
            return read_rows(source, part)
        case Parquet():
            return read_parquet(source, part)
        case Arrow():
            return read_arrow(source, part)
        case Warc() | Wet():
            return read_crawl(source, part)
        case HuggingFace():
            raise AssertionError("a shard of a dataset is not a file")


def _refuse_changed(item: Input) -> None:
    if stored.facts(item.url) != (item.bytes, item.version):
        raise DataError(f"{item.url} changed since it was listed, or while it was being read; run the command again")
