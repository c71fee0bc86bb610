"""The per-token values of one document, aligned by position for all lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

NONE = -1  # an integer that is missing


@dataclass(frozen=True)
class LengthValues:
    """Values of the T tokens in the windows of one length; missing where a token was not scored there."""

    length: int
    start: NDArray[np.int64]  # index of the first token of the window, [T]
    draws: int  # number of shorter contexts
    shorter_length: NDArray[np.int64]  # tokens of the shorter context of the first draw, [T]
    nats: dict[str, NDArray[np.float32]]  # by name of `VALUES`, [T]; NaN where missing
    is_top: NDArray[np.bool_]  # whether the token is the most probable one, [T]
    in_range: NDArray[np.bool_]  # whether the position belongs to the misalignment metrics, [T]
    fixed_target: NDArray[np.bool_]  # whether the token is one of the fixed targets, [T]


@dataclass(frozen=True)
class TokenDocument:
    """The T tokens of a document that were scored in any window, in order."""

    index: int
    name: str
    position: NDArray[np.int64]  # index of the token among the special tokens and text, [T]
    token: NDArray[np.int64]  # ids, [T]
    text: list[str]  # T of them
    lengths: list[LengthValues]  # ascending


def document_of(rows: pd.DataFrame) -> TokenDocument:
    """Return the document that the rows with one document index describe.

    If several windows of one length contain a token, the values of the window that starts last are used: a prefix and
    a suffix of one length overlap where the model needs one pass per length and the document is short. With several
    draws of the shorter context the Jeffreys divergence is their mean.
    """
    window = ["position", "length", "window_start"]
    draws = rows.groupby("length")["draw"].max() + 1
    jeffreys = rows.groupby(window)["jeffreys"].transform("mean")
    rows = rows.assign(jeffreys=jeffreys)[rows["draw"] == 0]
    rows = rows.sort_values(window, kind="stable").drop_duplicates(["position", "length"], keep="last")
    rows = rows.assign(gain=_gain(rows))
    tokens = rows.drop_duplicates("position")
    position = tokens["position"].to_numpy(np.int64)
    lengths = [
        _of_length(part, int(draws[length]), np.searchsorted(position, part["position"]), len(position))
        for length, part in rows.groupby("length", sort=True)
    ]
    return TokenDocument(
        index=int(rows["document"].iloc[0]),
        name=str(rows["name"].iloc[0]),
        position=position,
        token=tokens["token"].to_numpy(np.int64),
        text=tokens["text"].astype(str).tolist(),
        lengths=lengths,
    )


def _gain(rows: pd.DataFrame) -> NDArray[np.float32]:
    """NLL with the shortest context of a position minus NLL with a longer one; NaN for the shortest itself."""
    rows = rows.assign(context=rows["position"] - rows["window_start"])
    shortest = rows.sort_values(["position", "context", "length"], kind="stable").drop_duplicates("position")
    reference = shortest.set_index("position").loc[rows["position"]]
    gain: NDArray[np.float32] = reference["nll"].to_numpy(np.float32) - rows["nll"].to_numpy(np.float32)
    gain[rows["context"].to_numpy() <= reference["context"].to_numpy()] = np.nan
    return gain


def _of_length(rows: pd.DataFrame, draws: int, place: NDArray[np.int64], count: int) -> LengthValues:
    """Spread the rows of one length over the places of the document's tokens."""

    def spread(column: str, missing: float, kind: type) -> NDArray[Any]:
        values: NDArray[Any] = np.full(count, missing, kind)
        values[place] = rows[column].fillna(missing).to_numpy(kind)
        return values

    return LengthValues(
        length=int(rows["length"].iloc[0]),
        draws=draws,
        start=spread("window_start", NONE, np.int64),
        shorter_length=spread("shorter_length", NONE, np.int64),
        nats={name: spread(name, np.nan, np.float32) for name in ("nll", "gain", "entropy", "jeffreys")},
        is_top=spread("is_top", False, np.bool_),
        in_range=spread("in_range", False, np.bool_),
        fixed_target=spread("fixed_target", False, np.bool_),
    )
