"""Runs a case and its reference, each in processes of its own, and says how far apart they lie."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from train.config import Device
from train.fragment import Fragment
from train.verify.cases import STEPS, Bound, Case, Family, lr_of
from train.verify.ranks import RankFailedError, Ranks
from train.verify.runs import Outcome, by_engine, by_torch, leak

WIDTH = 40


@dataclass(frozen=True)
class Verdict:
    """A line of the table."""

    name: str
    ranks: int
    against: str
    distances: tuple[float | None, float | None, float | None]
    """largest relative distance of losses, norms and weights; None where they are not compared"""
    bound: Bound

    @property
    def holds(self) -> bool:
        bounds = (self.bound.relative, self.bound.relative, self.bound.weights)
        return all(d is None or d <= bound for d, bound in zip(self.distances, bounds, strict=True))

    @staticmethod
    def header() -> str:
        return f"{'case':<{WIDTH}} ranks  {'loss':>8} {'norm':>8} {'weights':>8}  {'bounds':>11}       why not closer"

    def line(self) -> str:
        loss, norm, weights = (f"{'-' if d is None else f'{d:.1e}':>8}" for d in self.distances)
        verdict = "ok" if self.holds else "FAIL"
        name = f"{self.name:<{WIDTH}}"
        bounds = f"{self.bound.relative:.0e}/{self.bound.weights:.0e}"
        return f"{name} {self.ranks:>5}  {loss} {norm} {weights}  {bounds:>11}  {verdict:<4} {self.bound.why}"


class Comparison:
    """References are run once and kept."""

    def __init__(self, device: Device):
        self._device = device
        self._references: dict[str, Outcome] = {}

    def of(self, case: Case, reference: Case) -> Verdict:
        try:
            expected = self._reference(reference)
            found = _run(by_engine, case, self._device)
            distances = (
                _relative(found[0].losses, expected.losses),
                _relative(found[0].norms, expected.norms),
                _weights_apart(found, expected) if case.compares_weights else None,
            )
        except (RankFailedError, ValueError) as failure:
            return Verdict(case.name, case.ranks, case.against, (np.inf, None, None), Bound(0, str(failure)))
        return Verdict(case.name, case.ranks, case.against, distances, case.bound)

    def _reference(self, reference: Case) -> Outcome:
        key = repr(reference)
        if key not in self._references:
            self._references[key] = _run(by_torch, reference, self._device)[0]
        return self._references[key]


def accelerator(device: Device) -> str:
    """ "cpu" or "cuda": what the cases run on."""
    import torch

    is_there = device == Device.auto and torch.cuda.is_available()
    return "cuda" if is_there or device == Device.cuda else "cpu"


def isolation(device: Device) -> Iterator[Verdict]:
    """A change in one document of a packed row leaves the others' logits as they were, to the bit."""
    for family in Family:
        case = Case(f"no leak between documents, {family}", family=family)
        same, is_seen = Ranks(leak, 1, case, device).results()[0]
        distance = 0.0 if same and is_seen else np.inf
        yield Verdict(case.name, 1, "itself", (distance, None, None), Bound(0, "to the bit"))


def whole_weights(ranks: list[Outcome]) -> dict[str, np.ndarray]:
    """The parameters put together from what each rank answers for. Raises ValueError if a number comes twice or
    never."""
    found: dict[str, np.ndarray] = {}
    for fragment, values in (part for outcome in ranks for part in outcome.weights):
        whole = found.setdefault(fragment.name, np.full(fragment.shape, np.nan, np.float32))
        part = _slice(whole, fragment)
        flat = part.ravel()
        if not np.isnan(flat[fragment.start : fragment.stop]).all():
            raise ValueError(f"{fragment} is held twice")
        flat[fragment.start : fragment.stop] = values
        part[...] = flat.reshape(part.shape)
    if holes := [name for name, whole in found.items() if np.isnan(whole).any()]:
        raise ValueError(f"no rank holds all of {', '.join(holes)}, or it is not a number")
    return found


def _slice(whole: np.ndarray, fragment: Fragment) -> np.ndarray:
    """A view of the tensor-parallel slice that the fragment lies in."""
    if fragment.tp_dim is None:
        return whole
    return whole[(slice(None),) * fragment.tp_dim + (slice(fragment.tp_start, fragment.tp_stop),)]


def _run(function, case: Case, device: Device) -> list[Outcome]:
    return Ranks(function, case.ranks, case, device, device=accelerator(device)).results(300)


def _relative(found: list[float], expected: list[float]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(abs(a - b) / abs(b) if np.isfinite(a) and np.isfinite(b) else np.inf for a, b in pairs)


def _weights_apart(found: list[Outcome], expected: Outcome) -> float:
    """Against the largest number of the tensor, or the way it can have gone if that is longer: the biases of keys have
    no gradient but rounding (softmax does not see them), and start at 0."""
    ours, theirs = whole_weights(found), whole_weights([expected])
    if ours.keys() != theirs.keys():
        return np.inf
    way = sum(lr_of(step) for step in range(STEPS))  # how far AdamW can have moved a weight
    return max(float(abs(ours[name] - theirs[name]).max() / max(abs(theirs[name]).max(), way)) for name in theirs)
