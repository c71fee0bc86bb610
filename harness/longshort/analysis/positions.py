"""NLL by position within a window, from the per-token values next to the results."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from longshort.analysis.tables import IDENTITY, PERPLEXITY
from longshort.errors import UserError, listed
from longshort.results.table import TokenSource
from longshort.results.tokens import read_tokens

BINS_PER_DOUBLING = 2
CONFIDENCE = 0.95
ABOUT = ("checkpoint", "revision", "family", "train_length")
READ = ("document", "position", "window_start", "length", "nll", "draw")
COLUMNS = {
    "checkpoint": "string",
    "revision": "string",
    "family": "string",
    "train_length": "Int64",
    "length": "Int64",  # tokens of the window
    "first": "Int64",  # first position of a bin; position 1 has one token of context
    "last": "Int64",  # last position of the bin, included
    "nll": "float64",  # nats, mean over documents of the mean over a document's tokens in the bin
    "nll_lo": "float64",  # 95 % interval over documents (Student's t); NaN for a single document
    "nll_hi": "float64",
    "n": "Int64",  # documents
}


def nll_by_position(sources: Iterable[TokenSource], *, strict: bool = False) -> tuple[pd.DataFrame, list[str]]:
    """Return the mean NLL by position within the window, for each checkpoint and length, in two bins per doubling.

    A source without its file is skipped. If a checkpoint has several sources, the newest one with perplexity is used,
    since its longest window is scored from the first position on; without any, the newest.

    Args:
        sources: the token files that the results name.
        strict: raise for a file that cannot be read instead of skipping it with a note.

    Returns:
        A table with the columns `COLUMNS`, and the notes.

    Raises:
        UserError: with `strict`, a file is damaged or of another run.
    """
    newest = {}
    for source in sorted(sources, key=lambda source: (source.row.columns["task"] == PERPLEXITY, source.row.date)):
        if source.file.is_file():
            newest[tuple(source.row.columns[name] for name in IDENTITY)] = source
    tables, unread = [], []
    for source in newest.values():
        about = {name: source.row.columns[name] for name in ABOUT}
        try:
            frame = read_tokens(source.file, source.results, columns=READ).frame
        except UserError as error:
            if strict:
                raise
            unread.append((about["checkpoint"], error.message))
        else:
            tables.append(pd.DataFrame(_curve(frame)).assign(**about))
    table = pd.concat(tables) if tables else pd.DataFrame()
    table = table.reindex(columns=list(COLUMNS)).astype(COLUMNS)
    notes = [f"NLL by position: {listed([name for name, _ in unread])} skipped. {unread[0][1]}"] if unread else []
    return table.sort_values(["checkpoint", "revision", "length", "first"], ignore_index=True), notes


def bins(length: int) -> NDArray[np.int64]:
    """Return the first position of each bin of a window, and the position after its last."""
    count = int(np.ceil(np.log2(length) * BINS_PER_DOUBLING)) + 1
    edges = np.unique(np.round(2 ** (np.arange(count) / BINS_PER_DOUBLING)).astype(np.int64))
    return np.append(edges[(edges < length) | (edges == 1)], length + 1)  # the last position has no bin of its own


def _curve(frame: pd.DataFrame) -> list[dict[str, float]]:
    """A row for each length and bin of a checkpoint."""
    frame = frame[frame["draw"] == 0]  # further draws repeat the tokens
    place = (frame["position"] - frame["window_start"]).to_numpy()
    rows = []
    for length, part in frame.assign(place=place).groupby("length"):
        edges = bins(int(length))
        index = np.searchsorted(edges, part["place"], side="right") - 1
        documents = part["nll"].astype(float).groupby([index, part["document"]]).mean()
        for place_of_bin, values in documents.groupby(level=0):
            first, after = edges[place_of_bin : place_of_bin + 2]
            rows.append({"length": length, "first": first, "last": after - 1, **_mean(values.to_numpy())})
    return rows


def _mean(values: NDArray[np.float64]) -> dict[str, float]:
    """Mean and interval over documents."""
    count, mean = len(values), float(values.mean())
    quantile = special.stdtrit(count - 1, (1 + CONFIDENCE) / 2) if count > 1 else np.nan
    half = float(quantile * values.std(ddof=1) / np.sqrt(count)) if count > 1 else np.nan
    return {"nll": mean, "nll_lo": mean - half, "nll_hi": mean + half, "n": count}
