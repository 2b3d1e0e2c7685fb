"""Before and after the GPUs.

python -m launch plan experiment=debug                       # what it needs in memory, time and money
python -m launch plan experiment=llama_100m cluster=h100     # on another machine than this one
python -m launch plan model=llama3_8b cluster=h100 cluster.n_devices=64 search=true       # the fastest layouts that fit
python -m launch submit experiment=llama_100m run.name=web cluster=h100 slurm.gpus_per_node=1      # a job of Slurm
python -m launch data out=data/web source=jsonl source.paths=[crawl/] slurm.partition=cpu   # data_prep, by job arrays
python -m launch fit runs=runs/ at.flops=1e18                # laws of loss from many runs, with intervals

Each takes --help.
"""

import sys

from conf.compose import App, entry
from data_prep.__main__ import APP as DATA_PREP
from launch.data_config import LaunchDataConfig

VERBS = ("plan", "submit", "data", "fit")
LAUNCH_DATA = App("launch_data", LaunchDataConfig, DATA_PREP.options)


def main() -> None:
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if verb not in VERBS:
        asked = f"`{verb}` is not one of the commands.\n\n" if verb and not verb.startswith("-") else ""
        print(f"{asked}{(__doc__ or '').strip()}", file=sys.stderr if asked else sys.stdout)
        sys.exit(2 if asked else 0)
    del sys.argv[1]
    match verb:
        case "plan":
            _plan()
        case "submit":
            _submit()
        case "fit":
            _fit()
        case _:
            _data()


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


def _fit() -> None:
    from launch.fit import fit
    from launch.fit_config import FitConfig

    entry(App("launch_fit", FitConfig, {}), fit)


def _data() -> None:
    words = sys.argv[1:]

    def run(config: LaunchDataConfig) -> None:
        from launch.data_array import launch_data

        launch_data(config, words)

    entry(LAUNCH_DATA, run)


if __name__ == "__main__":
    main()
