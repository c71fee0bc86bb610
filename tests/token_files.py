"""Made-up token files: every value is drawn, none computed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longshort.results.tokens import FORMAT, METADATA, SCHEMA

Rows = list[dict[str, Any]]


def rows_of_document(
    document: int,
    texts: Sequence[str],
    lengths: Sequence[int],
    *,
    name: str | None = None,
    draws: int = 1,
    seed: int = 0,
) -> Rows:
    """The rows of a document of max(lengths) + 1 tokens: all of the longest window, the last half of the others.

    `texts` are those of the tokens from position 1 on. A pair is in range where both contexts are at least half of the
    length; the shorter context of draw d is that of the window less a quarter and d tokens.
    """
    generator = np.random.default_rng((seed, document))
    last, longest = max(lengths), max(lengths)
    rows: Rows = []
    for length in lengths:
        start = last - length
        for position in range(1 if length == longest else last - length // 2 + 1, last + 1):
            about = {
                "document": document,
                "name": f"document {document}" if name is None else name,
                "position": position,
                "token": position + 1000 * document,
                "text": texts[position - 1],
                "num_bytes": float(len(texts[position - 1].encode("utf-8", "surrogatepass"))),
                "window_start": start,
                "length": length,
                "nll": float(generator.gamma(1.2, 2.4)),
                "entropy": float(generator.uniform(0, 6)),
                "is_top": bool(generator.uniform() < 0.3),
                "fixed_target": position > last - min(lengths) // 2,
            }
            for draw in range(draws):
                shorter = length - length // 4 - draw
                shares = position - start - (length - shorter) >= length // 2
                pair = {"shorter_length": None, "in_range": shares, "agreement": 1.0 if shares else None}
                for column in ("entropy_short", "jeffreys", "js"):
                    pair[column] = float(generator.lognormal(-3, 1.5)) if shares else None
                if shares:
                    pair["shorter_length"] = shorter
                if shares or draw == 0:
                    rows.append(about | {"draw": draw, "between": None} | pair)
    return rows


def write_token_file(file: Path, rows: Rows, **metadata: Any) -> Path:
    """Write rows as ``--save-tokens`` does."""
    about: Mapping[str, Any] = {
        "format": FORMAT,
        "longshort": "0",
        "model": {"pretrained": "tiny"},
        "settings": {},
    } | metadata
    schema = SCHEMA.with_metadata({METADATA: json.dumps(about).encode()})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), file)
    return file
