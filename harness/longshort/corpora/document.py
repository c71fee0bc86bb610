"""A document, and a corpus as a source of documents that can be read again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """One text: never joined with another, never padded."""

    name: str
    text: str

    @property
    def num_bytes(self) -> int:
        """Length in UTF-8 bytes."""
        return len(self.text.encode("utf-8", errors="surrogatepass"))


@dataclass(frozen=True)
class Corpus:
    """A source of documents that can be read again from the start."""

    spec: str  # the name the user gave
    source: str  # where its documents come from: files, a hub dataset, the Python installation
    revision: str | None  # commit of a hub dataset, version of Python, or None for local files
    split: str | None  # the part of it that is read; None where the source has no parts
    _read: Callable[[], Iterable[Document]]

    def __iter__(self) -> Iterator[Document]:
        return iter(self._read())


def with_text(spec: str, rows: Iterable[tuple[str, str | None]]) -> Iterator[Document]:
    """Yield the rows that have a text; the others, whose text is null, are counted in a warning."""
    skipped, first = 0, ""
    try:
        for name, text in rows:
            if text is None:
                skipped, first = skipped + 1, first or name
            else:
                yield Document(name, text)
    finally:  # also where only the first documents are read
        if skipped:
            _warn_skipped(spec, skipped, first)


@cache  # a corpus is read several times
def _warn_skipped(spec: str, count: int, first: str) -> None:
    logger.warning("corpus '%s': skipped %d rows whose text is null (the first: %s)", spec, count, first)
