"""The documents of an unfinished file of key spans."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from longshort.errors import UserError
from longshort.lmeval.longppl_spans import to_line

logger = logging.getLogger(__name__)


class Part:
    """``<output>.part``: the header and the documents that are done, in their order; a line is added for each.

    Args:
        path: of the part.
        rows: the documents that it has.
    """

    def __init__(self, path: Path, rows: list[dict[str, Any]]) -> None:
        self.path = path
        self.rows = rows

    @classmethod
    def open(cls, output: Path, header: dict[str, Any], texts: Sequence[str]) -> Part:
        """Resume an earlier run with the same header, or begin.

        Args:
            output: the file that will be written in the end.
            header: of the file.
            texts: SHA-256 of each document.

        Raises:
            UserError: the folder cannot be written ("unwritable").
        """
        path = output.with_name(f"{output.name}.part")
        rows: list[dict[str, Any]] = []
        with suppress(OSError):
            lines = path.read_bytes().split(b"\n")[:-1]  # a line that a killed run has not finished does not end
            if lines and _parsed(lines[0]) == header:
                for line, text in zip(lines[1:], texts, strict=False):
                    row = _parsed(line)
                    if row is None or row.get("sha256") != text:
                        break
                    rows.append(row)
            else:
                logger.warning("%s is of another evaluator, corpus or criterion; beginning again.", path)
        part = cls(path, rows)
        part._write("".join(map(to_line, [header, *rows])), "wb")
        return part

    def add(self, row: dict[str, Any]) -> None:
        """Add a document, so that it survives a crash.

        Raises:
            UserError: it cannot be written ("unwritable").
        """
        self._write(to_line(row), "ab")
        self.rows.append(row)

    def remove(self) -> None:
        """Remove the file."""
        with suppress(OSError):
            self.path.unlink()

    def _write(self, text: str, mode: str) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open(mode) as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"Cannot write {self.path}: {error.strerror or error}. Choose another file with -o.", "unwritable"
            ) from error


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
