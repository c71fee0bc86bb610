"""Results files to the tidy table, with its provenance."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshort.errors import UserError
from longshort.results.lengths import per_length
from longshort.results.metrics import is_ours
from longshort.results.precisions import precision_pairs
from longshort.results.reader import Reader, is_number
from longshort.results.rows import Row, metadata_of, rows_of
from longshort.results.source import Source, find_files, load, not_results
from longshort.results.variants import IDENTITY, Variant, name_precisions, notes_on
from longshort.results.versions import unknown_version

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

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
SHOWN = 3  # names in a note
PERPLEXITY, RETRIEVAL = "longshort_perplexity", "longshort_retrieval"
CELL = ("length", "depth", "recall", "recall_nll", "n")  # of recall by length and depth


@dataclass(frozen=True)
class TokenSource:
    """A file of per-token values, and the results file that names it."""

    file: Path  # may be missing
    results: Path
    row: Row  # of the results file; one of perplexity, if it has any


@dataclass(frozen=True)
class DepthSource:
    """Recall by length and depth of one results file."""

    cells: list[dict[str, Any]]  # length, depth, recall, recall_nll and n of each
    row: Row  # of the results file; one of retrieval


@dataclass(frozen=True)
class Reading:
    """The content of a folder of results, and its provenance."""

    table: pd.DataFrame  # the tidy table of `read_results`
    files: dict[str, str]  # SHA-256 of each file that was used, by its path below the folder
    # the documents each corpus stood for (task, source, revision, split, SHA-256, which of their tokens are the fixed
    # targets, and how they are probed for retrieval), by its name
    corpora: dict[str, list[dict[str, Any]]]
    versions: dict[str, list[str]]  # of tasks, lm-eval and transformers, as the files record them
    notes: list[str]  # what was skipped or measured more than once, one line each
    # the checkpoints that were measured in several dtypes, by their name in `table` and revision
    variants: dict[tuple[str, str], Variant] = field(default_factory=dict)
    precisions: pd.DataFrame | None = None  # of `precision_pairs`; None where no checkpoint has several dtypes
    # the tasks and metrics, without their filters, of which less is better, as the files record them
    lower_is_better: set[tuple[str, str]] = field(default_factory=set)
    tokens: list[TokenSource] = field(default_factory=list)  # files of per-token values that the results name
    depths: list[DepthSource] = field(default_factory=list)  # recall by length and depth


def read_results(
    folder_or_files: str | Path | Iterable[str | Path], *, strict: bool = False, every_task: bool = False
) -> pd.DataFrame:
    """Read lm-eval's results files into the tidy table, one row per checkpoint × task × metric × length.

    Where a checkpoint and revision have several results for one task, corpus, metric and length, the newest counts.
    A file that cannot be read is skipped, and so is a value that is not finite. All three are reported through
    ``logging``.

    Args:
        folder_or_files: a folder, searched at any depth for JSON files of lm-eval, whatever their names; or results
            files.
        strict: raise for a file that cannot be read instead of skipping it.
        every_task: also the results of other tasks than longshort's.

    Returns:
        A table with the columns and types of `COLUMNS`. A checkpoint is its ``pretrained`` model argument
        (``BASE+ADAPTER`` with a PEFT adapter or delta weights), with the other arguments that can change the model
        (``BASE+load_in_4bit=True``); ``dtype`` and ``attn_implementation`` only where one was measured with several.
        ``length`` is in tokens, missing for metrics that have none; such a metric keeps its whole name
        (``sce_between@1024-2048``). A metric of another task keeps its filter if it has one
        (``exact_match,strict-match``); one that is named by a length alone (RULER) is ``score`` at that length. The
        buckets of LongBench-E keep their whole name (``score@4-8k``), with the number of words where they begin as
        ``length``. A group whose tasks have more lengths than itself (RULER) has their unweighted mean at those.
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

    files = find_files(folder_or_files)
    is_folder = isinstance(folder_or_files, (str, Path)) and Path(folder_or_files).is_dir()
    reading = Reading(pd.DataFrame(), {}, {}, {}, [])
    rows: list[Row] = []
    damaged: list[str] = []
    others: list[str] = []
    unknown: dict[str, list[Path]] = {}
    for name, file in files.items():
        try:
            source = load(file, is_given=not is_folder)
            if source is None:
                others.append(file.name)
            else:
                found = _read_one(name, source, every_task, reading)
                if found and (version := unknown_version(source.data)):
                    unknown.setdefault(version, []).append(file)
                rows += found
        except UserError as error:
            damaged.append(str(error))
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):  # JSON, but not as lm-eval writes it
            damaged.append(str(not_results(file)))
    if damaged and strict:
        raise UserError(damaged[0] + (f" {len(damaged) - 1} more files are damaged." if damaged[1:] else ""), "data")
    if not any(is_ours(row.columns["task"]) for row in rows):
        where = folder_or_files if isinstance(folder_or_files, (str, Path)) else "the list of files"
        why = "".join(f"{problem} " for problem in [*damaged, *reading.notes, *_note_on_others(others)][:1])
        if damaged and len(files) == 1 and not is_folder:
            raise UserError(damaged[0], "data")
        raise UserError(
            f"No result of a longshort_* task in {where} ({len(files) - len(others)} results files, {len(damaged)} of "
            f"them not usable). {why}Run 'longshort eval', or lm_eval with --output_path, first.",
            "data" if damaged else "not_found",
        )
    reading.notes[:0] = [f"{problem} Skipped." for problem in damaged]
    variants = name_precisions(rows)
    reading.notes.extend([*_note_on_others(others), *_notes_on_versions(unknown), *notes_on(rows)])
    precisions, unlike = precision_pairs(rows, variants) if variants else (None, [])
    reading.notes.extend(unlike)
    rows.sort(key=lambda row: row.date)
    table = pd.DataFrame([row.columns for row in rows])[list(COLUMNS)].astype(COLUMNS)
    identity = list(IDENTITY)
    newest = table.drop_duplicates(identity, keep="last").sort_values(identity, ignore_index=True)
    notes = [" ".join(note.splitlines()) for note in reading.notes]
    return replace(reading, table=newest, notes=notes, variants=variants, precisions=precisions)


def _read_one(name: str, source: Source, every_task: bool, reading: Reading) -> list[Row]:
    """The rows of one file; its provenance is added to `reading`."""
    reader = Reader(source.file, reading.notes)
    tasks = [task for task in source.data["results"] if every_task or is_ours(task)]
    rows = [row for task in tasks for row in rows_of(source, task, reader)]
    if rows:
        _record_origins(source.data, tasks, reading)
        _record_directions(source.data, tasks, reading)
        _record_tokens(source, rows, reading)
        _record_depths(source, rows, reading)
        reading.files[name] = hashlib.sha256(source.content).hexdigest()
    return rows


def _notes_on_versions(files: Mapping[str, list[Path]]) -> list[str]:
    """A line for each version of lm-eval of which no file was tested."""
    return [
        f"{len(of_version)} files (the first: {of_version[0]}) were written by {version}. They are read as those of "
        "0.4.3 to 0.4.13, which were tested: compare the values with the files."
        for version, of_version in files.items()
    ]


def _record_directions(data: dict[str, Any], tasks: Iterable[str], reading: Reading) -> None:
    """Add the metrics of which less is better."""
    recorded = data.get("higher_is_better") or {}
    for task in tasks:
        for name, is_better in (recorded.get(task) or {}).items():
            if is_better is False:
                metric = per_length(name, task, {}, is_ours=is_ours(task)).metric
                reading.lower_is_better.add((task, metric))


def _record_tokens(source: Source, rows: list[Row], reading: Reading) -> None:
    """Add the file of per-token values that a results file names."""
    from longshort.results.tokens import RECORD  # imports pandas

    record = source.data.get(RECORD)
    ours = sorted(
        (row for row in rows if is_ours(row.columns["task"])), key=lambda row: row.columns["task"] != PERPLEXITY
    )
    if ours and isinstance(record, dict) and isinstance(record.get("file"), str):
        # Only the name: a folder of results may have been moved.
        reading.tokens.append(TokenSource(source.file.with_name(Path(record["file"]).name), source.file, ours[0]))


def _record_depths(source: Source, rows: list[Row], reading: Reading) -> None:
    """Add the recall by length and depth of a results file; a cell that is not as the task writes it is skipped."""
    found = (metadata_of(source.data, RETRIEVAL).get("scored") or {}).get("depths")
    row = next((row for row in rows if row.columns["task"] == RETRIEVAL), None)
    if row is None or not found:
        return
    cells = [cell for cell in found if isinstance(cell, dict) and all(is_number(cell.get(name)) for name in CELL)]
    whole = [cell for cell in cells if all(float(cell[name]).is_integer() for name in ("length", "n"))]
    if len(whole) < len(found):
        skipped = len(found) - len(whole)
        reading.notes.append(f"{source.file}: {skipped} entries of scored.depths of {RETRIEVAL} are damaged. Skipped.")
    reading.depths.append(DepthSource([{name: cell[name] for name in CELL} for cell in whole], row))


def _note_on_others(names: list[str]) -> list[str]:
    """One line that counts the JSON files that are not results."""
    if not names:
        return []
    shown = ", ".join(list(dict.fromkeys(names))[:SHOWN])
    more = ", …" if len(set(names)) > SHOWN else ""
    return [f"{len(names)} other JSON files ({shown}{more}) are not results of lm-eval and were not read."]


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
            if task == RETRIEVAL and metadata.get("needles") and metadata.get("depths"):
                seed = metadata.get("seed", 0)
                origin["probes"] = f"needles={metadata['needles']}, depths={metadata['depths']}, seed={seed}"
            spans = scored.get("key_spans") or {}
            if spans.get("sha256"):  # a file's; the key tokens that a model finds itself are its own
                origin["key_spans"] = f"{(spans.get('evaluator') or {}).get('pretrained')} ({spans['sha256'][:8]})"
            _add(reading.corpora, str(metadata.get("corpus")), origin)
    for name, version in found.items():
        if version is not None:
            _add(reading.versions, name, str(version))


def _add(known: dict[str, list[Any]], name: str, value: Any) -> None:
    if value not in known.setdefault(name, []):
        known[name].append(value)
