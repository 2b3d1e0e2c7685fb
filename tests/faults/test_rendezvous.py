"""Ranks that cannot meet say so, in time, with the address that they tried."""

import functools
import os
import re
import socket
from pathlib import Path

from tests.faults.jobs import Job
from train.parallel import free_port


def elsewhere(host: str | None, port: int | None, absent: int | None, rank: int) -> None:
    """The ranks are sent to this address, and wait for three seconds only; one of them does not come at all."""
    from train.engine import library

    library.JOIN_SECONDS, library.SAID_AFTER_SECONDS = 3.0, 0.5
    os.environ |= {"MASTER_ADDR": host} if host else {}
    os.environ |= {"MASTER_PORT": str(port)} if port else {}
    if rank == absent:
        os._exit(7)


def test_a_port_that_is_taken_is_named_and_nobody_waits_for_the_stranger(here: Path):
    """F26: rank 0 knows at once. The other one talks to whoever has the port, and gets no answer."""
    port = free_port()
    with socket.create_server(("", port)):
        job = Job(here, "run.name=met", fault=functools.partial(elsewhere, None, port, None))
        assert job.end() == [1, 1], job.printed()
    assert f"127.0.0.1:{port} (MASTER_ADDR, MASTER_PORT): the port is taken" in job.printed()


def test_a_host_without_an_address_is_named(here: Path):
    """F26"""
    job = Job(here, "run.name=met", fault=functools.partial(elsewhere, "nowhere.invalid", None, None))
    assert job.end() == [1, 1], job.printed()
    said = re.findall(r"no rank can be met at nowhere\.invalid:\d+ .*has no address here", job.printed())
    assert len(said) == 2


def test_who_waits_for_a_rank_that_does_not_come_says_so_and_ends(here: Path):
    """F26: on both sides, within the time stated instead of half an hour."""
    jobs: list[Job] = []
    for absent in (1, 0):  # both at once
        folder = here / str(absent)
        folder.mkdir()
        (folder / "data").symlink_to(here / "data")
        jobs.append(Job(folder, "run.name=met", fault=functools.partial(elsewhere, None, None, absent)))
    for job, absent, waits in zip(jobs, (1, 0), (0, 1), strict=True):
        codes = job.end()
        assert (codes[absent], codes[waits]) == (7, 1), job.printed()
        assert re.search(r"still waiting for all ranks to meet at 127\.0\.0\.1:\d+", job.printed()), job.printed()
        assert re.search(r"did not meet at 127\.0\.0\.1:\d+ .* within 3 s", job.printed()), job.printed()


def test_a_process_alone_meets_nobody_wherever_it_was_told_to(here: Path):
    """F26"""
    job = Job(
        here,
        *("run.name=alone", "run.stop_at_step=1"),
        ranks=1,
        fault=functools.partial(elsewhere, "nowhere.invalid", None, None),
    )
    assert job.end() == [0], job.printed()
