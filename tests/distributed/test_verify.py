"""The parity suite itself, case by case; and that it can fail."""

from dataclasses import replace

import pytest

from tests.distributed.ranks import run_ranks  # sets the fork server up for tests
from train.config import Device, LossConfig
from train.verify.cases import Case, Family, Rows, cases, reference_of
from train.verify.compare import Comparison, isolation, whole_weights
from train.verify.runs import Outcome, by_engine

comparison = Comparison(Device.cpu)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_every_layout_trains_like_its_reference(case: Case):
    verdict = comparison.of(case, reference_of(case))
    assert verdict.holds, verdict.line()


def test_no_document_leaks_into_another():
    assert [verdict.holds for verdict in isolation(Device.cpu)] == [True] * len(Family)


def test_cases_have_names_of_their_own():
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "wrong",
    [Case("no z-loss"), Case("other rows", rows=Rows.ragged), Case("another network", family=Family.gpt2)],
    ids=lambda case: case.name,
)
def test_what_differs_does_not_hold(wrong: Case):
    case = Case("z-loss", loss=LossConfig(1e-2))
    verdict = comparison.of(case, wrong)
    assert not verdict.holds
    assert "FAIL" in verdict.line()


def test_a_rank_that_raises_fails_its_case_with_its_traceback():
    case = Case("eight rows on three ranks", ranks=3)
    verdict = comparison.of(case, reference_of(case))
    assert not verdict.holds
    assert "Traceback" in verdict.bound.why


def test_weights_that_come_twice_or_never_are_seen():
    one = run_ranks(by_engine, 1, replace(cases()[0]), Device.cpu)[0]
    with pytest.raises(ValueError, match="held twice"):
        whole_weights([one, one])
    part = Outcome(one.losses, one.norms, [(replace(f, stop=f.stop - 1), v[:-1]) for f, v in one.weights])
    with pytest.raises(ValueError, match="no rank holds all of"):
        whole_weights([part])
