"""What data preparation can be asked to do: ordinary dataclasses, no heavy imports.

In: nothing. Out: `DataPrepConfig`, whose fields are the keys of the command line (`python -m data_prep KEY=VALUE`).
Each class's `problems()` returns every broken relation as one message: what was asked, the rule, what would work.
"""

import dataclasses
from dataclasses import dataclass, field
from enum import StrEnum

from data_prep.clean.config import CleanConfig
from data_prep.decontaminate.config import DecontaminateConfig
from data_prep.dedup.config import DedupConfig, NoDedup
from data_prep.exchange.config import ExportConfig, ImportConfig
from data_prep.inspection.config import InspectConfig
from data_prep.sources.config import Source

MINIMUM_VOCABULARY = 262  # 4 control ids, newline, 256 bytes, and at least one character
MAXIMUM_SAMPLE_BYTES = 1 << 30  # the trainer indexes its text with 32-bit positions


class Stage(StrEnum):
    """`all` does the first part in this order, as far as the configuration asks for it; the second part looks at what
    lies in `out`."""

    all = "all"
    plan = "plan"
    clean = "clean"
    decontaminate = "decontaminate"  # the three that follow
    index = "index"  # pyright: ignore[reportAssignmentType]  hides str.index, which no stage needs
    scan = "scan"
    judge = "judge"
    dedup = "dedup"  # the seven that follow, one after the other
    sign = "sign"
    catalog = "catalog"
    copies = "copies"
    match = "match"
    shingle = "shingle"
    compare = "compare"
    resolve = "resolve"
    tokenizer = "tokenizer"
    encode = "encode"  # pyright: ignore[reportAssignmentType]  hides str.encode, which no stage needs
    publish = "publish"

    status = "status"
    verify = "verify"
    seal = "seal"
    inspect = "inspect"
    export = "export"
    import_ = "import"


DEDUP_STAGES = (
    Stage.sign,
    Stage.catalog,
    Stage.copies,
    Stage.match,
    Stage.shingle,
    Stage.compare,
    Stage.resolve,
)
DECONTAMINATE_STAGES = (Stage.index, Stage.scan, Stage.judge)
SHARED_STAGES = (Stage.clean, *DECONTAMINATE_STAGES, *DEDUP_STAGES, Stage.encode)
"""Lists of jobs, which the elements of a job array may share."""


class OnBad(StrEnum):
    error = "error"
    skip = "skip"


class ModelType(StrEnum):
    bpe = "bpe"
    unigram = "unigram"


@dataclass
class TokenizerConfig:
    model: str | None = None
    """Path of an existing SentencePiece .model; null trains one on the corpus with the settings below."""
    model_type: ModelType = ModelType.bpe
    """`unigram` encodes about three times faster, but `transformers` silently rebuilds such a model as BPE."""
    vocab_size: int = 4096
    """Ids in all: control symbols, newline and the 256 byte pieces included."""
    sample_bytes: int = 64 << 20
    """Bytes of training text at most; documents beyond that are left out by a seeded draw. Memory: some 20 times it."""
    seed: int = 0
    """Seed of that draw; without effect while the whole corpus fits into `sample_bytes`."""

    def problems(self) -> list[str]:
        if self.model is not None:
            return self._idle_settings()
        found: list[str] = []
        if self.vocab_size < MINIMUM_VOCABULARY:
            found.append(
                f"tokenizer.vocab_size={self.vocab_size} is too small: 4 control symbols, newline, 256 bytes and at "
                f"least one character need {MINIMUM_VOCABULARY}"
            )
        if self.vocab_size > 2**31 - 1:
            found.append(f"tokenizer.vocab_size={self.vocab_size} is too large: ids are stored in at most 31 bits")
        if not 1 <= self.sample_bytes <= MAXIMUM_SAMPLE_BYTES:
            found.append(
                f"tokenizer.sample_bytes={self.sample_bytes} must lie in 1 ... {MAXIMUM_SAMPLE_BYTES} (1 GiB): the "
                "trainer holds the sample in memory"
            )
        return found

    def _idle_settings(self) -> list[str]:
        """A given model is not trained: settings of training beside it would be ignored, so they are refused."""
        defaults = {item.name: item.default for item in dataclasses.fields(self)}
        return [
            f"tokenizer.{name}={getattr(self, name)} has no effect together with tokenizer.model={self.model}; "
            "drop one of the two"
            for name in defaults
            if name != "model" and getattr(self, name) != defaults[name]
        ]


@dataclass
class DataPrepConfig:
    out: str
    """Folder of the finished dataset; made when it is missing, and other files in it are left alone."""
    source: Source
    dedup: DedupConfig = field(default_factory=NoDedup)
    clean: CleanConfig = field(default_factory=CleanConfig)
    decontaminate: DecontaminateConfig = field(default_factory=DecontaminateConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    inspect: InspectConfig = field(default_factory=InspectConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    peer: ImportConfig = field(default_factory=ImportConfig)
    stage: Stage = Stage.all
    """`all`, or one stage of it; or what can be done with a finished dataset: `status`, `verify`, `seal` (verify it
    and make its block checksums anew), `inspect`, `export`; or `import` of another program's token files."""
    task: int | None = None
    """With `n_tasks`: only every n-th job of the stage, from this one on (0 is the first); for a job array."""
    n_tasks: int | None = None
    """Elements of the job array; the same for all of them."""
    workers: int | None = None
    """Processes on this machine; null means one for each core this job may use. Without effect on what is made."""
    update: bool = False
    """Bring a finished dataset up to date after its inputs have changed; only what changed is made anew."""
    keep_dropped: bool = False
    """Keep the documents that `clean` drops, with their reasons, in out/work/dropped-*.parquet."""
    val_fraction: float = 0.02
    """Share of the documents held out, chosen by the hash of their text; 0 holds out nothing."""
    task_bytes: int = 256 << 20
    """Input bytes (as stored) in one task, which makes one shard of each split; larger files are cut where possible."""
    on_bad_document: OnBad = OnBad.error
    """`error` stops at the first document that cannot be read; `skip` leaves it out and counts it by reason."""

    def problems(self) -> list[str]:
        found: list[str] = []
        if not self.out:
            found.append("out is empty; pass the folder that is to hold the dataset: out=data/NAME")
        if not 0 <= self.val_fraction < 1:
            found.append(f"val_fraction={self.val_fraction} must lie in 0 ... 1, 1 excluded; 0.02 holds out 2 %")
        if self.task_bytes < 1:
            found.append(f"task_bytes={self.task_bytes} must be at least 1; 268_435_456 is 256 MiB")
        if self.workers is not None and self.workers < 1:
            found.append(f"workers={self.workers} must be at least 1, or null for one a core")
        for stage, part in ((Stage.export, self.export), (Stage.import_, self.peer)):
            found += part.missing() if self.stage is stage else []
        for stage, name in ((Stage.inspect, "inspect"), (Stage.export, "export"), (Stage.import_, "peer")):
            part = getattr(self, name)
            if self.stage is not stage and part != type(part)():
                found.append(f"{name}.* has no effect with stage={self.stage}; it belongs to stage={stage}")
        return found + self._array_problems()

    def _array_problems(self) -> list[str]:
        if self.task is None and (self.n_tasks is None or self.stage is Stage.status):
            return []
        if self.task is None or self.n_tasks is None:
            return [f"task={self.task} n_tasks={self.n_tasks}: give both, or neither"]
        found: list[str] = []
        if not 0 <= self.task < self.n_tasks:
            found.append(f"task={self.task} must lie in 0 ... {self.n_tasks - 1} (n_tasks={self.n_tasks})")
        if self.stage not in SHARED_STAGES:
            names = ", ".join(SHARED_STAGES)
            found.append(f"stage={self.stage} is done by one process; only these are dealt out with task=: {names}")
        return found
