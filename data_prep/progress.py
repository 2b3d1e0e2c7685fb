"""A live line about a long job on standard error: share done, rates, time left.

On a terminal one line is rewritten; in a log a plain line appears now and then.
"""

import sys
import time
from typing import TextIO

from data_prep.jobs import Done

TERMINAL_SECONDS = 0.2
LOG_SECONDS = 15.0


class Progress:
    """`total_bytes`: the weight of all jobs that are to be done now, `n_jobs` their number."""

    def __init__(self, label: str, total_bytes: int, n_jobs: int, stream: TextIO | None = None):
        self._label = label
        self._total_bytes = max(1, total_bytes)
        self._n_jobs, self._jobs_done = n_jobs, 0
        self._stream = stream if stream is not None else sys.stderr
        self._live = self._stream.isatty()
        self._started = self._shown = time.monotonic()
        self._whole = 0  # bytes of finished jobs
        self._partial = 0  # bytes told of by jobs since; close enough while several run at once
        self._documents = self._text_bytes = self._tokens = 0

    def note(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def advance(self, done: Done) -> None:
        self._partial += done.bytes
        self._documents += done.documents
        self._text_bytes += done.text_bytes
        self._tokens += done.tokens
        if time.monotonic() - self._shown >= (TERMINAL_SECONDS if self._live else LOG_SECONDS):
            self._show("\r" if self._live else "", "" if self._live else "\n")

    def job_done(self, n_bytes: int) -> None:
        self._jobs_done += 1
        self._whole += n_bytes
        self._partial = max(0, self._partial - n_bytes)

    def close(self) -> None:
        """The last line, with the totals."""
        self._show("\r" if self._live else "", "\n")

    def _show(self, start: str, end: str) -> None:
        self._shown = time.monotonic()
        seconds = max(1e-9, self._shown - self._started)
        share = (
            1.0 if self._jobs_done == self._n_jobs else min(0.999, (self._whole + self._partial) / self._total_bytes)
        )
        parts = [f"{self._label:<13} {share:6.1%}  {self._jobs_done:,}/{self._n_jobs:,} tasks"]
        if self._text_bytes:
            parts.append(f"{self._text_bytes / 1e6:,.1f} MB text  {self._text_bytes / 1e6 / seconds:.1f} MB/s")
        if self._documents:
            parts.append(f"{self._documents / seconds:,.0f} documents/s")
        if self._tokens:
            parts.append(f"{self._tokens / seconds:,.0f} tokens/s")
        parts.append(f"{seconds:.1f} s" if share == 1 else f"{seconds / max(share, 1e-3) - seconds:,.0f} s left")
        line = "  ".join(parts)
        print(f"{start}{line:<120}" if self._live else line, end=end, file=self._stream, flush=True)
