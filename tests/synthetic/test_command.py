import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from longshort.synthetic.command import synthetic_command
from tests.errors import contains

SMALL = ["--steps", "3", "--seeds", "2", "--train-length", "3", "--max-length", "8", "--workers", "1", "--quick"]


@pytest.fixture
def run(monkeypatch):
    app = typer.Typer()
    app.command()(synthetic_command)

    def invoke(*arguments):
        monkeypatch.setattr(sys, "argv", ["longshort", "synthetic", *arguments])
        return CliRunner().invoke(app, list(arguments))

    return invoke


def test_writes_tables_figures_and_how_they_came_about(run, tmp_path):
    arguments = ["-o", str(tmp_path), *SMALL, "--tasks", "mean,length-sqrt", "--encodings", "none,learned"]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    for name in ("error_mean", "error_length-sqrt", "error_length_tasks", "misalignment_by_length"):
        assert "<svg" in (tmp_path / "figures" / f"{name}.svg").read_text("utf-8")
    table = pd.read_csv(tmp_path / "by_length.csv", keep_default_na=False)
    assert len(table) == 2 * 2 * 8
    assert set(table["encoding"]) == {"none", "learned"}
    assert len(pd.read_csv(tmp_path / "models.csv")) == 8
    tables = (tmp_path / "tables.md").read_text("utf-8")
    assert "| constant ½ | 2.5e-01 | 5.0e-02 |" in tables
    assert "Theorem 3.1" in tables
    study = json.loads((tmp_path / "study.json").read_text("utf-8"))
    assert study["command"].startswith("longshort synthetic -o")
    assert study["config"]["steps"] == 3
    assert {"python", "torch", "device", "longshort"} <= set(study["environment"])

    before = {file.name: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert run(*arguments).exit_code == 0
    assert {file.name: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["--tasks", "median"], ("'median'", "mean")),
        (["--encodings", "xpos"], ("'xpos'", "none")),
        (["--train-length", "50"], (50,)),
        (["--max-length", "501"], ("--max-length", 500)),
        (["--steps", "0"], ("--steps", 1)),
    ],
)
def test_wrong_usage_is_exit_code_two(run, tmp_path, arguments, facts):
    result = run("-o", str(tmp_path / "none"), *arguments)
    assert result.exit_code == 2
    assert contains(result.output, *facts), result.output
    assert not (tmp_path / "none").exists()


def test_a_mistake_is_one_line_and_exit_code_one(tmp_path):
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "mean_none.json").write_text("{}")
    script = Path(__file__).parents[2] / "scripts" / "synthetic.py"
    command = [sys.executable, str(script), "-o", str(tmp_path), *SMALL, "--tasks", "mean", "--encodings", "none"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("longshort: ")
    assert "mean_none.json" in line
