"""One outcome of training in flat columns, and the check that what was read is one. No torch, no numpy.

In: facts by name, from a run's folder or from a ledger of any format. Out: a `LedgerRow`, or ValueError with everything
that is wrong. Counts are Python integers that fit 64 bits; FLOPs, which need not, are floats. What is no number (NaN,
infinity) is not stored as one: it is None, so that all formats agree.
"""

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from launch.scaling.rows import Verdict

SCHEMA_VERSION = 1
_LARGEST = 2**63 - 1


@dataclass(frozen=True)
class LedgerRow:
    schema_version: int
    run_name: str
    sweep: str | None
    """label of the run"""
    group: str
    """first run of the chain of branches that this one ends; its own name where it does not branch"""
    family: str
    labels: dict[str, str]
    """JSON text in CSV and Parquet"""
    verdict: Verdict
    why: str
    """of a verdict other than ok; of one that is ok, what could not be looked at"""
    status: str
    """as summary.json has it"""
    schedule_finished: bool
    step: int | None
    total_steps: int | None
    n_params: int
    n_params_matmul: int
    n_params_non_embedding: int
    n_params_compute: float | None
    """flops_causal / (6 tokens_seen)"""
    flops_full: float
    flops_causal: float
    flops_causal_own: float
    """less those of the steps that another run had computed already"""
    tokens_seen: int
    unique_tokens: int | None
    epochs: float | None
    """tokens_seen / tokens of the train split"""
    device_hours_train: float | None
    device_hours_eval: float | None
    device_hours_checkpoint: float | None
    device_hours_idle: float | None
    """start-up, and work that a kill threw away"""
    device_hours: float | None
    """of all attempts; of a branch, as if it had run alone"""
    device_hours_own: float | None
    """less what it shares with the run that it began from: these add up to what was spent"""
    device: str | None
    n_devices: int | None
    cost_usd: float | None
    cost_usd_own: float | None
    price_usd_per_device_hour: float | None
    price_rule: str | None
    price_date: str | None
    train_loss: float | None
    val_loss: float | None
    val_loss_stderr: float | None
    bits_per_byte: float | None
    seq_len: int | None
    global_batch_size: int | None
    tokens_per_step: int | None
    peak_lr: float | None
    warmup_tokens: int | None
    schedule: str | None
    optimizer: str | None
    init: str | None
    d_model: int | None
    n_layers: int | None
    n_heads: int | None
    head_dim: int | None
    d_ff: int | None
    vocab_size: int | None
    seed: int | None
    manifest_sha256: str | None
    """of a mixture, the digests of its sources, with + between"""
    tokenizer_sha256: str | None
    validation_sha256: str | None
    config_sha256: str | None
    cell_sha256: str | None
    """of the settings without seed, peak_lr, batch, warm-up and length: rows with the same one, and as long,
    differ in what was tuned"""
    git_commit: str | None
    git_dirty: bool | None
    restarts: int | None
    tokens_per_second: float | None
    mfu: float | None
    branch_from: str | None
    branch_step: int | None
    folder: str
    """as it was found"""
    folder_missing: bool
    """a row kept from an earlier ledger: its folder is gone, or holds another run by now"""

    @property
    def identity(self) -> tuple[str, str]:
        """Two rows with the same one are of the same run, wherever they lie."""
        return self.run_name, self.config_sha256 or self.folder


class Column(NamedTuple):
    name: str
    kind: type
    """bool, int, float, str, dict, or Verdict"""
    is_nullable: bool


def _column(name: str, hint: Any) -> Column:
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    if not isinstance(hint, types.UnionType):
        return Column(name, typing.get_origin(hint) or hint, False)
    return Column(name, kinds[0], True)


COLUMNS = tuple(
    _column(name, hint)
    for hints in [typing.get_type_hints(LedgerRow)]
    for name, hint in ((field.name, hints[field.name]) for field in fields(LedgerRow))
)


def row_from(facts: Mapping[str, Any]) -> LedgerRow:
    """Raises ValueError for facts that are missing, foreign, or of another type."""
    names = {column.name for column in COLUMNS}
    problems = [f"unknown column {name!r}" for name in facts if name not in names]
    problems += [f"lacks {column.name}" for column in COLUMNS if column.name not in facts]
    values: dict[str, Any] = {}
    for column in COLUMNS:
        try:
            values[column.name] = _checked(column, facts.get(column.name))
        except ValueError as error:
            problems += [str(error)] if column.name in facts else []
    if problems:
        raise ValueError("; ".join(problems))
    return LedgerRow(**values)


def facts_of(row: LedgerRow) -> dict[str, Any]:
    return {column.name: _plain(getattr(row, column.name)) for column in COLUMNS}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Verdict) else value


def _checked(column: Column, value: Any) -> Any:
    """Nothing, where nothing may be, is also what is no number, and an empty text, which CSV cannot tell from none."""
    is_number = isinstance(value, int | float) and type(value) is not bool
    if column.is_nullable and (value is None or value == "" or (is_number and not _is_finite(value))):
        return None
    if is_number and column.kind in (int, float) and not _is_finite(value):
        raise ValueError(f"{column.name}={_short(value)} is no finite number")
    if column.kind is int and type(value) is int:
        return _count(column, value)
    if column.kind is float and is_number:
        return float(value)
    if column.kind is bool and type(value) is bool:
        return value
    if column.kind is str and isinstance(value, str):
        return _text(column, value)
    if column.kind is dict and isinstance(value, dict):
        return {_text(column, name): _text(column, text) for name, text in sorted(value.items())}
    if column.kind is Verdict and value in list(Verdict):
        return Verdict(value)
    raise ValueError(f"{column.name} is {_short(value)}, not {_words(column)}")


def _count(column: Column, value: int) -> int:
    if -_LARGEST <= value <= _LARGEST:
        return value
    raise ValueError(f"{column.name}={value} does not fit 64 bits: no count is so large")


def _text(column: Column, value: Any) -> str:
    if isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value):
        return value
    raise ValueError(f"{column.name} holds {_short(value)}, not text")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:  # an integer beyond 1.8e308
        return False


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _words(column: Column) -> str:
    if column.kind is Verdict:
        return f"one of {', '.join(Verdict)}"
    words: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}
    return words.get(column.kind, "a mapping of texts") + (" or nothing" if column.is_nullable else "")
