"""A small real corpus, a tokenizer trained on it once, and a dataset made of both."""

from pathlib import Path

import pytest

from data_prep.config import DataPrepConfig, TokenizerConfig
from data_prep.pipeline import prepare
from data_prep.sources.config import TextFiles
from data_prep.tokenizer import Tokenizer
from tests.corpus import write_corpus

VOCABULARY = 400


def config(out: Path, corpus: Path, **options: object) -> DataPrepConfig:
    """As `python -m data_prep out=... source=text source.paths=[...]` would make it, sized for a test."""
    settings: dict[str, object] = {
        "source": TextFiles(paths=[str(corpus)]),
        "tokenizer": TokenizerConfig(vocab_size=VOCABULARY),
        "val_fraction": 0.2,
        "task_bytes": 20_000,
        "workers": 1,
    }
    return DataPrepConfig(out=str(out), **(settings | options))  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "texts")


@pytest.fixture(scope="session")
def dataset(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished; tests that alter it copy it first."""
    out = tmp_path_factory.mktemp("dataset") / "out"
    prepare(config(out, corpus))
    return out


@pytest.fixture(scope="session")
def tokenizer(dataset: Path) -> Tokenizer:
    return Tokenizer.load(dataset / "tokenizer.model")
