"""A place at which batch scripts run for real, with stand-ins for Slurm's own programs and for what the ranks run."""

import json
import subprocess
import sys
from pathlib import Path

from conf.compose import App, compose
from launch.batch_script import script
from launch.job import Job
from launch.submit_config import SubmitConfig
from train.optimizer_config import OPTIONS

APP = App("launch_submit", SubmitConfig, OPTIONS)


def words(*more: str) -> list[str]:
    return [
        "experiment=debug",
        "run.name=hello",
        "job.nodes=2",
        "job.ranks_per_node=2",
        "batch.micro_batch_size=1",
        *more,
    ]


def written(*more: str) -> str:
    typed = words(*more)
    config = compose(APP, typed)
    return script(config, Job.of(config, typed))


class Desk:
    """A folder in which a script runs. `srun` runs `python -m train` once, which is a stand-in too: it writes down its
    words and its variables, and does what `rank` says, in the shell."""

    def __init__(
        self, folder: Path, rank: str = "exit 0", state: str = "RUNNING", silent: int = 0, preflight: str = "exit 0"
    ):
        """state: of the job, as Slurm tells it, but for the first `silent` times that it is asked. preflight: as rank,
        of the module train.preflight. Waiting are jobs 8 and 9 of the same name, of which 9 leaves n5 out."""
        self.folder, self.bin = folder, folder / "bin"
        (folder / "runs" / "hello" / "slurm").mkdir(parents=True)
        self.bin.mkdir()
        shown = f"JobId=7 JobName=x JobState={state} Requeue=1 Restarts=$(cat {folder}/restarts) BatchFlag=1 "
        shown += "ExcNodeList=$([ $4 = 9 ] && echo n5 || echo '(null)') BatchHost=n1"
        asked = f'echo "$@" >>{folder}/asked; case "$1 $2" in "show node") echo " NodeAddr=10.0.0.7 NodeHost" ;; '
        asked += '"show hostnames") printf "n1\\nn2\\n" ;; '
        asked += f'"show job") [ $(grep -c "show job" {folder}/asked) -gt {silent} ] && echo "{shown}" ;; esac'
        self._program("squeue", "echo 8; echo 9")
        self._program("scancel", f'echo "scancel $@" >>{folder}/asked')
        self._program("scontrol", asked)
        self._program("sleep", f'echo "$1" >>{folder}/slept; exec /bin/sleep 0.1')
        self._program(
            "srun",
            f"echo ${{SLURM_OVERLAP:-0}} >>{folder}/steps\n" + 'while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"',
        )
        record = f"import json, os, sys; json.dump([sys.argv[1:], dict(os.environ)], open('{folder}/seen', 'w'))"
        self._program(
            "python",
            f'[ "$1" = -m ] || {{ echo 29123; exit; }}\necho "$2" >>{folder}/modules\n'
            f'[ "$2" = train ] || {{ ( {preflight} ); exit; }}\n{sys.executable} -c "{record}" "$@"\n{rank}',
        )

    def _program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(f"#!/bin/bash\n{text}\n")
        (self.bin / name).chmod(0o755)

    def start(
        self,
        text: str,
        restarts: int = 0,
        restarts_by_now: int | None = None,
        environment: dict[str, str] | None = None,
    ) -> "subprocess.Popen[str]":
        (self.folder / "restarts").write_text(str(restarts if restarts_by_now is None else restarts_by_now))
        here = f"python={self.bin}/python\nrun={self.folder}/runs/hello\ncd -- {self.folder}\n"
        before, mark, after = text.partition("\n# A signal to this script")
        environment = (environment or {}) | {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "SLURMD_NODENAME": "n1",
            "SLURM_EXPORT_ENV": "PATH",
        }
        environment |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}
        environment |= {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
        (self.folder / "slurm_script").write_text(before + "\n" + here + mark + after)
        return subprocess.Popen(
            ["bash", str(self.folder / "slurm_script")],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def end(self, text: str, *more: int, environment: dict[str, str] | None = None, **named: int) -> tuple[int, str]:
        """As `start`; its exit code, and all that it printed."""
        process = self.start(text, *more, environment=environment, **named)
        printed, _ = process.communicate(timeout=60)
        return process.returncode, printed

    @property
    def requeued(self) -> bool:
        return "requeue 7" in self.asked()

    def asked(self) -> list[str]:
        """What scontrol and scancel were told."""
        file = self.folder / "asked"
        return file.read_text().splitlines() if file.exists() else []

    def seen(self) -> tuple[list[str], dict[str, str]]:
        return json.loads((self.folder / "seen").read_text())
