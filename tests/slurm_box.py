"""A Slurm cluster for tests: the one at hand, or a throw-away one whose nodes all live on this machine.

Its own needs the programs slurmctld, slurmd, sbatch and munged (Debian: `apt-get install slurmctld slurmd slurm-client
munge`), but neither root nor a service manager: every daemon runs in the foreground as a child of the test, listens on
127.0.0.1 only, and keeps all its files below one folder. Nodes take no notice of each other's existence on one machine
because each slurmd has a name and a port of its own. With cables (tests/cables.py, which need root) each node has a
network of its own, and can be cut off. Whatever runs in a box knows it by SLURM_CONF, and by that it is ended; should
the tests be killed, a guard does it.
"""

import contextlib
import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.cables import CONTROLLER, INTERFACE, Cables, NoCablesError, remove_cables

PROGRAMS = ("sbatch", "scontrol", "squeue", "scancel", "slurmctld", "slurmd", "munged")
START_SECONDS = 90.0
NODES = 5
MAX_ARRAY_SIZE = 4
KILL_WAIT = 120
"""seconds from SIGTERM to SIGKILL of a job that is cancelled or requeued: enough for a save on a loaded machine"""

CONF = """\
ClusterName=box
SlurmctldHost={host}({controller})
SlurmctldPort={port}
{bind}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=6
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
ReturnToService=2
KillWait={kill_wait}
# on a loaded machine nothing is given up but by a test
MessageTimeout=20
BatchStartTimeout=600
SlurmdTimeout=3600
UnkillableStepTimeout=600
MinJobAge=3600
MaxArraySize={max_array_size}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr={addresses} Port={ports} CPUs=1 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP GraceTime={kill_wait}
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


class NoSlurmError(Exception):
    """Why there is no cluster."""


class Cluster:
    def __init__(self, env: dict[str, str]):
        self.env = env

    @staticmethod
    def at_hand() -> "Cluster | None":
        """The one that the sbatch on the PATH belongs to, if its controller answers."""
        if shutil.which("sbatch") is None:
            return None
        done = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, check=False)
        return Cluster(dict(os.environ)) if " UP" in done.stdout else None

    def ask(self, *words: str) -> str:
        return subprocess.run(words, env=self.env, capture_output=True, text=True, check=True).stdout

    def wait_until_empty(self, seconds: float = 600) -> None:
        """Until no job waits or runs."""
        until = time.monotonic() + seconds
        while self.ask("squeue", "--me", "--noheader"):
            assert time.monotonic() < until, self.ask("squeue")
            time.sleep(0.2)


class Boxes:
    """The cluster that the tests of a session share, as long as each leaves it as it was."""

    def __init__(self, folder: Path):
        self._folder, self._made = folder, 0
        self._box: Box | None = None
        self._why_none = ""

    def sound(self) -> "Box":
        """In which nothing runs, and all nodes work. Raises NoSlurmError."""
        if self._box is not None and not self._box.is_sound():
            self.stop()
        if self._why_none:
            raise NoSlurmError(self._why_none)
        try:
            self._box = self._box or self._start()
        except NoSlurmError as error:
            self._why_none = str(error)
            raise
        return self._box

    def stop(self) -> None:
        if self._box is not None:
            self._box.stop()
        self._box = None

    def _start(self) -> "Box":
        """Once more if a port was taken meanwhile. Without cables where there are none, or Slurm does not come up with
        them, as behind a firewall."""
        missing = [name for name in PROGRAMS if shutil.which(name, path=_search_path()) is None]
        if missing:
            raise NoSlurmError(f"not installed: {', '.join(missing)}")
        try:
            return Box(self._next_folder(), Cables(NODES))
        except (NoCablesError, NoSlurmError) as error:
            why_no_cables = str(error)
        try:
            return Box(self._next_folder(), None, why_no_cables)
        except NoSlurmError:
            return Box(self._next_folder(), None, why_no_cables)

    def _next_folder(self) -> Path:
        self._made += 1
        return self._folder / str(self._made)


class Box(Cluster):
    """A running cluster of nodes n1, n2 ..., of one core each; only what it started is ever ended."""

    def __init__(self, folder: Path, cables: Cables | None, why_no_cables: str | None = None):
        """cables: as many as nodes; removed when the box stops. Raises NoSlurmError."""
        self.folder, self._cables, self.why_no_cables = folder, cables, why_no_cables
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        super().__init__(outside | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _search_path()})
        self._guard = _guard(folder, cables.mark if cables else "")
        try:
            self._write_settings()
            self._start()
        except BaseException:
            self.stop()
            raise

    @property
    def _conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def interface(self) -> str:
        """By which processes on different nodes reach each other."""
        return INTERFACE if self._cables else "lo"

    def kill_node(self, name: str) -> None:
        """The node loses its power, and the controller learns of it."""
        daemon = self._children.pop(name)
        _kill([daemon.pid, *_tree(self._steps(name))])
        daemon.wait()
        self._give_up(name)

    def cut_off(self, name: str) -> None:
        """Nothing comes to the node any more, or from it; the controller gives it up. Needs cables."""
        assert self._cables is not None
        self._cables.pull(int(name[1:]))
        self._give_up(name)

    def reach_again(self, name: str) -> None:
        assert self._cables is not None
        self._cables.plug(int(name[1:]))

    def up(self) -> list[str]:
        """Nodes that work."""
        return self.ask("sinfo", "--noheader", "--Node", "--partition=main", "--responding", "--format=%n").split()

    def tasks(self, name: str) -> list[int]:
        """Processes of jobs on the node, parents first."""
        return [*_tree(self._steps(name))]

    @contextlib.contextmanager
    def impatient(self) -> Iterator[None]:
        """KillWait is short: for jobs that cannot save whatever they are given."""
        self._set_kill_wait(2)
        yield
        self._set_kill_wait(KILL_WAIT)

    def is_sound(self) -> bool:
        """Nodes and queue are as at first, or become so in a moment."""
        until = time.monotonic() + 20
        while all(child.poll() is None for child in self._children.values()) and len(self._children) == NODES + 2:
            if self._all_idle() and not self.ask("squeue", "--noheader"):
                return f"KillWait={KILL_WAIT}\n" in self._conf.read_text()
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
        return False

    def _set_kill_wait(self, seconds: int) -> None:
        self._conf.write_text(re.sub(r"(?m)^KillWait=.*$", f"KillWait={seconds}", self._conf.read_text()))
        self.ask("scontrol", "reconfigure")

    def _give_up(self, name: str) -> None:
        self.ask("scontrol", "update", f"nodename={name}", "state=down", "reason=lost by a test")

    def stop(self) -> None:
        for child in self._children.values():
            child.kill()
            child.wait()
        _sweep(self.folder)
        if self._cables:
            self._cables.remove()
        self._guard.kill()
        self._guard.wait()

    def _write_settings(self) -> None:
        for name in ("state", *(f"n{i}" for i in range(1, NODES + 1))):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        port = _free_ports(NODES + 1)
        cables = self._cables
        conf = CONF.format(
            host=socket.gethostname().split(".")[0],
            user=getpass.getuser(),
            folder=self.folder,
            port=port,
            controller=cables.address(CONTROLLER) if cables else "127.0.0.1",
            bind="" if cables else "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny",
            addresses=cables.address(f"[1-{NODES}]") if cables else "127.0.0.1",
            ports=port + 1 if cables else f"[{port + 1}-{port + NODES}]",
            nodes=NODES,
            max_array_size=MAX_ARRAY_SIZE,
            kill_wait=KILL_WAIT,
        )
        self._conf.write_text(conf)

    def _start(self) -> None:
        below = self.folder
        self._spawn(
            "munged",
            *("munged", "--foreground", "--force", f"--socket={below}/munge.socket", f"--key-file={below}/munge.key"),
            *(f"--pid-file={below}/munged.pid", f"--seed-file={below}/munge.seed", f"--log-file={below}/munged.log"),
        )
        self._wait_for("munged", (below / "munge.socket").exists)
        self._spawn("slurmctld", *self._on(CONTROLLER, "slurmctld", "-D", "-i"))
        for i in range(1, NODES + 1):
            self._spawn(f"n{i}", *self._on(i, "slurmd", "-D", "-N", f"n{i}"))
        self._wait_for("slurmctld", self._all_idle)

    def _on(self, node: int, *words: str) -> list[str]:
        return self._cables.inside(node, *words) if self._cables else [*words]

    def _spawn(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.out").open("wb") as out:
            self._children[name] = subprocess.Popen(
                words, env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def _wait_for(self, name: str, ready: Callable[[], bool]) -> None:
        until = time.monotonic() + START_SECONDS
        while not ready():
            dead = [child for child, process in self._children.items() if process.poll() is not None]
            if dead or time.monotonic() > until:
                which = dead[0] if dead else name
                said = (self.folder / f"{which}.out").read_text(errors="replace").strip().splitlines()[-3:]
                raise NoSlurmError(f"{which} does not come up here: {' | '.join(said)}")
            time.sleep(0.1)

    def _all_idle(self) -> bool:
        words = ["sinfo", "--noheader", "--Node", "--partition=main", "--format=%T"]
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, check=False)
        return done.stdout.split() == ["idle"] * NODES

    def _steps(self, node: str) -> list[int]:
        """slurmstepd processes that hold a file of this node."""
        mine = (f"{self.folder}/{node}/", f"{self.folder}/{node}.log")
        return [pid for pid in _processes() if _name(pid) == "slurmstepd" and _holds(pid, mine)]


def _guard(folder: Path, mark: str) -> "subprocess.Popen[bytes]":
    """A process that clears the box away when this one is gone and could not."""
    words = [sys.executable, "-m", "tests.slurm_box", str(os.getpid()), str(folder), mark]
    root = Path(__file__).parents[1]
    return subprocess.Popen(words, cwd=root, stdin=subprocess.DEVNULL, start_new_session=True)


def _sweep(folder: Path) -> None:
    """Ends what has come from the box, until nothing is left."""
    mark = f"SLURM_CONF={folder / 'slurm.conf'}".encode()
    until = time.monotonic() + 30
    while (found := [pid for pid in _processes() if mark in _environment(pid)]) and time.monotonic() < until:
        _kill(found)
        time.sleep(0.05)


def _search_path() -> str:
    """Debian keeps the daemons where only root looks."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _free_ports(n: int) -> int:
    """The first of n ports in a row that nobody listens on."""
    for first in range(27_000 + os.getpid() % 1000 * 4, 60_000, n):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + n):
                    stack.enter_context(contextlib.closing(socket.socket())).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise NoSlurmError("no free ports")


def _processes() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _environment(pid: int) -> list[bytes]:
    """As it was when the program began; none of what has ended, or is not ours to look at."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return []


def _holds(pid: int, parts: tuple[str, ...]) -> bool:
    found = False
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            target = str(link.readlink())
            found = found or target.startswith(parts)
    return found


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _tree(pids: list[int]) -> Iterator[int]:
    """The processes and all that descend from them, parents first."""
    for pid in pids:
        yield pid
        children: list[int] = []
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                children += map(int, file.read_text().split())
        yield from _tree(children)


if __name__ == "__main__":
    parent, box, mark = sys.argv[1:]
    while os.getppid() == int(parent):
        time.sleep(0.5)
    _sweep(Path(box))
    if mark:
        remove_cables(mark)
