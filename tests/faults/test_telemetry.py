"""What a run tells beside its losses is as exact as they are: totals, samples, losses of sources and norms of layers of
a run that was killed are those of one that was not; and TensorBoard has all of it."""

import json
import re
from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.corpus import write_corpus
from tests.faults.jobs import Job
from tests.faults.test_curve import at_steps, kill
from tests.runs import finish, rows, start
from train.dashboard import layout

SHORT = (
    "total_tokens=5120",  # 20 steps of 256 tokens
    "schedule.warmup_tokens=512",
    "evaluation={every_steps: 8, max_sequences: 6}",
    "data={folder: null, sources: {old: {folder: data/tiny, weight: 3}, new: {folder: data/more, weight: 1}}}",
    "data.packing=best_fit",
    "data.mask_documents=true",
    "checkpoint.every_steps=5",
    "log.every_steps=4",
    "sample={every_steps: 5, n_tokens: 6}",
    "batch.micro_batch_size=2",
)
STEPS = 20
TOTALS = ("flops_full", "flops_causal")
DOCS = Path(__file__).resolve().parents[2] / "docs" / "tensorboard.md"


@pytest.fixture(scope="module")
def more(workplace: Path) -> Path:
    """A second dataset beside data/tiny, with the same tokenizer."""
    if not (workplace / "data" / "more").is_dir():
        write_corpus(workplace / "texts-more", n_documents=40, seed=1)
        words = ("source=text", "source.paths=[texts-more]", "out=data/more", "val_fraction=0.1")
        code, printed = finish(
            start(workplace, *words, "tokenizer.model=data/tiny/tokenizer.model", module="data_prep")
        )
        assert code == 0, printed
    return workplace / "data" / "more"


@pytest.fixture(scope="module")
def undisturbed(workplace: Path, more: Path) -> Path:
    job = Job(workplace, *SHORT, "run.name=undisturbed-telemetry")
    assert job.end() == [0, 0], job.printed()
    return workplace / "runs" / "undisturbed-telemetry"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def texts(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [*(run / "samples").iterdir(), run / "samples.txt"]}


def steps(run: Path) -> list[dict[str, Any]]:
    return [row for row in rows(run) if "seconds" in row or "skipped" in row]


def work(run: Path) -> dict[int, int]:
    """flops_causal of each step, by the totals of the rows."""
    totals = [(0, 0), *((row["step"], row["flops_causal"]) for row in steps(run))]
    return {step: total - before for (_, before), (step, total) in pairwise(totals)}


def test_after_kills_totals_samples_and_figures_are_those_of_a_run_that_was_not_killed(here: Path, undisturbed: Path):
    """Killed between checkpoints, and in the step after one."""
    for step in (8, 16):
        job = Job(here, *SHORT, "run.name=killed", fault=partial(at_steps, {step: kill}))
        assert -9 in job.end()
    job = Job(here, *SHORT, "run.name=killed")
    assert job.end() == [0, 0], job.printed()
    run = here / "runs" / "killed"
    ours, theirs = (read(folder / "summary.json") for folder in (run, undisturbed))
    assert [ours[key] for key in TOTALS] == [theirs[key] for key in TOTALS]
    keys = (*TOTALS, "source_loss", "source_val_loss", "source_bits_per_byte", "grad_norms", "weight_norms")
    assert [[row.get(key) for key in keys] for row in rows(run)] == [
        [row.get(key) for key in keys] for row in rows(undisturbed)
    ]
    assert texts(run) == texts(undisturbed)
    assert set(texts(run)) == {"step-00000005.txt", "step-00000010.txt", "step-00000015.txt", "samples.txt"}


def test_totals_and_mfu_count_documents_and_not_the_square_of_the_row(undisturbed: Path):
    summary, plan = read(undisturbed / "summary.json"), read(undisturbed / "plan.json")
    of_steps = work(undisturbed)
    assert sum(of_steps.values()) == summary["flops_causal"]
    assert 0 < summary["flops_causal"] < summary["flops_full"] < plan["flops_full"]
    assert summary["flops_causal"] < plan["flops_causal"]
    for row in steps(undisturbed):
        assert row["mfu"] == pytest.approx(of_steps[row["step"]] / row["seconds"] / 2e11, abs=1e-5)


def test_a_step_that_is_left_out_or_gone_back_behind_counts_nothing(here: Path, undisturbed: Path):
    """Stopped at 10, continued from the checkpoint before, two steps left out by hand."""
    first = Job(here, *SHORT, "run.name=skips", "run.stop_at_step=10")
    assert first.end() == [0, 0], first.printed()
    (here / "runs" / "skips" / "checkpoints" / "step-00000010" / "manifest.json").write_text("{")
    job = Job(here, *SHORT, "run.name=skips", "health.skip_steps=[7-8]")
    assert job.end() == [0, 0], job.printed()
    run, whole = here / "runs" / "skips", work(undisturbed)
    assert "resumed at step 5" in job.printed()
    assert work(run) == whole | {7: 0, 8: 0}
    assert read(run / "summary.json")["flops_causal"] == sum(whole.values()) - whole[7] - whole[8]


def test_a_run_of_one_source_tells_nothing_of_sources(here: Path):
    job = Job(here, "total_tokens=1024", "schedule.warmup_tokens=256", "run.name=one", ranks=1)
    assert job.end() == [0], job.printed()
    run = here / "runs" / "one"
    assert not any(key.startswith(("source_loss", "source_val", "source_bits")) for row in rows(run) for key in row)
    assert not (run / "samples").exists()


# --- TensorBoard


def accumulated(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "tensors": 0}).Reload()


def documented() -> list[str]:
    """Every tag of the table, and whether only a GPU has it."""
    found: list[str] = []
    for line in DOCS.read_text().splitlines():
        if line.startswith("| `") and "GPU only" not in line:
            first, *others = re.findall(r"`([^`]+)`", line.split("|")[1])
            found += [first, *(first.removesuffix("_min") + other for other in others)]
    return found


def test_every_tag_that_is_written_is_in_the_table_and_the_other_way_round(undisturbed: Path):
    layers, sources = ("embedding", "blocks.0", "blocks.1", "norm"), ("old", "new")
    expected: set[str] = set()
    for tag in documented():
        names: Iterable[str] = layers if "<layer>" in tag else sources
        expected |= {re.sub("<.*>", name, tag) for name in names}
    assert set(accumulated(undisturbed).Tags()["scalars"]) == expected


def test_every_curve_is_in_a_chart_and_every_chart_has_a_curve(undisturbed: Path):
    tags = accumulated(undisturbed).Tags()["scalars"]
    patterns = [pattern for charts in laid_out(undisturbed).values() for found in charts.values() for pattern in found]
    assert [tag for tag in tags if not any(re.search(pattern, tag) for pattern in patterns)] == [
        "loss_by_tokens/bits_per_byte",
        "loss_by_gigaflops/bits_per_byte",
    ]
    assert [p for p in patterns if not any(re.search(p, tag) for tag in tags)] == []


def test_charts_without_curves_are_left_out():
    least, most = (
        {title for charts in layout(n_sources=n, n_ranks=n, has_device_memory=n > 1).values() for title in charts}
        for n in (1, 2)
    )
    assert least < most
    assert not any(re.search("source|slowest|of the device", title) for title in least)
    assert "of the device, GiB" in most


def laid_out(run: Path) -> dict[str, dict[str, list[str]]]:
    """The layout as TensorBoard reads it."""
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout  # type: ignore[attr-defined]

    tensor = accumulated(run).Tensors("custom_scalars__config__")[0].tensor_proto
    found = Layout.FromString(tensor.string_val[0])
    return {of.title: {chart.title: list(chart.multiline.tag) for chart in of.chart} for of in found.category}


def test_tensorboard_has_layout_settings_plan_configuration_and_samples(undisturbed: Path):
    events = accumulated(undisturbed)
    written = {tag: events.Tensors(tag) for tag in events.Tags()["tensors"] if tag.endswith("/text_summary")}
    assert [event.step for event in written["generated_text/text_summary"]] == [5, 10, 15, STEPS]
    for event, path in zip(written["generated_text/text_summary"], ["samples/step-00000005.txt"], strict=False):
        first = (undisturbed / path).read_text().splitlines()[0]
        assert f"    {first}" in event.tensor_proto.string_val[0].decode()
    assert "weight: 3" in written["resolved_config/text_summary"][0].tensor_proto.string_val[0].decode()
    assert "parameters" in written["plan/text_summary"][0].tensor_proto.string_val[0].decode()
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # type: ignore[attr-defined]

    assert list(laid_out(undisturbed)) == ["Loss", "Optimisation", "Throughput", "Memory", "Ranks"]
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["peak_lr"].number_value == read_peak_lr(undisturbed)
    assert settings["layout"].string_value == "dp 2, ZeRO 1"


def read_peak_lr(run: Path) -> float:
    from conf.check import read_config
    from train.config import TrainConfig

    return read_config(TrainConfig, run / "config.yaml").optimizer.peak_lr
