"""What the tests of sources have in common: reading a whole source, and making small files."""

import json

import pyarrow

from data_prep.document import Document, Outcome, Rejected
from data_prep.inputs import Span, find
from data_prep.sources.config import Source
from data_prep.sources.read import read


def outcomes(source: Source) -> list[Outcome]:
    return [outcome for item in find(source) for outcome in read(source, Span(item, 0, item.bytes))]


def texts(source: Source) -> list[str]:
    return [outcome.text for outcome in outcomes(source) if isinstance(outcome, Document)]


def rejects(source: Source) -> list[Rejected]:
    return [outcome for outcome in outcomes(source) if isinstance(outcome, Rejected)]


def the_reject(source: Source) -> Rejected:
    (found,) = rejects(source)
    return found


def rows(*texts: str) -> bytes:
    return b"".join(json.dumps({"text": text, "id": i}).encode() + b"\n" for i, text in enumerate(texts))


def zstd(content: bytes) -> bytes:
    return pyarrow.Codec("zstd").compress(content, asbytes=True)
