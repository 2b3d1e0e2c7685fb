"""What is asked and what is in force: each row refuses when its feature is switched off behind its back."""

import pytest

from tests.distributed.engines import changed_settings, micro_batches, plan_of_step, start_engine
from tests.distributed.ranks import run_ranks


def dictionary(**changes):
    """Sabotage: keys of DeepSpeed's dictionary are changed (section__key); None removes one."""

    def change(settings):
        for path, value in changes.items():
            *sections, key = path.split("__")
            place = settings[sections[0]] if sections else settings
            if value is None:
                del place[key]
            else:
                place[key] = value

    return lambda: changed_settings(change)


def plain_adam():
    """Whose decay goes through the moments."""
    import torch

    from train.engine import core
    from train.optim import parameter_groups

    core.adamw = lambda module, config, fused: torch.optim.Adam(
        parameter_groups(module.named_parameters(), config.weight_decay), betas=(config.beta1, config.beta2)
    )


def another_adamw(**changes):
    """Sabotage: the groups of the optimizer are given other settings."""

    def switch():
        from train.engine import core

        right = core.adamw

        def wrong(module, config, fused):
            optimizer = right(module, config, fused=fused)
            for group in optimizer.param_groups:
                group |= changes
            return optimizer

        core.adamw = wrong

    return switch


def one_group_for_all():
    """What `ndim >= 2` makes of ZeRO 3, where every parameter looks one-dimensional."""
    import torch

    from train.engine import core

    def wrong(module, config, fused):
        return torch.optim.AdamW(module.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)

    core.adamw = wrong


def bf16_moments():
    from train.engine import state

    right = state.fresh_state
    state.fresh_state = lambda *arguments: {
        key: value.bfloat16() if value.dim() else value for key, value in right(*arguments).items()
    }


def a_fragment_is_lost():
    from train.engine import state

    right = state._pieces
    state._pieces = lambda *arguments: list(right(*arguments))[1:]


BF16, OFFLOAD, HPZ = {"precision": "bf16"}, {"offload_optimizer": True}, {"zero_stage": 3, "hpz_size": 2}
SABOTAGE = {
    "ZeRO stage": (dictionary(zero_optimization__stage=1), {"zero_stage": 2}),
    "ranks with a second copy of the weights (hpZ)": (
        dictionary(zero_optimization__zero_hpz_partition_size=None),
        HPZ,
    ),
    "hpZ inside the optimizer": (dictionary(zero_optimization__zero_hpz_partition_size=None), HPZ),
    "optimizer offloaded to the CPU": (dictionary(zero_optimization__offload_optimizer=None), OFFLOAD),
    "micro-batch size": (dictionary(train_micro_batch_size_per_gpu=2), {}),
    "gradient accumulation steps": (dictionary(gradient_accumulation_steps=2), {}),
    "rows in all forwards of a step": (dictionary(gradient_accumulation_steps=2), {}),
    "clipping": (dictionary(gradient_clipping=0.5), {}),
    "clipping inside the optimizer": (dictionary(gradient_clipping=0.5), BF16),
    "dtype of forward weights": (dictionary(bf16__enabled=True), {}),
    "dtype of master": (
        dictionary(bf16__bf16_master_weights_and_grads=True, bf16__bf16_optimizer_states=True),
        {**BF16, "zero_stage": 2},
    ),
    "dtype of exp_avg": (bf16_moments, {}),
    "dtype of exp_avg_sq": (bf16_moments, BF16),
    "dtype of gradient sums": (dictionary(data_types__grad_accum_dtype="bf16"), {**BF16, "zero_stage": 3}),
    "optimizer": (plain_adam, {}),
    "betas, eps": (another_adamw(eps=1e-6), {}),
    "weight decay": (one_group_for_all, {"zero_stage": 3}),
    "numbers with a master": (a_fragment_is_lost, {}),
}
"""row: (what switches its feature off, what was asked)"""


def refused(what: str) -> str:
    from train.errors import EngineError

    switch, asked = SABOTAGE[what]
    grid, plan = plan_of_step()
    switch()
    try:
        start_engine(plan, grid, **asked)
    except EngineError as error:
        return str(error)
    return "started"


@pytest.mark.parametrize("what", SABOTAGE)
def test_a_feature_switched_off_behind_our_back_is_refused(what: str):
    for message in run_ranks(refused, 2 if what.endswith("(hpZ)") or what.startswith("hpZ") else 1, what):
        assert f"{what}: asked" in message


def changed_before_the_first_step() -> str:
    from train.errors import EngineError

    grid, plan = plan_of_step()
    engine = start_engine(plan, grid)
    engine._deepspeed.optimizer.clip_grad = 0.0
    try:
        engine.train_step(micro_batches(plan, grid, 0), 1e-3)
    except EngineError as error:
        return str(error)
    return "stepped"


def test_the_first_step_ends_with_another_look():
    assert "clipping inside the optimizer: asked 1.0, in force 0.0" in run_ranks(changed_before_the_first_step, 1)[0]


def table() -> str:
    from train.engine.in_force import Row, render

    grid, plan = plan_of_step()
    rows = start_engine(plan, grid, precision="bf16").effective_run()
    return render([*rows, Row("attention kernel", "flash", "math")])


def test_the_table_shows_what_is_in_force_and_marks_what_differs():
    lines = run_ranks(table, 1)[0].splitlines()
    assert "  dtype of exp_avg_sq " in "\n".join(lines)
    assert [" ".join(line.split()) for line in lines if "BUT" in line] == ["attention kernel flash BUT IN FORCE: math"]
