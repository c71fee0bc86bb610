"""`longshort correlate` as a user runs it."""

import io
import os
import subprocess
import sys
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from longshort.analysis import Analysis, analyze, compare, correlations
from longshort.analysis.command import show_leaderboards
from longshort.analysis.leaderboard import leaderboard
from longshort.cli import app
from tests.analysis.results_folder import measured, results_of, save, save_folder
from tests.errors import assert_error, assert_facts, assert_one

FEW = ["--predictor", "sce", "--outcome", "log_ppl@256"]


def correlate(*arguments):
    return CliRunner().invoke(app, ["correlate", *map(str, arguments)], env={"COLUMNS": "80"})


def files(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_everything_is_written_and_again_the_same(tmp_path):
    results = save_folder(tmp_path / "results", families=5, members=2)
    damaged = save(results, "damaged", '{"results": {"longshort_perp')
    done = correlate(results, *FEW)
    assert done.exit_code == 0, done.output
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert str(damaged) in warning
    lines = done.stdout.splitlines()
    assert lines[0].startswith("SCE ")  # the answer comes first
    assert_facts(" ".join(lines), "log-perplexity at 256 tokens over 10 checkpoints", "better than NLL")
    assert max(map(len, lines)) <= max(80, len(str(results)) + len("/analysis:"))
    made = files(results / "analysis")
    for name in ("correlations.csv", "correlations.md", "correlations.tex", "leaderboard.csv", "comparisons.csv"):
        assert name in made
        assert name in done.stdout.replace("\n", "")
    assert {"checkpoints.csv", "measurements.csv", "report.html"} < set(made)
    figures = {name.removeprefix("figures/") for name in made if name.startswith("figures/")}
    names = ("leaderboard", "scatter", "perplexity_by_length", "misalignment_matrix_jeffreys")
    names += tuple(f"misalignment_curve_{metric}" for metric in ("sce", "jeffreys"))
    assert figures == {f"{name}.svg" for name in names}
    board = pd.read_csv(results / "analysis" / "leaderboard.csv")
    assert board.loc[0, ["outcome", "rank", "predictor", "n"]].tolist() == ["log_ppl@256", 1, "sce", 10]
    assert len(board) == 1

    found = pd.read_csv(results / "analysis" / "correlations.csv")
    row = found.iloc[0]
    assert row[["predictor", "outcome", "n", "n_families"]].tolist() == ["sce", "log_ppl@256", 10, 5]
    assert len(found) == 1
    shown = next(line for line in lines if line.startswith("1 SCE"))
    names = (f"{name}{end}" for name in ("spearman", "partial") for end in ("", "_lo", "_hi"))
    for value in row[list(names)]:
        assert f"{value:.2f}".replace("-", "−") in shown
    assert "10 (5)" in shown
    wide = pd.read_csv(results / "analysis" / "checkpoints.csv")
    assert np.corrcoef(wide["sce"], wide["log_ppl@256"])[0, 1] == pytest.approx(row["pearson"])
    assert len(pd.read_csv(results / "analysis" / "measurements.csv")) == 10 * (15 + 12 + 4)

    again = subprocess.run(
        [
            sys.executable,
            "-X",
            "importtime",
            "-m",
            "longshort",
            "correlate",
            str(results),
            *FEW,
            "-o",
            str(tmp_path / "again"),
        ],
        env=os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    assert str(damaged) in again.stderr
    assert files(tmp_path / "again") == made
    imported = {line.rpartition("|")[2].strip() for line in again.stderr.splitlines() if "import time:" in line}
    assert "matplotlib" in imported
    assert not imported & {"torch", "transformers", "lm_eval", "scipy.stats", "matplotlib.pyplot"}


def test_strict_stops_and_writes_nothing(tmp_path):
    results = save_folder(tmp_path / "results")
    damaged = save(results, "damaged", "")
    before = files(tmp_path)
    done = correlate(results, "--strict", "-o", tmp_path / "out")
    assert (done.exception.kind, done.exception.exit_code) == ("data", 1)
    assert str(damaged) in done.exception.message
    assert files(tmp_path) == before


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return save_folder(tmp_path_factory.mktemp("results"))


@pytest.mark.parametrize(
    ("arguments", "kind", "field", "facts"),
    [
        (["--predictor", "scee"], "usage", "predictor", ["'scee'", "sce, "]),
        (["--outcome", "ruler"], "usage", "outcome", ["'ruler'", "params, "]),
        (["--control", "nl"], "usage", "control", ["'nl'", "nll"]),
        (["--where", "params << 3"], "usage", "where", ["'params << 3'", "LShift"]),
        (["--where", "params <"], "usage", "where", ["'params <'"]),
        (["--where", "params > 1e12"], "usage", "where", ["'params > 1e12'", "15 checkpoints"]),
        (["--group-by", "base"], "usage", "group_by", ["'base'"]),
        (["--corpus", "pg19"], "usage", "corpus", ["'pg19'", "builtin"]),
        (["-o", "/proc/nowhere"], "unwritable", None, ["/proc/nowhere/correlations.csv"]),
    ],
)
def test_a_mistake_has_a_category_and_one_line(results, arguments, kind, field, facts, tmp_path):
    done = correlate(results, *arguments, *(() if "-o" in arguments else ("-o", tmp_path / "out")))
    assert_error(done.exception, kind, *facts, field=field)
    assert done.exception.exit_code == (2 if kind == "usage" else 1)
    assert (done.stdout, done.stderr.strip()) == ("", "")
    assert not (tmp_path / "out").exists()


def test_a_mistake_is_one_line_on_stderr(results, tmp_path):
    command = [sys.executable, "-m", "longshort", "correlate", str(results), "--predictor", "scee", "-o", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("longshort: ")
    assert "'scee'" in line


@pytest.mark.parametrize("arguments", [["--adjust", "none"], ["--interval", "jackknife"], ["--nope"]])
def test_wrong_usage(results, arguments):
    done = correlate(results, *arguments)
    assert done.exit_code == 2
    assert "Traceback" not in done.stderr


def test_results_without_any_pair_are_said_to_have_none(tmp_path):
    """Only bits per byte of the perplexity task: neither a predictor nor an outcome."""
    metrics = {"longshort_perplexity": {"bpb@64": 0.5}}
    data = results_of("org/model", metrics, family="f", params=1000)
    save(tmp_path, "one", data)
    done = correlate(tmp_path)
    assert done.exit_code == 0
    assert_one(done.stdout.splitlines(), "No correlation")
    assert "controlling for" not in done.stdout
    assert_one(done.stderr.splitlines(), "no predictor")


def test_nothing_to_read(tmp_path):
    done = correlate(tmp_path / "nowhere")
    assert_error(done.exception, "not_found", str(tmp_path / "nowhere"))
    done = correlate(tmp_path)
    assert_error(done.exception, "not_found", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_help_has_examples():
    done = correlate("--help")
    assert done.exit_code == 0
    assert "longshort correlate results --predictor sce" in done.stdout
    assert "--strict" in done.stdout


def shown(analysis):
    screen = io.StringIO()
    show_leaderboards(analysis, Console(width=80, file=screen))
    return screen.getvalue()


def test_the_headline_fits_and_says_what_it_leaves_out(results, tmp_path):
    text = shown(analyze(results))
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("predictor  ") == 3  # the effective length does not vary
    words = " ".join(text.split())
    assert_facts(words, "Effective length is 64 for all 15 checkpoints", "controlling for NLL, log parameters")
    assert_facts(words, "leaderboard.csv", "63 rows")
    assert "†" not in text

    generator = np.random.default_rng(0)
    for index in range(6):
        save(tmp_path, str(index), results_of(f"m{index}", measured(generator, index), family="only"))
    text = shown(analyze(tmp_path, predictors=["sce"], outcomes=["log_ppl@256"]))
    assert "6 (1†)" in text
    assert_one(text.splitlines(), "†", "4 families")
    few = shown(analyze(tmp_path, predictors=["sce"], outcomes=["log_ppl@256"], where="checkpoint < 'm3'"))
    assert_facts(" ".join(few.split()), "3 of 3 checkpoints", "at least 5")
    assert "jackknife" not in few
    assert "predictor  " not in few


def test_a_long_leaderboard_shows_the_first_rows_and_nll():
    generator = np.random.default_rng(0)
    names = [f"p{index:02}" for index in range(14)]
    wide = pd.DataFrame({"family": [f"f{index % 6}" for index in range(30)]})
    wide["y"] = generator.normal(size=30)
    for index, name in enumerate(names):
        wide[name] = wide["y"] + (0.1 + 0.1 * index) * generator.normal(size=30)
    wide["nll"] = generator.normal(size=30)
    predictors = [*names, "nll"]
    table, pairs = correlations(wide, predictors, ["y"]), compare(wide, list(combinations(predictors, 2)), ["y"])
    settings = {"controls": ["nll"], "group_by": "family", "outcomes": ["y"]}
    text = shown(Analysis(wide, wide, table, pairs, settings, [], leaderboard(table, pairs)))
    rows = [line.split()[:2] for line in text.splitlines() if line.strip()[:1].isdigit()]
    ranks = dict(zip(leaderboard(table, pairs)["predictor"], range(1, 16), strict=True))
    assert [name for _, name in rows][:-1] == sorted(names, key=ranks.__getitem__)[:10]
    assert rows[-1] == [str(ranks["nll"]), "NLL"]
