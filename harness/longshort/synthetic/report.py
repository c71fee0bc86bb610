"""Writes what a finished study found: tables as CSV and Markdown, figures, and study.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from longshort.errors import UserError
from longshort.results import read_json, write_atomically
from longshort.synthetic import figures
from longshort.synthetic.config import StudyConfig
from longshort.synthetic.summary import (
    by_length,
    comparisons,
    correlations,
    growth_exponents,
    models_table,
    one_row_per_model,
)
from longshort.synthetic.tasks import TASKS

MARKDOWN_LENGTHS = (1, 5, 10, 11, 15, 20, 30, 50, 100, 200, 500)


def write_report(
    config: StudyConfig, results: Sequence[dict[str, Any]], out: Path, command: str, wall_seconds: float
) -> None:
    """Write the tables and figures of `run_study`'s results to `out`, and study.json: `command` repeats the study.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    models = models_table(results)
    table = by_length(models)
    each = one_row_per_model(models, config.train_length)
    tables = {
        "by_length": table,
        "models": each,
        "growth_exponents": growth_exponents(models, config.train_length),
        "comparisons": comparisons(each, config.lengths, config.train_length),
        "correlations": correlations(each),
    }
    for name, content in tables.items():
        write_atomically(out / f"{name}.csv", content.to_csv(index=False, float_format="%.6g"))
    write_atomically(out / "tables.md", _markdown(config, tables))
    for task in config.tasks:
        figures.error_by_length(table, config.train_length, task, out / "figures" / f"error_{task}")
    if any(not TASKS[task].of_mean for task in config.tasks):
        figures.all_tasks(table, config.train_length, out / "figures" / "error_length_tasks")
    figures.misalignment_by_length(table, config.train_length, out / "figures" / "misalignment_by_length")
    figures.misalignment_against_error(each, config.train_length, out / "figures" / "misalignment_against_error")
    seconds_of_settings = round(sum(result["seconds"] for result in results), 1)
    study = {
        "command": command,
        "config": {**results[0]["config"], "task": list(config.tasks), "encoding": list(config.encodings)},
        "parameters_per_model": config.size.parameters,
        "test_lengths": config.lengths,
        "environment": results[0]["environment"] | {name: version(name) for name in ("longshort", "pandas", "scipy")},
        "wall_seconds": _wall_seconds(out, seconds_of_settings, wall_seconds),
        "seconds_of_settings": seconds_of_settings,
    }
    write_atomically(out / "study.json", json.dumps(study, indent=1, ensure_ascii=False) + "\n")


def _wall_seconds(out: Path, seconds_of_settings: float, this_run: float) -> float:
    """The seconds of the earlier run where this one found every setting finished, and so says nothing about time."""
    file = out / "study.json"
    remedy = "Remove it, or choose another --output."
    if file.exists():
        earlier = read_json(file, remedy)
        wall_seconds = earlier.get("wall_seconds")
        if not isinstance(wall_seconds, int | float):
            raise UserError(f"{file} is not from a study. {remedy}", "data")
        if earlier.get("seconds_of_settings") == seconds_of_settings:
            return wall_seconds
    return round(this_run, 1)


def _markdown(config: StudyConfig, tables: dict[str, pd.DataFrame]) -> str:
    lengths = [length for length in MARKDOWN_LENGTHS if length in config.lengths]
    parts = [
        f"# Mean and length prediction, trained on lengths 1–{config.train_length}\n",
        f"{config.seeds} seeds per setting; brackets are 95 % t-intervals over them, of the logarithm for errors, "
        "which are geometric means. Squared errors are in the task's units (OutRep inverted).\n",
    ]
    table = tables["by_length"]
    for task in config.tasks:
        rows = []
        for encoding in config.encodings:
            part = table[(table["task"] == task) & (table["encoding"] == encoding)].set_index("length")
            rows.append([encoding, *(_cell(part.loc[length], "error_geometric", ".1e") for length in lengths)])
        if TASKS[task].of_mean:
            first = table[(table["task"] == task) & (table["encoding"] == config.encodings[0])].set_index("length")
            rows.append(["constant ½", *(f"{first.loc[length, 'constant_half']:.1e}" for length in lengths)])
        parts.append(f"## Squared error: {TASKS[task].label}\n")
        parts.append(_grid(["positions", *(f"l = {length}" for length in lengths)], rows))
        unknown = table[(table["task"] == task) & (table["length"] > config.train_length)]
        shares = unknown.groupby("encoding", sort=False)["undefined"].mean()
        if (shares > 0).any():
            told = ", ".join(f"{encoding} {share:.2g}" for encoding, share in shares.items())
            parts.append(f"Share of outputs beyond training that have no inverse and were clamped: {told}.\n")
        parts.append(f"![error by length](figures/error_{task}.svg)\n")
    exponents = tables["growth_exponents"]
    if "exponent" in exponents:
        parts.append("## Growth exponent of the length error beyond training\n")
        parts.append("Slope of log squared error on log(l − l_train); Theorem 3.1 has 2. Far: l ≥ 2·l_train.\n")
        names = [name for name in ("exponent", "exponent_far") if name in exponents]
        rows = [
            [TASKS[row["task"]].label, row["encoding"], *(_cell(row, name, ".2f") for name in names), "2"]
            for _, row in exponents.iterrows()
        ]
        heads = {"exponent": "exponent", "exponent_far": "exponent, far"}
        parts.append(_grid(["task", "positions", *(heads[name] for name in names), "Theorem 3.1"], rows))
    if len(tables["comparisons"]):
        parts.append("## Ratios of errors beyond training\n")
        parts.append("Mean squared error over all longer lengths, geometric mean of ratios of models of one seed.\n")
        rows = [
            [TASKS[row["task"]].label, row["encoding"], row["against"], _cell(row, "ratio", ".2g")]
            for _, row in tables["comparisons"].iterrows()
        ]
        parts.append(_grid(["task", "positions", "against", "ratio"], rows))
    return "\n".join([*parts, *_correlations(tables["correlations"])])


def _correlations(table: pd.DataFrame) -> list[str]:
    about = (
        "Misalignment at length l: mean |g(x) − g(x[−l2:])|, l2 = l − e, e uniform on 1 … ⌊l/2⌋, g the network's "
        "output. Predictor: at the training length, or the mean beyond; scaled: in standard deviations of the "
        "training targets. Outcome: logarithm of the mean squared error beyond training. A row is over models; "
        "brackets are 95 % jackknife intervals that leave out one setting (task × positions) at a time.\n"
    )
    rows = [
        [
            row["predictor"],
            row["outcome"],
            row["scope"],
            f"{row['models']} / {row['settings']}",
            _cell(row, "spearman", ".2f"),
            _cell(row, "pearson", ".2f"),
        ]
        for _, row in table.iterrows()
    ]
    head = ["predictor", "outcome", "scope", "models / settings", "Spearman", "Pearson of logs"]
    return ["## Output misalignment and error beyond training\n", about, _grid(head, rows)]


def _cell(row: pd.Series[Any], name: str, form: str) -> str:
    value, low, high = (row[key] for key in (name, f"{name}_lo", f"{name}_hi"))
    if pd.isna(value):
        return "–"
    return f"{value:{form}}" + ("" if pd.isna(low) else f" [{low:{form}}, {high:{form}}]")


def _grid(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
