"""Per-token values: the Parquet file next to a results file, how to read it, and the metrics from its rows.

A row is a scored token in one window of its document. Where several shorter contexts are drawn for a window, the tokens
that a further one shares have one more row for it (`draw` 1, 2, …); `draw == 0` selects each token of a window once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from longshort.errors import UserError
from longshort.results.files import read_json, write_atomically

FORMAT = 1
RECORD = "longshort_tokens"  # the key in a results file for file, sha256 and rows
METADATA = b"longshort"  # the key of the file's own metadata, which is JSON
SCHEMA = pa.schema(
    [
        ("document", pa.int32()),  # index of the document in the corpus
        ("name", pa.dictionary(pa.int32(), pa.string())),  # of the document
        ("position", pa.int32()),  # index of the token in the document, special tokens included
        ("token", pa.int32()),  # id
        ("text", pa.string()),  # that the token adds; a character that several tokens share is the text of the last
        ("num_bytes", pa.float32()),  # UTF-8 bytes of the text; tokens that share a character share its bytes
        ("window_start", pa.int32()),  # position of the window's first token
        ("length", pa.int32()),  # tokens of the window
        ("nll", pa.float32()),  # nats
        ("entropy", pa.float32()),  # of the next-token distribution, nats
        ("is_top", pa.bool_()),  # whether the token is the most probable one
        ("fixed_target", pa.bool_()),  # whether the token is one of the fixed targets of ppl_tail@L
        ("between", pa.list_(pa.float32())),  # Jeffreys with the window of each length, of fixed targets, nats
        ("draw", pa.int16()),  # index of the shorter context
        ("shorter_length", pa.int32()),  # tokens of the shorter context; null at positions that it does not share
        ("entropy_short", pa.float32()),  # with the shorter context, nats
        ("jeffreys", pa.float32()),  # between both contexts, nats
        ("js", pa.float32()),  # nats
        ("agreement", pa.float32()),  # 1 where both have the same most probable token, else 0
        ("in_range", pa.bool_()),  # whether the position counts for sce@L
    ]
)
OUTDATED = "outdated_"  # prefix of the names of files that a sweep has replaced
PERPLEXITY, MISALIGNMENT = "longshort_perplexity", "longshort_misalignment"
MAX_NLL = 700.0  # nats per token; above it no perplexity is computed
AGAIN = "Evaluate again with --save-tokens."


@dataclass(frozen=True)
class Tokens:
    """A token file."""

    frame: pd.DataFrame  # columns as in SCHEMA
    # format, longshort (its version), tasks, model, special_tokens, settings, corpus, passes, and first_texts: by index
    # of the document the text of its first token, which no context precedes; empty where special tokens do.
    metadata: dict[str, Any]

    @property
    def lengths(self) -> list[int]:
        """The context lengths in tokens, ascending; `between` has a value for each."""
        return list(self.metadata["settings"]["lengths"])


@dataclass(frozen=True)
class TokenFile:
    """The content of a token file."""

    content: bytes = field(repr=False)  # Parquet
    rows: int

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the content, in hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()

    def record(self, name: str) -> dict[str, Any]:
        """Return what the results file records of the token file.

        Args:
            name: name of the token file, in the folder of the results file.
        """
        return {"file": name, "sha256": self.sha256, "rows": self.rows}


def write_tokens(tokens: TokenFile | None, file: Path) -> tuple[dict[str, Any] | None, UserError | None]:
    """Write a token file, before the results file that names it.

    Returns:
        What the results record of the file, or None; and the error if it could not be written, to be raised after the
        results have been saved.
    """
    if tokens is None:
        return None, None
    try:
        write_atomically(file, tokens.content)
    except UserError as error:
        return None, UserError(f"{error} The results are saved, without their per-token values.", error.kind)
    return tokens.record(file.name), None


# ---- reading


def read_tokens(
    file: str | Path,
    results: str | Path | None = None,
    *,
    columns: Sequence[str] | None = None,
    document: int | None = None,
) -> Tokens:
    """Read a token file and check that it is complete and belongs to the results that name it.

    Args:
        file: the Parquet file that ``--save-tokens`` wrote.
        results: the results file that names it. By default all in the same folder that do.
        columns: names of columns in `SCHEMA`; by default all.
        document: index of the only document to read; by default all.

    Raises:
        UserError: there is no such file ("not_found"); it is truncated, damaged or not a token file ("data"); or its
            SHA-256 is not the recorded one, as for a file of another run ("conflict").
    """
    file = Path(file)
    try:
        with pq.ParquetFile(file) as parquet:
            schema, content = parquet.schema_arrow, (parquet.metadata.metadata or {}).get(METADATA)
        metadata = _metadata(file, schema, content or b"null")
        _require_recorded(file, [Path(results)] if results else _results_next_to(file), is_given=bool(results))
        filters = None if document is None else [("document", "=", document)]
        table = pq.read_table(file, columns=columns and list(columns), filters=filters)
    except FileNotFoundError as error:
        raise UserError(f"Cannot read {file}: there is no such file. Check the path.", "not_found") from error
    except (pa.ArrowException, OSError) as error:
        if cause := getattr(error, "strerror", None):  # from the operating system
            raise UserError(f"Cannot read {file}: {cause}. Give a file that can be read.", "data") from error
        problem = f"it is truncated, or not a Parquet file ({str(error).splitlines()[0].rstrip('.')[:150]})"
        raise UserError(f"Cannot read {file}: {problem}. Copy it again, or evaluate again.", "data") from error
    return Tokens(table.to_pandas(), metadata)


def token_file_of(results: str | Path) -> Path:
    """Return the token file that a results file names.

    Raises:
        UserError: the results cannot be read, or name no token file ("data").
    """
    record = read_json(results).get(RECORD)
    if not isinstance(record, Mapping) or not isinstance(record.get("file"), str):
        raise UserError(f"{results} names no token file. {AGAIN}", "data")
    results, name = Path(results), Path(record["file"]).name
    outdated = results.with_name(f"{OUTDATED}{name}")
    return outdated if results.name.startswith(OUTDATED) and outdated.is_file() else results.with_name(name)


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:  # hashlib.file_digest needs Python 3.11
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _metadata(file: Path, schema: pa.Schema, content: bytes) -> dict[str, Any]:
    try:
        metadata = json.loads(content)
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict) or "format" not in metadata:
        raise UserError(f"{file} is not a token file. Give a file that --save-tokens wrote.", "data")
    if metadata["format"] != FORMAT:
        raise UserError(
            f"{file} has format {metadata['format']}, and this version of longshort reads format {FORMAT}. Read it "
            f"with longshort {metadata.get('longshort')}, which wrote it.",
            "data",
        )
    if not schema.equals(SCHEMA):
        missing = [name for name in SCHEMA.names if name not in schema.names]
        change = f"it lacks the columns {', '.join(missing)}" if missing else "its columns or their types differ"
        raise UserError(f"{file} was changed after it was written: {change}. Copy it again.", "data")
    return metadata


def _results_next_to(file: Path) -> list[Path]:
    """The results files in the same folder that name the token file."""
    found = []
    for results in sorted(file.parent.glob("*.json")):
        try:
            if token_file_of(results).name == file.name:
                found.append(results)
        except UserError:
            continue
    return found


def _require_recorded(file: Path, results: Iterable[Path], *, is_given: bool) -> None:
    for other in results:
        if is_given and token_file_of(other).name != file.name:
            raise UserError(f"{other} names {token_file_of(other).name}, not {file.name}. Give that file.", "conflict")
        if read_json(other)[RECORD].get("sha256") != sha256_of(file):
            raise UserError(
                f"{file} is not the file that {other.name} was written with: its SHA-256 differs, so it belongs to "
                "another run or was changed. Copy the right one, or evaluate again.",
                "conflict",
            )


# ---- aggregates


def aggregates(tokens: Tokens) -> dict[str, dict[str, float]]:
    """Return the metrics of the results file, except the numerical floors, from the values of its tokens, by task.

    Each is the mean over the tokens of a document, then over documents; a perplexity is the exponential of that.
    Documents without a finite value of a metric are skipped.
    """
    frame = tokens.frame.drop(columns=["name", "text"]).astype(
        dict.fromkeys(("num_bytes", "nll", "entropy", "entropy_short", "jeffreys", "js", "agreement"), "float64")
    )
    found = {PERPLEXITY: _of_perplexity, MISALIGNMENT: _of_misalignment}
    return {task: found[task](frame, tokens) for task in tokens.metadata["tasks"] if task in found}


def _of_perplexity(frame: pd.DataFrame, tokens: Tokens) -> dict[str, float]:
    windows = frame[frame["draw"] == 0]
    first_target = max(1, len(tokens.metadata["special_tokens"]))
    targets, prefixes = windows[windows["fixed_target"]], windows[windows["window_start"] == 0]
    # A document of N tokens where N - 1 and N are lengths: the window of N - 1 also starts at 0, but is not a prefix.
    first = prefixes.groupby(["document", "length"])["position"].transform("min")
    prefixes = prefixes[first == first_target].drop_duplicates(["document", "length", "position"])
    values: dict[str, float] = {}
    for length in tokens.lengths:
        longer = prefixes[prefixes["length"] >= length]
        shortest = longer["length"] == longer.groupby("document")["length"].transform("min")
        prefix = longer[shortest & (longer["position"] < length)]
        size = prefix.groupby("document")["position"].transform("size")
        _add_perplexity(values, prefix[size == length - first_target], "", length)
        tail = targets[targets["length"] == length]
        _add_perplexity(values, tail, "_tail", length)
        _add(values, f"accuracy_tail@{length}", _means(tail, tail["is_top"].astype(float)))
    for first, second in combinations_with_replacement(tokens.lengths, 2):
        one, other = targets[targets["length"] == first], targets[targets["length"] == second]
        entropies = _means(one, one["entropy"]) + _means(other, other["entropy"])
        index = tokens.lengths.index(second)
        jeffreys = _means(one, one["between"].map(lambda row, index=index: row[index]).astype(float))
        _add(values, f"sce_between@{first}-{second}", entropies + (jeffreys if first != second else 0.0))
        if first != second:
            _add(values, f"jeffreys_between@{first}-{second}", jeffreys)
    return values


def _add_perplexity(values: dict[str, float], rows: pd.DataFrame, suffix: str, length: int) -> None:
    nll = _means(rows, rows["nll"])
    _add(values, f"ppl{suffix}@{length}", nll[nll <= MAX_NLL], np.exp)
    num_bytes = _means(rows, rows["num_bytes"])
    _add(values, f"bpb{suffix}@{length}", (nll / math.log(2) / num_bytes)[num_bytes > 0])


def _of_misalignment(frame: pd.DataFrame, tokens: Tokens) -> dict[str, float]:
    values: dict[str, float] = {}
    pairs = frame[frame["shorter_length"].notna()]
    entropy = pairs["entropy"] + pairs["entropy_short"]
    pairs = pairs.assign(entropy=entropy, sce=entropy + pairs["jeffreys"])
    for length in tokens.lengths:
        rows = pairs[pairs["length"] == length]
        last = rows[rows["position"] == rows["window_start"] + length]
        in_range = rows[rows["in_range"]]
        for name in ("sce", "entropy", "jeffreys", "js", "agreement"):
            _add(values, f"{name}@{length}", _means_of_draws(in_range, name))
        _add(values, f"sce_last@{length}", _means_of_draws(last, "sce"))
        _add(values, f"sce_overlap@{length}", _means_of_draws(rows, "sce"))
    return values


def _means_of_draws(rows: pd.DataFrame, name: str) -> pd.Series[float]:
    by_draw = _mean_by(rows[name], [rows["document"], rows["draw"]])
    return _mean_by(by_draw, [by_draw.index.get_level_values(0)])


def _means(rows: pd.DataFrame, values: pd.Series[float]) -> pd.Series[float]:
    """The mean of each document's values."""
    return _mean_by(values, [rows["document"]])


def _mean_by(values: pd.Series[float], keys: list[Any]) -> pd.Series[float]:
    """Means in which a NaN counts, unlike pandas' own: a document with one has no value."""
    return values.astype(float).groupby(keys).agg(lambda group: float(np.mean(group.to_numpy())))


def _add(values: dict[str, float], name: str, by_document: pd.Series[float], transform: Any = float) -> None:
    finite = by_document[np.isfinite(by_document.to_numpy(dtype=float))]
    if len(finite):
        values[name] = float(transform(finite.mean()))
