"""Is what is installed what this project asks for? pyproject.toml and constraints.txt against the packages at hand.

Out: lines of `launch doctor` as (status, topic, words, command). Nothing heavy is imported: only looked up.
"""

import importlib.metadata
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("train", "model", "data_prep", "launch", "conf")
Found = tuple[str, str, str, str]


def imports(root: Path) -> Iterator[Found]:
    """Names as plain as ours others use too: a `train` of another package, or of the current folder, would be run."""
    strange: list[str] = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        places = [Path(place).resolve() for place in (spec.submodule_search_locations or [])] if spec else []
        if places != [root / name]:
            strange.append(f"{name} is {spec.origin if spec else 'missing'}")
    if strange:
        words = f"{'; '.join(strange)}, not what lies in {root}"
        yield ("fix", "imports", words, f"cd {root} && make install    # in a .venv of its own")
    else:
        yield ("ok", "imports", f"all {len(PACKAGES)} packages come from {root}", "")


def packages(root: Path) -> Iterator[Found]:
    """Against the versions that are asked for, and against those that were tested."""
    from packaging.requirements import Requirement

    wanted = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    unmet: list[str] = []
    for requirement in map(Requirement, wanted):
        found = _version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            unmet.append(f"{requirement} is asked for, {found or 'nothing'} is installed")
    if unmet:
        yield ("fix", "packages", "; ".join(unmet), "make install")
        return
    other = differing((root / "constraints.txt").read_text())
    if other:
        words = f"{len(other)} differ from constraints.txt: {', '.join(other[:4])}{' ...' if len(other) > 4 else ''}"
        yield ("note", "packages", words, "pip install -c constraints.txt -e .")
    else:
        yield ("ok", "packages", "as constraints.txt has them", "")


def differing(constraints: str) -> list[str]:
    """Packages that are installed in another version, as "numpy 2.3.1 (2.4.6)". A torch 2.x.y+cpu is a 2.x.y."""
    from packaging.markers import Marker

    found: list[str] = []
    for name, pinned, marker in re.findall(r"^([\w.-]+)==(\S+)(?:\s*;\s*(.*))?$", constraints, re.MULTILINE):
        version = _version(name)
        applies = not marker or Marker(marker).evaluate()
        if version is not None and applies and version.partition("+")[0] != pinned:
            found.append(f"{name} {version} ({pinned})")
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
