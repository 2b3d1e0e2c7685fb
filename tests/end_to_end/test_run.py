"""One run from start to end: what it leaves, how it is stopped, killed and continued, and what it refuses."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.corpus import write_corpus
from tests.distributed.ranks import Ranks, run_ranks
from tests.runs import STEPS, TINY, cpu_seconds_of_commands, curve, finish, forked, outcome, rows, start, tiny, train


@pytest.fixture(scope="module")
def undisturbed(workplace: Path) -> Path:
    """The run that all others are compared with."""
    code, message = outcome(workplace, "run.name=undisturbed")
    assert code == 0, message
    return workplace / "runs" / "undisturbed"


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def losses(run: Path) -> list[float]:
    return [row[key] for row in rows(run) for key in ("loss", "val_loss", "bits_per_byte") if key in row]


def wait_for_step(run: Path, step: int, is_running: Callable[[], bool]) -> None:
    while is_running():
        if (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) >= step:
            return
        time.sleep(0.005)
    pytest.fail(f"the run ended before step {step}")


# --- what a run leaves


def test_the_loss_falls_and_every_step_is_there_once(undisturbed: Path):
    steps = [row for row in rows(undisturbed) if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    assert steps[-1]["loss"] < steps[0]["loss"] - 1
    assert [row["step"] for row in rows(undisturbed) if "val_loss" in row] == [20, 40, 50]


def test_the_summary_tells_the_whole_outcome(undisturbed: Path):
    summary = read(undisturbed / "summary.json")
    assert (summary["schema_version"], summary["status"], summary["schedule_finished"]) == (1, "finished", True)
    assert summary["tokens_seen"] == 12_800
    last = [row for row in rows(undisturbed) if "val_loss" in row][-1]
    assert (summary["val_loss"], summary["bits_per_byte"]) == (last["val_loss"], last["bits_per_byte"])
    assert set(summary["device_hours"]) == {"train", "eval", "checkpoint", "idle"}
    assert summary["restarts"] == 0
    assert summary["versions"]["deepspeed"] == "0.19.8"


def test_bits_per_byte_is_nats_over_the_bytes_of_the_targets(undisturbed: Path, workplace: Path):
    import numpy as np

    from data_prep.manifest import Manifest
    from train.data import TokenStream

    data = workplace / "data" / "tiny"
    row = [row for row in rows(undisturbed) if "val_loss" in row][-1]
    n_targets = 5 * 32
    targets = TokenStream(data, Manifest.load(data), "val").read(1, n_targets)
    n_bytes = int(np.load(data / "token_bytes.npy")[targets].sum())
    assert row["val_tokens"] == n_targets
    assert row["bits_per_byte"] == pytest.approx(row["val_loss"] * n_targets / (np.log(2) * n_bytes), rel=1e-12)


def test_tensorboard_holds_each_point_once_against_step_tokens_and_flops(undisturbed: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    per_step = 256 * read(undisturbed / "plan.json")["flops_causal_per_token"] / 1e9
    events = EventAccumulator(str(undisturbed / "tensorboard")).Reload()
    for folder, unit in [("loss", 1), ("loss_by_tokens", 256), ("loss_by_gigaflops", per_step)]:
        assert [event.step for event in events.Scalars(f"{folder}/train")] == [int(s * unit) for s in range(10, 51, 10)]
        assert [event.step for event in events.Scalars(f"{folder}/val")] == [int(s * unit) for s in (20, 40, 50)]


def test_the_curve_is_a_picture_with_its_baselines(undisturbed: Path):
    text = " ".join(element.text or "" for element in ElementTree.parse(undisturbed / "loss.svg").iter())
    assert all(words in text for words in ("uniform guess", "gzip -9", "xz", "validation", "tokens seen"))


def test_samples_continue_the_prompt_and_show_the_likeliest_tokens(undisturbed: Path):
    text = (undisturbed / "samples.txt").read_text()
    assert text.startswith("The ")
    assert "next token after 'The ':" in text
    assert text.count("%") == 8


def test_sampling_and_evaluation_work_on_a_finished_run(undisturbed: Path):
    prompt = "    The (old) [x: {1}]=' "  # taken as typed, blanks at both ends included
    sampled = start(undisturbed, "run=.", f"prompt={prompt}", "temperature=0", "n_tokens=5", module="train.sample")
    evaluated = start(undisturbed.parents[1], "run=runs/undisturbed", "max_sequences=5", module="train.evaluate")
    code, printed = finish(sampled)
    assert code == 0, printed
    assert f"\n{prompt}" in printed
    assert f"next token after {prompt!r}:" in printed
    code, printed = finish(evaluated)
    assert code == 0, printed
    assert f"val loss {read(undisturbed / 'summary.json')['val_loss']:.4f}" in printed


# --- stopped, killed, continued


def test_a_killed_run_goes_on_to_the_same_losses_to_the_last_bit(here: Path, undisturbed: Path):
    """kill -9 in mid-step, twice, once between checkpoints and once before the first; then the same command again."""
    run = here / "runs" / "killed"
    for step in (5, 27):
        process = train(here, "run.name=killed")
        wait_for_step(run, step, lambda started=process: started.poll() is None)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    code, printed = finish(train(here, "run.name=killed"))
    assert code == 0, printed
    assert "resumed at step 20" in printed or "resumed at step 30" in printed
    assert curve(run) == curve(undisturbed)
    assert read(run / "summary.json")["restarts"] == 2
    assert read(run / "summary.json")["tokens_seen"] == 12_800


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_saves_and_the_same_command_goes_on(here: Path, undisturbed: Path, name: str):
    running = Ranks(forked, 1, str(here), tiny("run.name=told"))
    wait_for_step(here / "runs" / "told", 13, running.is_running)
    running.send(signal.Signals[name])
    ((code, printed),) = running.results()
    assert code == 143, printed
    assert f"stopped on {name} and saved" in printed
    summary = read(here / "runs" / "told" / "summary.json")
    assert summary["status"] == "preempted"
    assert not summary["schedule_finished"]
    assert outcome(here, "run.name=told")[0] == 0
    assert curve(here / "runs" / "told") == curve(undisturbed)


def test_stop_at_step_saves_there_and_the_rest_follows(here: Path, undisturbed: Path):
    code, printed = outcome(here, "run.name=parts", "run.stop_at_step=33")
    assert (code, "saved at step 33" in printed) == (0, True)
    assert outcome(here, "run.name=parts")[0] == 0
    assert curve(here / "runs" / "parts") == curve(undisturbed)


def test_a_finished_run_says_so_and_does_nothing(undisturbed: Path, workplace: Path):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    code, printed = outcome(workplace, "run.name=undisturbed")
    assert (code, "finished at step 50" in printed) == (0, True)
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")} == before


def test_two_ranks_give_the_losses_of_one(here: Path, undisturbed: Path):
    """The same rows; only the order of sums differs, which Adam amplifies a little over fifty steps: 1e-4."""
    code, message = outcome(here, "run.name=two", "parallel=zero2", ranks=2)
    assert code == 0, message
    assert losses(here / "runs" / "two") == pytest.approx(losses(undisturbed), rel=1e-4)


def test_torchrun_trains_on_two_ranks(here: Path, undisturbed: Path):
    words = ("--standalone", "--nproc-per-node", "2", "-m", "train")
    code, printed = finish(start(here, *words, *TINY, "run.name=run", module="torch.distributed.run"))
    assert code == 0, printed
    assert read(here / "runs" / "run" / "summary.json")["n_devices"] == 2
    assert losses(here / "runs" / "run") == pytest.approx(losses(undisturbed), rel=1e-4)


def test_a_run_goes_on_with_another_number_of_ranks_and_another_zero_stage(here: Path, undisturbed: Path):
    assert outcome(here, "run.name=moved", "run.stop_at_step=20", ranks=2)[0] == 0
    assert outcome(here, "run.name=moved", "parallel=zero3", "batch.micro_batch_size=2")[0] == 0
    assert losses(here / "runs" / "moved") == pytest.approx(losses(undisturbed), rel=1e-4)


def test_a_run_goes_on_under_other_layouts_while_its_checkpoints_are_being_written(here: Path, undisturbed: Path):
    layouts = [
        (2, ["parallel.tp_size=2", "parallel.zero_stage=3"]),
        (2, ["parallel.sp_size=2", "batch.micro_batch_size=8"]),
        (1, ["parallel.activation_checkpointing=full", "loss.chunk_tokens=20"]),
    ]
    for stop, (ranks, words) in zip((15, 30, 50), layouts, strict=True):
        code, message = outcome(here, "run.name=moved", f"run.stop_at_step={stop}", *words, ranks=ranks)
        assert code == 0, message
    assert losses(here / "runs" / "moved") == pytest.approx(losses(undisturbed), rel=1e-4)
    hashes = [row.get("batch_hash") for row in rows(here / "runs" / "moved") if "loss" in row]
    assert hashes == [row.get("batch_hash") for row in rows(undisturbed) if "loss" in row]


# --- what a run refuses, with nothing lost


def test_a_layout_that_cannot_be_cut_is_refused_with_sizes_that_can(here: Path):
    words = ["parallel.tp_size=4", "model.d_ff=66", "parallel.zero_stage=0"]
    code, message = outcome(here, "run.name=a", *words[:2], ranks=4)
    assert code == 2
    assert "model.n_kv_heads=2 (model.n_heads=4) does not divide by parallel.tp_size=4" in message
    assert "nearest sizes 64 and 68" in message
    code, message = outcome(here, "run.name=a", *words[2:])
    assert code == 2
    assert "parallel.zero_stage=0 is refused" in message
    assert not (here / "runs").exists()


def test_a_run_name_that_holds_another_configuration_is_refused_with_the_difference(undisturbed: Path, workplace: Path):
    code, message = outcome(workplace, "run.name=undisturbed", "optimizer.peak_lr=1e-4")
    assert code == 2
    assert "already holds another run" in message
    assert "optimizer.peak_lr 0.003 → 0.0001" in message


def test_keys_without_effect_on_the_numbers_may_change(here: Path):
    assert outcome(here, "run.name=a", "run.stop_at_step=10")[0] == 0
    assert outcome(here, "run.name=a", "run.stop_at_step=12", "log.every_steps=3", "checkpoint.keep_last=5")[0] == 0


def test_another_dataset_under_a_run_is_refused(here: Path, workplace: Path):
    assert outcome(here, "run.name=a", "run.stop_at_step=10")[0] == 0
    write_corpus(here / "more", n_documents=70)
    words = ("source=text", "source.paths=[more]", "out=other", "tokenizer.vocab_size=400", "val_fraction=0.1")
    assert finish(start(here, *words, module="data_prep"))[0] == 0
    code, message = outcome(here, "run.name=a", "data.folder=other")
    assert code == 3
    assert "not the dataset that this run has trained on" in message
    assert "folder: data/tiny" in (here / "runs" / "a" / "config.yaml").read_text()  # a refusal changes nothing
    assert outcome(here, "run.name=a", "run.stop_at_step=12")[0] == 0


def test_configuration_mistakes_are_answered_together_before_anything_starts(here: Path):
    started = cpu_seconds_of_commands()
    code, printed = finish(
        train(here, "run.name=a", "batch.global_batch_size=9", "model.vocab_size=100", "cluster.n_devices=3")
    )
    assert cpu_seconds_of_commands() - started < 5
    assert code == 2, printed
    assert "nearest global batch sizes: 8 and 12" in printed
    assert "set model.vocab_size=400" in printed
    assert "cluster.n_devices=3, but 1 processes were started" in printed
    assert "Traceback" not in printed
    assert not (here / "runs").exists()


def test_a_missing_dataset_does_not_hide_the_other_mistakes(here: Path):
    code, message = outcome(here, "run.name=a", "data.folder=data/nothing", "batch.global_batch_size=9")
    assert code == 2
    assert "nearest global batch sizes" in message
    assert "data/nothing holds no finished dataset" in message


def test_a_missing_dataset_is_named_with_the_command_that_makes_one(here: Path):
    code, message = outcome(here, "run.name=a", "data.folder=data/nothing")
    assert code == 3
    assert "python -m data_prep" in message


@pytest.mark.parametrize("cut", [1, 2, 1000])
def test_a_truncated_shard_is_refused_by_name(here: Path, workplace: Path, cut: int):
    shutil.copytree(workplace / "data" / "tiny", here / "own")
    shard = next((here / "own").glob("train-*.bin"))
    shard.write_bytes(shard.read_bytes()[:-cut])
    code, message = outcome(here, "run.name=a", "data.folder=own")
    assert code == 3
    assert shard.name in message
    assert not (here / "runs").exists()


def test_a_tokenizer_that_did_not_make_the_shards_is_refused(here: Path, workplace: Path):
    shutil.copytree(workplace / "data" / "tiny", here / "own")
    (here / "own" / "tokenizer.model").write_bytes((here / "own" / "tokenizer.model").read_bytes() + b"\n")
    code, message = outcome(here, "run.name=a", "data.folder=own")
    assert code == 3
    assert "tokenizer" in message


def test_a_runs_folder_that_may_not_be_written_is_named(here: Path):
    code, message = outcome(here, "run.name=a", "run.folder=/sys/runs")  # not even root may make folders there
    assert code == 3
    assert "no permission to write /sys/runs/a" in message


def test_a_runs_folder_below_a_file_is_named(here: Path):
    (here / "file").write_text("")
    code, message = outcome(here, "run.name=a", "run.folder=file")
    assert code == 2
    assert "file/a/config.yaml cannot be read: Not a directory" in message


def test_a_row_longer_than_the_corpus_is_refused(here: Path):
    code, message = outcome(here, "run.name=a", "data.seq_len=1000000")
    assert code == 3
    assert "one sequence needs data.seq_len + 1 = 1000001" in message


def test_a_loss_that_is_no_number_ends_the_run_with_code_5_and_keeps_the_last_checkpoint(here: Path):
    code, message = outcome(here, "run.name=a", "optimizer.peak_lr=1e30", "optimizer.max_grad_norm=0")
    assert code == 5, message
    assert "Nothing of it was saved" in message
    assert read(here / "runs" / "a" / "summary.json")["status"] == "diverged"
    assert list((here / "runs" / "a").glob("checkpoints/*")) == []


# --- checkpoints that were hurt


@pytest.fixture
def at_step_20(here: Path) -> Path:
    assert outcome(here, "run.name=hurt", "run.stop_at_step=20")[0] == 0
    return here / "runs" / "hurt" / "checkpoints"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "bit flipped": lambda folder: flip(folder / "exp_avg-00000.safetensors"),
    "truncated": lambda folder: (folder / "master-00000.safetensors").write_bytes(b""),
    "file missing": lambda folder: (folder / "exp_avg_sq-00000.safetensors").unlink(),
    "state altered": lambda folder: flip(folder / "state.json"),
    "manifest missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest empty": lambda folder: (folder / "manifest.json").write_text("{}"),
    "manifest not a mapping": lambda folder: (folder / "manifest.json").write_text("[1]"),
    "manifest of nothing": lambda folder: (folder / "manifest.json").write_text(
        '{"schema_version": 2, "step": 20, "files": {}}'
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(at_step_20: Path, undisturbed: Path, damage: str):
    DAMAGE[damage](at_step_20 / "step-00000020")
    code, printed = outcome(at_step_20.parents[2], "run.name=hurt")
    assert code == 0, printed
    assert "an older checkpoint is used" in printed
    assert "resumed at step 10" in printed
    assert curve(at_step_20.parent) == curve(undisturbed)


def test_no_valid_checkpoint_stops_the_run_instead_of_starting_anew(at_step_20: Path):
    for folder in at_step_20.iterdir():
        flip(folder / "master-00000.safetensors")
    before = (at_step_20.parent / "metrics.jsonl").read_text()
    code, message = outcome(at_step_20.parents[2], "run.name=hurt")
    assert code == 4
    assert "not started from step 0 unasked" in message
    assert (at_step_20.parent / "metrics.jsonl").read_text() == before


def test_checkpoints_that_are_gone_stop_the_run_instead_of_starting_anew(at_step_20: Path):
    shutil.rmtree(at_step_20)
    code, message = outcome(at_step_20.parents[2], "run.name=hurt")
    assert code == 4
    assert "tell of checkpoints" in message


def test_a_checkpoint_knows_its_configuration_even_if_the_folder_forgot(at_step_20: Path):
    (at_step_20.parent / "config.yaml").unlink()
    code, message = outcome(at_step_20.parents[2], "run.name=hurt", "optimizer.peak_lr=1e-3")
    assert code == 4
    assert "was made under another configuration" in message
    assert outcome(at_step_20.parents[2], "run.name=hurt")[0] == 0


def test_damaged_newer_checkpoints_never_push_out_good_ones(at_step_20: Path):
    """Resumed before a damaged checkpoint and stopped before its step: what is kept are the good ones, and the damaged
    one under a name that says so."""
    flip(at_step_20 / "step-00000020" / "master-00000.safetensors")
    assert outcome(at_step_20.parents[2], "run.name=hurt", "run.stop_at_step=13")[0] == 0
    names = sorted(path.name for path in at_step_20.iterdir())
    assert names == ["damaged-0001-step-00000020", "step-00000010", "step-00000013"]


@pytest.mark.parametrize("damage", ["line 5 torn", "not UTF-8", "a bare number", "events not UTF-8"])
def test_damaged_logs_lose_no_other_line_and_stop_nothing(at_step_20: Path, undisturbed: Path, damage: str):
    run = at_step_20.parent
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    bad = {"line 5 torn": b'{"step": 5, "tok\n', "not UTF-8": b"\xff\xfe\n", "a bare number": b"5\n"}.get(
        damage, lines[4]
    )
    (run / "metrics.jsonl").write_bytes(b"".join([*lines[:4], bad, *lines[5:]]))
    if damage == "events not UTF-8":
        (run / "events.jsonl").write_bytes((run / "events.jsonl").read_bytes() + b"\xff\n")
    code, printed = outcome(at_step_20.parents[2], "run.name=hurt")
    assert code == 0, printed
    assert curve(run) == curve(undisturbed)  # of metrics.jsonl there is a copy; for its loss see faults/test_curve.py


@pytest.mark.parametrize("text", ["", "{", "- 1", "run: {name: hurt}"])
def test_a_damaged_config_yaml_is_answered_in_words(at_step_20: Path, text: str):
    (at_step_20.parent / "config.yaml").write_text(text)
    code, message = outcome(at_step_20.parents[2], "run.name=hurt")
    assert code == 2
    assert "config.yaml" in message


def test_only_the_last_checkpoints_are_kept(undisturbed: Path):
    assert sorted(path.name for path in (undisturbed / "checkpoints").iterdir()) == ["step-00000040", "step-00000050"]


def test_a_full_disk_keeps_the_run_going_and_the_older_checkpoint(here: Path):
    assert outcome(here, "run.name=full", "run.stop_at_step=10")[0] == 0
    # 60 kB hold the logs but no checkpoint of the tiny model
    ((code, printed),) = run_ranks(forked, 1, str(here), tiny("run.name=full"), 60_000)
    assert code == 4, printed  # at the last step there is no later save to hope for
    assert "the newest checkpoint stays that of step 10" in printed
    assert [path.name for path in (here / "runs" / "full" / "checkpoints").iterdir()] == ["step-00000010"]
    code, printed = outcome(here, "run.name=full")
    assert code == 0, printed
    assert "resumed at step 10" in printed


def test_a_signal_on_a_full_disk_does_not_claim_to_have_saved(here: Path):
    running = Ranks(forked, 1, str(here), tiny("run.name=full"), 60_000)
    wait_for_step(here / "runs" / "full", 4, running.is_running)
    running.send(signal.SIGTERM)
    ((code, printed),) = running.results()
    assert code == 4, printed
    assert "and saved at step" not in printed
    assert read(here / "runs" / "full" / "summary.json")["status"] == "failed"


def test_no_room_for_any_log_stops_nothing(here: Path, undisturbed: Path):
    """Not even TensorBoard's first bytes can be written; checkpoints have a disk of their own."""
    run = here / "runs" / "mute"
    for name in ("tensorboard", "metrics.jsonl", "events.jsonl"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / "tensorboard").write_text("a file where a folder should be")
    (run / "metrics.jsonl").mkdir()
    (run / "events.jsonl").mkdir()
    code, printed = outcome(here, "run.name=mute")
    assert code == 0, printed
    assert read(run / "summary.json")["val_loss"] == read(undisturbed / "summary.json")["val_loss"]
