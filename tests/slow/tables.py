"""The committed tables of the campaigns, for programs (CSV) and for people (Markdown)."""

from __future__ import annotations

import platform
import subprocess
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
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
        from tests.slow.robustness.cases import CASES, command_of

        names = {(command_of(case), case.kind, case.name) for case in CASES}
        table = merged(table, pd.read_csv(folder / CSV, keep_default_na=False, dtype={"commit": str}), KEY, names)
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


def merged(
    table: pd.DataFrame, before: pd.DataFrame, key: Sequence[str], names: Collection[tuple[str, ...]]
) -> pd.DataFrame:
    """The rows of the table before, with those of the new table in place of their own; cases that are gone stay out."""
    again = {tuple(row) for row in table[list(key)].itertuples(index=False)}
    kept = [tuple(row) in set(names) - again for row in before[list(key)].itertuples(index=False)]
    return pd.concat([before[kept], table], ignore_index=True)


def write_kills(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """One row per kill."""
    table = pd.DataFrame(rows)
    wrong = int((table["faults"] != "").sum())
    head = f"{len(table)} kills, {wrong} with faults, at commit {commit()}. `make campaign` runs them."
    _write(
        folder, table, ["# Killed sweeps", "", head, "", *markdown(list(table.columns), table.itertuples(index=False))]
    )


def write_architectures(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """One row per architecture or variant. Where only some ran, their rows replace those of the table that is there."""
    from tests.slow.architectures.cases import CASES

    table = pd.DataFrame([row | {"commit": commit()} for row in rows])
    names = [case.name for case in CASES]
    if (folder / CSV).exists():
        before = pd.read_csv(folder / CSV, keep_default_na=False, dtype=str)
        table = merged(table, before, ["case"], [(name,) for name in names])
    table = table.sort_values("case", key=lambda column: column.map({name: i for i, name in enumerate(names)}))
    counts = Counter(table["outcome"])
    variants = sum(" " in name for name in names)
    commits = "; ".join(f"{count} at commit {name}" for name, count in table["commit"].value_counts().items())
    head = (
        f"The {len(names) - variants} architectures that transformers loads as causal language models, in tiny default "
        f"configurations, and {variants} variants: {counts['scored']} scored, {counts['refused']} refused, "
        f"{counts['not built']} not built; {(table['faults'] != '').sum()} with faults: {commits}. Together they took "
        f"{table['seconds'].astype(float).sum() / 60:.0f} minutes of one process. Python {platform.python_version()}, "
        f"torch {version('torch')}, transformers {version('transformers')}."
    )
    legend = (
        "`nll` and `misalignment` are the largest relative errors of values of at least 0.1 nats, against full logits "
        "in float64 with the same weights; 1e-4 is allowed. `positions` is where the model ends, `LM head` how logits "
        "are computed, `passes` whether one pass gives all prefixes."
    )
    columns = [name for name in table.columns if name not in ("seconds", "commit")]
    lines = ["# Architectures", "", head, "", legend, "", "`make campaign CASES=architectures` runs it.", ""]
    _write(folder, table, lines + markdown(columns, table[columns].itertuples(index=False)))


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
    "architectures": write_architectures,
    "robustness": write_robustness,
    "sweep_campaign": write_kills,
}
