"""What TensorBoard shows of a run: which figure of a row is drawn under which tag, and how the charts are laid out.

docs/tensorboard.md says what each tag means; a test compares it with what is written. No torch.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from train.config import TrainConfig
from train.plan import Plan

TAGS = {
    "loss": "loss/train",
    "val_loss": "loss/val",
    "bits_per_byte": "loss/bits_per_byte",
    "lr": "optimizer/lr",
    "grad_norm": "optimizer/grad_norm",
    "tokens_per_second": "throughput/tokens_per_second",
    "tokens_per_second_per_device": "throughput/tokens_per_second_per_device",
    "mfu": "throughput/mfu",
    "mfu_full": "throughput/mfu_full",
    "seconds": "throughput/step_seconds",
    "data_seconds": "throughput/data_seconds",
    "memory_gib": "memory/allocated_gib",
    "memory_reserved_gib": "memory/reserved_gib",
    "host_memory_gib": "memory/host_gib",
    **{
        f"{kind}_seconds_{figure}": f"ranks/{kind}_seconds_{figure}"
        for kind in ("work", "data", "communication")
        for figure in ("min", "median", "max")
    },
    "slowest_rank": "ranks/slowest",
}
"""key of a row to tag, for figures that are one number"""

FOLDERS = {
    "source_loss": "loss_by_source_train",
    "source_val_loss": "loss_by_source_val",
    "source_bits_per_byte": "loss_by_source_bits_per_byte",
    "grad_norms": "optimizer_grad_norms",
    "weight_norms": "optimizer_weight_norms",
}
"""the same for those that are a number for each source or layer: its name follows"""

AXES = ("by_tokens", "by_gigaflops")
"""what the losses are drawn against besides steps, under tags of their own: each chart has one kind of axis"""

OUTCOMES = ("loss/val", "loss/bits_per_byte", "loss/train", "throughput/tokens_per_second")
"""the columns of the hparams tab beside the settings"""


Layout = dict[str, dict[str, list[str]]]
"""category to chart to the tags it draws, as regular expressions"""


def layout(*, n_sources: int, n_ranks: int, has_device_memory: bool) -> Layout:
    """Of the custom scalars tab: the charts that a run of this kind has curves for."""
    found: Layout = {
        "Loss": {
            "training and validation, nats per token": ["^loss/(train|val)$"],
            "validation, bits per byte": ["^loss/bits_per_byte$"],
            "against tokens": ["^loss_by_tokens/(train|val)$"],
            "against 10^9 FLOPs": ["^loss_by_gigaflops/(train|val)$"],
        },
        "Optimisation": {
            "learning rate": ["^optimizer/lr$"],
            "gradient norm before clipping": ["^optimizer/grad_norm$"],
            "gradient norm by layer": ["^optimizer_grad_norms/"],
            "weight norm by layer": ["^optimizer_weight_norms/"],
        },
        "Throughput": {
            "tokens/s": ["^throughput/tokens_per_second$"],
            "tokens/s per device": ["^throughput/tokens_per_second_per_device$"],
            "MFU (causal pairs; full squares)": ["^throughput/mfu(_full)?$"],
            "seconds of a step, and of them reading data": ["^throughput/(step|data)_seconds$"],
        },
        "Memory": {"of the host, GiB": ["^memory/host_gib$"]},
    }
    if n_sources > 1:
        found["Loss"] |= {
            "training loss by source": ["^loss_by_source_train/"],
            "validation loss by source": ["^loss_by_source_val/"],
            "bits per byte by source": ["^loss_by_source_bits_per_byte/"],
        }
    if has_device_memory:
        found["Memory"] |= {"of the device, GiB": ["^memory/(allocated|reserved)_gib$"]}
    if n_ranks > 1:
        found["Ranks"] = {
            "own work, seconds": ["^ranks/work_seconds_"],
            "collectives, seconds": ["^ranks/communication_seconds_"],
            "reading data, seconds": ["^ranks/data_seconds_"],
            "slowest rank": ["^ranks/slowest$"],
        }
    return found


def points(row: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
    """(tag, value, place on the axis) of all that is drawn of a row."""
    places = (row["tokens_seen"], row["flops_causal"] // 10**9 if "flops_causal" in row else None)
    for key, tag in TAGS.items():
        if key in row:
            yield tag, row[key], row["step"]
            if tag.startswith("loss/"):
                for axis, place in zip(AXES, places, strict=True):
                    if place is not None:  # rows of earlier versions tell no FLOPs
                        yield tag.replace("loss/", f"loss_{axis}/"), row[key], place
    for key, folder in FOLDERS.items():
        for name, value in row.get(key, {}).items():
            yield f"{folder}/{name}", value, row["step"]


def hparams(config: TrainConfig, plan: Plan) -> dict[str, str | int | float]:
    """What runs of a sweep differ in."""
    model, parallel = config.model, config.parallel
    ranks = f"dp {plan.machine.n_devices // (parallel.tp_size * parallel.sp_size)}"
    ranks += "".join(f" x {name} {n}" for name, n in (("sp", parallel.sp_size), ("tp", parallel.tp_size)) if n > 1)
    return {
        "n_params": plan.n_params,
        "n_layers": model.n_layers,
        "d_model": model.d_model,
        "seq_len": config.data.seq_len,
        "global_batch_size": config.batch.global_batch_size,
        "total_tokens": plan.tokens_planned,
        "peak_lr": config.optimizer.peak_lr,
        "optimizer": str(config.optimizer.kind),
        "layout": f"{ranks}, ZeRO {parallel.zero_stage}",
        "precision": str(parallel.precision),
        "seed": config.run.seed,
    }
