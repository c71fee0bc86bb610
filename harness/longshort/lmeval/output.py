"""Writes results and samples where lm-eval's own tracker writes them, but atomically and with clear errors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from lm_eval.utils import handle_non_serializable, sanitize_list

from longshort.errors import UserError
from longshort.results import write_atomically
from longshort.results.tokens import RECORD, write_tokens

NOT_IN_RESULTS_FILE = ("samples", "problems", RECORD)  # problems are printed; the others have files of their own


def require_writable(folder: Path) -> None:
    """Make a folder.

    Raises:
        UserError: it cannot be made or written to ("unwritable").
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output folder {folder} cannot be made: {error.strerror}. Choose another with -o.", "unwritable"
        ) from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"output folder {folder} is not writable. Choose another with -o.", "unwritable")


def to_json(results: Mapping[str, Any], token_record: Mapping[str, Any] | None = None) -> str:
    """Return the text of a results file, as lm-eval writes it, with the record of its token file."""
    written = {key: value for key, value in results.items() if key not in NOT_IN_RESULTS_FILE}
    written |= {RECORD: token_record} if token_record else {}
    return json.dumps(written, indent=2, default=handle_non_serializable, ensure_ascii=False)


def write_results(results: Mapping[str, Any], output: Path) -> None:
    """Write ``<output>/<model name>/results_<time>.json``, and next to it samples and the token file, if there are any.

    Raises:
        UserError: a file cannot be written. If that is the token file, the others have been written.
    """
    date = date_in_names(datetime.now())
    folder = output / str(results["model_name_sanitized"])
    require_writable(folder)
    record, problem = write_tokens(results.get(RECORD), folder / f"tokens_{date}.parquet")
    write_atomically(folder / f"results_{date}.json", to_json(results, record))
    for task, rows in (results.get("samples") or {}).items():
        write_atomically(folder / f"samples_{task}_{date}.jsonl", "".join(map(_sample_line, rows)))
    if problem:
        raise problem


def date_in_names(date: datetime) -> str:
    """Return a time as lm-eval writes it in names of files."""
    return date.isoformat().replace(":", "-")


def _sample_line(row: Mapping[str, Any]) -> str:
    """One document's values, as lm-eval's tracker writes them."""
    arguments = {
        f"gen_args_{index}": {f"arg_{part}": value for part, value in enumerate(values)}
        for index, values in enumerate(row["arguments"])
    }
    lists = {name: sanitize_list(row[name]) for name in ("resps", "filtered_resps")}
    row = {**row, **lists, "target": str(row["target"]), "arguments": arguments}
    return json.dumps(row, default=handle_non_serializable, ensure_ascii=False) + "\n"
