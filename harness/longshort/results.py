"""Reads and writes results: lm-eval's JSON to the tidy table; files that are whole or not there."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from longshort.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

TASK_PREFIXES = ("longshort_", "longshort-")

# The tidy table: one row per checkpoint × task × metric × length. pandas' nullable types, so that a missing
# integer stays an integer column; the table's columns are these, in this order.
COLUMNS = {
    "checkpoint": "string",
    "revision": "string",
    "family": "string",
    "params": "Int64",
    "train_tokens": "Int64",
    "train_length": "Int64",
    "task": "string",
    "corpus": "string",
    "metric": "string",
    "length": "Int64",
    "value": "float64",
    "stderr": "float64",
    "n": "Int64",
}
IDENTITY = ["checkpoint", "revision", "task", "corpus", "metric", "length"]
END_OF_INTEGERS = 2**63  # of the columns above


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash, never meets half of it.

    The content goes to a temporary file in the same folder, which then takes the file's name. Missing folders
    are made; text is written as UTF-8, half a surrogate pair (of a file's odd name) as its escape in JSON.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    # Not tempfile: its files are readable by their owner alone, and would stay so under the final name.
    temporary = path.with_name(f".{uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "Free some space, or choose another folder." if full else "Choose a folder you can write to."
        raise UserError(f"{path} cannot be written: {error.strerror or error}. {remedy}") from error
    finally:
        with suppress(OSError):  # gone already, unless something failed above
            temporary.unlink()


def remove_left_over(folder: Path) -> None:
    """Remove what a `write_atomically` that was killed left behind, in a folder that no other process writes to."""
    for file in folder.glob(".*.tmp"):
        if re.fullmatch(r"\.[0-9a-f]{32}\.tmp", file.name):
            with suppress(OSError):
                file.unlink()


@dataclass(frozen=True)
class Reading:
    """What a folder of results holds, and what that was made from.

    Attributes:
        table: the tidy table of `read_results`.
        files: SHA-256 of each file that was used, by its path below the folder.
        corpora: the documents each corpus stood for (task, source, revision, split, SHA-256, and which of their tokens
            are the fixed targets), by its name.
        versions: of tasks, lm-eval and transformers, as the files record them.
        notes: what was left out or measured again, one line each.
    """

    table: pd.DataFrame
    files: dict[str, str]
    corpora: dict[str, list[dict[str, Any]]]
    versions: dict[str, list[str]]
    notes: list[str]


def read_results(
    folder_or_files: str | Path | Iterable[str | Path], *, strict: bool = False, every_task: bool = False
) -> pd.DataFrame:
    """Read lm-eval's results files into the tidy table, one row per checkpoint × task × metric × length.

    Where a checkpoint and revision have several results for one task, corpus, metric and length, the newest
    counts. A file that cannot be read is left out. Both, and values that are not finite, are told through
    ``logging``.

    Args:
        folder_or_files: a folder, searched at any depth for ``results_*.json``, or results files.
        strict: raise for a file that cannot be read instead of leaving it out.
        every_task: also the results of other tasks than longshort's.

    Returns:
        A table with the columns and types of `COLUMNS`. A checkpoint is its ``pretrained`` model argument
        (``BASE+ADAPTER`` with a PEFT adapter or delta weights). ``length`` is in tokens, missing for metrics
        that have none; such a metric keeps its whole name (``score@0-4k``, ``sce_between@1024-2048``), and so
        does every metric of another task, with its filter if it has one (``exact_match,strict-match``).
        ``stderr`` is NaN where lm-eval gives none.

    Raises:
        UserError: no folder, no results of a longshort task in it, or with `strict` a damaged file.
    """
    reading = read(folder_or_files, strict=strict, every_task=every_task)
    for note in reading.notes:
        logger.warning("%s", note)
    return reading.table


def read(
    folder_or_files: str | Path | Iterable[str | Path], *, strict: bool = False, every_task: bool = False
) -> Reading:
    """As `read_results`, with what the table was made from; notes are returned and not logged.

    Raises:
        UserError: as there.
    """
    import pandas as pd

    files = _find(folder_or_files)
    rows: list[dict[str, Any]] = []
    damaged: list[str] = []
    reading = Reading(pd.DataFrame(), {}, {}, {}, [])
    for name, file in files.items():
        try:
            content, data = _load(file)
            tasks = [task for task in data["results"] if every_task or task.startswith(TASK_PREFIXES)]
            of_file = [row for task in tasks for row in _rows(data, task, reading.notes)]
            if of_file:
                _record_origins(data, tasks, reading)
                reading.files[name] = hashlib.sha256(content).hexdigest()
                rows += of_file
        except UserError as error:
            damaged.append(str(error))
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):  # JSON, but not as lm-eval writes it
            damaged.append(f"{file} is not a results file of lm-eval.")
    if damaged and strict:
        raise UserError(damaged[0] + (f" So are {len(damaged) - 1} more." if damaged[1:] else ""))
    if not any(row["task"].startswith(TASK_PREFIXES) for row in rows):
        where = folder_or_files if isinstance(folder_or_files, (str, Path)) else "the list of files"
        why = "".join(f"{problem} " for problem in [*damaged, *reading.notes][:1])
        raise UserError(
            f"no result of a longshort_* task in {where} ({len(files)} results files, {len(damaged)} of them "
            f"damaged). {why}Run 'longshort eval', or lm_eval with --output_path, first."
        )
    reading.notes[:0] = [f"{problem} Left out." for problem in damaged]
    reading.notes.extend(_shared_names(rows))
    table = pd.DataFrame(rows).sort_values("date", kind="stable")[list(COLUMNS)].astype(COLUMNS)
    newest = table.drop_duplicates(IDENTITY, keep="last").sort_values(IDENTITY, ignore_index=True)
    if len(newest) < len(table):
        repeated = table[table.duplicated(IDENTITY)]
        reading.notes.append(
            f"{len(repeated)} values of {repeated['checkpoint'].nunique()} checkpoints (the first: "
            f"{repeated['checkpoint'].iloc[0]}) were measured again; the newest counts."
        )
    return replace(reading, table=newest)


def _find(folder_or_files: str | Path | Iterable[str | Path]) -> dict[str, Path]:
    """Results files by their path below the folder."""
    if not isinstance(folder_or_files, (str, Path)):
        return {str(file): Path(file) for file in folder_or_files}
    path = Path(folder_or_files)
    if not path.exists():
        raise UserError(f"{path} does not exist. Name a folder of lm-eval results.")
    if path.is_file():
        return {path.name: path}
    return {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("results_*.json"))}


def _load(file: Path) -> tuple[bytes, dict[str, Any]]:
    try:
        content = file.read_bytes()
        data = json.loads(content.decode("utf-8"))
        if b"\\ud" in content.lower():  # half a surrogate pair is JSON, but no text: no table can hold it
            json.dumps(data, ensure_ascii=False).encode()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or not JSON
        raise UserError(f"{file} is damaged or incomplete JSON. Run that evaluation again.") from error
    if not isinstance(data, dict) or not isinstance(data.get("results"), dict):
        raise UserError(f"{file} is not a results file of lm-eval.")
    return content, data


def _rows(data: dict[str, Any], task: str, notes: list[str]) -> Iterator[dict[str, Any]]:
    ours = task.startswith(TASK_PREFIXES)
    config = data.get("config") or {}
    model_args = _model_args(config.get("model_args"))
    metadata = _metadata(data, task)
    base = str(model_args.get("pretrained") or metadata.get("pretrained") or data.get("model_name"))
    base = posixpath.normpath(base)  # of lm_eval's ./name and of `longshort eval`'s name one checkpoint
    added = model_args.get("peft") or model_args.get("delta")
    metrics = data["results"][task]
    # Of a group lm-eval counts per metric itself; its members' counts are theirs.
    counts = metrics.get("sample_count")
    if counts is None:
        counts = {f"{name},none": n for name, n in ((metadata.get("scored") or {}).get("documents") or {}).items()}
    effective = (data.get("n-samples") or {}).get(task, {}).get("effective")
    params = _whole(metadata.get("params")) or _whole(config.get("model_num_parameters"))
    for key, value in metrics.items():
        name, comma, filter_name = key.partition(",")
        if not comma or name.endswith("_stderr"):
            continue
        if name.isdigit() and value == -1:  # lm-eval's RULER for a length that was not asked for
            continue
        if _number(value) is None:
            notes.append(f"{base}, {task}: {name} is {value}. Left out.")
            continue
        metric, length = _split_length(name) if ours else (name if filter_name == "none" else key, None)
        yield {
            "base": base,
            "is_told_family": bool(metadata.get("family")),
            "checkpoint": f"{base}+{added}" if added else base,
            "revision": config.get("model_revision") or model_args.get("revision") or "main",
            "family": metadata.get("family") or Path(base).name,
            "params": None if params == -1 else params,  # lm-eval's "cannot tell"
            "train_tokens": _whole(metadata.get("train_tokens")),
            "train_length": _whole(metadata.get("train_length")),
            "task": task,
            "corpus": metadata.get("corpus") if ours else None,  # a run's metadata reaches tasks that read no corpus
            "metric": metric,
            "length": length,
            "value": value,
            "stderr": _number(metrics.get(f"{name}_stderr,{filter_name}")),
            "n": _whole(counts.get(key, effective)),
            "date": _number(data.get("date")) or 0,
        }


def _shared_names(rows: Iterable[dict[str, Any]]) -> list[str]:
    """One line for each family that is one only because folders that were told none share their last name."""
    told = {row["base"] for row in rows if row["is_told_family"]}
    bases: dict[str, set[str]] = {}
    for base in {row["base"] for row in rows} - told:
        bases.setdefault(Path(base).name, set()).add(base)
    return [
        f"{' and '.join(sorted(shared)[:3])} were told no family and share a name: they count as one family, "
        f"'{name}'. Where they are not one, evaluate with --family, or say family in the manifest."
        for name, shared in sorted(bases.items())
        if len(shared) > 1
    ]


def _record_origins(data: dict[str, Any], tasks: Iterable[str], reading: Reading) -> None:
    """Add what one file says of its documents and versions, once each."""
    found = {name: data.get(name) for name in ("lm_eval_version", "transformers_version")}
    versions = data.get("versions") or {}
    for task in tasks:
        found[task] = versions.get(task)
        metadata = (data["configs"].get(task) or {}).get("metadata") or {}  # a group read nothing itself
        scored = metadata.get("scored")
        if scored:
            origin = {"task": task} | {name: scored.get(name) for name in ("source", "revision", "split", "sha256")}
            if metadata.get("lengths") and metadata.get("tail_tokens"):
                origin["fixed_targets"] = f"the last {metadata['tail_tokens']} of {max(metadata['lengths']) + 1} tokens"
            _add(reading.corpora, str(metadata.get("corpus")), origin)
    for name, version in found.items():
        if version is not None:
            _add(reading.versions, name, str(version))


def _add(known: dict[str, list[Any]], name: str, value: Any) -> None:
    if value not in known.setdefault(name, []):
        known[name].append(value)


def _metadata(data: dict[str, Any], task: str) -> dict[str, Any]:
    """The task's own metadata; a group has none in lm-eval's results and takes that of its first member."""
    configs, groups = data.get("configs") or {}, data.get("group_subtasks") or {}
    while task not in configs and groups.get(task):
        task = groups[task][0]
    return (configs.get(task) or {}).get("metadata") or {}


def _model_args(model_args: Any) -> dict[str, Any]:
    """lm-eval records them as they were given: a mapping, or ``key=value,key=value``."""
    if isinstance(model_args, dict):
        return model_args
    return dict(part.partition("=")[::2] for part in str(model_args or "").split(","))


def _split_length(name: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(.+)@(\d{1,15})", name)
    return (match[1], int(match[2])) if match else (name, None)


def _number(value: Any) -> int | float | None:
    """The value if it is a finite number: lm-eval writes "N/A" for a standard error it has not got."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    if number is not None and abs(number) >= END_OF_INTEGERS:
        raise OverflowError(f"{number} has no place in a column of integers")
    return None if number is None else int(number)
