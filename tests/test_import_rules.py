"""Who may import whom. The rules keep planning instant, the model free of parallel code, and each library in one
place.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("train", "model", "data_prep", "launch", "conf")

ALLOWED = {
    "model": set[str](),
    "data_prep": {"conf"},
    "train": {
        "conf",
        "data_prep.blocks",
        "data_prep.files",
        "data_prep.manifest",
        "data_prep.shards",
        "model",
    },
    "launch": {
        "conf",
        "data_prep.config",
        "data_prep.files",
        "data_prep.harmless",
        "data_prep.manifest",
        "model.arithmetic",
        "model.config",
        "train.batch",
        "train.config",
        "train.data_config",
        "train.layout_problems",
        "train.optimizer_config",
        "train.parallel_config",
        "train.plan",
    },
    "conf": set[str](),
}
RUN_FILES = {"train.failure", "train.history", "train.holder", "train.metrics_file"}
"""what reads the files of a run"""
ALSO = {
    "launch/__main__.py": {"data_prep.__main__"},
    "launch/again.py": {"train.run_folder"},
    "launch/charts.py": {"train.svg"},
    "launch/page.py": {"data_prep.inspection.style"},
    "launch/pictures.py": {"data_prep.inspection.style"},
    "launch/plot.py": {"train.svg"},
    "launch/report_charts.py": RUN_FILES,
    "launch/verdicts.py": RUN_FILES,
    "launch/sweep/cells.py": {"train.branch", "train.run_folder"},
    "launch/sweep/command.py": {"train.parallel", "train.setup"},
    "launch/sweep/runner.py": {"train.metrics_file"},
    "launch/sweep/states.py": {"train.branch", "train.checkpoint.folders", "train.metrics_file", "train.run_folder"},
    "launch/ledger_run.py": RUN_FILES | {"train.run_folder"},
    "launch/forecast_score.py": {"train.history"},
    "launch/logs.py": RUN_FILES,
    "launch/report.py": RUN_FILES | {"train.run_folder"},
    "launch/run_files.py": {"train.attempt"},
    "launch/runs.py": RUN_FILES | {"train.attempt", "train.errors", "train.parallel"},
    "launch/status.py": RUN_FILES | {"train.checkpoint.folders"},
    "launch/sweep_folder.py": {"train.parallel"},
    "launch/data_array.py": {"data_prep.jobs", "data_prep.pipeline", "data_prep.plan"},
    "launch/slurm.py": {"data_prep.jobs"},
    "train/convert/sources.py": {"data_prep.tokenizer"},
    "train/convert/tokenizer_files.py": {"data_prep.tokenizer"},
    "train/sample.py": {"data_prep.tokenizer"},
    "train/texts.py": {"data_prep.tokenizer"},
    "train/trace.py": {"data_prep.tokenizer"},
}
ONLY_IN = {
    "deepspeed": {"train/engine/"},
    "sentencepiece": {"data_prep/tokenizer.py"},
    "fsspec": {"data_prep/sources/stored.py"},
    "hydra": {"conf/"},
    "omegaconf": {"conf/"},
}


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).glob("**/*.py"))]


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything that the file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            # `from train import engine` imports the module train.engine
            yield from ((f"{module}.{a.name}" if module in PACKAGES else module) for a in node.names)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_import_only_what_they_may(path: Path):
    relative = path.relative_to(ROOT)
    package = relative.parts[0]
    allowed = ALLOWED[package] | ALSO.get(relative.as_posix(), set())
    for name in imports(path):
        first = name.split(".")[0]
        if first in PACKAGES and first != package:
            assert any(name == rule or name.startswith(f"{rule}.") for rule in allowed), f"{relative} imports {name}"
        if first in ONLY_IN:
            assert relative.as_posix().startswith(tuple(ONLY_IN[first])), f"{relative} imports {first}"


def test_the_environment_is_read_in_one_place():
    readers = {
        path.relative_to(ROOT).as_posix()
        for path in sources()
        for name in ("os.environ", "os.getenv")
        if name in path.read_text()
    }
    assert readers == {"train/parallel.py", "launch/sweep/children.py"}  # the second hands it to its children


def test_package_init_files_are_empty():
    for path in sources():
        assert path.name != "__init__.py" or path.read_text() == "", path


MODULES_WITHOUT_TORCH = [
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for path in sources()
    if path.relative_to(ROOT).parts[0] in ("launch", "data_prep", "conf")
]
MODULES_WITHOUT_TORCH += [
    "train.attempt",
    "train.audit",
    "train.binding",
    "train.batch",
    "train.config",
    "train.effective",
    "train.evidence",
    "train.failure",
    "train.health",
    "train.skips",
    "train.stop",
    "train.stragglers",
    "train.watch",
    "train.watchdog",
    "train.errors",
    "train.history",
    "train.host_list",
    "train.node",
    "train.preflight.__main__",
    "train.holder",
    "train.layout_problems",
    "train.ledger",
    "train.metrics_file",
    "train.parallel_config",
    "train.plan",
    "train.schedule",
    "train.setup",
    "train.__main__",
]


def test_planning_and_data_preparation_import_no_torch():
    """In a fresh interpreter, so that nothing that other tests imported can help."""
    code = (
        "import importlib, sys\n"
        f"for name in {MODULES_WITHOUT_TORCH!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'deepspeed', 'transformers'} & set(sys.modules)\n"
        "    assert not heavy, f'{name} imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_modules_do_not_shadow_the_standard_library():
    """`python data_prep/tokenize.py` would put its folder first on the path and break torch."""
    names = {path.stem for path in sources() if not path.stem.startswith("__")}
    nobody_needs = {"trace"}  # the debugger of statements: neither torch nor the library itself imports it
    assert names & sys.stdlib_module_names - nobody_needs == set()
