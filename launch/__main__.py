"""Before and after the GPUs.

python -m launch plan experiment=debug                       # what it needs in memory, time and money
python -m launch plan experiment=llama_100m cluster=h100     # on another machine than this one
python -m launch plan experiment=debug total_tokens=5_000_000
"""

import sys

from conf.compose import App, entry
from train.config import OPTIONS, TrainConfig

VERBS = ("plan",)


def main() -> None:
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if verb not in VERBS:
        asked = f"`{verb}` is not one of the commands.\n\n" if verb and not verb.startswith("-") else ""
        print(f"{asked}{(__doc__ or '').strip()}", file=sys.stderr if asked else sys.stdout)
        sys.exit(2 if asked else 0)
    del sys.argv[1]
    if not any(word.lstrip("+").startswith("run.name=") for word in sys.argv):
        sys.argv.append("run.name=planned")  # a plan is about a run that need not have a name yet

    from launch.plan import plan

    entry(App("train", TrainConfig, OPTIONS), plan)


if __name__ == "__main__":
    main()
