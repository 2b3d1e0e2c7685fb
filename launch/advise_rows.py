"""What a sweep's runs say before anybody is advised: their law, how text wears, which shapes they had.

In: a folder of runs or a ledger, and how rows become a law. Out: one `Evidence`. Raises ConfigError for rows that carry
no law, or whose losses cannot be compared with those of the data at hand.
"""

from dataclasses import dataclass
from pathlib import Path

from conf.errors import ConfigError
from data_prep.manifest import MANIFEST, Manifest
from launch.advise_config import AdviseConfig
from launch.fit import progress, repeating
from launch.fit_config import FitChoice
from launch.ledger import collect
from launch.ledger_files import read_known
from launch.scaling.analysis import Family, decay, fit_family
from launch.scaling.read_rows import rows_of_ledger, rows_of_runs
from launch.scaling.rows import Row, refuse_mixtures, split
from train.data_config import DataConfig

PUBLISHED = (15.39, 5.31)
"""half-lives R*_D and R*_N on C4: Muennighoff et al. 2023 (arXiv 2305.16264)"""
LEAST_REPEATING = 3


@dataclass(frozen=True)
class Sampled:
    """What a row's run was made of, as far as it tells."""

    d_model: int
    n_layers: int
    seq_len: int | None
    vocab_size: int | None


@dataclass(frozen=True)
class Wear:
    """How fast text that is seen again loses its worth."""

    r_d: float
    r_n: float
    source: str


@dataclass(frozen=True)
class Evidence:
    rows: list[Row]
    dropped: list[tuple[str, str]]
    """(run, why it carries nothing)"""
    family: Family
    wear: Wear
    sampled: list[Sampled]
    """of those rows that tell"""


def evidence(config: AdviseConfig) -> Evidence:
    rows, odd = _rows(config)
    used, others = split(rows, config.fit.rows)
    dropped = [*odd, *((row.run, reason) for row, reason in others)]
    if not used:
        reasons = "; ".join(f"{run}: {reason}" for run, reason in dropped[:10])
        raise ConfigError([f"no row can be fitted ({len(dropped)} not used: {reasons})"])
    refuse_mixtures(used)
    of_family = [row for row in used if row.family == config.fit.family]
    if not of_family:
        raise ConfigError([f"fit.family={config.fit.family}: the rows are of {', '.join({r.family for r in used})}"])
    _refuse_other_tokenizer(of_family[0], config.data)
    dropped += [(row.run, f"of family {row.family}") for row in used if row.family != config.fit.family]
    choice = config.fit
    family = fit_family(of_family, choice, progress)
    repeats = [row for row in repeating(rows, used, choice.rows) if row.family == choice.family]
    names = {row.run for row in of_family}
    return Evidence(of_family, dropped, family, _wear(family, repeats, choice), _sampled(config, names))


def _rows(config: AdviseConfig) -> tuple[list[Row], list[tuple[str, str]]]:
    if config.runs is not None:
        return rows_of_runs(Path(config.runs), config.fit.loss)
    assert config.ledger is not None
    return rows_of_ledger(Path(config.ledger), config.fit.loss)


def _refuse_other_tokenizer(row: Row, data: DataConfig) -> None:
    """Nats per token of one tokenizer say nothing about another. Data that is not there yet is taken on trust."""
    for source in data.mixture.values():
        folder = Path(source.folder)
        if row.tokenizer is None or not (folder / MANIFEST).exists():
            continue
        ours = Manifest.load(folder).tokenizer_sha256
        if ours != row.tokenizer:
            raise ConfigError(
                [
                    f"the rows are of tokenizer {row.tokenizer[:12]}, {folder} is of {ours[:12]}: their law says "
                    "nothing about losses there. Name the data of the rows as data.folder, or sweep on this data"
                ]
            )


def _wear(family: Family, repeats: list[Row], choice: FitChoice) -> Wear:
    """From the rows where they tell, else as published."""
    published = "R*_D 15.39, R*_N 5.31 as published for C4 (Muennighoff et al. 2023, arXiv 2305.16264)"
    if len(repeats) < LEAST_REPEATING:
        return Wear(*PUBLISHED, f"{published}: {len(repeats)} rows repeat their text, {LEAST_REPEATING} are needed")
    found = decay(family, repeats, choice)
    if not found.identified:
        return Wear(*PUBLISHED, f"{published}: the {len(repeats)} rows that repeat do not identify R*_D")
    r_d, r_n = float(found.repeated.r_d), float(found.repeated.r_n)
    return Wear(r_d, r_n, f"R*_D {r_d:.3g}, R*_N {r_n:.3g} from {len(repeats)} rows that repeat")


def _sampled(config: AdviseConfig, names: set[str]) -> list[Sampled]:
    """From the same records that became rows."""
    if config.runs is not None:
        found, _ = collect(Path(config.runs))
    else:
        assert config.ledger is not None
        found, _ = read_known(Path(config.ledger))
    return [
        Sampled(row.d_model, row.n_layers, row.seq_len, row.vocab_size)
        for row in found
        if row.run_name in names and row.d_model and row.n_layers
    ]
