"""Writes per-token values as Parquet: a row group for each document, built from arrays and not from rows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import longshort
from longshort.corpora import Document
from longshort.lmeval.documents import encode, pieces, special_tokens
from longshort.lmeval.token_values import ShorterContext, TaskValues, WindowValues
from longshort.results.tokens import FORMAT, METADATA, SCHEMA, TokenFile

BETWEEN = SCHEMA.field("between").type
FLOATS = [column.name for column in SCHEMA if column.type == pa.float32()]


@dataclass(frozen=True)
class _Document:
    """Values that all rows of a document share."""

    index: int
    name: str
    texts: pa.Array  # [N], of its tokens without special tokens
    num_bytes: Any  # [N]
    num_special: int  # tokens before its text
    num_lengths: int  # context lengths


def token_file(lm: Any, tasks: Sequence[TaskValues]) -> TokenFile:
    """Return the token file of an evaluation's tasks, which have measured the same documents.

    Memory: the size of the file, and about 100 bytes for each row of one document at a time.

    Args:
        lm: lm-eval's model, for its tokenizer.
    """
    special = special_tokens(lm)
    sink = pa.BufferOutputStream()
    options: dict[str, Any] = {"compression": "zstd", "use_byte_stream_split": FLOATS}
    options["use_dictionary"] = [name for name in SCHEMA.names if name not in (*FLOATS, "position", "between")]
    rows, first_texts = 0, {}
    with pq.ParquetWriter(sink, SCHEMA, **options) as writer:
        for index in sorted({index for task in tasks for index in task.documents}):
            task = next(task for task in tasks if index in task.documents)  # all have the same windows
            document = _read(lm, index, task.documents[index], task.settings.lengths, len(special))
            table = pa.Table.from_batches(list(_batches(document, task.windows[index])), SCHEMA)
            writer.write_table(table.combine_chunks(), row_group_size=max(1, len(table)))
            rows += len(table)
            first_texts[index] = "" if special else document.texts[0].as_py()
        metadata = _metadata(tasks, special) | {"first_texts": first_texts}
        writer.add_key_value_metadata({METADATA: json.dumps(metadata).encode()})
    return TokenFile(sink.getvalue().to_pybytes(), rows)


def _metadata(tasks: Sequence[TaskValues], special: list[int]) -> dict[str, Any]:
    first = tasks[0]
    return {
        "format": FORMAT,
        "longshort": longshort.__version__,
        "tasks": [task.task for task in tasks],
        "model": dict(first.model),
        "special_tokens": special,
        "settings": first.settings.to_metadata(),
        "corpus": dict(first.corpus),
        "passes": next((task.passes for task in tasks if task.passes), None),
    }


def _read(lm: Any, index: int, source: Document, lengths: Sequence[int], num_special: int) -> _Document:
    num_tokens = lengths[-1] + 1
    encoded = encode(lm, source, num_tokens)
    num_bytes = np.diff(encoded.byte_ends, prepend=0.0).astype(np.float32)
    texts = pa.array(pieces(lm.tokenizer, source, num_tokens), pa.string())
    return _Document(index, source.name, texts, num_bytes, num_special, len(lengths))


def _batches(document: _Document, windows: Sequence[WindowValues]) -> Iterator[pa.RecordBatch]:
    for window in sorted(windows, key=lambda window: (window.length, window.start)):
        for draw in range(max(1, len(window.shorter))):
            yield _batch(document, window, draw)


def _batch(document: _Document, window: WindowValues, draw: int) -> pa.RecordBatch:
    """The rows of a window with one of its shorter contexts; for draws after the first only the shared tokens."""
    shorter = window.shorter[draw] if window.shorter else None
    end = window.first + len(window.targets)
    count = len(window.targets) if draw == 0 or shorter is None else len(shorter.jeffreys)
    last = slice(len(window.targets) - count, None)  # of the window's own values
    positions = np.arange(end - count, end, dtype=np.int32)
    text = positions - document.num_special  # indices of the tokens of the text
    num_targets = 0 if window.between is None else window.between.shape[1]
    columns = {
        "document": _repeated(document.index, count, pa.int32()),
        "name": pa.DictionaryArray.from_arrays(np.zeros(count, dtype=np.int32), [document.name]),
        "position": positions,
        "token": window.targets[last].astype(np.int32),
        "text": document.texts.take(pa.array(text)),
        "num_bytes": document.num_bytes[text],
        "window_start": _repeated(window.start, count, pa.int32()),
        "length": _repeated(window.length, count, pa.int32()),
        "nll": window.nll[last],
        "entropy": window.entropy[last],
        "is_top": window.is_top[last],
        "fixed_target": np.arange(count) >= count - num_targets,
        "between": _between(window, document.num_lengths, count) if draw == 0 else pa.nulls(count, BETWEEN),
        "draw": _repeated(draw, count, pa.int16()),
    } | _of_shorter(window.length, shorter, count)
    arrays = [pa.array(columns[column.name], type=column.type) for column in SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _of_shorter(length: int, shorter: ShorterContext | None, count: int) -> dict[str, Any]:
    """The columns of a shorter context; null at positions that it does not share."""
    names = ("entropy", "jeffreys", "js", "agreement")
    if shorter is None:
        nulls = {name: pa.nulls(count, SCHEMA.field(name).type) for name in ("shorter_length", *names[1:])}
        return nulls | {"entropy_short": pa.nulls(count, pa.float32()), "in_range": np.zeros(count, dtype=bool)}
    shared = min(count, len(shorter.jeffreys))
    lacks = np.arange(count) < count - shared

    def padded(values: Any) -> pa.Array:
        return pa.array(np.concatenate([np.zeros(count - shared, np.float32), values[-shared:]]), mask=lacks)

    found = {name: padded(getattr(shorter, name)) for name in names}
    in_range = min(shared, shorter.length - math.ceil(length / 2) + 1)
    return {
        "shorter_length": pa.array(np.full(count, shorter.length, dtype=np.int32), mask=lacks),
        "entropy_short": found.pop("entropy"),
        "in_range": np.arange(count) >= count - in_range,
    } | found


def _between(window: WindowValues, num_lengths: int, count: int) -> pa.Array:
    """A list for each fixed target, with a value for every length; null for lengths that were not measured."""
    if window.between is None:
        return pa.nulls(count, BETWEEN)
    measured, num_targets = window.between.shape
    before = count - num_targets
    values = np.pad(window.between, [(0, num_lengths - measured), (0, 0)], constant_values=np.nan)  # [M, num_targets]
    offsets = np.concatenate([np.zeros(before), num_lengths * np.arange(num_targets + 1)]).astype(np.int32)
    items = pa.array(values.T.ravel(), pa.float32(), from_pandas=True)
    return pa.ListArray.from_arrays(pa.array(offsets), items, mask=pa.array(np.arange(count) < before))


def _repeated(value: int, count: int, of: pa.DataType) -> pa.Array:
    return pa.repeat(pa.scalar(value, of), count)
