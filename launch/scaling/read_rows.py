"""Reads rows from the folders of runs or from a ledger.

In: a folder of runs (each with its summary.json), or a file of JSON lines with the same keys, one run a line. Out:
rows, and for each summary that is none the reason. A ledger may add `group` (runs that share a trunk), `family`,
`verdict` and `validation_sha256`.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conf.errors import ConfigError
from launch.scaling.rows import Row, Verdict

SCHEMA_VERSION = 1
_LOSSES = {"val_loss": "val_loss_stderr", "bits_per_byte": None}


def rows_of_runs(folder: Path, loss: str) -> tuple[list[Row], list[tuple[str, str]]]:
    """(rows, (file, why it is no row)). Raises ConfigError if there is no summary."""
    files = sorted(folder.glob("**/summary.json"))
    if not files:
        raise ConfigError([f"runs={folder}: no summary.json below it; name the folder that holds the runs' folders"])
    return _read([(str(file.parent), file.read_text(encoding="utf-8")) for file in files], loss)


def rows_of_ledger(file: Path, loss: str) -> tuple[list[Row], list[tuple[str, str]]]:
    """(rows, (line, why it is no row)). Raises ConfigError if the file cannot be read or is of another version."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"ledger={file} cannot be read: {error}"]) from None
    return _read([(f"{file.name}, line {i}", line) for i, line in enumerate(lines, 1) if line.strip()], loss)


def _read(texts: list[tuple[str, str]], loss: str) -> tuple[list[Row], list[tuple[str, str]]]:
    rows, odd, versions = [], [], []
    for where, text in texts:
        try:
            found = json.loads(text)
            if not isinstance(found, dict):
                raise ValueError("no JSON object")
            version = found.get("schema_version")
            if version != SCHEMA_VERSION:
                versions.append(f"{where}: schema version {version}, this program reads {SCHEMA_VERSION}")
                continue
            rows.append(row_of(found, loss))
        except (ValueError, KeyError, TypeError) as error:
            missing = f"lacks {error.args[0]}" if isinstance(error, KeyError) else str(error)
            odd.append((where, missing))
    if versions:
        raise ConfigError(versions)
    return rows, odd


def row_of(summary: dict[str, Any], loss: str = "val_loss") -> Row:
    """Raises KeyError, ValueError or TypeError for what is no summary of a run."""
    data = summary.get("data") or {}
    stderr = _LOSSES[loss]
    return Row(
        run=str(summary["run_name"]),
        group=str(summary.get("group") or summary["run_name"]),
        n_params=int(summary["n_params"]),
        n_params_matmul=int(summary["n_params_matmul"]),
        n_params_non_embedding=int(summary["n_params_non_embedding"]),
        tokens=int(summary["tokens_seen"]),
        unique_tokens=None if summary.get("unique_tokens") is None else int(summary["unique_tokens"]),
        flops_full=float(summary["flops_full"]),
        flops_causal=float(summary["flops_causal"]),
        loss=_number(summary[loss]),
        stderr=None if stderr is None or summary.get(stderr) is None else float(summary[stderr]),
        schedule_finished=bool(summary["schedule_finished"]),
        seed=summary.get("seed"),
        verdict=_verdict(summary),
        tokenizer=summary.get("tokenizer_sha256") or data.get("tokenizer_sha256"),
        validation=_validation(summary, data),
        family=str(summary.get("family") or (summary.get("labels") or {}).get("family") or "transformer"),
    )


def _number(value: Any) -> float:
    """Not finite for what was never measured, so that the row is dropped with that reason."""
    return math.nan if value is None else float(value)


def _verdict(summary: dict[str, Any]) -> Verdict:
    if summary.get("verdict"):
        return Verdict(summary["verdict"])
    match summary["status"]:
        case "finished":
            return Verdict.ok
        case "diverged":
            return Verdict.diverged
        case _:
            return Verdict.partial


def _validation(summary: dict[str, Any], data: dict[str, Any]) -> str | None:
    stated = summary.get("validation_sha256") or data.get("validation_sha256") or data.get("manifest_sha256")
    return stated or "+".join(_digests(summary)) or None


def _digests(summary: dict[str, Any]) -> Iterator[str]:
    yield from sorted(str(source["digest"]) for source in (summary.get("sources") or {}).values())
