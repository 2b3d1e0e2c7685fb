"""What must be right before anything is started: everything a user can have got wrong, looked at first, reported
together.

No torch: a wrong configuration is answered in about a second, on every rank, before any process group or GPU is
touched.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.errors import ConfigError
from data_prep.files import DataError
from data_prep.manifest import Manifest
from train.batch import BatchError, BatchPlan, solve_batch
from train.branch import Branch, Origin, find_origin
from train.config import TrainConfig
from train.corpus import Corpus, load_corpora
from train.data_config import DataConfig, Packing
from train.layout_problems import layout_problems
from train.lineage import Phase, begin, over_the_cap, rebased, refuse_other_data
from train.mixture import integer_weights
from train.parallel import RankGrid
from train.plan import Plan, render
from train.rows import Packs, open_rows
from train.run_folder import RunFolder, config_sha256, rest_sha256
from train.weights import start_problems

if TYPE_CHECKING:
    from train.data import TrainBatches, ValidationBatches


@dataclass(frozen=True)
class Setup:
    """A configuration that was checked against its datasets, its run folder and the number of ranks."""

    config: TrainConfig
    grid: RankGrid
    batch: BatchPlan
    corpora: tuple[Corpus, ...]
    phases: tuple[Phase, ...]
    """the last one is to go on with"""
    resumes: tuple[int, tuple[Phase, ...]] | None
    """(step, phases) of the checkpoint that the run continues from, if it is whole"""
    origin: Origin | None
    """the checkpoint of another run that this start begins from"""
    branch: Branch | None
    """what the run has from another one"""
    packs: Packs
    folder: RunFolder

    @property
    def data(self) -> Path:
        """The dataset whose tokenizer stands for all of them."""
        return self.corpora[0].folder

    @property
    def manifest(self) -> Manifest:
        return self.corpora[0].manifest

    @property
    def phase(self) -> Phase:
        return self.phases[-1]

    @property
    def source_names(self) -> tuple[str, ...]:
        """Of the phase's sources, as this start calls them; () where there is a single one to draw from."""
        if len(self.corpora) == 1:
            return ()
        at_hand = {corpus.digest: corpus.name for corpus in self.corpora}
        return tuple(at_hand.get(source.digest, source.name) for source in self.phase.sources)

    @property
    def train_tokens(self) -> int:
        """Those that the run may see: an epoch."""
        return self.config.data.unique_tokens or sum(corpus.tokens("train") for corpus in self.corpora)

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint of `step` tells of the run that it belongs to."""
        return {
            "step": step,
            "tokens_seen": self.batch.tokens_seen(step),
            "world_size": self.grid.world_size,
            "config_sha256": config_sha256(self.config),
            "rest_sha256": rest_sha256(self.config),
            "branch": self.branch and self.branch.to_tree(),
            "data": {
                "tokenizer_sha256": self.manifest.tokenizer_sha256,
                "phases": [phase.to_tree() for phase in self.phases],
            },
        }

    def train_batches(self) -> "TrainBatches":
        """What this rank trains on."""
        from train.data import TrainBatches

        rows = open_rows(self.phase, self.corpora, self.config.run.seed, self.packs)
        return TrainBatches(rows, self.batch, self.grid.dp_rank)

    def validation_batches(self) -> "ValidationBatches":
        from train.data import ValidationBatches

        data = self.config.data
        return ValidationBatches(
            [corpus.stream("val") for corpus in self.corpora],
            seq_len=data.seq_len,
            max_sequences=self.config.evaluation.max_sequences,
            batch_size=self.config.batch.micro_batch_size,
            dp_size=self.grid.dp_size,
            mask_documents=data.mask_documents,
        )

    @property
    def starts_from(self) -> Path | None:
        """The folder that the weights come from with this start, if it is not a checkpoint or a draw."""
        asked = self.config.run.start_from
        return None if asked is None or self.resumes is not None else Path(asked)

    @property
    def rebases(self) -> bool:
        """True if a phase begins with this start."""
        return self.resumes is not None and self.resumes[1] != self.phases


def check(config: TrainConfig, grid: RankGrid) -> Setup:
    """Starts nothing, and writes nothing but packs (which belong to the datasets, not to the run). Raises ConfigError
    with every problem at once, or DataError if all that is wrong is a dataset that is missing or damaged.
    """
    folder = RunFolder(config)
    problems = _problems(config, grid, folder)
    try:
        corpora = load_corpora(config.data, look=grid.is_first)
    except DataError as error:
        if problems:
            raise ConfigError([*problems, str(error)]) from None
        raise
    vocab_size = max(corpus.manifest.vocab_size for corpus in corpora)
    if vocab_size > config.model.vocab_size:
        problems.append(
            f"model.vocab_size={config.model.vocab_size} has no row for every id: {corpora[0].folder} was made with a "
            f"vocabulary of {vocab_size}; set model.vocab_size={vocab_size}"
        )
    problems += config.data.too_many(corpora[0].tokens("train"))
    if problems:
        raise ConfigError(problems)
    packs = Packs(config.data.pack_folder, makes=grid.is_first, verify=grid.is_first)
    held = folder.newest_state()
    origin = find_origin(config) if held is None and config.run.branch_from is not None else None
    branch = origin.branch if origin else Branch.of(held[1]) if held else None
    resumes = _resumes((origin.step, origin.state) if origin else held)
    if resumes is None and config.run.start_from is not None:
        _check_start(config, corpora[0].manifest.tokenizer_sha256, grid)
    phases = _phases(config, corpora, packs, resumes)
    batch = _batch(config, grid, phases[-1])
    if over := over_the_cap(phases[-1], batch.total_steps, config.run.seed):
        raise ConfigError(over)
    if late := [step for step in config.checkpoint.keep_steps if step > batch.total_steps]:
        raise ConfigError([f"checkpoint.keep_steps={late}: the run has {batch.total_steps} steps"])
    return Setup(config, grid, batch, tuple(corpora), tuple(phases), resumes, origin, branch, packs, folder)


def _check_start(config: TrainConfig, tokenizer_sha256: str, grid: RankGrid) -> None:
    """One process reads every byte of the weights; the others, and a run that is continued, need not."""
    path = Path(str(config.run.start_from))
    if found := start_problems(path, config.model, tokenizer_sha256, every_byte=grid.is_first):
        raise ConfigError(found)


def _problems(config: TrainConfig, grid: RankGrid, folder: RunFolder) -> list[str]:
    """What is wrong whatever the data are."""
    problems: list[str] = []
    try:
        _batch(config, grid, None)
    except BatchError as error:
        problems.append(str(error))
    if config.cluster.n_devices not in (None, grid.world_size):
        problems.append(f"cluster.n_devices={config.cluster.n_devices}, but {grid.world_size} processes were started")
    parallel = config.parallel
    return [
        *problems,
        *layout_problems(config),
        *parallel.problems_on(grid.dp_size * grid.sp_size),
        *_weight_problems(config.data),
        *folder.differences(config),
    ]


def _weight_problems(data: DataConfig) -> list[str]:
    given = [source.weight for source in data.mixture.values() if source.weight is not None]
    problems: list[str] = []
    for weights in (given, *(list(change.weights.values()) for change in data.weight_schedule)):
        try:
            integer_weights(weights or [1])
        except ValueError as error:
            problems.append(f"data.sources: {error}")
    return problems


def _batch(config: TrainConfig, grid: RankGrid, phase: Phase | None) -> BatchPlan:
    return solve_batch(
        global_batch_size=config.batch.global_batch_size,
        micro_batch_size=config.batch.micro_batch_size,
        dp_size=grid.dp_size,
        seq_len=config.data.seq_len,
        total_tokens=config.total_tokens,
        first_step=phase.first_step if phase else 0,
        tokens_before=phase.tokens_before if phase else 0,
    )


def _resumes(held: tuple[int, dict[str, Any]] | None) -> tuple[int, tuple[Phase, ...]] | None:
    return None if held is None else (held[0], phases_of(held[1]))


def phases_of(state: dict[str, Any]) -> tuple[Phase, ...]:
    """The phases that a checkpoint's state.json tells of. Raises DataError if it is of another version."""
    try:
        return tuple(Phase.from_tree(tree) for tree in state["data"]["phases"])
    except (KeyError, TypeError) as error:
        raise DataError(
            f"the checkpoint's state.json tells nothing of the data order that is understood: {error!r}"
        ) from None


def _phases(
    config: TrainConfig, corpora: list[Corpus], packs: Packs, resumes: tuple[int, tuple[Phase, ...]] | None
) -> list[Phase]:
    data, global_batch_size = config.data, config.batch.global_batch_size
    slots = {corpus.digest: _epoch_slots(corpus, data, packs) for corpus in corpora}
    if resumes is None:
        return begin(data, global_batch_size, corpora, slots)
    step, phases = resumes
    if data.rebase:
        return rebased(phases, step, data, global_batch_size, corpora, slots)
    refuse_other_data(phases[-1], corpora, step)
    return list(phases)


def _epoch_slots(corpus: Corpus, data: DataConfig, packs: Packs) -> int:
    if data.packing == Packing.best_fit and corpus.tokens("train"):
        return packs.of(corpus, data.seq_len).n_rows * data.seq_len
    return corpus.tokens("train")


def is_finished(setup: Setup) -> bool:
    """True if the run has reached its last step already, by its own summary."""
    try:
        summary = json.loads(setup.folder.summary_json.read_text())
    except (OSError, ValueError):
        return False
    if not isinstance(summary, dict):
        return False
    return (summary.get("status"), summary.get("step")) == ("finished", setup.batch.total_steps)


def introduce(setup: Setup, plan: Plan) -> str:
    """What will happen, for the console: the plan, the data, the layout."""
    config, grid, batch = setup.config, setup.grid, setup.batch
    rows = {
        "data": "\n              ".join(_described(setup)),
        "layout": f"ZeRO {config.parallel.zero_stage}, {config.parallel.precision}; "
        f"{batch.micro_batch_size} sequences x {batch.gradient_accumulation_steps} accumulated x {grid.dp_size} dp "
        f"= {batch.global_batch_size} of {batch.seq_len} tokens",
    }
    rows["ranks"] = grid.describe().replace("\n", "\n              ")
    if setup.starts_from is not None:
        rows["start"] = f"weights of {setup.starts_from}"
    if setup.branch is not None:
        rows["branch"] = f"the first {setup.branch.step:,} steps are those of {setup.branch.run}"
    elif config.run.branch_from is not None:
        rows["branch"] = f"none: the run began by itself, and {config.run.branch_from} is not asked for anything"
    lines = [f"run {setup.folder.path}", render(plan), *(f"  {name:<11} {text}" for name, text in rows.items())]
    return "\n".join(lines)


def _described(setup: Setup) -> list[str]:
    """One line for each source: how much there is, and how much of it the run takes."""
    phase, total = setup.phase, setup.batch.total_steps
    used = dict(zip((source.digest for source in phase.sources), phase.consumed_at(total), strict=True))
    orders = {source.digest: source.order(setup.config.run.seed) for source in phase.sources}
    drawn = setup.config.data.unique_tokens
    part = "" if drawn is None else f"{drawn:,} of them, drawn at random (data.unique_tokens), and repeated: "
    lines = [
        f"{corpus.folder}: {corpus.tokens('train'):,} train and {corpus.tokens('val'):,} val tokens, vocabulary "
        f"{corpus.manifest.vocab_size:,}; "
        f"{part}{orders[corpus.digest].epochs(used[corpus.digest]):.3g} epochs by the end"
        for corpus in setup.corpora
    ]
    if setup.rebases:
        lines.append(f"phase {len(setup.phases)} of the data begins after step {phase.first_step}")
    return lines
