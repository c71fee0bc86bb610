"""The wheel holds the task files, and the floors import downwards only."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "harness" / "longshort"

MAY_IMPORT = {
    "errors": set(),
    "look": set(),
    "scoring": set(),
    "corpora": {"errors"},
    "results": {"errors"},
    "lmeval": {"scoring", "corpora", "results", "errors"},
    "training": {"scoring", "corpora", "look", "errors"},
    "analysis": {"results", "look", "errors"},
    "sweep": {"lmeval", "results", "errors"},
    "synthetic": {"results", "look", "errors"},
}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_from_lower_floors(room: str) -> None:
    path = SOURCE / room
    for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("longshort."):
                assert node.module.split(".")[1] in MAY_IMPORT[room] | {room}, f"{file}: {node.module}"


def test_wheel_finds_its_tasks(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
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


def test_analysis_needs_no_torch() -> None:
    code = "import sys, longshort.analysis, longshort.results; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom longshort.cli import app\nfrom typer.testing import CliRunner\n"
        "assert CliRunner().invoke(app, ['eval', '--help']).exit_code == 0\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'lm_eval', 'pandas')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
