"""A live line about a long job on standard error: share done, rates, time left.

On a terminal one line is rewritten; in a log a plain line appears now and then.
"""

import sys
import time
from typing import TextIO

TERMINAL_SECONDS = 0.2
LOG_SECONDS = 15.0


class Progress:
    """`total_bytes`: input bytes as stored, of all that is to be done now."""

    def __init__(self, label: str, total_bytes: int, stream: TextIO | None = None):
        self._label = label
        self._total_bytes = max(1, total_bytes)
        self._stream = stream if stream is not None else sys.stderr
        self._live = self._stream.isatty()
        self._started = self._shown = time.monotonic()
        self._before = 0  # input bytes of finished files
        self._now = 0
        self.text_bytes = 0
        self.tokens = 0

    def advance(self, file_bytes: int, text_bytes: int, tokens: int) -> None:
        """`file_bytes`: how far the current input has been read; the other two are what this batch added."""
        self._now = file_bytes
        self.text_bytes += text_bytes
        self.tokens += tokens
        if time.monotonic() - self._shown >= (TERMINAL_SECONDS if self._live else LOG_SECONDS):
            self._show("\r" if self._live else "", "" if self._live else "\n")

    def file_done(self, n_bytes: int) -> None:
        self._before += n_bytes
        self._now = 0

    def close(self) -> None:
        """The last line, with the totals."""
        self._show("\r" if self._live else "", "\n")

    def _show(self, start: str, end: str) -> None:
        self._shown = time.monotonic()
        seconds = max(1e-9, self._shown - self._started)
        share = min(1.0, (self._before + self._now) / self._total_bytes)
        megabytes = self.text_bytes / 1e6
        line = f"{self._label} {share:6.1%}  {megabytes:,.1f} MB text  {megabytes / seconds:.2f} MB/s"
        if self.tokens:
            line += f"  {self.tokens / seconds:,.0f} tokens/s"
        line += f"  {seconds:.1f} s" if share == 1 else f"  {seconds / max(share, 1e-3) - seconds:,.0f} s left"
        print(f"{start}{line:<100}" if self._live else line, end=end, file=self._stream, flush=True)
