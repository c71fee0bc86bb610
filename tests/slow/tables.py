"""The committed tables of the campaigns, for programs (CSV) and for people (Markdown)."""

from __future__ import annotations

import platform
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from longshort.results import write_atomically

ROOT = Path(__file__).resolve().parents[2]
CSV = "campaign.csv"
MARKDOWN = "campaign.md"
KEY = ["command", "kind", "case"]
LIBRARIES = ("longshort", "lm_eval", "torch", "transformers", "datasets", "typer")


def commit() -> str:
    """The commit that is tried; with "-dirty" where the tree has changes."""
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def write_robustness(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """One row per case. Where only some cases ran, their rows replace those of the table that is there."""
    table = pd.DataFrame(rows)
    if (folder / CSV).exists():
        table = merged(table, pd.read_csv(folder / CSV, keep_default_na=False))
    counts = Counter(zip(table["command"], table["kind"], strict=True))
    kinds = sorted(set(table["kind"]))
    by_command = [
        [f"`{command}`", *(counts[command, kind] or "" for kind in kinds), sum(counts[command, kind] for kind in kinds)]
        for command in sorted(set(table["command"]))
    ]
    columns = ["command", "kind", "case", "code", "line", "faults"]
    versions = ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in LIBRARIES)])
    commits = "; ".join(f"{count} at commit {name}" for name, count in table["commit"].value_counts().items())
    head = (
        f"{len(table)} commands with bad input, {(table['faults'] != '').sum()} of them with faults: {commits}. "
        f"Together they took {table['seconds'].astype(float).sum() / 60:.0f} minutes of one process. {versions}."
    )
    lines = ["# Robustness campaign", "", head, "", "`make campaign` runs it.", ""]
    lines += [*markdown(["command", *kinds, "all"], by_command), ""]
    _write(folder, table, lines + markdown(columns, table[columns].itertuples(index=False)))


def merged(table: pd.DataFrame, before: pd.DataFrame) -> pd.DataFrame:
    """The rows of the table before, with those of the new table in place of their own; cases that are gone stay out."""
    from tests.slow.robustness.cases import CASES, command_of

    names = {(command_of(case), case.kind, case.name) for case in CASES}
    again = {tuple(row) for row in table[KEY].itertuples(index=False)}
    kept = [tuple(row) in names - again for row in before[KEY].itertuples(index=False)]
    return pd.concat([before[kept], table], ignore_index=True)


def write_kills(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """One row per kill."""
    table = pd.DataFrame(rows)
    wrong = int((table["faults"] != "").sum())
    head = f"{len(table)} kills, {wrong} with faults, at commit {commit()}. `make campaign` runs them."
    _write(
        folder, table, ["# Killed sweeps", "", head, "", *markdown(list(table.columns), table.itertuples(index=False))]
    )


def markdown(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [list(columns), ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "\\<")[:300]


def _write(folder: Path, table: pd.DataFrame, lines: Sequence[str]) -> None:
    write_atomically(folder / CSV, table.to_csv(index=False))
    write_atomically(folder / MARKDOWN, "\n".join([*lines, ""]))


WRITERS: dict[str, Callable[[Sequence[dict[str, Any]], Path], None]] = {
    "robustness": write_robustness,
    "sweep_campaign": write_kills,
}
