"""One case on one rank: ten steps of a small model through the engine, and the same by torch alone.

Shapes: rows of T = 32 positions, eight rows a step, drawn from (seed, step), the same for every case.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.init import initialize
from model.loss import IGNORED_TARGET
from model.transformer import Transformer
from train.assemble import assemble, effective_run
from train.batch import solve_batch
from train.config import BatchConfig, ClusterConfig, Device, LossConfig, RunConfig, TrainConfig
from train.data_config import DataConfig
from train.engine.core import StepResult
from train.fragment import Fragment
from train.objective import Objective
from train.optimizer_config import ConstantSchedule, OptimizerConfig
from train.parallel import choose_device, prepare_environment, rank_grid
from train.verify.cases import CLIP, DECAY, EPS, ROWS, SEQ_LEN, STEPS, VOCAB, Case, Rows, lr_of, model_of

DOCUMENTS = (12, 9, 11)
"""lengths of the documents in a packed row"""


@dataclass(frozen=True)
class Outcome:
    """What one rank has to show."""

    losses: list[float]
    norms: list[float]
    weights: list[tuple[Fragment, np.ndarray]]
    """the fp32 masters that this rank answers for"""


def by_engine(case: Case, device: Device) -> Outcome:
    """The case through DeepSpeed, on one of its ranks."""
    trial = Trial(case, device)
    results = [trial.step(step) for step in range(STEPS)]
    views = trial.engine.fragments()
    masters = [(where, view.float().cpu().numpy()) for kind, where, view in views if kind == "master"]
    return Outcome([r.loss for r in results], [r.grad_norm for r in results], masters)


class Trial:
    """A case's engine on one of its ranks, and its steps. Refuses to go on if something else is in force than asked."""

    def __init__(self, case: Case, device: Device):
        grid = rank_grid(case.parallel.tp_size, case.parallel.sp_size)
        self._case, self._grid = case, grid
        self._config = config_of(case, device, grid.dp_size)
        where = choose_device(device, grid)
        prepare_environment(where, grid)
        self._batch = solve_batch(
            global_batch_size=self._config.batch.global_batch_size,
            micro_batch_size=self._config.batch.micro_batch_size,
            dp_size=grid.dp_size,
            seq_len=SEQ_LEN,
            total_tokens=1,
        )
        self.engine = assemble(self._config, self._batch, grid, where)
        self._is_checked = False

    def step(self, step: int) -> StepResult:
        """Trains on the rows of `step`."""
        first, size = self._grid.dp_rank * self._batch.sequences_per_rank, self._batch.micro_batch_size
        mine = [part[first : first + self._batch.sequences_per_rank] for part in rows(self._case.rows, step)]
        result = self.engine.train_step(zip(*(part.split(size) for part in mine), strict=True), lr_of(step))
        if not self._is_checked:
            self.effective_run()
            self._is_checked = True
        return result

    def effective_run(self) -> str:
        return effective_run(self._config, self.engine, self._grid)


def by_torch(case: Case, device: Device) -> Outcome:
    """The same steps without DeepSpeed: one process, all rows at once, torch's own AdamW and clipping, fp32."""
    where = "cuda" if choose_device(device, rank_grid()) != "cpu" else "cpu"
    model = Transformer(model_of(case))
    initialize(model, 0)
    objective = Objective(model.to(where))
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=EPS)
    losses, norms = [], []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = lr_of(step)
        parts = [part.to(where) for part in rows(case.rows, step)]
        nats, log_z = objective(*parts)
        count = (parts[1] != IGNORED_TARGET).sum()
        optimizer.zero_grad()
        ((nats.sum() + case.loss.z_loss * log_z.square().sum()) / count).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        losses.append(float(nats.detach().sum() / count))
        optimizer.step()
    return Outcome(losses, norms, list(_whole_weights(model)))


def leak(case: Case, device: Device) -> tuple[bool, bool]:
    """(the first document of a packed row does not touch the logits of the others, to the bit; it does touch its own).

    Every kernel and mask that the case uses is used here.
    """
    where = "cuda" if choose_device(device, rank_grid()) != "cpu" else "cpu"
    model = Transformer(model_of(case))
    initialize(model, 0)
    model = model.to(where)
    tokens, _, segments = (part.to(where) for part in rows(Rows.packed, 0))
    changed = tokens.clone()
    changed[:, : DOCUMENTS[0]] = (changed[:, : DOCUMENTS[0]] + 1) % VOCAB
    with torch.no_grad():
        before, after = model(tokens, segments), model(changed, segments)
    same = torch.equal(before[:, DOCUMENTS[0] :], after[:, DOCUMENTS[0] :])
    return same, not torch.equal(before[:, : DOCUMENTS[0]], after[:, : DOCUMENTS[0]])


def rows(kind: Rows, step: int) -> tuple[Tensor, ...]:
    """(tokens, targets) or (tokens, targets, segments) of a step, over all ranks."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, VOCAB, (ROWS, SEQ_LEN + 1), generator=generator)
    tokens, targets = ids[:, :-1], ids[:, 1:].clone()
    match kind:
        case Rows.whole:
            return tokens, targets
        case Rows.ragged:  # very different numbers of targets, on every rank and in every micro-batch
            for row in range(ROWS):
                targets[row, 3 + 4 * row :] = IGNORED_TARGET
            targets[-1] = IGNORED_TARGET
            return tokens, targets, _segments()
        case Rows.packed:
            targets[:, np.cumsum(DOCUMENTS) - 1] = IGNORED_TARGET
            return tokens, targets, _segments()
        case Rows.apart:
            return _apart(*rows(Rows.packed, step)[:2])


def _segments() -> Tensor:
    """(B, T): the documents of a packed row."""
    one = torch.repeat_interleave(torch.arange(len(DOCUMENTS)), torch.tensor(DOCUMENTS))
    return one.to(torch.int32).expand(ROWS, SEQ_LEN)


def _apart(tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Each document of the packed rows in a row of its own, padded: (documents · B, T)."""
    alone, theirs = [], []
    for ids, following in zip(tokens, targets, strict=True):
        for a, b in zip(ids.split(DOCUMENTS), following.split(DOCUMENTS), strict=True):
            missing = SEQ_LEN - len(a)
            alone.append(torch.nn.functional.pad(a, (0, missing)))
            theirs.append(torch.nn.functional.pad(b, (0, missing), value=IGNORED_TARGET))
    return torch.stack(alone), torch.stack(theirs)


def config_of(case: Case, device: Device, dp_size: int) -> TrainConfig:
    n_rows = ROWS * (len(DOCUMENTS) if case.rows == Rows.apart else 1)
    return TrainConfig(
        run=RunConfig(name="verify", seed=0),
        data=DataConfig(seq_len=SEQ_LEN, mask_documents=case.rows in (Rows.ragged, Rows.packed)),
        schedule=ConstantSchedule(),
        model=model_of(case),
        batch=BatchConfig(n_rows, n_rows // dp_size // case.accumulation),
        optimizer=OptimizerConfig(peak_lr=lr_of(0), eps=EPS, weight_decay=DECAY, max_grad_norm=CLIP),
        loss=LossConfig(case.loss.z_loss, case.loss.chunk_tokens),
        parallel=case.parallel,
        cluster=ClusterConfig(device=device),
    )


def _whole_weights(model: Transformer) -> Iterator[tuple[Fragment, np.ndarray]]:
    for name, parameter in model.named_parameters():
        values = parameter.detach().cpu().numpy().ravel()
        yield Fragment(name, tuple(parameter.shape), None, 0, 0, 0, values.size), values
