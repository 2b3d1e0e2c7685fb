"""The folder of one run → its row in a ledger. No torch.

In: summary.json, which decides; config.yaml for what a summary does not say; the attempts, for what was spent after
the summary was written; metrics.jsonl for how the losses ended. Out: a `LedgerRow`, or ValueError with the reason.

Totals count all attempts. A process that was killed could not write what it had spent since its last checkpoint: its
signs of life tell, and the difference is idle time, as the next start of the run would book it.
"""

import json
from pathlib import Path
from typing import Any

from conf.check import digest, flatten, to_tree
from conf.errors import ConfigError
from data_prep.files import DataError
from launch.ledger_row import SCHEMA_VERSION, LedgerRow, row_from
from launch.ledger_verdict import ending_of_losses, judge
from train.config import TrainConfig
from train.history import Story, read_stories
from train.run_folder import config_of

KINDS = ("train", "eval", "checkpoint", "idle")
_TUNED = ("optimizer.peak_lr", "schedule.warmup_tokens")
_SECTIONS = ("model", "data", "optimizer", "schedule", "loss")
_ELSEWHERE = ("folder", "pack_folder", "rebase", "chunk_tokens")
"""last names of settings that say where, or in which pieces, not what"""


def row_of_folder(run: Path) -> LedgerRow:
    """Raises ValueError with the reason if there is none."""
    summary = _summary(run / "summary.json")
    config, problem = _config(run)
    stories = read_stories(run)
    losses, unseen = ending_of_losses(run / "metrics.jsonl", _is_of_one_text(summary, config))
    verdict, why = judge(summary, losses, stories[-1].ending if stories else "")
    remarks = [part for part in (why, problem, unseen) if part]
    facts = _of_summary(summary) | _of_config(config) | _hours(summary, stories)
    return row_from(facts | {"verdict": str(verdict), "why": "; ".join(remarks), "folder": str(run)})


def row_of_summary(summary: dict[str, Any], folder: str = "") -> LedgerRow:
    """Of a summary without its folder. Raises ValueError."""
    _refuse_other_version(summary)
    verdict, why = judge(summary, "", "")
    facts = _of_summary(summary) | _of_config(None) | _hours(summary, [])
    return row_from(facts | {"verdict": str(verdict), "why": why, "folder": folder})


def _summary(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"no summary.json: it never began, or was killed at its start{_spent(file.parent)}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"summary.json cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ValueError("summary.json holds no JSON object")
    _refuse_other_version(found)
    return found


def _spent(run: Path) -> str:
    hours = _lived_hours(read_stories(run))
    return f" ({hours:.3g} device-hours, in no total)" if hours > 0 else ""


def _refuse_other_version(summary: dict[str, Any]) -> None:
    version = summary.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(f"summary.json is of schema version {version}, this program reads {SCHEMA_VERSION}")


def _config(run: Path) -> tuple[TrainConfig | None, str]:
    """(the run's configuration, why it is not known)."""
    try:
        return config_of(run), ""
    except (ConfigError, DataError) as error:
        problem = "; ".join(error.problems) if isinstance(error, ConfigError) else str(error)
        return None, f"config.yaml cannot be used, so learning rate and schedule are not known: {problem}"


def _is_of_one_text(summary: dict[str, Any], config: TrainConfig | None) -> bool:
    """The text changes on the way where data were rebased or weights are scheduled: losses may rise for that."""
    return _section(summary, "data").get("phases", 1) == 1 and not (config and config.data.weight_schedule)


# --- facts -----------------------------------------------------------------------------------------------------------


_SAME_NAMES = (
    *("schema_version", "run_name", "status", "schedule_finished", "step", "total_steps"),
    *("n_params", "n_params_matmul", "n_params_non_embedding", "flops_full", "flops_causal"),
    *("tokens_seen", "unique_tokens", "epochs", "device", "n_devices"),
    *("train_loss", "val_loss", "val_loss_stderr", "bits_per_byte", "seq_len", "global_batch_size"),
    *("seed", "config_sha256", "restarts", "tokens_per_second", "mfu"),
)
_NEEDED = (
    *("run_name", "status", "schedule_finished", "n_params", "n_params_matmul", "n_params_non_embedding"),
    *("flops_full", "flops_causal", "tokens_seen", "val_loss"),
)
_OF_MODEL = ("init", "d_model", "n_layers", "n_heads", "d_ff", "vocab_size")


def _of_summary(summary: dict[str, Any]) -> dict[str, Any]:
    if lacking := [name for name in _NEEDED if name not in summary]:
        raise ValueError(f"summary.json lacks {', '.join(lacking)}")
    model, price, git = (_section(summary, name) for name in ("model", "price", "git"))
    branch, labels, data = (_section(summary, name) for name in ("branch", "labels", "data"))
    tokens, per_row, rows = summary["tokens_seen"], summary.get("seq_len"), summary.get("global_batch_size")
    return {
        **{name: summary.get(name) for name in _SAME_NAMES},
        **{name: model.get(name) for name in _OF_MODEL},
        "head_dim": _head_dim(model),
        "labels": labels,
        "sweep": labels.get("sweep"),
        "group": branch.get("root") or summary["run_name"],
        "family": labels.get("family", "transformer"),
        "n_params_compute": float(summary["flops_causal"]) / (6.0 * tokens) if tokens else None,
        "flops_causal_own": _own_flops(summary, branch),
        "tokens_per_step": per_row * rows if type(per_row) is int and type(rows) is int else None,
        "price_usd_per_device_hour": price.get("usd_per_device_hour"),
        "price_rule": price.get("rule"),
        "price_date": price.get("date"),
        "manifest_sha256": data.get("manifest_sha256") or _of_mixture(summary),
        "tokenizer_sha256": data.get("tokenizer_sha256"),
        "validation_sha256": data.get("validation_sha256"),
        "git_commit": git.get("commit"),
        "git_dirty": git.get("dirty"),
        "branch_from": branch.get("run"),
        "branch_step": branch.get("step"),
        "folder_missing": False,
    }


def _section(summary: dict[str, Any], name: str) -> dict[str, Any]:
    found = summary.get(name)
    if found is not None and not isinstance(found, dict):
        raise ValueError(f"{name} in summary.json is no mapping")
    return found or {}


def _head_dim(model: dict[str, Any]) -> int | None:
    if model.get("head_dim") is not None or not model.get("n_heads"):
        return model.get("head_dim")
    return model["d_model"] // model["n_heads"]


def _own_flops(summary: dict[str, Any], branch: dict[str, Any]) -> float:
    """Its share of the tokens: a token costs the same all the way."""
    shared = branch.get("tokens", 0) / summary["tokens_seen"] if summary["tokens_seen"] else 0.0
    return float(summary["flops_causal"]) * (1.0 - shared)


def _of_mixture(summary: dict[str, Any]) -> str:
    return "+".join(sorted(str(source.get("digest")) for source in _section(summary, "sources").values()))


def _of_config(config: TrainConfig | None) -> dict[str, Any]:
    if config is None:
        return dict.fromkeys(("peak_lr", "warmup_tokens", "schedule", "optimizer", "cell_sha256"))
    return {
        "peak_lr": config.optimizer.peak_lr,
        "warmup_tokens": config.schedule.warmup_tokens,
        "schedule": config.schedule.kind,
        "optimizer": str(config.optimizer.kind),
        "cell_sha256": _cell_sha256(config),
    }


def _cell_sha256(config: TrainConfig) -> str:
    """Of what is trained, and on what: not of seed, learning rate, batch and warm-up, which are tuned, nor of the
    length, which batches of several sizes cannot make the same."""
    settings = flatten({name: tree for name, tree in to_tree(config).items() if name in _SECTIONS})
    kept = {key: value for key, value in settings.items() if key not in _TUNED and key.split(".")[-1] not in _ELSEWHERE}
    return digest(kept | {"start_from": config.run.start_from})


# --- what it cost ----------------------------------------------------------------------------------------------------


def _hours(summary: dict[str, Any], stories: list[Story]) -> dict[str, Any]:
    """All None where the summary does not say."""
    told, shared = _section(summary, "device_hours"), _section(_section(summary, "branch"), "device_hours")
    names = ("device_hours", "device_hours_own", "cost_usd", "cost_usd_own", *(f"device_hours_{k}" for k in KINDS))
    if not told:
        return dict.fromkeys(names)
    own = sum(told[kind] for kind in KINDS) - sum(shared.get(kind, 0.0) for kind in KINDS)
    untold = max(0.0, _lived_hours(stories) - own) if summary["status"] != "finished" else 0.0
    hours = {kind: told[kind] for kind in KINDS} | {"idle": told["idle"] + untold}
    total, usd = sum(hours.values()), _section(summary, "price").get("usd_per_device_hour")
    totals = {"device_hours": total, "device_hours_own": own + untold}
    costs = {"cost_usd": total, "cost_usd_own": own + untold}
    return {
        **{f"device_hours_{kind}": value for kind, value in hours.items()},
        **totals,
        **{name: None if usd is None else usd * value for name, value in costs.items()},
    }


def _lived_hours(stories: list[Story]) -> float:
    """Of all devices in all attempts of which the start is known, to the last sign of life of each."""
    return sum(story.seconds * (story.world_size or 1) for story in stories if story.started > 0) / 3600
