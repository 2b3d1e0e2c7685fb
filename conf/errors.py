"""What the user asked for cannot be run."""

from collections.abc import Sequence


class ConfigError(Exception):
    """Carries all problems, one message each."""

    exit_code = 2

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        noun = "problem" if len(self.problems) == 1 else "problems"
        lines = [f"{len(self.problems)} {noun} in the configuration; nothing was started."]
        lines += [f"  {i}. {problem}" for i, problem in enumerate(self.problems, 1)]
        super().__init__("\n".join(lines))
