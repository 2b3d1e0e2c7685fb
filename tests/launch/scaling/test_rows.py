"""Which rows a law may be fitted to, and what is refused."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from conf.errors import ConfigError
from launch.scaling.analysis import outside, seed_noise
from launch.scaling.read_rows import row_of, rows_of_runs
from launch.scaling.rows import (
    Convention,
    Counting,
    Row,
    RowRule,
    Verdict,
    points,
    refuse_mixtures,
    refuse_too_few,
    split,
)
from tests.launch.scaling.surfaces import row, summary


def reasons(rows: list[Row], **rule) -> dict[str, str]:
    return {one.run: reason for one, reason in split(rows, RowRule(**rule))[1]}


def test_rows_that_are_no_fair_points_are_dropped_with_the_reason():
    rows = [
        row("good"),
        row("hot", schedule_finished=False),
        row("partial", verdict=Verdict.partial),
        row("nan", loss=math.nan),
        row("diverged", verdict=Verdict.diverged),
        row("repeats", unique_tokens=10**9),
        row("edge", verdict=Verdict.edge),
    ]
    found = reasons(rows)
    assert set(found) == {"hot", "partial", "nan", "diverged", "repeats"}
    assert "schedule does not end" in found["hot"]
    assert found["diverged"] == "diverged"
    assert found["nan"] == "its loss is nan: diverged, or never measured"
    assert "10 epochs" in found["repeats"]


def test_the_row_rule_is_told_with_its_numbers():
    found = reasons([row("a", d=10**9), row("b", n=10**9), row("other")], name="[ab]*", min_tokens=2e9, max_flops=1e19)
    assert "1e+09 tokens, below rows.min_tokens=2e+09" in found["a"]
    assert "held out" in found["b"]
    assert "rows.name=[ab]*" in found["other"]


def test_a_run_above_a_smaller_one_has_diverged():
    spike = row("spike", n=3 * 10**8, d=2 * 10**10, loss=4.2)
    found = reasons([row("small"), spike, row("large", n=10**9, d=3 * 10**10)])
    assert set(found) == {"spike"}
    assert "above that of small" in found["spike"]
    assert reasons([row("small"), spike], divergence_margin=1.0) == {}


def test_flops_that_wrapped_in_64_bits_are_noticed():
    n, d = 7 * 10**9, 10**12
    wrapped = int(np.array(6 * n * d % 2**64, dtype=np.uint64).astype(np.int64))
    assert "overflow" in reasons([row("w", n=n, d=d, flops_causal=float(wrapped))])["w"]
    large = points([row("ok", n=n, d=d)], Counting.matmul, Convention.causal)
    assert large.flops.dtype == np.float64
    assert large.flops[0] == 6.3 * n * d > 2**63


@pytest.mark.parametrize(
    ("counting", "convention", "size"),
    [
        (Counting.matmul, Convention.causal, 1e8),
        (Counting.total, Convention.causal, 1.1e8),
        (Counting.non_embedding, Convention.causal, 0.9e8),
        (Counting.compute, Convention.causal, 1.05e8),
        (Counting.compute, Convention.full, 1.1e8),
    ],
)
def test_each_counting_has_its_own_size(counting: Counting, convention: Convention, size: float):
    assert row().size(counting, convention) == pytest.approx(size)


def test_mixed_tokenizers_and_validation_sets_are_refused_with_an_example_of_each():
    with pytest.raises(ConfigError) as caught:
        refuse_mixtures([row("a"), row("b", tokenizer="u" * 64), row("c", validation=None)])
    assert len(caught.value.problems) == 2
    assert "(b)" in caught.value.problems[0]
    assert "not stated (c)" in caught.value.problems[1]
    refuse_mixtures([row("a"), row("b")])


def test_too_few_rows_sizes_or_lengths_are_refused():
    def problems(rows: list[Row]) -> str:
        at = points(rows, Counting.matmul, Convention.causal)
        with pytest.raises(ConfigError) as caught:
            refuse_too_few(rows, at.n, at.d)
        return str(caught.value)

    assert "2 usable rows" in problems([row(), row(n=10**9)])
    one_size = problems([row(d=k * 10**9) for k in range(1, 9)])
    assert "all rows are of one size;" in one_size
    assert "token count" not in one_size
    assert "all rows have one token count;" in problems([row(n=k * 10**8) for k in range(1, 9)])


def test_rows_are_read_from_the_folders_of_runs(tmp_path: Path):
    for name in ("a", "b/c"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "summary.json").write_text(json.dumps(summary(name, 10**8, 10**10)))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "summary.json").write_text("{")
    rows, odd = rows_of_runs(tmp_path, "val_loss")
    assert [one.run for one in rows] == ["a", "b/c"]
    assert dataclasses.replace(rows[0], run="x", group="x") == row("x")
    assert odd[0][0].endswith("broken")
    with pytest.raises(ConfigError, match="is no folder"):
        rows_of_runs(tmp_path / "a" / "none", "val_loss")


def test_what_is_read_is_what_a_run_writes():
    """The keys of `summary.json` by their names in the file that writes it."""
    written = (Path(__file__).resolve().parents[3] / "train" / "summary.py").read_text()
    read = summary("a", 10**8, 10**10)
    for key in [*read, *read["data"]]:
        assert f'"{key}"' in written, key


def test_a_summary_says_how_the_run_ended():
    read = {status: row_of(summary("a", 10**8, 10**10, status=status)).verdict for status in ("finished", "failed")}
    assert read == {"finished": Verdict.ok, "failed": Verdict.partial}
    assert row_of(summary("a", 10**8, 10**10, status="diverged", val_loss=None)).verdict == Verdict.diverged
    assert math.isnan(row_of(summary("a", 10**8, 10**10, val_loss=None)).loss)
    assert row_of(summary("a", 10**8, 10**10), "bits_per_byte").loss == pytest.approx(row().loss / 3)
    mixture = summary("a", 1, 6, data={"manifest_sha256": None}, sources={"x": {"digest": "b"}, "y": {"digest": "a"}})
    assert row_of(mixture).validation == "a+b"


def test_noise_between_seeds_is_pooled_over_cells():
    seeds = ((1, -0.01), (2, 0.01))
    rows = [row(f"{n}-{s}", n=n, loss=3.0 * math.exp(x), seed=s) for n in (10**8, 10**9) for s, x in seeds]
    assert seed_noise(rows) == pytest.approx(0.01 * math.sqrt(2))
    assert seed_noise([row(), row(n=10**9)]) is None
    rates = [row("slow"), row("fast", loss=4.0)]
    assert seed_noise([*rows, *rates]) == seed_noise(rows), "of one seed: they differ in something else"


def test_how_far_a_target_lies_outside_is_told():
    at = points([row(), row(n=10**9, d=10**11)], Counting.matmul, Convention.causal)
    assert outside(at, 5e8, 5e10) == ()
    far = outside(at, 4e9, 1e11)
    assert far[0].startswith("N 4 times the largest sampled")
    assert any(text.startswith("D/N 4 times below") for text in far)
