"""Before and after the GPUs.

python -m launch plan experiment=debug                       # what it needs in memory, time and money
python -m launch plan experiment=llama_100m cluster=h100     # on another machine than this one
python -m launch plan model=llama3_8b cluster=h100 cluster.n_devices=64 search=true       # the fastest layouts that fit
python -m launch submit experiment=llama_100m run.name=web cluster=h100 job.gpus_per_node=1        # a job of Slurm
python -m launch data out=data/web source=jsonl source.paths=[crawl/] slurm.partition=cpu   # data_prep, by job arrays
python -m launch watch                                       # all runs in a live table: progress, loss, MFU, ETA, cost
python -m launch status run=hello                            # the same once; of one run its attempts, checkpoints too
python -m launch logs run=hello follow=true                  # what it printed, and prints, over restarts
python -m launch report run=hello                            # a page: curves, plan against what came, incidents
python -m launch doctor                                      # what this machine can do, and what to mend
python -m launch sweep sweep=demo start=true                            # many runs, their law, a forecast scored
python -m launch ledger runs=runs/                           # a row a run: FLOPs, tokens, cost, loss, verdict
python -m launch fit runs=runs/ at.flops=1e18                # laws of loss from many runs, with intervals
python -m launch advise runs=runs/ budget.flops=1e18         # what to train for a budget, or to reach a loss
python -m launch forecast sweep=sweeps/demo                  # its sealed forecasts and their scores; was any altered?

Each takes --help.
"""

import sys
from typing import Any

from launch.installation import leave_without

try:
    from conf.compose import App, entry
    from data_prep.__main__ import APP as DATA_PREP
    from launch.data_config import LaunchDataConfig
except ModuleNotFoundError as error:
    leave_without(error)

LOOKS = ("status", "logs", "watch", "report")
VERBS = ("plan", "submit", "data", "sweep", "ledger", "fit", "forecast", "advise", *LOOKS, "doctor")
A_FOLDER = ("sweep",)
"""as typed: to `launch sweep` it is a choice among conf/sweep, to those that look at one its folder"""
LAUNCH_DATA = App("launch_data", LaunchDataConfig, DATA_PREP.options)


def main() -> None:
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if verb not in VERBS:
        asked = f"`{verb}` is not one of the commands.\n\n" if verb and not verb.startswith("-") else ""
        print(f"{asked}{(__doc__ or '').strip()}", file=sys.stderr if asked else sys.stdout)
        sys.exit(2 if asked else 0)
    del sys.argv[1]
    try:
        _do(verb)
    except ModuleNotFoundError as error:
        leave_without(error)


def _do(verb: str) -> None:
    match verb:
        case "plan":
            _plan()
        case "submit":
            _submit()
        case "sweep":
            _sweep()
        case "ledger":
            _ledger()
        case "fit":
            _fit()
        case "advise":
            _advise()
        case "forecast":
            _forecast()
        case "data":
            _data()
        case "doctor":
            _doctor()
        case _:
            _look(verb)


def _plan() -> None:
    if not any(word.lstrip("+").startswith("run.name=") for word in sys.argv):
        sys.argv.append("run.name=planned")  # a plan is about a run that need not have a name yet

    from launch.plan import plan
    from launch.plan_config import PlanConfig
    from train.optimizer_config import OPTIONS

    entry(App("launch_plan", PlanConfig, OPTIONS), plan)


def _submit() -> None:
    from launch.submit import submit
    from launch.submit_config import SubmitConfig
    from train.optimizer_config import OPTIONS

    words = sys.argv[1:]
    entry(App("launch_submit", SubmitConfig, OPTIONS), lambda config: submit(config, words))


def _doctor() -> None:
    from launch.doctor import DoctorCommand, doctor

    entry(App("launch_doctor", DoctorCommand, {}), doctor)


def _sweep() -> None:
    from launch.sweep.command import sweep
    from launch.sweep.config import CELL, SweepConfig
    from train.optimizer_config import OPTIONS

    if not any(word.lstrip("+").startswith("run.name=") for word in sys.argv):
        sys.argv.append(f"run.name={CELL}")  # each cell has a name of its own
    entry(App("launch_sweep", SweepConfig, OPTIONS), sweep)


def _ledger() -> None:
    from launch.ledger import ledger
    from launch.ledger_config import LedgerConfig

    entry(App("launch_ledger", LedgerConfig, {}), ledger)


def _fit() -> None:
    from launch.fit import fit
    from launch.fit_config import FitConfig

    entry(App("launch_fit", FitConfig, {}), fit)


def _advise() -> None:
    from launch.advise import advise
    from launch.advise_base import sweep_words
    from launch.advise_config import AdviseConfig
    from train.optimizer_config import OPTIONS

    base, source = sweep_words(sys.argv[1:])
    named = any(word.lstrip("+").startswith("run.name=") for word in sys.argv)
    words = [*base, *sys.argv[1:], *([] if named else ["run.name=advised"])]
    sys.argv[1:] = words
    entry(App("launch_advise", AdviseConfig, OPTIONS), lambda config: advise(config, words, source))


def _forecast() -> None:
    from launch.forecast_text import ForecastConfig, forecast

    entry(App("launch_forecast", ForecastConfig, {}, A_FOLDER), forecast)


def _data() -> None:
    words = sys.argv[1:]

    def run(config: LaunchDataConfig) -> None:
        from launch.data_array import launch_data

        launch_data(config, words)

    entry(LAUNCH_DATA, run)


def _look(verb: str) -> None:
    """At runs that there are."""
    from launch import look_config

    def run(config: Any) -> int | None:
        match verb:
            case "status":
                from launch.status import status

                return status(config)
            case "logs":
                from launch.logs import logs

                return logs(config)
            case "watch":
                from launch.watch import watch

                return watch(config)
            case _:
                from launch.report import report

                return report(config)

    verbatim = A_FOLDER if verb == "report" else ()
    entry(App(f"launch_{verb}", getattr(look_config, f"{verb.capitalize()}Config"), {}, verbatim), run)


if __name__ == "__main__":
    main()
