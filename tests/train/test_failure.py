"""The cause of a failure among its echoes."""

import json
from pathlib import Path

import pytest

from data_prep.files import DataError, publish_json
from train.attempt import Attempt
from train.errors import FencedError, RunFailedError
from train.failure import first_failure, is_echo, record, tell_torchrun, told
from train.parallel import identity

CLOSED = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234")


@pytest.fixture
def attempt(tmp_path: Path) -> Path:
    """Of four ranks on two hosts."""
    return Attempt.take(tmp_path, 1, identity(), world_size=4, hosts=[["n1", 2], ["n2", 2]]).path


def _said(error: BaseException) -> tuple[str, int, bool]:
    assert isinstance(error, RunFailedError)
    return str(error), error.exit_code, error.is_said


def test_errors_of_lost_connections_are_echoes_and_others_are_not():
    from torch.distributed import DistNetworkError, DistStoreError

    echoes = [CLOSED, DistNetworkError("x"), DistStoreError("x"), FencedError("x"), RuntimeError("Broken pipe")]
    causes = [ValueError("Connection closed by peer"), MemoryError(), RuntimeError("shape mismatch"), BrokenPipeError()]
    assert [is_echo(error) for error in echoes + causes] == [True] * 5 + [False] * 4


def test_the_cause_is_named_though_its_echoes_were_written_first(attempt: Path):
    record(attempt, 0, "n1", 36, "train", CLOSED)
    record(attempt, 3, "n2", 36, "train", ValueError("bad\nsecond line"))
    record(attempt, 1, "n1", 36, "train", CLOSED)
    first = first_failure(attempt, 0.0)
    assert first is not None
    assert first.describe() == "rank 3 on n2 after step 36 (train): ValueError: bad"
    assert "ValueError: bad\nsecond line" in first.trace


def test_of_a_rank_the_first_failure_counts(attempt: Path):
    record(attempt, 1, "n1", 3, "train", ValueError("first"))
    record(attempt, 1, "n1", 3, "train", ValueError("second"))
    first = first_failure(attempt, 0.0)
    assert first is not None
    assert first.message == "first"


def test_a_rank_that_left_no_word_is_the_cause_if_all_others_lost_it(attempt: Path):
    for rank in (0, 1, 3):
        record(attempt, rank, "n1", 36, "train", CLOSED)
    first = first_failure(attempt, 0.0)
    assert first is not None
    assert first.describe().startswith("rank 2 on n2 after step 36 (train): silence: left no word: killed from outside")


def test_no_failure_is_none(attempt: Path):
    assert first_failure(attempt, 0.0) is None


def test_echoes_alone_give_the_earliest(attempt: Path):
    for rank in (2, 0, 1, 3):
        record(attempt, rank, "n1", 36, "train", CLOSED)
    first = first_failure(attempt, 60.0)  # does not wait: there is nobody to wait for
    assert first is not None
    assert first.rank == 2


def test_rank_0_names_the_first_failure_and_the_other_echoes_are_hushed(attempt: Path):
    error = DataError("train-0.bin is damaged")
    theirs = record(attempt, 2, "n2", 5, "train", error)
    words = "rank 2 on n2 after step 5 (train): DataError: train-0.bin is damaged"
    mine = [record(attempt, rank, "n1", 5, "train", CLOSED) for rank in (0, 1)]
    assert [_said(told(attempt, failure, CLOSED)) for failure in mine] == [(words, 3, False), (words, 3, True)]
    assert _said(told(attempt, theirs, error)) == (words, 3, False)  # rank 0 may not live to tell it


def test_if_rank_0_is_the_dead_one_the_lowest_left_speaks(attempt: Path):
    mine = [record(attempt, rank, "n1", 5, "train", CLOSED) for rank in (1, 2, 3)]
    said = [_said(told(attempt, failure, CLOSED)) for failure in mine]
    assert [is_said for _, _, is_said in said] == [False, True, True]
    assert said[0][0].startswith("rank 0 on n1 after step 5 (train): silence")


def test_what_all_find_together_is_said_by_rank_0(attempt: Path):
    error = DataError("no checkpoint can be trusted")
    failures = [record(attempt, rank, "n1", 0, "start", error) for rank in range(4)]
    assert [_said(told(attempt, failure, error))[2] for failure in failures] == [False, True, True, True]
    assert _said(told(attempt, failures[0], error))[:2] == (str(error), 3)


def test_an_error_without_a_code_of_its_own_keeps_its_trace(attempt: Path):
    error = ValueError("a mistake of ours")
    assert told(attempt, record(attempt, 1, "n1", 0, "start", error), error) is error


def test_a_fenced_rank_says_so_and_blames_nobody(attempt: Path):
    error = FencedError("attempt 1 is over")
    assert _said(told(attempt, record(attempt, 0, "n1", 5, "train", error), error)) == (str(error), 4, False)


def test_an_attempt_of_another_version_is_no_obstacle(attempt: Path):
    publish_json(attempt / "rank-00000.failure.json", {"rank": 0, "new": 1})
    (attempt / "rank-00001.failure.json").write_text("[")
    assert first_failure(attempt, 0.0) is None


def test_torchrun_reads_our_error_file(tmp_path: Path):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    tell_torchrun(tmp_path / "error.json", RunFailedError("rank 1 on n1: gone", 3, is_said=False))
    failure = ProcessFailure(local_rank=0, pid=7, exitcode=3, error_file=str(tmp_path / "error.json"))
    assert "error: rank 1 on n1: gone" in str(ChildFailedError("train", {0: failure}))
    assert "RunFailedError" in json.loads((tmp_path / "error.json").read_text())["message"]["message"]
