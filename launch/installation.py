"""Is what is installed what this project asks for? pyproject.toml and constraints.txt against the packages at hand.

Out: lines of `launch doctor` as (status, topic, words, command). Nothing heavy is imported: only looked up; the
standard library is enough to import this.
"""

import importlib.metadata
import importlib.util
import itertools
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

PACKAGES = ("train", "model", "data_prep", "launch", "conf")
Found = tuple[str, str, str, str]


def imports(root: Path) -> Iterator[Found]:
    """Names as plain as ours others use too: a `train` of another package, or of the current folder, would be run."""
    strange: dict[str, Path | None] = {}
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        places = [Path(place).resolve() for place in (spec.submodule_search_locations or [])] if spec else []
        if places != [root / name]:
            strange[name] = places[0] if places else Path(spec.origin) if spec and spec.origin else None
    if strange:
        found = "; ".join(f"{name} is {place or 'missing'}" for name, place in strange.items())
        yield ("fix", "imports", f"{found}, not what lies in {root}", _own_imports(root, [*strange.values()]))
    else:
        yield ("ok", "imports", f"all {len(PACKAGES)} packages come from {root}", "")


def _own_imports(root: Path, strange: list[Path | None]) -> str:
    """The command after which ours are found first."""
    first = {str(place.parent) for place in strange if place is not None}
    listed = itertools.takewhile(lambda entry: not entry.endswith(".zip"), sys.path[1:])  # by PYTHONPATH
    if any(str(Path(entry).resolve()) in first for entry in listed):
        return "unset PYTHONPATH"
    if str(Path.cwd().resolve()) in first:
        return f"cd {root}    # `python -m` looks into the current folder first"
    return f"cd {root} && make install    # in a .venv of its own"


def leave_without(error: ModuleNotFoundError) -> NoReturn:
    """Where a package of others is missing, mostly because this is another Python: the doctor itself could not say so.
    Raises the error if it is one of ours."""
    if error.name is None or error.name.partition(".")[0] in PACKAGES:
        raise error
    root = Path(__file__).resolve().parents[1]
    print(
        f"error: {sys.executable} has no package {error.name}. Use the Python that the project is installed in, "
        f"{root}/.venv/bin/python, or install it there:\n  cd {root} && make install",
        file=sys.stderr,
    )
    sys.exit(2)


def packages(root: Path) -> Iterator[Found]:
    """Against the versions that are asked for, and against those that were tested."""
    from packaging.requirements import Requirement

    unmet: list[str] = []
    for requirement in map(Requirement, _wanted(root)):
        found = _version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            unmet.append(f"{requirement} is asked for, {found or 'nothing'} is installed")
    tested = root / "constraints.txt"
    if unmet:
        command = f"cd {root} && make install" if tested.is_file() else "pip install --upgrade crisol"
        yield ("fix", "packages", "; ".join(unmet), command)
        return
    if not tested.is_file():
        yield ("ok", "packages", "of the versions that are asked for", "")
        return
    other = differing(tested.read_text())
    if other:
        words = f"{len(other)} differ from constraints.txt: {', '.join(other[:4])}{' ...' if len(other) > 4 else ''}"
        yield ("note", "packages", words, f"cd {root} && pip install -c constraints.txt -e .")
    else:
        yield ("ok", "packages", "as constraints.txt has them", "")


def _wanted(root: Path) -> list[str]:
    """By the checkout; where it is installed without one, by what is installed."""
    project = root / "pyproject.toml"
    if project.is_file():
        return tomllib.loads(project.read_text())["project"]["dependencies"]
    return [line for line in importlib.metadata.requires("crisol") or [] if "extra ==" not in line]


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
