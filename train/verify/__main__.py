"""Proves on this machine that every layout trains alike: ten steps each, losses, gradient norms and weights compared.

    python -m train.verify                       # all cases; ranks share this machine's cores or GPUs
    python -m train.verify only="*TP*"           # those whose name matches
    python -m train.verify ranks=2 device=cpu    # those of up to two ranks, without the GPU
    python -m train.verify only="compiled*" compiler=inductor

Exit code 0 if every case keeps its bound, 5 if one does not.
"""

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass

from conf.compose import App, entry
from train.config import Device
from train.parallel_config import Compile
from train.verify.cases import Case, cases, reference_of

EXIT_NUMERICS = 5


@dataclass
class VerifyCommand:
    device: Device = Device.auto
    ranks: int = 4
    """cases of more ranks are left out, and listed"""
    only: str = "*"
    """shell pattern: cases whose name it matches"""
    compiler: Compile = Compile.aot_eager
    """of the compiled cases; inductor needs a compiler, and minutes"""

    def problems(self) -> list[str]:
        found: list[str] = []
        if self.ranks < 1:
            found.append(f"ranks={self.ranks} must be at least 1")
        if self.compiler == Compile.off:
            found.append("compiler=off: the compiled cases need one; to leave them out, choose others with only=")
        names = [case.name for case in cases()]
        if not fnmatch.filter(names, self.only):
            found.append(f"only={self.only!r} matches no case; there are: {'; '.join(names)}")
        return found


def run(command: VerifyCommand) -> int:
    """Prints a line a case as it ends, then the verdict."""
    from train.parallel import name_accelerator, share_cores

    share_cores()
    from train.verify.compare import Verdict, accelerator, isolation
    from train.verify.ranks import PRELOAD, preload

    name_accelerator(accelerator(command.device))
    preload(PRELOAD)
    chosen = [case for case in cases(command.compiler) if fnmatch.fnmatch(case.name, command.only)]
    left_out = [case.name for case in chosen if case.ranks > command.ranks]
    verdicts: list[Verdict] = []
    print(Verdict.header(), flush=True)
    for verdict in (*_compared(chosen, command), *isolation(command.device)):
        verdicts.append(verdict)
        print(verdict.line(), flush=True)
    failed = [verdict.name for verdict in verdicts if not verdict.holds]
    print(f"{len(verdicts) - len(failed)} of {len(verdicts)} hold; {len(left_out)} left out (ranks={command.ranks})")
    for name in left_out:
        print(f"  left out: {name}")
    return EXIT_NUMERICS if failed else 0


def _compared(chosen: list[Case], command: VerifyCommand) -> Iterator:
    from train.verify.compare import Comparison

    comparison = Comparison(command.device)
    for case in chosen:
        if case.ranks <= command.ranks:
            yield comparison.of(case, reference_of(case))


APP = App("verify", VerifyCommand, {}, verbatim=("only",))


def main() -> None:
    entry(APP, run)


if __name__ == "__main__":
    main()
