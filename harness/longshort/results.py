"""Results files: lm-eval's JSON to the tidy table, atomic writes, and the one reader of JSON files."""

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

from longshort.errors import Kind, UserError

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
    """Write a file so that no reader sees half of it, not even after a crash.

    The content goes to a temporary file in the same folder, which is then renamed. Missing folders are created. Text
    is written as UTF-8, half a surrogate pair (from an unusual file name) as its JSON escape.

    Raises:
        UserError: the folder is not writable, or the disk is full (kind "unwritable").
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
        raise UserError(f"Cannot write {path}: {error.strerror or error}. {remedy}", "unwritable") from error
    finally:
        with suppress(OSError):  # gone already, unless something failed above
            temporary.unlink()


def remove_left_over(folder: Path) -> None:
    """Remove the temporary files of a killed `write_atomically` from a folder that no other process writes to."""
    for file in folder.glob(".*.tmp"):
        if re.fullmatch(r"\.[0-9a-f]{32}\.tmp", file.name):
            with suppress(OSError):
                file.unlink()


def read_json(path: str | Path, remedy: str = "Correct it, or replace it with a good copy.") -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        path: the file.
        remedy: the last sentence of the message for a file that holds something else.

    Raises:
        UserError: there is no such file (kind "not_found"); or it is not readable, not UTF-8, not JSON, not an object,
            too deeply nested, or holds a number or a string that Python cannot represent (kind "data").
    """
    return parse_json(read_bytes(path), path, remedy)


def read_bytes(path: str | Path) -> bytes:
    """Return the content of a file.

    Raises:
        UserError: there is no such file (kind "not_found"), or it is not readable (kind "data").
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        kind: Kind = "not_found" if isinstance(error, FileNotFoundError) else "data"
        raise UserError(f"Cannot read {path}: {error.strerror or error}.", kind) from error


def parse_json(content: bytes, source: str | Path, remedy: str = "Fix or remove it.") -> dict[str, Any]:
    """Return the JSON object in a file's content, or in one line of it.

    Args:
        content: UTF-8.
        source: where it is from, for the message: a file, or a file and a line number.
        remedy: the last sentence of the message.

    Raises:
        UserError: as `read_json`, kind "data".
    """
    try:
        data = json.loads(content.decode("utf-8"))
        if b"\\ud" in content.lower():  # half a surrogate pair is valid JSON, but no table can hold it
            json.dumps(data, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if "\n" in error.doc else f"column {error.colno}"
        raise UserError(f"Cannot read {source}: not valid JSON at {where} ({error.msg}). {remedy}", "data") from error
    except UnicodeDecodeError as error:
        raise UserError(f"Cannot read {source}: byte {error.start} is not UTF-8. {remedy}", "data") from error
    except (ValueError, RecursionError) as error:  # half a surrogate pair, thousands of digits or of nested lists
        cause = str(error).split(";")[0]
        raise UserError(f"Cannot read {source}: not JSON that Python can hold ({cause}). {remedy}", "data") from error
    if not isinstance(data, dict):
        raise UserError(f"Cannot read {source}: it holds a {type(data).__name__}, not an object. {remedy}", "data")
    return data


@dataclass(frozen=True)
class Reading:
    """The content of a folder of results, and its provenance.

    Attributes:
        table: the tidy table of `read_results`.
        files: SHA-256 of each file that was used, by its path below the folder.
        corpora: the documents each corpus stood for (task, source, revision, split, SHA-256, and which of their tokens
            are the fixed targets), by its name.
        versions: of tasks, lm-eval and transformers, as the files record them.
        notes: what was skipped or measured more than once, one line each.
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

    Where a checkpoint and revision have several results for one task, corpus, metric and length, the newest counts.
    A file that cannot be read is skipped, and so is a value that is not finite. All three are reported through
    ``logging``.

    Args:
        folder_or_files: a folder, searched at any depth for ``results_*.json``, or results files.
        strict: raise for a file that cannot be read instead of skipping it.
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
    """As `read_results`, with the table's provenance; notes are returned and not logged.

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
            damaged.append(str(_not_results(file)))
    if damaged and strict:
        raise UserError(damaged[0] + (f" {len(damaged) - 1} more files are damaged." if damaged[1:] else ""), "data")
    if not any(row["task"].startswith(TASK_PREFIXES) for row in rows):
        where = folder_or_files if isinstance(folder_or_files, (str, Path)) else "the list of files"
        why = "".join(f"{problem} " for problem in [*damaged, *reading.notes][:1])
        raise UserError(
            f"No result of a longshort_* task in {where} ({len(files)} results files, {len(damaged)} of them "
            f"damaged). {why}Run 'longshort eval', or lm_eval with --output_path, first.",
            "data" if damaged else "not_found",
        )
    reading.notes[:0] = [f"{problem} Skipped." for problem in damaged]
    reading.notes.extend(_shared_names(rows))
    table = pd.DataFrame(rows).sort_values("date", kind="stable")[list(COLUMNS)].astype(COLUMNS)
    newest = table.drop_duplicates(IDENTITY, keep="last").sort_values(IDENTITY, ignore_index=True)
    if len(newest) < len(table):
        repeated = table[table.duplicated(IDENTITY)]
        reading.notes.append(
            f"{len(repeated)} values of {repeated['checkpoint'].nunique()} checkpoints (the first: "
            f"{repeated['checkpoint'].iloc[0]}) were measured more than once; the newest counts."
        )
    return replace(reading, table=newest)


def _find(folder_or_files: str | Path | Iterable[str | Path]) -> dict[str, Path]:
    """Results files by their path below the folder."""
    if not isinstance(folder_or_files, (str, Path)):
        return {str(file): Path(file) for file in folder_or_files}
    path = Path(folder_or_files)
    if not path.exists():
        raise UserError(f"{path} does not exist. Give a folder of lm-eval results.", "not_found")
    if path.is_file():
        return {path.name: path}
    return {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("results_*.json"))}


def _load(file: Path) -> tuple[bytes, dict[str, Any]]:
    content = read_bytes(file)
    data = parse_json(content, file, "Run that evaluation again.")
    if not isinstance(data.get("results"), dict):
        raise _not_results(file)
    return content, data


def _not_results(file: Path) -> UserError:
    return UserError(f"{file} is not an lm-eval results file. Move it to another folder.", "data")


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
            notes.append(f"{base}, {task}: {name} is {value}. Skipped.")
            continue
        metric, length = _split_length(name) if ours else (name if filter_name == "none" else key, None)
        yield {
            "base": base,
            "has_family": bool(metadata.get("family")),
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
    """One line for each family whose members have no `family` set and share only their folders' base name."""
    named = {row["base"] for row in rows if row["has_family"]}
    bases: dict[str, set[str]] = {}
    for base in {row["base"] for row in rows} - named:
        bases.setdefault(Path(base).name, set()).add(base)
    return [
        f"{' and '.join(sorted(shared)[:3])} have no `family` set and share a base name: they count as one family, "
        f"'{name}'. If they are different families, evaluate with --family, or set family in the manifest."
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
    """The value if it is a finite number: lm-eval writes "N/A" for a standard error it cannot compute."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    if number is not None and abs(number) >= END_OF_INTEGERS:
        raise OverflowError(f"{number} does not fit into a column of integers")
    return None if number is None else int(number)
