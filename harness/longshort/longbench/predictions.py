"""Reads folders of LongBench-E predictions, official files or lm-eval's samples, and writes official files.

Official prediction files are `DATASET.jsonl` with the fields `pred`, `answers`, `all_classes` and `length` per line.
"""

from __future__ import annotations

import codecs
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from longshort.errors import UserError
from longshort.longbench.scores import DATASETS, check_row
from longshort.results import write_atomically

logger = logging.getLogger(__name__)

_SAMPLES = re.compile(r"samples_(longshort.+)_(\d{4}-\d\d-\d\dT.+)\.jsonl")


@dataclass(frozen=True)
class Row:
    """One prediction with its right answers; `length` in words, `all_classes` only if the dataset has classes."""

    prediction: str
    answers: list[str]
    all_classes: list[str] | None
    length: float


@dataclass(frozen=True)
class Predictions:
    """Rows per dataset, in the files' order, and one line for each problem: what was skipped and why."""

    rows: dict[str, list[Row]]
    problems: list[str]


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
    Rows that cannot be scored, files without rows and unknown datasets are skipped and reported as problems.

    Raises:
        UserError: there is no such folder, or it has no file of a dataset of LongBench-E ("not_found").
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder. Give one with files DATASET.jsonl, or with samples of lm-eval.", "not_found"
        )
    problems: list[str] = []
    files: dict[str, list[tuple[int, str, Path]]] = {}
    for file in sorted(folder.glob("*.jsonl")):
        samples = _SAMPLES.fullmatch(file.name)
        if samples:
            name = next((name for name in DATASETS if samples[1].endswith((f"-{name}", f"_{name}"))), None)
            if name:
                files.setdefault(name, []).append((0, samples[2], file))
        elif not file.name.startswith("samples_"):
            name = file.stem.removesuffix("_e")
            if name in DATASETS:
                files.setdefault(name, []).append((2 if name == file.stem else 1, "", file))
            else:
                problems.append(
                    f"{file}: LongBench-E has no dataset {file.stem}. The file is skipped; name it after one of "
                    f"{', '.join(DATASETS)}, or remove it."
                )
    if not files:
        raise UserError(_nothing_in(folder), "not_found")
    rows = {}
    for name in DATASETS:
        if name not in files:
            continue
        *others, chosen = [file for _, _, file in sorted(files[name])]
        for other in others:
            logger.warning("%s: %s is used, %s is not.", name, chosen, other)
        found = _read_rows(chosen, name, problems)
        if found:
            rows[name] = found
    return Predictions(rows, problems)


def _nothing_in(folder: Path) -> str:
    inner = sorted({file.parent.name for file in folder.glob("*/*.jsonl")})  # lm-eval writes one per model
    remedy = f"Give one of its subfolders {', '.join(inner[:5])}." if inner else f"Datasets: {', '.join(DATASETS)}."
    return f"{folder} has no predictions, neither DATASET.jsonl nor lm-eval's samples of LongBench-E. {remedy}"


def _read_rows(file: Path, dataset: str, problems: list[str]) -> list[Row]:
    """Return the rows that can be scored; the others become one problem per cause."""
    try:
        lines = file.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    except OSError as error:
        problems.append(f"{file} cannot be read: {error.strerror or error}. It is skipped; make it readable.")
        return []
    rows: list[Row] = []
    faults: dict[str, list[int]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(_row(line, dataset, samples=file.name.startswith("samples_")))
        except ValueError as error:
            faults.setdefault(str(error), []).append(number)
    if not rows and not faults:
        problems.append(f"{file} is empty. {dataset} is skipped; write its predictions again.")
    for cause, numbers in faults.items():
        more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
        where = f"line{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:5]))}{more}"
        problems.append(f"{file}, {where}: {cause}. Skipped; correct the file or write it again, then score again.")
    return rows


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
    if samples:
        responses, fields = data.get("filtered_resps"), data.get("doc")
        if not isinstance(fields, dict) or not isinstance(responses, list) or not responses:
            raise ValueError("`doc` or `filtered_resps` is missing or empty")
        prediction = responses[0]
    else:
        fields, prediction = data, data.get("pred")
    if not isinstance(prediction, str):
        raise ValueError("the prediction is missing or not a string")
    check_row(dataset, fields)
    return Row(prediction, fields["answers"], fields.get("all_classes"), fields["length"])
