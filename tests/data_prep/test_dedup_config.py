from typing import Any

import pytest

from conf.check import defaults_of
from data_prep.dedup.config import DedupConfig, ExactDedup, MinHashDedup, NoDedup


def test_the_defaults_are_sound():
    assert MinHashDedup().problems() == ExactDedup().problems() == []
    assert NoDedup().kind == "none"


def test_the_chance_to_find_a_pair_is_that_of_the_published_table():
    """112 hash functions as 14 × 8: 0.924 at 0.8, and one half near 0.69."""
    assert MinHashDedup().chance(0.8) == pytest.approx(0.924, abs=5e-4)
    assert MinHashDedup().chance(0.69) == pytest.approx(0.52, abs=0.02)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"ngram": 0}, "dedup.ngram=0"),
        ({"bands": 0}, "dedup.bands=0"),
        ({"rows": 65}, "dedup.rows=65"),
        ({"max_bucket": 1}, "dedup.max_bucket=1"),
        ({"seed": -1}, "dedup.seed=-1"),
        ({"min_jaccard": 0.0}, "dedup.min_jaccard=0.0"),
        ({"min_jaccard": 0.5}, "finds only 5%"),
        ({"max_source_loss": 1.5}, "dedup.max_source_loss=1.5"),
        ({"max_cluster_share": -0.1}, "dedup.max_cluster_share=-0.1"),
        ({"memory_bytes": 1000}, "dedup.memory_bytes=1000"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], key: str):
    (problem,) = MinHashDedup(**changes).problems()
    assert key in problem


def test_kinds_differ_by_their_field():
    kinds = {defaults_of(kind)["kind"] for kind in DedupConfig.__args__}
    assert kinds == {"none", "exact", "minhash"}
