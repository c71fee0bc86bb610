"""The layers import downwards only, and the archives are complete."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tarfile
import zipfile
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "harness" / "longshort"

# What each module or package may import, besides itself. CONTRIBUTING.md has the same table for readers.
FOUNDATION = {
    "settings",
    "options",
    "scoring",
    "corpora",
    "results",
    "plotting",
    "pages",
    "devices",
    "processes",
    "load_errors",
    "errors",
}
MAY_IMPORT = {
    "errors": set[str](),
    "settings": {"errors"},
    "options": {"errors", "settings"},
    "scoring": {"errors"},
    "corpora": {"errors"},
    "results": {"errors"},
    "plotting": {"errors", "results"},  # figures are written atomically
    "pages": {"errors"},
    "devices": {"errors"},
    "processes": {"errors"},
    "load_errors": {"errors"},
    "testing": FOUNDATION,
    "lmeval": FOUNDATION | {"analysis"},  # `longshort eval` draws a figure of the analysis
    "key_spans": FOUNDATION | {"lmeval"},
    "longbench": FOUNDATION | {"lmeval"},
    "training": FOUNDATION,
    "sweep": FOUNDATION | {"lmeval", "longbench"},
    "analysis": FOUNDATION - {"scoring"},  # no torch
    "synthetic": FOUNDATION | {"analysis"},
    "show_tokens": FOUNDATION - {"scoring"},  # no torch
}
# Parts of `sweep`, and which other parts each may import: what to evaluate, what it costs, what is done, how it runs.
SWEEP = {
    "manifest": set[str](),
    "cost": set[str](),
    "store": {"manifest"},
    "run": {"manifest", "store"},
    "plan_table": {"cost", "store"},
    "command": {"manifest", "cost", "store", "run", "plan_table"},
}
ENTRY_POINTS = {"__main__", "cli", "demo"}  # may import anything
ROOT_MODULE = "__init__"  # the version, for all

FILES = sorted(SOURCE.rglob("*.py"))


def module_of(file: Path) -> tuple[str, ...]:
    """``harness/longshort/a/b.py`` → ("a", "b"), ``a/__init__.py`` → ("a",)."""
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts


MODULES = {module_of(file): file for file in FILES}


def imports_of(file: Path) -> set[tuple[str, ...]]:
    """Every module of longshort that a file names, also under ``TYPE_CHECKING`` and inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative import"
            base = (node.module or "").split(".")
            # `from package import name`: the submodule of this name if there is one, else the package.
            names = [[*base, name] if (*base[1:], name) in MODULES else base for name in (a.name for a in node.names)]
        else:
            continue
        found.update(tuple(name[1:]) or (ROOT_MODULE,) for name in names if name[0] == "longshort")
    return found


def test_every_module_has_its_layer() -> None:
    found = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert found == MAY_IMPORT.keys() | ENTRY_POINTS | {ROOT_MODULE}
    found = {module[1] for module in MODULES if module[0] == "sweep" and len(module) > 1}
    assert found == SWEEP.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(SOURCE).as_posix())
def test_imports_point_down(file: Path) -> None:
    module = module_of(file)
    if module[0] in ENTRY_POINTS:
        return
    allowed = MAY_IMPORT.get(module[0], set[str]()) | {module[0], ROOT_MODULE}
    wrong = {other for other in imports_of(file) if other[0] not in allowed}
    if module[0] == "sweep" and len(module) > 1:
        within = {other for other in imports_of(file) if other[0] == "sweep" and len(other) > 1}
        wrong |= {other for other in within if other[1] not in SWEEP[module[1]] | {module[1]}}
    assert not {".".join(other) for other in wrong}


def test_no_import_cycle_between_files() -> None:
    graph = {module: imports_of(file) & MODULES.keys() for module, file in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(".".join(module) for module in error.args[1]))


def test_foundation_needs_no_torch() -> None:
    """The command line does not wait for torch, transformers or pandas."""
    names = ["corpora", "results", "settings", "options", "load_errors", "testing", "plotting", "pages", "scoring.rope"]
    code = f"import sys\nfor name in {names}:\n    __import__('longshort.' + name)\n"
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive, and the wheel made from it."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    return folder


def test_both_archives_are_fit_for_an_index(built: Path) -> None:
    files = sorted(str(file) for file in built.iterdir())
    assert [Path(file).suffix for file in files] == [".whl", ".gz"]
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_source_archive_holds_all_that_its_tests_need(built: Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not tracked:
        pytest.skip("this is no clone")
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        held = {name.partition("/")[2] for name in files.getnames()}
    assert {name for name in tracked if not name.startswith("results/")} - held == set()


def test_wheel_finds_its_tasks(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    done = subprocess.run(
        [sys.executable, "-m", "longshort", "tasks"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
    )
    folder = Path(done.stdout.strip())
    assert folder == installed / "longshort" / "tasks"
    assert {file.name for file in folder.glob("*.yaml")} == {file.name for file in (ROOT / "tasks").glob("*.yaml")}
    assert (installed / "longshort" / "py.typed").is_file()


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom longshort.cli import app\nfrom typer.testing import CliRunner\n"
        "assert CliRunner().invoke(app, ['eval', '--help']).exit_code == 0\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'lm_eval', 'pandas')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
