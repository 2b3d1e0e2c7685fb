"""The loader keeps up with a GPU, and a start does not depend on the size of the corpus. Bounds with slack: the bench
(`python -m tests.benchmarks.loader`) prints the figures themselves."""

from pathlib import Path

import pytest

from tests.benchmarks.loader import large_manifest, loader_rate, made_corpus, start_seconds


def test_rows_of_a_packed_mixture_come_faster_than_they_are_needed(tmp_path: Path):
    """10 M tokens/s are asked for; CPU seconds, so that other work on the machine counts little."""
    corpora = [
        made_corpus(tmp_path, name, weight, weight, n_shards=1) for name, weight in [("a", 5), ("b", 3), ("c", 2)]
    ]
    assert loader_rate(corpora, seconds=0.5, packing="best_fit") > 5e6


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return large_manifest(tmp_path_factory.mktemp("large"))


def test_a_start_with_ten_thousand_shards_of_a_trillion_tokens_takes_less_than_a_second(large: Path):
    assert min(start_seconds(large, look=False) for _ in range(3)) < 1


def test_the_first_process_looks_at_their_forty_thousand_files_in_about_as_long_again(large: Path):
    assert min(start_seconds(large, look=True) for _ in range(3)) < 2
