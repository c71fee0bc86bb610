"""Compares the files of two recorded folders value by value, bit for bit."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
from safetensors.torch import load_file

Place = tuple[str, ...]  # the file below its section, then keys, row numbers and columns

# Keys and columns, at any depth, whose values differ between two runs of the same code.
IGNORED = {
    "date": "time of the run",
    "time": "time of an event",
    "saved": "time of an event",
    "seconds": "duration",
    "imports": "duration",
    "wall_seconds": "duration",
    "seconds_of_settings": "duration",
    "total_evaluation_time_seconds": "duration",
    "tokens_per_second": "duration",
    "pretty_env_info": "the machine, with its current clock rate",
    "git_hash": "commit of the current folder, no part of the measurement",
    "upper_git_hash": "commit of the current folder, no part of the measurement",
    "longshort": "version of longshort",
}
# Sentences, which may be reworded. The numbers in them must stay.
SENTENCES = {"note", "notes", "problems", "message", "reason", "engine"}
# What our own requests show of themselves in lm-eval's samples. For all other tasks it is generated text.
REQUEST_FILES = re.compile(r".*/samples_longshort_(perplexity|misalignment)\.jsonl")
REQUEST_TEXTS = {"arg_1", "resps", "filtered_resps"}
# Columns that one side may lack: the percentile bootstrap, and the choice between it and the jackknife.
REMOVED = {
    "correlations.csv": {"interval"},
    "comparisons.csv": {
        "interval",
        "difference_lo",
        "difference_hi",
        "share_greater",
        "spearman_difference_lo",
        "spearman_difference_hi",
        "spearman_share_greater",
    },
}
# Key that the newer side adds to each entry of a list: the failure category of a value that was skipped.
ADDED = {("left_out", "kind")}
# Columns made by a matrix product whose number of rows has changed, for which BLAS takes another kernel.
ROUNDED = {"comparisons.csv": {"difference_jackknife_lo", "difference_jackknife_hi", "difference_p"}}
TOLERANCE = 1e-14  # relative
NOT_RESULTS = {"tokenizer.json", "tokenizer_config.json"}
RUN_NAMES = re.compile(r"_(\d{4}-\d\d-\d\dT[\d.-]+\d|[0-9a-f]{12})(?=\.jsonl?$)")  # of lm-eval, of a sweep
SECTIONS = ("inputs", "scoring", "trained", "eval", "sweep", "correlate", "longbench", "synthetic")
ABSENT = "(absent)"


@dataclass
class Section:
    """The comparison of one section: how many values are the same, and which are not."""

    name: str
    same: int = 0
    ignored: int = 0
    rounded: int = 0  # equal but for the last bits, in the columns of `ROUNDED`
    differences: list[tuple[str, str, str]] = field(default_factory=list)  # place, before, after
    removed: Counter[str] = field(default_factory=Counter)  # values by file and column
    added: Counter[str] = field(default_factory=Counter)

    @property
    def compared(self) -> int:
        """Values that were compared, the same or not."""
        return self.same + self.rounded + len(self.differences)


def compare(before: Path, after: Path) -> list[Section]:
    """Compare two folders of `record`, section by section.

    A value, row or file that only one side has is a difference, except for the columns of `REMOVED`, the keys of
    `ADDED` and new columns of a CSV file, which are listed. So is a section without values.
    """
    return [_compare_section(name, before, after) for name in SECTIONS]


def _compare_section(name: str, before: Path, after: Path) -> Section:
    section = Section(name)
    old, new = _read_section(before, name), _read_section(after, name)
    for folder, values in ((before, old), (after, new)):
        if not values:
            section.differences.append((f"{folder / name} has no values", ABSENT, ABSENT))
    old_columns, new_columns = _columns(old), _columns(new)
    for place in old | new:  # in the order of the files
        one, two = old.get(place, ABSENT), new.get(place, ABSENT)
        column = (place[0], place[-1])
        if any(part in IGNORED for part in place[1:]):
            section.ignored += 1
        elif two == ABSENT and column not in new_columns and place[-1] in REMOVED.get(Path(place[0]).name, ()):
            section.removed[f"{place[0]}: {place[-1]}"] += 1
        elif one == ABSENT and (_is_new_column(column, old_columns) or _is_added_key(place)):
            section.added[f"{place[0]}: {place[-1]}"] += 1
        elif one == two:
            section.same += 1
        elif place[-1] in ROUNDED.get(Path(place[0]).name, ()) and _is_close(one, two):
            section.rounded += 1
        else:
            section.differences.append((" ".join(place), one, two))
    return section


def _columns(values: dict[Place, str]) -> set[tuple[str, str]]:
    """File and column of every cell of the CSV files."""
    return {(place[0], place[-1]) for place in values if place[0].endswith(".csv")}


def _is_new_column(column: tuple[str, str], old_columns: set[tuple[str, str]]) -> bool:
    """Whether the column is new in a CSV file that both sides have."""
    return column not in old_columns and column[0] in {file for file, _ in old_columns}


def _is_added_key(place: Place) -> bool:
    """Whether it is a key of `ADDED`, in an entry of a list."""
    return (*place[-3:-2], place[-1]) in ADDED


def _is_close(one: str, two: str) -> bool:
    """Whether two numbers, as `_text` writes them, differ by rounding only."""
    try:
        return math.isclose(*(float.fromhex(text.split()[0]) for text in (one, two)), rel_tol=TOLERANCE)
    except (ValueError, IndexError):
        return False


def _read_section(folder: Path, name: str) -> dict[Place, str]:
    """Every value of a section as text that is the same only for the same bits."""
    paths = json.loads((folder / "record.json").read_text("utf-8"))["paths"]
    values: dict[Place, str] = {}
    for file in sorted((folder / name).rglob("*")):
        if file.name.startswith(".") or not file.is_file() or file.name in NOT_RESULTS:
            continue
        label = RUN_NAMES.sub("", str(file.relative_to(folder)))
        for place, value in _read_file(file, name):
            text = _text(value, label, place)
            for stand_in, path in paths.items():
                text = text.replace(path, stand_in)
            values[(label, *place)] = text
    return values


def _read_file(file: Path, section: str) -> Iterator[tuple[Place, Any]]:
    """Places and values of a file; for pictures, pages, code and logs only that they are written."""
    if section == "inputs":
        yield ("sha256",), hashlib.sha256(file.read_bytes()).hexdigest()
    elif file.suffix == ".json":
        yield from _flatten(json.loads(file.read_text("utf-8")))
    elif file.suffix == ".jsonl":
        yield from _flatten([json.loads(line) for line in file.read_text("utf-8").splitlines()])
    elif file.suffix == ".csv":
        with file.open(encoding="utf-8", newline="") as lines:
            rows = [{key: _number(cell) for key, cell in row.items()} for row in csv.DictReader(lines)]
        yield from _flatten(rows)
    elif file.suffix == ".parquet":
        yield from _flatten(pyarrow.parquet.read_table(file).to_pylist())
    elif file.suffix == ".safetensors":
        for name, tensor in sorted(load_file(file).items()):
            data = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            shape = f"{tensor.dtype} {list(tensor.shape)}"
            yield (name,), f"{shape} sha256:{hashlib.sha256(data).hexdigest()}"
    else:
        yield ("is written",), True


def _flatten(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Leaves of nested dictionaries and lists; an empty one is a leaf."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _flatten(inner, (*place, str(key)))
    else:
        yield place, value


def _number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def _text(value: Any, file: str, place: Place) -> str:
    """A value as text with its type; a float in hexadecimal, so that a digit stands for its bits."""
    if isinstance(value, float):
        return f"{value.hex()} ({value!r})"
    is_request_text = not REQUEST_TEXTS.isdisjoint(place) and REQUEST_FILES.fullmatch(file)
    if isinstance(value, str) and (is_request_text or not SENTENCES.isdisjoint(place)):
        return f"numbers in a sentence: {re.findall(r'[-+]?[0-9]+(?:[.][0-9]+)?', value)}"
    return repr(value)


def report(sections: list[Section], show: int = 5) -> str:
    """A table of all sections, then the first `show` differences of each, then the columns of one side only."""
    lines = [f"{'section':12}{'compared':>10}{'different':>11}{'rounded':>9}{'ignored':>9}{'removed':>9}{'added':>7}"]
    for section in sections:
        removed, added = section.removed.total(), section.added.total()
        lines.append(
            f"{section.name:12}{section.compared:>10}{len(section.differences):>11}{section.rounded:>9}"
            f"{section.ignored:>9}{removed:>9}{added:>7}"
        )
    compared = sum(section.compared for section in sections)
    lines.append(f"{'total':12}{compared:>10}{sum(len(section.differences) for section in sections):>11}")
    for section in sections:
        for place, one, two in section.differences[:show]:
            lines += ["", place, f"  before: {one[:200]}", f"  after:  {two[:200]}"]
        if len(section.differences) > show:
            lines.append(f"… and {len(section.differences) - show} more in {section.name}")
    for title, attribute in (("Removed columns", "removed"), ("Added columns", "added")):
        found = [f"  {name} ({count})" for section in sections for name, count in getattr(section, attribute).items()]
        if found:
            lines += ["", f"{title} (values):", *found]
    return "\n".join(lines)
