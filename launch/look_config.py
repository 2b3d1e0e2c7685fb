"""What can be asked about runs that there are: of status, logs, watch and report. Only dataclasses."""

from dataclasses import dataclass


def _name_problems(run: str | None) -> list[str]:
    if run is None or (run and "/" not in run and run not in (".", "..") and "\0" not in run):
        return []
    return [f"run={run!r} is a run's name, as run.name gave it; folder=DIR says where the runs lie"]


@dataclass
class StatusConfig:
    run: str | None = None
    """one run's name: all that is known of it; null shows a table of all"""
    folder: str = "runs"
    """where the runs lie, as run.folder says to train"""
    json: bool = False
    """print JSON, for programs"""

    def problems(self) -> list[str]:
        return _name_problems(self.run)


@dataclass
class LogsConfig:
    run: str
    """its name"""
    folder: str = "runs"
    """where the runs lie"""
    attempt: int | None = None
    """what this attempt printed; null means the newest job's log"""
    lines: int = 50
    """so many from the end"""
    follow: bool = False
    """go on with what is written from now on, in the logs of later jobs too, until the run has finished or Ctrl-C"""

    def problems(self) -> list[str]:
        found = _name_problems(self.run)
        if self.attempt is not None and self.attempt < 1:
            found.append(f"attempt={self.attempt}: attempts are counted from 1; null is the newest")
        if self.lines < 1:
            found.append(f"lines={self.lines} must be at least 1")
        if self.follow and self.attempt is not None:
            found.append("follow=true goes on with the newest log, attempt=N shows an earlier one: ask one of them")
        return found


@dataclass
class WatchConfig:
    folder: str = "runs"
    """where the runs lie"""
    every_seconds: float = 2.0
    """between two looks"""
    once: bool = False
    """print the table once, and end"""

    def problems(self) -> list[str]:
        return [] if self.every_seconds >= 0.2 else [f"every_seconds={self.every_seconds} must be at least 0.2"]


@dataclass
class ReportConfig:
    run: str | None = None
    """its name; or instead"""
    sweep: str | None = None
    """a sweep's folder, sweeps/NAME: a page of all its runs, in that folder"""
    folder: str = "runs"
    """where the runs lie"""
    to: str | None = None
    """the file to write; null means report.html in the run's folder"""

    def problems(self) -> list[str]:
        found = [] if self.run is None else _name_problems(self.run)
        if (self.run is None) == (self.sweep is None):
            found.append("give one of the two: run=NAME for the page of a run, sweep=sweeps/NAME for that of a sweep")
        if self.sweep is not None and (self.to is not None or self.folder != "runs"):
            found.append("sweep=FOLDER: its page and pictures go into that folder; leave out to= and folder=")
        if self.to is not None and not self.to.endswith((".html", ".htm")):
            found.append(f"to={self.to}: a page's name ends in .html")
        return found
