"""The coordinate check: muP is level over four widths, the standard recipe is not; and what the command refuses."""

import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from conf.compose import App, compose
from conf.errors import ConfigError
from model.config import Init, ModelConfig, Positions
from train.coordinates import FLAT, Coordinates, CoordinatesCommand, Growth, at_width, measure, render, slope
from train.coordinates_picture import draw
from train.optimizer_config import OptimizerConfig

NARROW = ModelConfig(vocab_size=128, n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64)
CHECK = CoordinatesCommand(
    model=NARROW, optimizer=OptimizerConfig(peak_lr=6e-3), widths=[32, 64, 128, 256], steps=20, seeds=1
)
KINDS = {"embedding", "attention logits", "attention output", "MLP output", "residual stream", "head logits"}


@pytest.fixture(scope="module")
def found() -> list[Coordinates]:
    return [*measure(CHECK, Init.mup), *measure(CHECK, Init.gpt2)]


def test_under_mup_nothing_grows_or_shrinks_with_the_width(found: list[Coordinates]):
    """The bound is half of the smallest exponent that a wrong rule can have: see FLAT."""
    slopes = {c.kind: c.slope for c in found if c.recipe == Init.mup}
    assert slopes.keys() == KINDS
    assert max(map(abs, slopes.values())) < FLAT, slopes


def test_under_the_standard_recipe_logits_and_attention_logits_grow_with_the_width(found: list[Coordinates]):
    """As they must: Adam's steps have one size whatever the width, so what adds up over units grows by a power of it
    (Yang et al., arXiv 2203.03466, section 5)."""
    slopes = {c.kind: c.slope for c in found if c.recipe == Init.gpt2}
    assert slopes["head logits"] > FLAT
    assert slopes["attention logits"] > 1


def test_both_recipes_do_the_same_at_the_base_width(found: list[Coordinates]):
    first = {(c.kind, c.recipe): [step[0] for step in c.change] for c in found}
    assert all(first[kind, Init.mup] == first[kind, Init.gpt2] for kind in KINDS)


def test_step_0_is_where_change_is_counted_from(found: list[Coordinates]):
    for c in found:
        assert c.change[0] == [0.0] * 4
        assert len(c.change) == len(c.size) == CHECK.steps + 1
        assert min(c.size[0]) > 0


def test_untrained_embeddings_have_the_size_of_their_distribution(found: list[Coordinates]):
    """E|x| of a normal distribution is std sqrt(2/pi); 128 x 32 numbers and more: 4 sigma is 5 %."""
    (embedding,) = (c for c in found if c.kind == "embedding" and c.recipe == Init.mup)
    assert embedding.size[0] == pytest.approx([0.02 * math.sqrt(2 / math.pi)] * 4, rel=0.05)


def test_more_heads_instead_of_wider_ones_are_level_too():
    check = replace(CHECK, grow=Growth.heads, widths=[64, 128, 256])
    assert all(c.is_flat for c in measure(check, Init.mup))


@pytest.mark.parametrize("power", [-1.0, 0.0, 0.5, 2.0])
def test_slope_is_the_exponent_of_a_power_law(power: float):
    assert slope([64, 128, 512], [3 * w**power for w in (64, 128, 512)]) == pytest.approx(power)


@pytest.mark.parametrize("values", [[1.0, 0.0], [1.0, math.inf], [math.nan, 1.0]])
def test_what_has_no_logarithm_has_no_slope_and_is_not_flat(values: list[float]):
    lost = Coordinates("x", Init.mup, [1, 2], [values], [values])
    assert math.isnan(lost.slope)
    assert not lost.is_flat


@pytest.mark.parametrize(
    ("grow", "expected"),
    [(Growth.head_dim, (4, 2, 16, 128)), (Growth.heads, (8, 4, 8, 128))],
)
def test_a_model_of_double_width(grow: Growth, expected: tuple[int, ...]):
    wide = at_width(NARROW, 64, grow, Init.mup)
    assert (wide.n_heads, wide.n_kv_heads, wide.head_width, wide.d_ff) == expected
    assert (wide.width_ratio, wide.mup_base_head_dim, wide.problems()) == (2.0, 8, [])


APP = App("coordinates", CoordinatesCommand, {})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.init=scaled", "set by the check itself"),
        ("widths=[64]", "two or more rising numbers"),
        ("widths=[128,64]", "two or more rising numbers"),
        ("widths=[64,90]", "at d_model=90, head_dim would be no whole number"),
        ("widths=[4,64]", "at d_model=4: heads of width 1 cannot be rotated"),
        ("steps=0", "steps=0 must be at least 1"),
        ("optimizer=muon", "optimizer.kind=muon: muP is made for AdamW"),
    ],
)
def test_a_check_that_cannot_be_made_is_refused(override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        compose(APP, [override])


def test_learned_positions_must_reach_over_the_rows():
    model = replace(NARROW, positions=Positions.learned, max_positions=16)
    assert CoordinatesCommand(model=model, widths=[32, 64]).problems() == [
        "seq_len=32 is longer than model.max_positions=16"
    ]


def test_the_table_says_what_is_level_and_the_picture_is_whole(found: list[Coordinates]):
    table = render(found)
    assert all(kind in table for kind in KINDS)
    assert table.count("flat") == len(found)
    assert "NOT flat" in table
    picture = ElementTree.fromstring(draw(found, 6e-3))
    lines = [e for e in picture.iter() if e.tag.endswith("polyline")]
    assert len(lines) >= len(found) * CHECK.steps
    width, height = float(picture.attrib["width"]), float(picture.attrib["height"])
    points = [tuple(map(float, p.split(","))) for line in lines for p in line.attrib["points"].split()]
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)


def test_the_command_writes_its_figures(tmp_path: Path):
    words = [f"out={tmp_path}", "widths=[16,32]", "model.d_model=16", "model.d_ff=32", "steps=1", "seeds=1"]
    done = subprocess.run(
        [sys.executable, "-m", "train.coordinates", *words, "device=cpu"], capture_output=True, text=True
    )
    assert "attention logits" in done.stdout, done.stderr
    figures = json.loads((tmp_path / "coordinates.json").read_text())
    verdicts = [c["is_flat"] for c in figures["found"] if c["recipe"] == "mup"]
    assert len(verdicts) == len(KINDS)
    assert done.returncode == int(not all(verdicts))
    assert (tmp_path / "coordinates.svg").read_text().startswith("<svg")
