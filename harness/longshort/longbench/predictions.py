"""Reads folders of LongBench-E predictions, official files or lm-eval's samples, and writes official files.

Official prediction files are `DATASET.jsonl` with the fields `pred`, `answers`, `all_classes` and `length` per line.
"""

from __future__ import annotations

import codecs
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longshort.errors import UserError, listed
from longshort.longbench.benchmark import LONGBENCH_ONLY, signs_of_longbench
from longshort.longbench.runs import Row, identity_of, one_run, other_lengths
from longshort.longbench.scores import DATASETS, NoLength, check_row
from longshort.results import write_atomically

logger = logging.getLogger(__name__)

_SAMPLES = re.compile(r"samples_(longshort.+)_(\d{4}-\d\d-\d\dT.+)\.jsonl")


@dataclass(frozen=True)
class Predictions:
    """Rows per dataset, in the files' order."""

    rows: dict[str, list[Row]]  # those of one run, by dataset
    problems: list[str]  # one line each: what was skipped and why
    notes: list[str]  # one line each: which rows were counted once or have other lengths than the official data


def write_official_predictions(folder: Path, output: Path) -> list[str]:
    """Write predictions, mainly lm-eval's samples, as the files that the official scorer reads.

    Returns:
        One line for each problem: what was skipped and why.

    Raises:
        UserError: the folder has no dataset of LongBench-E, or the files cannot be written.
    """
    if output.resolve() == folder.resolve():
        raise UserError(
            f"{output} is the folder of the predictions. Choose another folder for the official files.", "conflict"
        )
    predictions = read_predictions(folder)
    for dataset, rows in predictions.rows.items():
        lines = (
            {"pred": row.prediction, "answers": row.answers, "all_classes": row.all_classes, "length": row.length}
            for row in rows
        )
        write_atomically(output / f"{dataset}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return predictions.problems


def read_predictions(folder: Path) -> Predictions:
    """Read official prediction files, or lm-eval's newest samples of each dataset.

    ``DATASET.jsonl`` is preferred to ``DATASET_e.jsonl``, and both to samples; files that are not used are logged.
    Exact repeats of a run are counted once. Rows that cannot be scored, files without rows or with the rows of several
    runs, and unknown datasets are skipped and reported as problems.

    Raises:
        UserError: the folder does not exist, or it has no file of a dataset of LongBench-E ("not_found"), or the files
            are of LongBench, not of LongBench-E ("data").
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder. Give one with files DATASET.jsonl, or with samples of lm-eval.", "not_found"
        )
    files, others = _files_of(folder)
    read = {name: _read_rows(files[name][-1].path, name) for name in DATASETS if name in files}
    official = {name: content.rows for name, content in read.items() if files[name][-1].kind == OFFICIAL}
    without_length = [name for name in official if read[name].without_length]
    signs = signs_of_longbench(official, [file.stem for file in others], without_length)
    if signs and len(official) == len(read):
        raise UserError(
            f"{folder} holds predictions of LongBench, not of LongBench-E: {'; '.join(signs)}. Generate those of "
            "LongBench-E with the official `pred.py --e`, or score these with the official `eval.py`.",
            "data",
        )
    if not files:
        raise UserError(_nothing_in(folder), "not_found")

    predictions = Predictions({}, _problems_of_others(others), [])
    for name, content in read.items():
        predictions.problems.extend(content.problems)
        _report_other_files(files[name], content.rows, name, predictions.problems)
        _add_one_run(predictions, files[name][-1].path, name, content.rows)
    repeated = [
        f"{name} ({len(read[name].rows)} rows, {len(rows)} counted)"
        for name, rows in predictions.rows.items()
        if len(rows) < len(read[name].rows)
    ]
    if repeated:
        predictions.notes.append(f"Exact repeats are counted once: {', '.join(repeated)}.")
    for name, rows in predictions.rows.items():
        lengths = other_lengths(rows, name)
        if lengths:
            predictions.notes.append(f"{name} has rows of other lengths than the official data: {lengths}.")
    return predictions


SAMPLES, NAMED_E, OFFICIAL = range(3)  # kinds of files, in ascending preference


@dataclass(frozen=True, order=True)
class _File:
    kind: int
    date: str  # of samples
    path: Path


def _files_of(folder: Path) -> tuple[dict[str, list[_File]], list[Path]]:
    """The files of each dataset, the preferred one last, and files of no dataset of LongBench-E."""
    files: dict[str, list[_File]] = {}
    others = []
    for file in sorted(folder.glob("[!.]*.jsonl")):
        samples = _SAMPLES.fullmatch(file.name)
        if samples:
            name = next((name for name in DATASETS if samples[1].endswith((f"-{name}", f"_{name}"))), None)
            if name:
                files.setdefault(name, []).append(_File(SAMPLES, samples[2], file))
        elif not file.name.startswith("samples_"):
            name = file.stem.removesuffix("_e")
            if name in DATASETS:
                files.setdefault(name, []).append(_File(OFFICIAL if name == file.stem else NAMED_E, "", file))
            else:
                others.append(file)
    return {name: sorted(found) for name, found in files.items()}, others


def _problems_of_others(others: Sequence[Path]) -> list[str]:
    """One line for the datasets of LongBench, one for all unknown ones."""
    problems = []
    if longbench := [file.name for file in others if file.stem in LONGBENCH_ONLY]:
        problems.append(
            f"{others[0].parent}: {', '.join(longbench)} skipped: of LongBench, not of LongBench-E. Remove what does "
            "not belong there."
        )
    if unknown := [file.name for file in others if file.stem not in LONGBENCH_ONLY]:
        problems.append(
            f"{others[0].parent}: {', '.join(unknown)} skipped: LongBench-E has no such dataset. Name files after "
            f"{', '.join(DATASETS)}, or remove them."
        )
    return problems


def _report_other_files(files: Sequence[_File], rows: Sequence[Row], name: str, problems: list[str]) -> None:
    """Log the files of a dataset that are not used; other predictions are a problem, except in older samples."""
    *others, chosen = files
    for other in others:
        logger.warning("%s: %s is used, %s is not.", name, chosen.path, other.path)
        if chosen.kind != SAMPLES and Counter(map(_record, _read_rows(other.path, name).rows)) != Counter(
            map(_record, rows)
        ):
            problems.append(
                f"{other.path} and {chosen.path} have different predictions. The latter are scored; keep one of them."
            )


def _record(row: Row) -> str:
    return json.dumps([row.prediction, row.answers, row.length])


def _add_one_run(predictions: Predictions, file: Path, dataset: str, rows: Sequence[Row]) -> None:
    """Add the rows of a dataset if they are of one run; else report a problem."""
    if not rows:
        return
    try:
        predictions.rows[dataset] = one_run(rows, dataset)
    except ValueError as error:
        predictions.problems.append(
            f"{file}: {error}. {dataset} is not scored. Keep the lines of one run (the official script appends to an "
            "existing file), or remove the file and generate again."
        )


def _nothing_in(folder: Path) -> str:
    inner = sorted({file.parent.name for file in folder.glob("*/*.jsonl")})  # lm-eval writes one per model
    if inner:
        remedy = f"Give one of its subfolders {', '.join(inner[:5])}."
    elif any(folder.glob("samples_longbench*.jsonl")):
        remedy = "Samples of lm-eval's own longbench tasks have other prompts: run longshort_longbench_e."
    else:
        remedy = f"Datasets: {', '.join(DATASETS)}."
    return f"{folder} has no predictions, neither DATASET.jsonl nor lm-eval's samples of LongBench-E. {remedy}"


@dataclass(frozen=True)
class _Content:
    """The rows of a file that can be scored, one problem per cause for the others, and whether all lack `length`."""

    rows: list[Row]
    problems: list[str]
    without_length: bool = False


def _read_rows(file: Path, dataset: str) -> _Content:
    try:
        lines = file.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    except OSError as error:
        return _Content([], [f"{file} cannot be read: {error.strerror or error}. It is skipped; make it readable."])
    rows: list[Row] = []
    faults: dict[str, list[int]] = {}
    without_length = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(_row(line, dataset, samples=file.name.startswith("samples_")))
        except ValueError as error:
            faults.setdefault(str(error), []).append(number)
            without_length += isinstance(error, NoLength)
    if not rows and not faults:
        return _Content([], [f"{file} is empty. {dataset} is skipped; write its predictions again."])
    problems = []
    for cause, numbers in faults.items():
        where = f"line{'s' * (len(numbers) > 1)} {listed(numbers, 5)}"
        problems.append(f"{file}, {where}: {cause}. Skipped; correct the file or write it again, then score again.")
    return _Content(rows, problems, without_length == len(rows) + sum(map(len, faults.values())))


def _row(line: bytes, dataset: str, *, samples: bool) -> Row:
    """Parse one line; raise a ValueError with the cause in a few words."""
    try:
        data = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    number = None
    if samples:
        number = data.get("doc_id")
        responses, fields = data.get("filtered_resps"), data.get("doc")
        if not isinstance(fields, dict) or not isinstance(responses, list) or not responses:
            raise ValueError("`doc` or `filtered_resps` is missing or empty")
        prediction = responses[0]
    else:
        fields, prediction = data, data.get("pred")
    if not isinstance(prediction, str):
        raise ValueError("the prediction is missing or not a string")
    check_row(dataset, fields)
    identity = identity_of(fields, number)
    return Row(prediction, fields["answers"], fields.get("all_classes"), fields["length"], identity)
