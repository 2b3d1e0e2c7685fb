"""The stage `clean`: one task's documents in, those that its filters keep out, as one Parquet file, the part.

A part has the columns span, id, url, text, in the order of the corpus. Beside it a record counts, for each span of the
task: documents in, kept, removed by reason, and what was changed inside the kept ones. With `keep_dropped` the dropped
documents lie in a second file with reason and figure, for a person to look at.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.clean.config import CleanConfig
from data_prep.document import Document, Rejected
from data_prep.files import DataError, publish_json, published
from data_prep.jobs import Done, Task, content_id
from data_prep.shards import SCHEMA_VERSION, read_json
from data_prep.slices import Reading

BATCH_BYTES = 16 << 20


@dataclass
class SpanTally:
    """What became of the documents of one span. `documents_in` = kept + all of `removed`."""

    documents_in: int = 0
    kept: int = 0
    removed: dict[str, int] = dataclasses.field(default_factory=dict[str, int])
    changes: dict[str, int] = dataclasses.field(default_factory=dict[str, int])

    def remove(self, reason: str) -> None:
        self.removed[reason] = self.removed.get(reason, 0) + 1

    def change(self, changes: dict[str, int]) -> None:
        for name, n in changes.items():
            self.changes[name] = self.changes.get(name, 0) + n


@dataclass(frozen=True)
class CleanJob:
    task: Task
    reading: Reading
    clean: CleanConfig
    rules: str
    """Digest of the rules, of the files that they name and of the libraries that they use."""
    keep_dropped: bool
    folder: Path

    @property
    def id(self) -> str:
        return content_id({"task": self.task.id, "rules": self.rules, "schema": SCHEMA_VERSION})

    @property
    def bytes(self) -> int:
        return self.task.bytes

    @property
    def part(self) -> Path:
        return self.folder / f"clean-{self.id}.parquet"

    def finished(self) -> bool:
        try:
            record = read_json(self._record)
            if self.keep_dropped and not self._dropped.exists():
                return False
            return self.part.stat().st_size == record["part_bytes"] and not self._was_laxer(record)
        except (DataError, OSError, KeyError):
            return False

    def tallies(self) -> list[SpanTally]:
        """One for each span of the task. Raises DataError while the job is not finished."""
        return [SpanTally(**tally) for tally in read_json(self._record)["spans"]]

    def run(self, advance: Callable[[Done], None]) -> None:
        from data_prep.clean.cleaner import Cleaner
        from data_prep.clean.outcome import Dropped

        self._record.unlink(missing_ok=True)
        cleaner = Cleaner(self.clean)
        tallies = [SpanTally() for _ in self.task.spans]
        with contextlib.ExitStack() as stack:
            kept = stack.enter_context(part_writer(self.part))
            dropped = stack.enter_context(part_writer(self._dropped)) if self.keep_dropped else None
            for i, outcome in self.reading.outcomes(self.task):
                tally = tallies[i]
                tally.documents_in += 1
                if isinstance(outcome, Rejected):
                    tally.remove(outcome.reason)
                    continue
                advance(Done(documents=1, text_bytes=len(outcome.utf8)))
                verdict = cleaner.clean(outcome.utf8, outcome.url)
                if isinstance(verdict, Dropped):
                    tally.remove(verdict.reason)
                    if dropped is not None:
                        dropped.add(i, f"{outcome.id}: {verdict.reason}, {verdict.detail}", outcome.url, outcome.utf8)
                    continue
                tally.kept += 1
                tally.change(verdict.changes)
                kept.add(i, outcome.id, outcome.url, verdict.utf8)
        spans = [dataclasses.asdict(tally) for tally in tallies]
        publish_json(
            self._record,
            {"schema_version": SCHEMA_VERSION, "part_bytes": self.part.stat().st_size, "spans": spans},
        )

    @property
    def _record(self) -> Path:
        return self.part.with_suffix(".json")

    @property
    def _dropped(self) -> Path:
        return self.folder / f"dropped-{self.id}.parquet"

    def _was_laxer(self, record: dict[str, Any]) -> bool:
        return any(self.reading.refuses(reason) for span in record["spans"] for reason in span["removed"])


class PartWriter:
    """Collects rows and writes them in groups. Made by `part_writer`."""

    def __init__(self, stream: Any):
        import pyarrow
        import pyarrow.parquet

        text = pyarrow.large_string()
        fields = [("span", pyarrow.int32()), ("id", text), ("url", text), ("text", pyarrow.large_binary())]
        self._schema = pyarrow.schema(fields)
        self._writer = pyarrow.parquet.ParquetWriter(
            stream, self._schema, compression="zstd", use_dictionary=False, write_page_checksum=True
        )
        self._rows: list[tuple[int, str, str, bytes]] = []
        self._n_bytes = 0

    def add(self, span: int, id: str, url: str, utf8: bytes) -> None:
        self._rows.append((span, id, url, utf8))
        self._n_bytes += len(utf8)
        if self._n_bytes >= BATCH_BYTES or len(self._rows) >= BATCH_BYTES >> 8:
            self.flush()

    def flush(self) -> None:
        import pyarrow

        columns = list(zip(*self._rows, strict=True)) or [(), (), (), ()]
        arrays = [pyarrow.array(column, item.type) for column, item in zip(columns, self._schema, strict=True)]
        self._writer.write_batch(pyarrow.record_batch(arrays, schema=self._schema))
        self._rows, self._n_bytes = [], 0

    def close(self) -> None:
        if self._rows:
            self.flush()
        self._writer.close()


@contextlib.contextmanager
def part_writer(path: Path) -> Iterator[PartWriter]:
    """A part that appears only when the block ends well. Raises DataError for a full disk or missing permission."""
    with published(path) as stream:
        writer = PartWriter(stream)
        yield writer
        writer.close()


def read_part(path: Path) -> Iterator[tuple[int, Document]]:
    """(number of the span, document) in order. Raises DataError when the file is damaged."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                for row in zip(*(column.to_pylist() for column in file.read_row_group(group).columns), strict=True):
                    span, id, url, utf8 = row
                    yield span, Document(utf8, id, 0, url)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} is damaged ({error}); remove it and run the same command again") from error
