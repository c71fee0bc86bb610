"""The archives are whole, and the floors import downwards only."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "harness" / "longshort"

MAY_IMPORT = {
    "errors": set(),
    "look": set(),
    "loading": set(),
    "devices": {"errors"},
    "causal": {"errors"},
    "scoring": set(),
    "corpora": {"errors"},
    "results": {"errors"},
    "lmeval": {"scoring", "corpora", "results", "devices", "causal", "loading", "errors"},
    "training": {"scoring", "corpora", "look", "causal", "loading", "errors"},
    "analysis": {"results", "look", "errors"},
    "sweep": {"lmeval", "results", "errors"},
    "synthetic": {"results", "look", "devices", "errors"},
}


FACES = {"__init__", "__main__", "cli", "demo", "show"}  # may import anything


def test_every_room_has_its_floor() -> None:
    found = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert found == MAY_IMPORT.keys() | FACES


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_from_lower_floors(room: str) -> None:
    path = SOURCE / room
    for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("longshort."):
                assert node.module.split(".")[1] in MAY_IMPORT[room] | {room}, f"{file}: {node.module}"


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
