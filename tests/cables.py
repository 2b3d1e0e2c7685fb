"""A network for the pretended nodes of a cluster: a namespace for each, and a cable from it to a bridge.

A cable that is pulled cuts a node off as a broken switch does: nothing is refused or reset, nothing comes through.
Needs root, and a machine that lets it make network namespaces; files and processes stay shared.
"""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

INTERFACE = "eth0"
"""of each node"""
CONTROLLER = 250


class NoCablesError(Exception):
    """Why there are none."""


class Cables:
    """Nodes n1, n2 ... at `address(1)`, `address(2)` ..., and one for their controller, number 250."""

    def __init__(self, n_nodes: int):
        missing = [name for name in ("ip", "nsenter", "unshare") if shutil.which(name) is None]
        if missing or os.geteuid() != 0:
            raise NoCablesError(f"not installed: {', '.join(missing)}" if missing else "only root can make networks")
        self.mark, self._nodes = _free_mark(), [*range(1, n_nodes + 1), CONTROLLER]
        self._net = f"10.213.{_free_subnet()}"
        try:
            self._lay()
        except subprocess.CalledProcessError as error:
            self.remove()
            raise NoCablesError(f"{' '.join(error.cmd)}: {error.stderr.strip()}") from None

    def address(self, node: int | str) -> str:
        return f"{self._net}.{node}"

    def inside(self, node: int, *words: str) -> list[str]:
        """The command, as one that runs on the node, which has a host name of its own, but for the controller's."""
        there = ["nsenter", f"--net=/run/netns/{self.mark}-{node}"]  # `ip netns exec` would hide cgroups from slurmd
        if node == CONTROLLER:
            return [*there, *words]
        return [*there, "unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', f"n{node}", *words]

    def pull(self, node: int) -> None:
        _run("ip", "link", "set", f"{self.mark}.{node}", "down")

    def plug(self, node: int) -> None:
        _run("ip", "link", "set", f"{self.mark}.{node}", "up")

    def remove(self) -> None:
        remove_cables(self.mark)

    def _lay(self) -> None:
        bridge = self.mark
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "addr", "add", f"{self.address(254)}/24", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        for node in self._nodes:
            space, cable = f"{bridge}-{node}", f"{bridge}.{node}"
            _run("ip", "netns", "add", space)
            _run("ip", "link", "add", cable, "type", "veth", "peer", "name", INTERFACE, "netns", space)
            _run("ip", "link", "set", cable, "master", bridge, "up")
            _run("ip", "-n", space, "link", "set", "lo", "up")
            _run("ip", "-n", space, "addr", "add", f"{self.address(node)}/24", "dev", INTERFACE)
            _run("ip", "-n", space, "link", "set", INTERFACE, "up")


def remove_cables(mark: str) -> None:
    """The cables of this mark, and their networks."""
    for space in Path("/run/netns").glob(f"{mark}-*"):
        with contextlib.suppress(subprocess.CalledProcessError):
            _run("ip", "netns", "del", space.name)
    with contextlib.suppress(subprocess.CalledProcessError):
        _run("ip", "link", "del", mark)


def _free_mark() -> str:
    """What is removed goes a while later, so that each time has a mark of its own."""
    taken = [path.name for path in Path("/sys/class/net").iterdir()]
    marks = (f"cr{os.getpid() % 100_000}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
    return next(mark for mark in marks if not any(name.startswith(mark) for name in taken))


def _free_subnet() -> int:
    taken = _run("ip", "-o", "-4", "addr")
    return next(i for i in range(os.getpid() % 200, 250) if f" 10.213.{i}." not in taken)


def _run(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout
