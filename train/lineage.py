"""Which data a run has seen and will see: a list of phases, kept in every checkpoint. No torch.

A *phase* is a span of steps with one mixture, row length and batch size. Most runs have one. `data.rebase=true` ends
the phase in hand at the step that the run continues from and begins another: each source goes on exactly where it
stands (see `train/order.py`), new ones begin at their beginning, those left out keep their place in case they come
back. A source is recognised by what is in its shards, wherever they lie and whatever it is called.

In: the configuration, the manifests, the phases of the checkpoint. Out: the phases to go on with, or DataError.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from data_prep.files import DataError
from train.corpus import Corpus
from train.data_config import DataConfig, Packing
from train.mixture import Mixture, Stage, in_proportion, integer_weights
from train.order import Order, Stretch, changed
from train.stream import shards_of

ROUNDING = 0.05
"""the part of a source's share by which rounding may change it"""


@dataclass(frozen=True)
class Source:
    """One source at the beginning of a phase."""

    name: str
    folder: str
    label: str | None
    digest: str
    ordinal: int
    """which of the run's sources, by first appearance: chooses its order"""
    tokens: int
    max_epochs: float | None
    consumed: int
    """slots (places for one prediction each) used before the phase"""
    stretches: tuple[Stretch, ...]
    shards: tuple[str, ...] = ()
    """short digests of its shards' tokens: by them a source is known again inside another one"""

    @property
    def unique_tokens(self) -> int:
        """All that an epoch of it has."""
        last = self.stretches[-1]
        return self.tokens if last.drawn_from is None else last.epoch_slots

    def order(self, seed: int) -> Order:
        return Order(self.stretches, seed, self.ordinal)


@dataclass(frozen=True)
class Phase:
    first_step: int
    tokens_before: int
    seq_len: int
    global_batch_size: int
    packing: str
    mask_documents: bool
    schedule: tuple[tuple[int, tuple[int, ...]], ...]
    """(tokens of the run from which on, integer weights of `sources`)"""
    sources: tuple[Source, ...]

    @cached_property
    def mixture(self) -> Mixture:
        """Over the phase's samples, counted from 0."""
        stages: list[Stage] = []
        for from_tokens, weights in self.schedule:
            first = max(0, -(-(from_tokens - self.tokens_before) // self.seq_len))
            stages = [stage for stage in stages if stage.first_sample < first]
            stages.append(Stage(first, weights))
        return Mixture(stages)

    def first_sample(self, step: int) -> int:
        """The first sample, of the phase, of the step that follows `step` completed ones."""
        return (step - self.first_step) * self.global_batch_size

    def consumed_at(self, step: int) -> list[int]:
        """Slots of each source that are used after `step` steps of the run."""
        counts = self.mixture.counts(self.first_sample(step)).tolist()
        return [source.consumed + n * self.seq_len for source, n in zip(self.sources, counts, strict=True)]

    def tokens_seen(self, step: int) -> int:
        return self.tokens_before + (step - self.first_step) * self.global_batch_size * self.seq_len

    def choice(self) -> dict[str, Any]:
        """What was asked for, without where the run stood: a rebase to an equal choice changes nothing."""
        used = {i for _, weights in self.schedule for i, weight in enumerate(weights) if weight}
        return {
            "sizes": (self.seq_len, self.global_batch_size, self.packing, self.mask_documents),
            "sources": {
                source.digest: (source.max_epochs, [(start, weights[i]) for start, weights in self.schedule])
                for i, source in enumerate(self.sources)
                if i in used
            },
        }

    def to_tree(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @staticmethod
    def from_tree(tree: Mapping[str, Any]) -> "Phase":
        sources = tuple(
            Source(
                **(
                    source
                    | {"stretches": tuple(Stretch(**stretch) for stretch in source["stretches"])}
                    | {"shards": tuple(source.get("shards", ()))}
                )
            )
            for source in tree["sources"]
        )
        schedule = tuple((start, tuple(weights)) for start, weights in tree["schedule"])
        return Phase(**{**tree, "sources": sources, "schedule": schedule})


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """The phase of the step that follows `step` completed ones."""
    return next(phase for phase in reversed(phases) if phase.first_step <= step)


def begin(
    data: DataConfig, global_batch_size: int, corpora: Sequence[Corpus], epoch_slots: Mapping[str, int]
) -> list[Phase]:
    """A new run's phases: one. `epoch_slots`: of each source, by its digest."""
    sources = tuple(
        _new_source(corpus, ordinal, 0, data, epoch_slots[corpus.digest]) for ordinal, corpus in enumerate(corpora)
    )
    return [_phase(data, global_batch_size, corpora, sources, first_step=0, tokens_before=0)]


def rebased(
    phases: Sequence[Phase],
    step: int,
    data: DataConfig,
    global_batch_size: int,
    corpora: Sequence[Corpus],
    epoch_slots: Mapping[str, int],
) -> list[Phase]:
    """The phases of a run that continues after `step` steps with another data section; the same ones if it asks for
    nothing new. Raises DataError for a change that would repeat or drop data."""
    last = phases[-1]
    if last.packing != data.packing:
        raise DataError(
            f"data.packing={data.packing} cannot be taken up by a run that has used {last.packing}: the two count a "
            "source differently, and a part of the epoch in hand would be repeated or left out. Keep it, or choose "
            "another run.name."
        )
    if any(source.stretches[-1].drawn_from is not None for source in last.sources):
        raise DataError(
            f"this run draws its rows from a part of its data (data.unique_tokens={last.sources[0].unique_tokens:_}), "
            "which stays the same for the whole run: data.rebase=true cannot change it. Choose another run.name."
        )
    consumed = dict(zip((source.digest for source in last.sources), last.consumed_at(step), strict=True))
    known = {source.digest: source for source in last.sources}
    n_known = max(source.ordinal for source in last.sources) + 1
    sources: list[Source] = []
    for corpus in corpora:
        slots = epoch_slots[corpus.digest]
        if (old := known.pop(corpus.digest, None)) is None:
            new_source = _new_source(corpus, n_known, 0, data, slots)
            _refuse_repetition(new_source, last.sources, consumed)
            sources.append(new_source)
            n_known += 1
            continue
        used = consumed[corpus.digest]
        sources.append(
            dataclasses.replace(
                _new_source(corpus, old.ordinal, used, data, slots),
                stretches=changed(old.stretches, used, block=data.seq_len, epoch_slots=slots),
            )
        )
    left_out = [dataclasses.replace(source, consumed=consumed[source.digest]) for source in known.values()]
    new = _phase(
        data,
        global_batch_size,
        corpora,
        (*sources, *left_out),
        first_step=step,
        tokens_before=last.tokens_seen(step),
    )
    if new.choice() == last.choice():
        return list(phases)
    return [*(phase for phase in phases if phase.first_step < step), new]


def _refuse_repetition(new: Source, held: Sequence[Source], consumed: Mapping[str, int]) -> None:
    """A source that holds shards of one that was read already, beside others: it would begin at its beginning."""
    for old in held:
        if consumed[old.digest] and (both := set(new.shards) & set(old.shards)):
            raise DataError(
                f"{new.folder} (data.sources.{new.name}) holds {len(both)} of the {len(old.shards)} shards of the "
                f"source {old.name}, of which {consumed[old.digest]:_} tokens were used: they would be repeated. Keep "
                "that source as it was, and add what is new as a source of its own (another dataset, or a label)."
            )


def refuse_other_data(phase: Phase, corpora: Sequence[Corpus], step: int) -> None:
    """Raises DataError where a source of the run is no longer what the run has trained on."""
    known = {source.name: source.digest for source in phase.sources[: len(corpora)]}
    for corpus in corpora:
        if corpus.digest != known.get(corpus.name):
            raise DataError(
                f"{corpus.folder} is not the dataset that this run has trained on until step {step}: its shards "
                "differ. Point data.folder (data.sources) at that dataset, choose another run.name, or go on with "
                "these data from here by data.rebase=true."
            )


def over_the_cap(phase: Phase, total_steps: int, seed: int) -> list[str]:
    """A message for each source that the run would read more often than its max_epochs."""
    n_samples = phase.first_sample(total_steps)
    counts = phase.mixture.counts(n_samples).tolist()
    found: list[str] = []
    for i, (source, consumed) in enumerate(zip(phase.sources, phase.consumed_at(total_steps), strict=True)):
        epochs = source.order(seed).epochs(consumed)
        if source.max_epochs is None or epochs <= source.max_epochs or not counts[i]:
            continue
        last = source.stretches[-1]
        room = max(0, last.shift + int(source.max_epochs * last.epoch_slots) - source.consumed) // phase.seq_len
        steps = int(phase.mixture.sample_of(i, np.array([room]))[0]) // phase.global_batch_size
        found.append(
            f"data.sources.{source.name}.max_epochs={source.max_epochs:g}, but the run would read it {epochs:.3f} "
            f"times: it holds {source.unique_tokens:_} tokens and is to give {counts[i]:_} of the {n_samples:_} rows "
            f"of {phase.seq_len} to come. What fits: total_tokens={phase.tokens_seen(phase.first_step + steps):_}, a "
            f"weight of at most {room / n_samples:.4%} of the sum, or max_epochs={math.ceil(epochs * 1000) / 1000:g}"
        )
    return found


def _new_source(corpus: Corpus, ordinal: int, consumed: int, data: DataConfig, epoch_slots: int) -> Source:
    n_tokens = corpus.tokens("train")
    if epoch_slots < 1 or (data.packing == Packing.concat and n_tokens < data.seq_len + 1):
        raise DataError(
            f"the train split of {corpus.folder} holds {n_tokens} tokens; one sequence needs data.seq_len + 1 = "
            f"{data.seq_len + 1}. Prepare more text, or lower data.seq_len."
        )
    return Source(
        name=corpus.name,
        folder=corpus.config.folder,
        label=corpus.config.source,
        digest=corpus.digest,
        ordinal=ordinal,
        tokens=n_tokens,
        max_epochs=corpus.config.max_epochs,
        consumed=consumed,
        stretches=(_stretch(data, n_tokens, epoch_slots),),
        shards=tuple(shard.bin_sha256[:16] for shard in shards_of(corpus.manifest, "train", corpus.config.source)),
    )


def _stretch(data: DataConfig, n_tokens: int, epoch_slots: int) -> Stretch:
    if data.unique_tokens is None:
        return Stretch(begins=0, shift=0, block=data.seq_len, epoch_slots=epoch_slots)
    return Stretch(0, 0, data.seq_len, epoch_slots=data.unique_tokens, drawn_from=data.rows_in(n_tokens))


def _phase(
    data: DataConfig,
    global_batch_size: int,
    corpora: Sequence[Corpus],
    sources: tuple[Source, ...],
    *,
    first_step: int,
    tokens_before: int,
) -> Phase:
    left_out = (0,) * (len(sources) - len(corpora))
    weights = [corpus.config.weight for corpus in corpora]
    given = [weight for weight in weights if weight is not None]
    first = integer_weights(given) if given else _by_size(sources[: len(corpora)])
    schedule = [(0, first + left_out)]
    for change in data.weight_schedule:
        schedule.append(
            (change.from_tokens, integer_weights([change.weights[corpus.name] for corpus in corpora]) + left_out)
        )
    return Phase(
        first_step=first_step,
        tokens_before=tokens_before,
        seq_len=data.seq_len,
        global_batch_size=global_batch_size,
        packing=str(data.packing),
        mask_documents=data.mask_documents,
        schedule=tuple(schedule),
        sources=sources,
    )


def _by_size(sources: Sequence[Source]) -> tuple[int, ...]:
    """Weights in proportion to tokens. Raises DataError where rounding would have a source read much more or less often
    than the others."""
    sizes = [source.tokens for source in sources]
    weights = in_proportion(sizes)
    for source, weight in zip(sources, weights, strict=True):
        exact, rounded = source.tokens / sum(sizes), weight / sum(weights)
        if abs(rounded - exact) > ROUNDING * exact:
            raise DataError(
                f"the source {source.name} holds {source.tokens:_} of {sum(sizes):_} tokens, a share of {exact:.3g}; "
                f"shares are kept to one part in {sum(weights)}, and its would become {rounded:.3g}, so it would be "
                f"read {rounded / exact:.3g} times as often as in proportion to its tokens. Give every source a weight "
                f"(data.sources.{source.name}.weight=...), or leave it out."
            )
    return weights
