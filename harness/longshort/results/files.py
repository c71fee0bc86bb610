"""Atomic writes, and the one reader of JSON files."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from longshort.errors import Kind, UserError


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
        remedy: the last sentence of the message for a file that holds something else.

    Raises:
        UserError: the file does not exist (kind "not_found"); or it is not readable, not UTF-8, not JSON, not an
            object, too deeply nested, or holds a number or a string that Python cannot represent (kind "data").
    """
    return parse_json(read_bytes(path), path, remedy)


def read_bytes(path: str | Path) -> bytes:
    """Return the content of a file.

    Raises:
        UserError: the file does not exist (kind "not_found"), or it is not readable (kind "data").
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        kind: Kind = "not_found" if isinstance(error, FileNotFoundError) else "data"
        raise UserError(f"Cannot read {path}: {error.strerror or error}. Give a readable file.", kind) from error


def parse_json(
    content: bytes,
    source: str | Path,
    remedy: str = "Fix or remove it.",
    pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> dict[str, Any]:
    """Return the JSON object in a file's content, or in one line of it.

    Args:
        content: UTF-8.
        source: where it is from, for the message: a file, or a file and a line number.
        remedy: the last sentence of the message.
        pairs_hook: makes an object of its keys and values; by default the last value of a key counts.

    Raises:
        UserError: as `read_json`, kind "data".
    """
    try:
        data = json.loads(content.decode("utf-8"), object_pairs_hook=pairs_hook)
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
