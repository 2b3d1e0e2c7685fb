"""A long run that is hurt at random from a seed until it ends, and must end like the one that never was.

    python -m tests.faults.soak seed=1 minutes=60 ranks=2              # campaigns with this seed, the next one …
    python -m tests.faults.soak seed=7 minutes=0 steps=2000 faults=60  # one campaign
    python -m tests.faults.soak seed=7 minutes=0 precision=bf16
    python -m tests.faults.soak seed=7 minutes=0 layouts=true          # another number of ranks at every start

A campaign is one undisturbed run and one that gets `faults` of them: kill -9 of a rank or of all, SIGTERM and SIGUSR1,
frozen and paused ranks, a bit flipped in the newest checkpoint, a log that is cut, a full disk; at instants spread over
start-up, steps and saves. The same command is started again at once, until it ends by itself. In the end the ledger
must balance, and curve and weights must be those of the undisturbed run: bit for bit, or to rounding with `layouts`.
Exit code 0 only then.
"""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.check import build
from conf.errors import ConfigError
from tests.corpus import write_corpus
from tests.faults.jobs import Job
from tests.runs import curve, finish, start

if TYPE_CHECKING:
    from train.ledger import Ledger  # ranks are started with this module: what they need not, they do not import

SIGNALS = {"SIGTERM to one": 1, "SIGTERM to all": 1, "SIGUSR1 to one": 1, "SIGUSR1 to all": 1, "SIGTERM twice": 1}
KINDS = {
    "kill one": 8,
    "kill all": 7,
    **SIGNALS,
    "pause": 1,
    "flip": 2,
    "cut log": 2,
    "full disk": 2,
    "freeze": 1,
}
"""kind of fault → how often, against the others"""
KILLS = ("kill one", "kill all", "flip", "freeze")
"""those that end in a kill -9, ours or the watchdog's"""
DEADLY = (*KILLS, *SIGNALS)
"""those that end the attempt"""

STUCK_SECONDS = 20.0
LAUNCHER_SECONDS = 3.0
"""after which the launcher, whose part is played here, ends the ranks that a dead one has left in the start-up"""


@dataclass
class Campaign:
    seed: int = 0
    minutes: float = 60.0
    """further campaigns are begun until so much time is used up"""
    ranks: int = 2
    steps: int = 2000
    faults: int = 80
    precision: str = "fp32"
    layouts: bool = False
    """a number of ranks drawn at every start; losses are then compared to rounding"""
    checkpoint_every: int = 10
    freeze: bool = True
    """SIGSTOP for good, too: each costs STUCK_SECONDS until the watchdog ends the rank"""
    folder: str | None = None
    """where the data and runs lie; null means a new temporary folder, removed in the end"""

    def problems(self) -> list[str]:
        return (
            [f"steps={self.steps} and faults={self.faults} must be at least 1"]
            if min(self.steps, self.faults) < 1
            else []
        )

    def words(self, ranks: int) -> list[str]:
        batch = 12 if self.layouts else 4 * self.ranks
        return [
            f"total_tokens={self.steps * batch * 32}",
            f"schedule={{warmup_tokens: {self.steps * batch * 32 // 10}}}",
            f"batch={{global_batch_size: {batch}, micro_batch_size: {batch // ranks}}}",
            f"checkpoint.every_steps={self.checkpoint_every}",
            "evaluation.every_steps=50",
            "log.every_steps=50",
            f"parallel.precision={self.precision}",
            f"health.stuck_seconds={STUCK_SECONDS}",
            "run.max_idle_starts=1000",  # many faults come before a start has made a new step
        ]


@dataclass
class Toll:
    """What a campaign has cost."""

    faults: Counter[str] = field(default_factory=Counter[str])
    to_next_step: list[float] = field(default_factory=list[float])
    """seconds from a kill to the next new step"""
    to_saved: list[float] = field(default_factory=list[float])
    """seconds from a signal to the end of all ranks with code 143"""
    to_noticed: list[float] = field(default_factory=list[float])
    """seconds from the death of one rank to the end of the others"""
    starts: int = 0
    surprises: list[str] = field(default_factory=list[str])
    """ends that the fault does not explain"""


def main(words: list[str]) -> int:
    import yaml

    try:
        asked = build(Campaign, {key: yaml.safe_load(value) for key, _, value in (w.partition("=") for w in words)})
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    began, bad = time.monotonic(), 0
    for seed in range(asked.seed, asked.seed + 1_000_000):
        bad += not campaign(Campaign(**vars(asked) | {"seed": seed}), print)
        if time.monotonic() - began >= 60 * asked.minutes:
            break
    return 1 if bad else 0


def campaign(asked: Campaign, say: Callable[[str], None]) -> bool:
    """True if nothing was lost."""
    folder = Path(asked.folder or tempfile.mkdtemp(prefix="soak-"))
    try:
        prepare(folder)
        say(f"seed {asked.seed}: {asked.steps} steps, {asked.ranks} ranks, {asked.precision}, in {folder}")
        name = f"undisturbed-{asked.precision}-{asked.ranks}-{asked.steps}-{int(asked.layouts)}"
        job = Job(folder, *asked.words(asked.ranks), f"run.name={name}", ranks=asked.ranks)
        if any(codes := job.end(3600)):
            say(f"the undisturbed run ended with {codes}:\n{job.printed()}")
            return False
        hurt = Hurt(folder, asked, say)
        hurt.go()
        with contextlib.chdir(folder):  # where the datasets of the configuration are
            found = judged(Path("runs", hurt.name), Path("runs", name), asked)
        say(table(hurt, found))
        return not found.problems and not hurt.toll.surprises
    finally:
        if asked.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


def prepare(folder: Path) -> None:
    """A small dataset, read over and over: a campaign goes over many epoch borders."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "data" / "tiny").exists():
        return
    write_corpus(folder / "texts")
    words = ("source=text", "source.paths=[texts]", "out=data/tiny", "tokenizer.vocab_size=400", "val_fraction=0.1")
    code, printed = finish(start(folder, *words, module="data_prep"))
    assert code == 0, printed


def drawn(asked: Campaign) -> list[str]:
    """The kinds of all faults of a campaign, in order; when they come depends on the machine too."""
    kinds = {kind: weight for kind, weight in KINDS.items() if kind != "freeze" or asked.freeze}
    return random.Random(f"kinds of {asked.seed}").choices(list(kinds), list(kinds.values()), k=asked.faults)


class Hurt:
    """The run that is hurt."""

    def __init__(self, folder: Path, asked: Campaign, say: Callable[[str], None]):
        self.folder, self.asked, self.say = folder, asked, say
        self.name = f"hurt-{asked.seed}"
        self.run = folder / "runs" / self.name
        self.kinds, self.rng = drawn(asked), random.Random(asked.seed)
        self.toll = Toll()
        self._killed_at: float | None = None

    @property
    def faults_left(self) -> int:
        return self.asked.faults - sum(self.toll.faults.values())

    def go(self) -> None:
        """Until the run ends by itself."""
        while self.toll.starts < 4 * self.asked.faults + 20:
            if not any(self._attempt()):
                return
        self.toll.surprises.append(f"not finished after {self.toll.starts} starts")

    def _attempt(self) -> list[int]:
        """One start, hurt until it ends; the exit codes."""
        ranks = self.rng.choice([1, 2, 3, 4]) if self.asked.layouts else self.asked.ranks
        watch = Watch(self.run, Job(self.folder, *self.asked.words(ranks), f"run.name={self.name}", ranks=ranks))
        self.toll.starts += 1
        inflicted: list[str] = []
        while self.faults_left > 0 and not (inflicted and inflicted[-1] in DEADLY):
            kind = self.kinds[-self.faults_left]
            if not self._wait_for_instant(watch) or not self._inflict(watch, kind):
                break
            self.toll.faults[kind] += 1
            inflicted.append(kind)
        watch.until(lambda: False)
        codes = watch.job.end()
        self._note_end(watch, inflicted, codes)
        if inflicted and inflicted[-1] == "flip":
            self._flip()
        return codes

    def _wait_for_instant(self, watch: "Watch") -> bool:
        """Start-up, a step or a save, and a random moment inside it; False if the run ended before."""
        watch.instant = self.rng.choices(["start-up", "step", "save"], [2, 6, 4])[0]
        if watch.instant == "start-up" and watch.new_step is None:
            until = time.monotonic() + self.rng.uniform(0, 4)
            return watch.until(lambda: time.monotonic() >= until or watch.new_step is not None)
        if not watch.until(lambda: watch.new_step is not None):
            return False
        ahead = (self.asked.steps - last_step(self.run)) / max(1, self.faults_left)
        target = min(last_step(self.run) + round(self.rng.uniform(0, 3) * ahead), self.asked.steps - 5)
        if not watch.until(lambda: last_step(self.run) >= target):
            return False
        if watch.instant == "save" and not watch.until(lambda: any(self.run.glob("checkpoints/.step-*.tmp"))):
            return False
        time.sleep(self.rng.uniform(0, 0.05))
        return watch.job.is_running

    def _inflict(self, watch: "Watch", kind: str) -> bool:
        """False if the run ended before."""
        job = watch.job
        one, everyone = self.rng.randrange(len(job.processes)), range(len(job.processes))
        watch.inflicted = time.monotonic()
        match kind:
            case "kill one":
                job.kill(one)
            case "kill all" | "flip":
                for rank in everyone:
                    job.kill(rank)
            case "pause":
                job.send(signal.SIGSTOP, one)
                time.sleep(self.rng.uniform(0.2, 1.5))
                job.send(signal.SIGCONT, one)
            case "freeze":
                job.send(signal.SIGSTOP, one)
            case "cut log":
                self._cut_log()
            case "full disk":
                limit_files(job, 0)
                time.sleep(self.rng.uniform(0.5, 2))
                limit_files(job, None)
            case _:
                number = signal.SIGUSR1 if "USR1" in kind else signal.SIGTERM
                for rank in [one] if kind.endswith("one") else everyone:
                    job.send(number, rank)
                if kind.endswith("twice"):
                    time.sleep(self.rng.uniform(0, 0.1))
                    job.send(number, one)
        return True

    def _note_end(self, watch: "Watch", inflicted: list[str], codes: list[int]) -> None:
        """Times, and whether the exit codes are those that the faults explain."""
        last = inflicted[-1] if inflicted else "nothing"
        if self._killed_at is not None and watch.new_step is not None:
            self.toll.to_next_step.append(watch.new_step - self._killed_at)
            self._killed_at = None
        expected = {0}
        if last in KILLS:
            self._killed_at = watch.inflicted
            expected |= {1, -signal.SIGKILL}
            if last == "kill one" and codes.count(-signal.SIGKILL) == 1 and 1 in codes:
                self.toll.to_noticed.append(watch.ended - watch.inflicted)
        elif last in SIGNALS:
            expected |= {143}
            if set(codes) == {143}:
                self.toll.to_saved.append(watch.ended - watch.inflicted)
            if watch.new_step is None:  # before the handlers stand, a signal does what it does to any process
                expected |= {1, -signal.SIGTERM, -signal.SIGUSR1, -signal.SIGKILL}
        elif last == "full disk":
            expected |= {4}  # where it was full at the last step of all
        if not set(codes) <= expected:
            log = self.folder / f"surprise-{self.asked.seed}-{self.toll.starts}.log"
            log.write_text(watch.job.printed())
            self.toll.surprises.append(f"start {self.toll.starts}, {last} at a {watch.instant}: {codes}; see {log}")
        self.say(
            f"  start {self.toll.starts:>3}  step {last_step(self.run):>5} of {self.asked.steps}  "
            f"{self.asked.faults - self.faults_left:>3} faults  exit codes {codes}  {', '.join(inflicted) or last}"
        )

    def _good_checkpoints(self) -> list[Path]:
        from train.checkpoint.verify import verify
        from train.errors import CheckpointError

        found: list[Path] = []
        for path in sorted(self.run.glob("checkpoints/step-*")):
            with contextlib.suppress(CheckpointError, OSError):
                found.append(verify(path).path)
        return found

    def _flip(self) -> None:
        """One bit of a file of the newest checkpoint."""
        good = self._good_checkpoints()
        if len(good) < 2:
            return
        file = self.rng.choice(sorted(path for path in good[-1].iterdir() if path.stat().st_size))
        content = bytearray(file.read_bytes())
        content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
        file.write_bytes(content)

    def _cut_log(self) -> None:
        """metrics.jsonl loses its end or everything, or gets a line of garbage."""
        path = self.run / "metrics.jsonl"
        with contextlib.suppress(FileNotFoundError):
            match self.rng.randrange(3):
                case 0:
                    os.truncate(path, self.rng.randrange(max(1, path.stat().st_size)))
                case 1:
                    path.unlink()
                case _:
                    with path.open("ab") as stream:
                        stream.write(b'\x00\xff{"step": 7, "lo\n')


class Watch:
    """Of one start: when its first new step came, and when it ended."""

    def __init__(self, run: Path, job: Job):
        self.job, self._run, self._n_began = job, run, len(starts(run))
        self.instant = "-"
        self.new_step: float | None = None
        self._died_at: float | None = None
        self.inflicted = self.ended = time.monotonic()

    def until(self, condition: Callable[[], bool]) -> bool:
        """False if the run ended before."""
        while self.job.is_running:
            self._look()
            self._launch()
            if condition():
                return True
            time.sleep(0.003)
        self.ended = time.monotonic()
        return False

    def _launch(self) -> None:
        """What torchrun and srun do when a rank died in the start-up: those that have not met cannot miss it."""
        if self.new_step is not None or all(process.is_alive() for process in self.job.processes):
            return
        self._died_at = self._died_at or time.monotonic()
        if time.monotonic() > self._died_at + LAUNCHER_SECONDS:
            for rank in range(len(self.job.processes)):
                self.job.kill(rank)

    def _look(self) -> None:
        if self.new_step is None:
            began = starts(self._run)
            if len(began) > self._n_began and last_step(self._run) > began[-1]["step"]:
                self.new_step = time.monotonic()


def starts(run: Path) -> list[dict[str, Any]]:
    """What events.jsonl tells of the starts of a run."""
    found: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError):
        for line in (run / "events.jsonl").read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if event["event"] == "started":
                    found.append(event)
    return found


def last_step(run: Path) -> int:
    """The last one in metrics.jsonl, 0 if there is none: from its end, for it is asked for often."""
    with contextlib.suppress(FileNotFoundError), (run / "metrics.jsonl").open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - 4096))
        for line in reversed(stream.read().splitlines()):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                return int(json.loads(line)["step"])
    return 0


def limit_files(job: Job, n_bytes: int | None) -> None:
    """A disk on which no file can grow beyond this; None: it has room again."""
    for process in job.processes:
        with contextlib.suppress(ProcessLookupError):
            _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard if n_bytes is None else n_bytes, hard))


# --- what is left in the end


@dataclass
class Found:
    ledger: "Ledger"
    repeated_steps: int
    effective_time_ratio: float | None
    is_same_curve: bool
    is_same_weights: bool | None
    """None where a difference of rounding is to be expected"""
    problems: list[str] = field(default_factory=list[str])


def judged(hurt: Path, whole: Path, asked: Campaign) -> Found:
    from train.audit import ledger_of

    summary = json.loads((hurt / "summary.json").read_text())
    found = Found(
        ledger=ledger_of(hurt),
        repeated_steps=sum(event["repeated_steps"] for event in starts(hurt)),
        effective_time_ratio=summary.get("effective_time_ratio"),
        is_same_curve=is_same_curve(hurt, whole, asked.layouts),
        is_same_weights=None if asked.layouts else tensor_hashes(hurt) == tensor_hashes(whole),
    )
    found.problems = [f"step {step} {what}" for step, what in found.ledger.problems[:5]]
    if not found.is_same_curve:
        found.problems.append("the curve is not that of the undisturbed run")
    if found.is_same_weights is False:
        found.problems.append("the weights are not those of the undisturbed run")
    return found


def is_same_curve(hurt: Path, whole: Path, rounded: bool) -> bool:
    if not rounded:
        return curve(hurt) == curve(whole)
    ours, theirs = curve(hurt), curve(whole)
    if [row[:2] for row in ours] != [row[:2] for row in theirs]:
        return False
    pairs = [(a, b) for ours_, theirs_ in zip(ours, theirs, strict=True) for a, b in zip(ours_, theirs_, strict=True)]
    return all(a == b or abs(a - b) <= 1e-3 * abs(b) for a, b in pairs if a is not None and b is not None)


def tensor_hashes(run: Path) -> dict[str, Any]:
    """Of the last checkpoint: weights and moments."""
    return json.loads((max((run / "checkpoints").glob("step-*")) / "manifest.json").read_text())["tensor_hashes"]


def table(hurt: Hurt, found: Found) -> str:
    toll, ledger = hurt.toll, found.ledger
    kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(toll.faults.items()))
    n_faults, same = sum(toll.faults.values()), {True: "yes", False: "NO", None: "not compared (layouts changed)"}
    lines = {
        "faults injected": f"{n_faults}: {kinds}",
        "survived": f"{n_faults - len(toll.surprises)}, in {toll.starts} starts",
        "tokens": f"{ledger.tokens:,} in {ledger.steps} steps",
        "tokens lost": f"{ledger.tokens_lost:,}",
        "tokens repeated": f"{ledger.tokens_repeated:,}",
        "other tokens": f"{ledger.tokens_other:,}",
        "steps done again": str(found.repeated_steps),
        "kill to next step": seconds(toll.to_next_step),
        "signal to saved": seconds(toll.to_saved),
        "death to noticed": seconds(toll.to_noticed),
        "effective time": "-" if found.effective_time_ratio is None else f"{found.effective_time_ratio:.3f}",
        "curve equal": same[found.is_same_curve] + (" (to 1e-3)" if hurt.asked.layouts else ", bit for bit"),
        "weights equal": same[found.is_same_weights],
    }
    trouble = [*found.problems, *toll.surprises]
    return "\n".join(
        [*(f"  {name:<18} {text}" for name, text in lines.items()), *(f"  PROBLEM {text}" for text in trouble)]
    )


def seconds(values: list[float]) -> str:
    if not values:
        return "-"
    return f"median {statistics.median(values):.2f} s, longest {max(values):.2f} s, of {len(values)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
