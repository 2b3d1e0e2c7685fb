"""The table of cuts: every parameter of every network of the family is named once."""

import itertools
from typing import Any

import pytest
import torch

from model.config import Bias, Mlp, ModelConfig, Norm, Positions, Residual
from model.transformer import Transformer
from train.tensor_parallel import Cut, LayoutError, Rule, cuts_of, table


def names(config: ModelConfig) -> list[str]:
    with torch.device("meta"):
        return [name for name, _ in Transformer(config).named_parameters()]


FEWEST: dict[str, Any] = {"mlp": Mlp.gelu}
MOST: dict[str, Any] = {
    "mlp": Mlp.swiglu,
    "qk_norm": True,
    "tie_embeddings": False,
    "positions": Positions.learned,
    "max_positions": 8,
}


def test_every_network_of_the_family_is_matched_exactly_once_by_rules_that_all_match():
    """`cuts_of` raises otherwise."""
    for bias, norm, residual, others in itertools.product(Bias, Norm, Residual, (FEWEST, MOST)):
        config = ModelConfig(n_layers=1, bias=bias, norm=norm, residual=residual, **others)
        assert set(cuts_of(names(config), table(config))) == set(names(config))


def test_every_matrix_but_the_learned_positions_is_cut():
    config = ModelConfig(positions=Positions.learned, max_positions=8, tie_embeddings=False)
    with torch.device("meta"):
        matrices = {name for name, p in Transformer(config).named_parameters() if p.dim() == 2}
    cuts = cuts_of(names(config), table(config))
    assert {name for name in matrices if cuts[name] == Cut.replicated} == {"position.weight"}


def test_a_table_that_does_not_fit_is_refused_with_every_name():
    rules = [Rule(r"a\.weight", Cut.column), Rule(r"[ab]\.weight", Cut.row), Rule(r"missing", Cut.vocabulary)]
    with pytest.raises(LayoutError) as refusal:
        cuts_of(["a.weight", "b.weight", "c.weight", "b.weight_scale"], rules)
    lines = str(refusal.value).splitlines()[1:]
    assert len(lines) == 4
    for expected in (
        "no rule matches c.weight",
        "no rule matches b.weight_scale",
        r"a.weight is matched by 2 rules: a\.weight, [ab]\.weight",
        "the rule missing (vocabulary) matches no parameter",
    ):
        assert any(expected in line for line in lines), expected
