"""The page: its documents, what it shows when it opens, and its data in a compact form."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longshort.errors import UserError, listed
from longshort.pages import render_page
from longshort.results import write_atomically
from longshort.results.tokens import read_tokens
from longshort.show_tokens.documents import NONE, LengthValues, TokenDocument, document_of
from longshort.show_tokens.values import VALUES

if TYPE_CHECKING:
    import pandas as pd

MAX_LISTED = 8  # documents in a message
SCORED, IS_TOP, IN_RANGE, FIXED_TARGET = 1, 2, 4, 8  # bits of a token's flags; script.js has the same


def write_page(
    file: str | Path,
    path: str | Path,
    *,
    documents: Sequence[str] = (),
    value: str = "nll",
    length: int | None = None,
) -> int:
    """Write the page of a token file.

    Args:
        file: the Parquet file that ``--save-tokens`` wrote.
        path: the HTML file to write.
        documents: names or indices of the documents to show; without any, the first.
        value: the value that colours the tokens when the page opens, a key of `VALUES`.
        length: length of the window shown when the page opens, in tokens; by default the longest.

    Returns:
        The size of the page in bytes.

    Raises:
        UserError: there is no such document, value or length (kind "usage"); the file is missing, damaged or not a
            token file; or the page cannot be written.
    """
    file, path = Path(file), Path(path)
    if value not in VALUES:
        raise UserError(f"Unknown value {value!r}. Choose one of {', '.join(VALUES)}.", "usage", "value")
    if path.exists() and file.exists() and path.samefile(file):
        problem = f"The page would replace its own token file {file}. Choose another file with -o."
        raise UserError(problem, "usage", "output")
    tokens = read_tokens(file, columns=["document", "name"])
    names = tokens.frame.drop_duplicates("document").set_index("document")["name"].astype(str).sort_index()
    if names.empty:
        raise UserError(f"{file} has no scored tokens. Evaluate again on longer documents.", "data")
    chosen = dict.fromkeys([_index_of(name, names, file) for name in documents] or [int(names.index[0])])
    shown = [document_of(read_tokens(file, document=index).frame) for index in chosen]
    known = sorted({values.length for document in shown for values in document.lengths})
    if length is not None and length not in known:
        raise UserError(
            f"{file} has no window of {length} tokens for these documents. Choose one of {', '.join(map(str, known))}.",
            "usage",
            "length",
        )
    data = {
        "documents": [_embedded(document) for document in shown],
        "values": {name: vars(each) for name, each in VALUES.items()},
        "start": {"value": value, "length": length or known[-1]},
    }
    page = render_page(
        __package__ or "",
        data,
        file=file.name,
        model=str(tokens.metadata.get("model", {}).get("pretrained") or ""),
        number=len(names),
        shown=len(shown),
    )
    write_atomically(path, page)
    return len(page.encode())


def _index_of(wanted: str, names: pd.Series[str], file: Path) -> int:
    """The index of a document, given by its name or, where no document has that name, by its index."""
    found = names.index[names == wanted].tolist()
    if not found and wanted.isdecimal() and int(wanted) in names.index:
        found = [int(wanted)]
    if len(found) > 1:
        problem = f"{file} has {len(found)} documents named {wanted!r}. Choose by index: {listed(found, MAX_LISTED)}."
        raise UserError(problem, "usage", "document")
    if not found:
        known = listed([f"{index} {name!r}" for index, name in names.items()], MAX_LISTED)
        raise UserError(f"{file} has no document {wanted!r}. It has {known}.", "usage", "document")
    return int(found[0])


def _embedded(document: TokenDocument) -> dict[str, Any]:
    """What the script needs of a document, numbers in little-endian binary."""
    return {
        "index": document.index,
        "name": document.name,
        "text": document.text,
        "position": _binary(document.position, "<i4"),
        "token": _binary(document.token, "<i4"),
        "lengths": [_embedded_length(values) for values in document.lengths],
    }


def _embedded_length(values: LengthValues) -> dict[str, Any]:
    flags = SCORED * (values.start != NONE) + IS_TOP * values.is_top
    flags += IN_RANGE * values.in_range + FIXED_TARGET * values.fixed_target
    most = float(np.finfo(np.float16).max)
    return {
        "length": values.length,
        "start": _runs(values.start),
        "shorter": _runs(values.shorter_length),
        "draws": values.draws,
        "flags": _binary(flags, "u1"),
        # Half precision rounds to 0.05 %: as many digits as the page shows.
        "values": {name: _binary(np.clip(each, -most, most), "<f2") for name, each in values.nats.items()},
    }


def _binary(values: NDArray[Any], kind: str) -> str:
    return base64.b64encode(values.astype(kind).tobytes()).decode()


def _runs(values: NDArray[np.int64]) -> list[list[int]]:
    """Pairs of the index where a value begins and the value: a window's numbers are the same for all its tokens."""
    changes = np.flatnonzero(np.diff(values, prepend=values[0] - 1))
    return [[int(index), int(values[index])] for index in changes]
