"""The official LongBench-E rows, from the hub's `data.zip` at a fixed revision, or a local folder or zip."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from longshort.corpora import is_hidden
from longshort.errors import UserError, first_line
from longshort.longbench.scores import DATASETS, check_row
from longshort.results import read_bytes

REPOSITORY = "THUDM/LongBench"
REVISION = "5e628be450b7e67fb7ae6e201bd6d8f7056f7672"  # of 2024-12-18
ARCHIVE = "data.zip"


@dataclass(frozen=True)
class Rows:
    """One dataset's rows and their provenance."""

    # the official fields `input`, `context`, `answers`, `length` (words), `all_classes`, `_id`
    rows: list[dict[str, Any]]
    source: str  # file, or archive and member
    revision: str | None  # commit on the hub, None for local files
    sha256: str  # of the dataset's whole file
    problems: list[str]  # one line for each row that was skipped


@lru_cache(maxsize=16)
def read_rows(dataset: str, location: str | None) -> Rows:
    """Read and check one dataset.

    Args:
        dataset: its official name without `_e`.
        location: folder or zip with the official files (`qasper_e.jsonl`, also below `data/`); None: the hub.

    Raises:
        UserError: the folder, file or member does not exist ("not_found"); the archive is damaged, no row is valid, or
            there are more rows than in the official data ("data"); the hub cannot be reached ("hub").
    """
    file = f"{dataset}_e.jsonl"
    path = Path(location).expanduser() if location else _download()
    if path.is_dir():
        found = [candidate for candidate in (path / file, path / "data" / file) if candidate.is_file()]
        if not found:
            raise UserError(
                f"LongBench-E dataset '{dataset}': there is no {file} in {path}. Put the official file there.",
                "not_found",
                "longbench_dir",
            )
        source, content = str(found[0]), read_bytes(found[0])
    elif path.is_file():
        source, content = _read_member(path, file)
    else:
        raise UserError(
            f"longbench_dir {path} does not exist. Give a folder or zip with the official JSONL files.",
            "not_found",
            "longbench_dir",
        )
    rows, problems = _parse(dataset, source, content)
    if not rows:
        raise UserError(f"{source} has no valid row. " + (problems[0] if problems else "It is empty."), "data")
    if len(rows) > DATASETS[dataset].num_rows:
        raise UserError(
            f"{source} has {len(rows)} rows, where the official data has {DATASETS[dataset].num_rows}. Remove repeated "
            "rows, or give the official file.",
            "data",
            "longbench_dir",
        )
    revision = None if location else REVISION
    return Rows(rows, source, revision, hashlib.sha256(content).hexdigest(), problems)


def _read_member(archive: Path, file: str) -> tuple[str, bytes]:
    try:
        with zipfile.ZipFile(archive) as opened:
            names = [name for name in opened.namelist() if not is_hidden(PurePosixPath(name).parts)]
            member = next((name for name in names if name.rpartition("/")[2] == file), None)
            if member is None:
                raise UserError(
                    f"{archive} does not contain {file}. Give the official LongBench data.zip.",
                    "not_found",
                    "longbench_dir",
                )
            return f"{archive}:{member}", opened.read(member)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:  # the last: with a password
        raise UserError(f"{archive} is damaged or not a zip file ({error}). Download it again.", "data") from error


def _download() -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(REPOSITORY, ARCHIVE, repo_type="dataset", revision=REVISION))
    except Exception as error:  # the hub client's transports share no base class from version to version
        raise UserError(
            f"LongBench-E ({ARCHIVE} of the hub dataset {REPOSITORY}) cannot be downloaded: {first_line(error)} "
            "Offline, set longbench_dir to a folder or zip with the official JSONL files.",
            "hub",
        ) from error


def _parse(dataset: str, source: str, content: bytes) -> tuple[list[dict[str, Any]], list[str]]:
    rows, problems = [], []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            if not isinstance(row, dict):
                raise ValueError("not an object")
            for field in ("input", "context"):
                if not isinstance(row.get(field), str):
                    raise ValueError(f"'{field}' is not text")
            check_row(dataset, row)
        except (ValueError, RecursionError) as error:  # also JSONDecodeError and UnicodeDecodeError
            problems.append(f"{source}, line {number}: {error}; skipped.")
        else:
            rows.append(row)
    return rows, problems
