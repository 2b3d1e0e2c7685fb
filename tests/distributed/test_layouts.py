"""Tensor and sequence parallelism against the same model whole: logits, losses and every gradient, for each layout."""

from functools import partial
from typing import Any

import pytest

from tests.distributed.parallel_model import parallel_errors
from tests.distributed.ranks import run_ranks

FAMILY: dict[str, dict[str, Any]] = {
    "grouped queries, tied": {},
    "untied": {"tie_embeddings": False},
    "multi-head, biases, LayerNorm, GELU, learned positions": {
        "n_kv_heads": 8,
        "bias": "all",
        "norm": "layernorm",
        "mlp": "gelu_tanh",
        "positions": "learned",
        "max_positions": 16,
    },
    "query-key norm, softcaps": {"qk_norm": True, "attention_softcap": 5.0, "logit_softcap": 3.0},
    "parallel residual, biases, part rotary": {
        "residual": "parallel",
        "bias": "all",
        "norm": "layernorm",
        "mlp": "gelu",
        "rotary_fraction": 0.5,
        "tie_embeddings": False,
    },
    "norms after, biases of q, k, v, sliding window": {"residual": "post_norm", "bias": "qkv", "sliding_window": 5},
    "muP": {"init": "mup", "mup_base_width": 12, "mup_base_head_dim": 4},
}

LAYOUTS = [  # world size, tp, sp, sequence-parallel norms
    (2, 2, 1, True),
    (2, 2, 1, False),
    (2, 1, 2, True),
    (4, 4, 1, True),
    (4, 2, 2, True),
    (4, 2, 2, False),
    (4, 2, 1, True),
]

EVERY_NETWORK = [(2, 1, True), (2, 1, False), (1, 2, True), (2, 2, True)]
"""the other layouts differ from these in nothing that a network's options could meet"""
TWO_OF_IT = dict(list(FAMILY.items())[2:4])

BOUND = 1e-5
"""fp32, and only the order of sums differs from the whole model: partial sums of 2 or 4 ranks. Every quantity is
measured beside the largest number of its tensor."""


@pytest.mark.parametrize(("world_size", "tp_size", "sp_size", "norms"), LAYOUTS)
def test_layout_gives_the_numbers_of_the_whole_model(world_size: int, tp_size: int, sp_size: int, norms: bool):
    cases = FAMILY if (tp_size, sp_size, norms) in EVERY_NETWORK else TWO_OF_IT
    check(run_ranks(parallel_errors, world_size, cases, tp_size, sp_size, norms))


LOADED = {"biases, query-key norm": {"n_layers": 1, "bias": "all", "qk_norm": True}}


@pytest.mark.parametrize(
    "options",
    [{"masked": False}, {"chunk_tokens": 5}, {"recomputed": True}, {"compiled": True}],
    ids=lambda options: next(iter(options)),
)
def test_layout_goes_with(options: dict[str, Any]):
    """Rows without segments (attention without a mask), a loss in uneven chunks, recomputed activations, and blocks
    compiled as one graph each (`fullgraph`: a graph break would be an error)."""
    check(run_ranks(partial(parallel_errors, **options), 4, LOADED, 2, 2, True))


def test_replicas_without_sequence_parallel_norms_go_with_compiled_blocks():
    check(run_ranks(partial(parallel_errors, compiled=True), 2, LOADED, 2, 1, False))


def check(ranks: list[dict[str, dict[str, float]]]) -> None:
    for rank, cases in enumerate(ranks):
        for case, errors in cases.items():
            for quantity, error in errors.items():
                bound = 0 if quantity.startswith("tp replicas") else BOUND
                assert error <= bound, f"rank {rank}, {case}: {quantity} differs by {error}"
