"""Finds lm-eval's results among the JSON files of a folder, whatever their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshort.errors import UserError
from longshort.results.files import parse_json, read_bytes

# lm-eval 0.4.3 and later write results_TIME.json, or NAME_TIME.json where they are given a name; earlier ones
# results.json or the given name. A sweep renames results that it has replaced to OUTDATED….
NAMED_BY_LM_EVAL = re.compile(r"results(_.*)?\.json")
OUTDATED = "outdated_"
LOOKS_LIKE_RESULTS = re.compile(rb'"results"\s*:\s*\{')
WRITTEN_WITH_RESULTS = ("configs", "config", "versions", "n-shot")
NOT_METRICS = ("alias", "name", "sample_len", "sample_count")


@dataclass(frozen=True)
class Source:
    """A results file."""

    file: Path
    content: bytes
    data: dict[str, Any]


def find_files(folder_or_files: str | Path | Iterable[str | Path]) -> dict[str, Path]:
    """Return the JSON files of a folder by their path below it, or the given files; hidden ones are omitted.

    Raises:
        UserError: the folder or file does not exist (kind "not_found").
    """
    if not isinstance(folder_or_files, (str, Path)):
        return {str(file): Path(file) for file in folder_or_files}
    path = Path(folder_or_files)
    if not path.exists():
        raise UserError(f"{path} does not exist. Give a folder of lm-eval results.", "not_found")
    if path.is_file():
        return {path.name: path}
    found = {file.relative_to(path): file for file in sorted(path.rglob("*.json")) if not file.is_dir()}
    return {
        below.as_posix(): file
        for below, file in found.items()
        if not below.name.startswith(OUTDATED) and not any(part.startswith(".") for part in below.parts)
    }


def load(file: Path, *, is_given: bool) -> Source | None:
    """Return a results file, or None for another JSON file.

    Args:
        is_given: whether the user named this very file, which then has to be one.

    Raises:
        UserError: it is damaged, or its name or content is that of a results file but its format is not (kind "data").
    """
    content = read_bytes(file)
    expected = is_given or NAMED_BY_LM_EVAL.fullmatch(file.name) is not None
    if not expected and not LOOKS_LIKE_RESULTS.search(content):
        return None
    if is_given and file.suffix == ".jsonl":  # such as a sweep's status or lm-eval's samples
        raise not_results(file)
    data = parse_json(content, file, "Run that evaluation again.", _with_repeated_numbers)
    results = data.get("results")
    if not isinstance(results, dict) or not (expected or any(name in data for name in WRITTEN_WITH_RESULTS)):
        if expected:
            raise not_results(file)
        return None
    _refuse_old_format(file, data)
    return Source(file, content, data)


def _with_repeated_numbers(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object; where a key has two numbers, as in files merged by hand, neither is known to be right."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, last in found.items():
            values = [value for name, value in pairs if name == key]
            if len(values) > 1 and isinstance(last, (int, float)):
                found[key] = f"{' and '.join(map(str, values))}, since its key is repeated"
    return found


def not_results(file: Path) -> UserError:
    """Return the error for a file that has no results of lm-eval."""
    return UserError(f"{file} is not an lm-eval results file. Give a folder or file of results, without it.", "data")


def _refuse_old_format(file: Path, data: dict[str, Any]) -> None:
    """lm-eval 0.4 writes ``METRIC,FILTER``; 0.3 and some other tools write ``METRIC``."""
    tasks = [metrics for metrics in data["results"].values() if isinstance(metrics, dict)]
    names = [name for metrics in tasks for name in metrics if name not in NOT_METRICS]
    if names and not any("," in name for name in names):
        config = data.get("config")
        is_old = "configs" not in data and isinstance(config, dict) and "model_args" in config
        who = "lm-eval 0.3, whose format is too old" if is_old else "another tool than lm-eval 0.4"
        raise UserError(
            f"{file} was written by {who}: its metrics, such as '{names[0]}', have no filter (',none'). Run that "
            "evaluation again with lm-eval 0.4.",
            "data",
        )
