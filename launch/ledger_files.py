"""A ledger on disk: the same rows as JSON lines, as CSV and as Parquet, each file whole or absent.

In: rows. Out: NAME.jsonl, NAME.csv and NAME.parquet; and back, from any of the three. Types come from the columns of
`LedgerRow`, never from the values, so a column without a single value keeps its own, and FLOPs beyond 2⁶³ are float64.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from conf.errors import ConfigError
from data_prep.files import publish_bytes
from launch.ledger_row import COLUMNS, SCHEMA_VERSION, Column, LedgerRow, facts_of, row_from

ENDINGS = (".jsonl", ".parquet", ".csv")
"""in the order in which they are believed"""
_NAMES = [column.name for column in COLUMNS]


def beside(target: Path, ending: str) -> Path:
    return target.with_name(target.name + ending)


def write(rows: Sequence[LedgerRow], target: Path) -> list[Path]:
    """The files `target`.jsonl, .csv and .parquet. Raises DataError if one cannot be written."""
    contents = {".jsonl": _as_jsonl(rows), ".csv": _as_csv(rows), ".parquet": _as_parquet(rows)}
    for ending, content in contents.items():
        publish_bytes(beside(target, ending), content)
    return [beside(target, ending) for ending in contents]


def read(file: Path) -> list[LedgerRow]:
    """Raises ConfigError, with everything that is wrong, unless every line is a row."""
    rows, odd = read_known(file)
    if odd:
        raise ConfigError([f"{where}: {reason}" for where, reason in odd])
    return rows


def read_known(file: Path) -> tuple[list[LedgerRow], list[tuple[str, str]]]:
    """(rows, (line, why it is none)). Raises ConfigError if the file is no ledger of this version at all."""
    rows, odd, seen = [], [], {}
    for number, found in _records(file):
        where = f"{file.name}, {'row' if file.suffix == '.parquet' else 'line'} {number}"
        if isinstance(found, str):
            odd.append((where, found))
            continue
        _refuse_other_version(file, where, found)
        try:
            row = row_from(found)
        except ValueError as error:
            odd.append((where, str(error)))
            continue
        if (first := seen.setdefault(row.identity, number)) != number:
            odd.append((where, f"{row.run_name} again: the same run (name and config_sha256) as number {first}"))
            continue
        rows.append(row)
    return rows, odd


def _refuse_other_version(file: Path, where: str, facts: dict[str, Any]) -> None:
    version = facts.get("schema_version")
    if version != SCHEMA_VERSION:
        said = "no schema_version: no row of a ledger" if version is None else f"schema version {version}"
        raise ConfigError(
            [
                f"{where}: {said}, this program reads {SCHEMA_VERSION}; `launch ledger runs=… to=…` writes"
                f" {file.name} anew from the runs' folders"
            ]
        )


def _records(file: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line or row, its facts, or why it has none)."""
    match file.suffix:
        case ".jsonl":
            return _from_jsonl(_bytes_of(file))
        case ".csv":
            return _from_csv(_bytes_of(file))
        case ".parquet":
            return _from_parquet(file, _bytes_of(file))
        case _:
            raise ConfigError([f"ledger={file} must end in {', '.join(ENDINGS)}"])


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError([f"ledger={file} cannot be read: {error.strerror}"]) from None


# --- JSON lines ------------------------------------------------------------------------------------------------------


def _as_jsonl(rows: Sequence[LedgerRow]) -> bytes:
    lines = (json.dumps(facts_of(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    return "".join(lines).encode()


def _from_jsonl(content: bytes) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"torn, or no JSON: {error}"
            continue
        yield number, found if isinstance(found, dict) else "no JSON object"


# --- CSV -------------------------------------------------------------------------------------------------------------


def _as_csv(rows: Sequence[LedgerRow]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_NAMES)
    writer.writerows([_cell(value) for value in facts_of(row).values()] for row in rows)
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case float():
            return repr(value)  # all of its digits
        case dict():
            return _as_text(value)
        case _:
            return str(value)


def _as_text(labels: dict[str, str]) -> str:
    return json.dumps(labels, ensure_ascii=False)


def _from_csv(content: bytes) -> Iterator[tuple[int, dict[str, Any] | str]]:
    try:
        reader = csv.reader(io.StringIO(content.decode(), newline=""), strict=True)
        head = next(reader, [])
        if "schema_version" not in head:
            yield 1, "no names of a ledger's columns"
        for cells in reader:
            if len(cells) == len(head):
                yield reader.line_num, _parsed(dict(zip(head, cells, strict=True)))
            else:
                yield reader.line_num, f"torn, or foreign: {len(cells)} cells under {len(head)} names"
    except (csv.Error, UnicodeDecodeError) as error:
        yield 0, f"no CSV: {error}"


def _parsed(cells: dict[str, str]) -> dict[str, Any]:
    known = {column.name: column for column in COLUMNS}
    return {name: _value(known[name], cell) if name in known else cell for name, cell in cells.items()}


def _value(column: Column, cell: str) -> Any:
    """The cell itself where it is nothing of that type: the check of the row says so."""
    if cell == "" and column.kind is not str:
        return None
    try:
        if column.kind in (int, float):
            return column.kind(cell)
        if column.kind is dict:
            return json.loads(cell)
    except ValueError:
        return cell
    return {"true": True, "false": False}.get(cell, cell) if column.kind is bool else cell


# --- Parquet ---------------------------------------------------------------------------------------------------------


def _as_parquet(rows: Sequence[LedgerRow]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds: dict[type, Any] = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    fields = [pa.field(c.name, kinds.get(c.kind, pa.string()), nullable=c.is_nullable) for c in COLUMNS]
    records = [facts_of(row) | {"labels": _as_text(row.labels)} for row in rows]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records, schema=pa.schema(fields)), sink)
    return sink.getvalue()


def _from_parquet(file: Path, content: bytes) -> Iterator[tuple[int, dict[str, Any] | str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(content))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ConfigError([f"ledger={file} is no Parquet file, or a damaged one: {error}"]) from None
    if "schema_version" not in table.column_names:
        raise ConfigError([f"ledger={file} has no column schema_version: it is no ledger"])
    for number, record in enumerate(table.to_pylist(), 1):
        labels = record.get("labels")
        yield number, record | ({"labels": _labels(labels)} if "labels" in record else {})


def _labels(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return text
