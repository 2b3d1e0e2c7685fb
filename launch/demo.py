"""`make demo`: the main job end to end on this computer, each step a command that you could type yourself.

Text (the standard library's own sources) → tokenizer and shards → training, stopped once on the way and taken up again
→ loss curve, sample, and the lines that say whether the result is any good. Run again, it re-uses what is done.
"""

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

DATA, RUN = Path("data/stdlib"), Path("runs/demo")
STOP_AT_STEP = 500


def main() -> None:
    started = time.monotonic()
    train = ["train", "experiment=debug", f"run.name={RUN.name}", *sys.argv[1:]]
    _step("1  Text to token shards", "data_prep", "source=python_stdlib", f"out={DATA}")
    if not (RUN / "summary.json").exists():
        _step(
            f"2  Train, and stop after {STOP_AT_STEP} steps as if the job's time were up",
            *train,
            f"run.stop_at_step={STOP_AT_STEP}",
        )
    _step("3  The same command again: the run goes on where it stopped", *train)
    summary = json.loads((RUN / "summary.json").read_text())
    print(f"\n== What it writes ({RUN}/samples.txt)\n\n{(RUN / 'samples.txt').read_text()}")
    print(_verdict(summary))
    print(_next_steps(time.monotonic() - started))


def _step(title: str, module: str, *words: str) -> None:
    print(f"\n== {title}\n$ python -m {shlex.join([module, *words])}", flush=True)
    step = subprocess.Popen([sys.executable, "-m", module, *words])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the step's: it saves, and tells by its code
    code = step.wait()
    signal.signal(signal.SIGINT, before)
    if code:
        sys.exit(code)


def _verdict(summary: dict[str, Any]) -> str:
    """The model beside what anyone can have without one, in bits per byte of the same validation text."""
    baselines = summary["baselines"]
    rows = [
        (baselines["uniform_bits_per_byte"], "every token equally likely (loss ln V)"),
        (baselines["gzip_bits_per_byte"], "gzip -9"),
        (baselines["xz_bits_per_byte"], "xz"),
        (summary["bits_per_byte"], f"this model: {summary['n_params'] / 1e6:.1f} M parameters, "
                                   f"{summary['tokens_seen'] / 1e6:.1f} M tokens, loss {summary['val_loss']:.3f}"),
    ]  # fmt: skip
    lines = [f"  {value:6.3f}  {label}" for value, label in sorted(rows, reverse=True)]
    return "== Is it any good? Bits per byte of the validation text; less is better\n\n" + "\n".join(lines)


def _next_steps(seconds: float) -> str:
    return f"""
== Done in {seconds:.0f} s. Where it lies

  {RUN}/loss.svg        the loss curve: open it in a browser
  {RUN}/metrics.jsonl   every step;  summary.json: the outcome;  events.jsonl: starts and stops
  {RUN}/checkpoints/    what a run is continued from
  {DATA}/         tokenizer, shards, manifest

== What to type next

  .venv/bin/tensorboard --logdir runs
  .venv/bin/crisol-train experiment=debug run.name=longer total_tokens=3_000_000
  .venv/bin/python -m train.sample run={RUN} prompt="import "
  .venv/bin/crisol-launch plan experiment=llama_100m cluster=h100
  .venv/bin/crisol-data source=text source.paths=[my/texts] out=data/mine"""


if __name__ == "__main__":
    main()
