"""Published training speeds, as tables of one layout, read into jobs that can be predicted.

In: a folder of CSV files, or one (columns as in their README: an empty cell is not stated). Out: rows, each with its
job, hardware and what was measured, or with the reason why nothing can be predicted for it.
"""

import csv
import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conf.errors import ConfigError
from launch.performance.fitted import FITTED
from launch.performance.hardware import kind_of
from launch.performance.layout import Layout
from launch.performance.stacks import Stack, stack_of
from model.config import Bias, Mlp, ModelConfig, Norm, Positions

COLUMNS = {"hw", "n_gpus", "layers", "hidden", "seq"}
"""without these no row says anything; what other columns are missing is not stated in any row"""
OPTIONAL = {
    *("source", "model", "params_b", "heads", "kv_heads", "ffn", "glu", "vocab", "dp", "tp", "pp", "cp", "vpp", "zero"),
    *(
        "micro_batch",
        "grad_accum",
        "global_batch",
        "precision",
        "recompute",
        "tokens_s_gpu",
        "step_s",
        "mem_gib",
        "note",
    ),
}
ODD = "\0"
"""no column is called so"""
MIXTURES = re.compile(
    r"\bmoe\b|mixtral|mixture|experts?\b|\d+x\d+(\.\d+)?b|\ba\d+(\.\d+)?b\b|deepseek[- ]?v[23]", re.IGNORECASE
)
"""names of networks of experts: each token goes through a part of the weights, which is not predicted"""
DID_NOT_FIT = ("oom", "out of memory", "did not fit", "does not fit")


@dataclass(frozen=True)
class Row:
    file: str
    source: str
    name: str
    """model, GPUs, row length and precision, for a reader"""
    hardware: str
    stack: Stack
    layouts: tuple[Layout, ...]
    """those that the source may mean: one for each value of what it does not state"""
    problem: str
    """why there is no layout; empty if there is one"""
    tokens_per_second: float | None
    """per GPU"""
    memory_gib: float | None
    did_not_fit: bool
    """the source says so"""
    held_out: bool
    """no constant was fitted to it"""
    kept_out: bool
    """by the rule of the calibration"""
    digest: str


def read(path: Path) -> list[Row]:
    """All rows of the tables. Raises ConfigError when there is none, or a single file is not such a table."""
    files = [file for file in csv_files(path) if not missing_columns(file)]
    if not files:
        found = [f"{file.name} lacks the columns {', '.join(missing_columns(file))}" for file in csv_files(path)]
        raise ConfigError([f"reproduce={path}: no table of published speeds ({'; '.join(found) or 'no CSV file'})"])
    return [_row(file.name, number, cells) for file in files for number, cells in enumerate(_cells(file), start=2)]


def csv_files(path: Path) -> list[Path]:
    return sorted(path.glob("*.csv")) if path.is_dir() else [path]


def missing_columns(file: Path) -> list[str]:
    """Those that make a file no such table. Raises ConfigError if it cannot be read."""
    return sorted(COLUMNS.difference(next(iter(_lines(file)), [])))


def _cells(file: Path) -> Iterator[dict[str, str]]:
    """Those of each line, and at ODD why it is no whole one."""
    names, *lines = _lines(file)
    for line in lines:
        if line:
            cells = dict.fromkeys([*OPTIONAL, *names], "") | dict(zip(names, map(str.strip, line), strict=False))
            odd = "" if len(line) == len(names) else f"has {len(line)} cells, and the table {len(names)} columns"
            yield cells | {ODD: odd}


def _lines(file: Path) -> list[list[str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            return list(csv.reader(stream))
    except OSError as error:
        raise ConfigError([f"{file} cannot be read: {error.strerror}"]) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError([f"{file} is no CSV file: {error}"]) from None


def is_kept_out(cells: dict[str, str]) -> bool:
    """Of the tables that constants are fitted to, a third of all rows, by their content, chosen before any was."""
    key = "|".join(cells[name] for name in ("source", "hw", "n_gpus", "model", "seq", "precision", "tokens_s_gpu"))
    return hashlib.sha256(key.encode()).digest()[0] % 3 == 0


def digest(cells: dict[str, str]) -> str:
    """Of what makes a measurement the same one, however its numbers are written."""
    names = ("n_gpus", "layers", "hidden", "seq", "micro_batch", "global_batch", "tokens_s_gpu")
    numbers = [_canonical(cells[name]) for name in names]
    return hashlib.sha256("|".join([kind_of(cells["hw"]), cells["precision"], *numbers]).encode()).hexdigest()[:8]


def _canonical(text: str) -> str:
    try:
        return f"{float(text):.6g}"
    except ValueError:
        return text


def _row(file: str, number: int, cells: dict[str, str]) -> Row:
    """What cannot be read is told in `problem`: one odd row does not hide the others."""
    stack = stack_of(cells["source"], cells["note"], cells["precision"])
    layouts, problem = (), ""
    try:
        layouts = _layouts(cells, stack)
        speed, memory_gib = _speed(cells), _number(cells, "mem_gib")
    except (ValueError, ArithmeticError) as error:
        layouts, speed, memory_gib, problem = (), None, None, f"line {number}: {error}"
    return Row(
        file=file,
        source=cells["source"] or "no source",
        name=(
            f"{cells['model'] or 'unnamed'}, {cells['n_gpus']} x {cells['hw'] or 'unnamed GPU'}, T {cells['seq']}, "
            f"{cells['precision'] or 'bf16'}"
        ),
        hardware=cells["hw"],
        stack=stack,
        layouts=layouts,
        problem=problem,
        tokens_per_second=speed,
        memory_gib=memory_gib,
        did_not_fit=any(words in cells["note"].lower() for words in DID_NOT_FIT),
        kept_out=is_kept_out(cells),
        held_out=digest(cells) not in FITTED,
        digest=digest(cells),
    )


def _number(cells: dict[str, str], name: str) -> float | None:
    """None if not stated. Raises ValueError for what is no number above 0."""
    if not cells[name]:
        return None
    value = float(cells[name])
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={cells[name]} must be above 0")
    return value


def _speed(cells: dict[str, str]) -> float | None:
    """Tokens per second and GPU, from the time of a step where only that is stated."""
    step, rows = _number(cells, "step_s"), _number(cells, "global_batch")
    stated = _number(cells, "tokens_s_gpu")
    if stated is not None or step is None or rows is None:
        return stated
    return rows * _whole(cells, "seq", 1) / step / _whole(cells, "n_gpus", 1)


def _whole(cells: dict[str, str], name: str, default: int) -> int:
    """As stated, if that is above 0."""
    value = float(cells.get(name) or 0)
    if not 0 <= value < 1e9:
        raise ValueError(f"{name}={cells[name]} is no number of things")
    return int(value) or default


def _layouts(cells: dict[str, str], stack: Stack) -> tuple[Layout, ...]:
    """Raises ValueError for a row that states too little, or what cannot be."""
    if cells[ODD]:
        raise ValueError(cells[ODD])
    if missing := [name for name in ("n_gpus", "layers", "hidden", "seq") if not cells[name]]:
        raise ValueError(f"does not state {', '.join(missing)}")
    if MIXTURES.search(cells["model"]) or _whole(cells, "experts", 0) > 1:
        raise ValueError(f"{cells['model']} is a mixture of experts, which is not predicted")
    gpus = _whole(cells, "n_gpus", 1)
    tp, pp, cp = (_whole(cells, name, 1) for name in ("tp", "pp", "cp"))
    if gpus % (tp * pp * cp):
        raise ValueError(f"n_gpus={gpus} does not divide by tp x pp x cp = {tp * pp * cp}")
    dp = gpus // (tp * pp * cp)
    if (zero := _whole(cells, "zero", 0) if cells["zero"] else 1) > 3:
        raise ValueError(f"zero={cells['zero']} is none of 0 to 3")
    model, recompute = _model(cells), cells["recompute"].lower()
    if problems := model.problems():
        raise ValueError(f"has no network that could be: {problems[0]}")
    stated = next((kind for kind in ("full", "selective", "none") if kind in recompute), None)
    return tuple(
        Layout(
            model=model,
            seq_len=_whole(cells, "seq", 0),
            micro_batch=micro,
            accumulation=accumulation,
            dp=dp,
            tp=tp,
            pp=pp,
            virtual_stages=virtual,
            cp=cp,
            zero=zero,
            precision=_precision(cells["precision"].lower()),
            recompute=again,
            sequence_parallel=_shares_stream(recompute, stack),
        )
        for again in ([stated] if stated else ["none", "selective", "full"])
        for micro, accumulation in _batches(cells, dp)
        for virtual in _virtual(cells, pp, model.n_layers, stack)
    )


def _precision(text: str) -> str:
    """Raises ValueError."""
    if "fp4" in text:
        raise ValueError(f"precision={text} cannot be predicted")
    return "fp8" if "fp8" in text else "fp32" if "32" in text else "bf16"


def _shares_stream(recompute: str, stack: Stack) -> bool:
    """Selective recomputation came with sequence parallelism (arXiv 2205.05198)."""
    return "no sequence" not in recompute and (stack.sequence_parallel or recompute.startswith(("selective", "seq")))


def _batches(cells: dict[str, str], dp: int) -> list[tuple[int, int]]:
    """(micro-batch, accumulation), one for each that the row may mean."""
    micro, accumulation = _whole(cells, "micro_batch", 0), _whole(cells, "grad_accum", 0)
    if not cells["global_batch"] and not accumulation and micro:
        return [(micro, 4 * _whole(cells, "pp", 1))]
    if not cells["global_batch"] and not micro:
        return [(size, 4) for size in (1, 2, 4, 8, 16)]
    rows = max(1, _whole(cells, "global_batch", 0) // dp)
    if micro:
        return [(micro, accumulation or max(1, rows // micro))]
    if accumulation:
        return [(max(1, rows // accumulation), accumulation)]
    return [(size, rows // size) for size in (1, 2, 4, 8, 16, 32) if rows % size == 0] or [(1, rows)]


def _virtual(cells: dict[str, str], pp: int, n_layers: int, stack: Stack) -> list[int]:
    if cells["vpp"] or pp == 1 or not stack.interleaves:
        return [_whole(cells, "vpp", 1)]
    even = n_layers % pp == 0
    return [v for v in range(1, n_layers // pp + 1) if not even or n_layers // pp % v == 0] or [1]


def _model(cells: dict[str, str]) -> ModelConfig:
    """Not stated: heads of 128; an MLP as wide as is usual, 4 times the width or, gated, 8/3 of it."""
    hidden, gated = _whole(cells, "hidden", 0), bool(_whole(cells, "glu", 0))
    heads = _whole(cells, "heads", max(1, hidden // 128))
    return ModelConfig(
        vocab_size=_whole(cells, "vocab", 50_304),
        n_layers=_whole(cells, "layers", 0),
        d_model=hidden,
        n_heads=heads,
        n_kv_heads=_whole(cells, "kv_heads", heads),
        d_ff=_whole(cells, "ffn", 8 * hidden // 3 if gated else 4 * hidden),
        mlp=Mlp.swiglu if gated else Mlp.gelu,
        norm=Norm.rmsnorm if gated else Norm.layernorm,
        positions=Positions.rotary if gated else Positions.none,
        bias=Bias.none,
        tie_embeddings=not gated,
    )
