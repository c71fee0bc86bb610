"""The rows of one local file of text: .txt, JSON, JSON Lines or Parquet, compressed or not."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from longshort.errors import Kind, UserError

TEXT_COLUMNS = ("text", "content", "document")  # tried in this order
COMPRESSED = ("", ".gz", ".zst")
TEXT, JSON, JSON_LINES = (tuple(kind + end for end in COMPRESSED) for kind in (".txt", ".json", ".jsonl"))
SUFFIXES = (*TEXT, *JSON, *JSON_LINES, ".parquet")
BLOCK = 1 << 20  # bytes


def read_rows(file: Path, column: str | None) -> Iterator[tuple[str, str | None]]:
    """Yield the name and the text of each row; a text that is null is None.

    Args:
        file: its name ends in one of `SUFFIXES`.
        column: the text's; None for the first of `TEXT_COLUMNS` that a row has.

    Raises:
        UserError: the file cannot be read, is damaged, or has no such column.
    """
    try:
        if file.name.endswith(TEXT):
            yield file.name, _whole_text(file, column)
        elif file.name.endswith(".parquet"):
            yield from _read_parquet(file, column)
        else:
            yield from _read_json(file, column)
    except UnicodeDecodeError as error:
        raise _damaged(file, f"byte {error.start} is not UTF-8 text", "Convert it to UTF-8.") from error
    except OSError as error:
        kind: Kind = "not_found" if isinstance(error, FileNotFoundError) else "data"
        raise UserError(f"Cannot read {file}: {error.strerror or error}. Give a readable file.", kind) from error


def _damaged(file: Path, cause: str, remedy: str) -> UserError:
    return UserError(f"Cannot read {file}: {cause}. {remedy}", "data")


def _whole_text(file: Path, column: str | None) -> str:
    if column is not None:
        raise UserError(
            f"Cannot read column '{column}' of {file}: a text file is one document and has no columns. "
            "Omit the column.",
            "setting",
        )
    text = b"".join(_blocks(file)).decode("utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")  # as Python reads a text file


# ---------------------------------------------------------------- bytes and lines


def _blocks(file: Path) -> Iterator[bytes]:
    """Yield the content of a file, decompressed."""
    with file.open("rb") as raw:
        if file.suffix == ".gz":
            yield from _gunzip(raw, file)
        elif file.suffix == ".zst":
            yield from _unzstd(raw, file)
        else:
            yield from iter(lambda: raw.read(BLOCK), b"")


def _gunzip(raw: BinaryIO, file: Path) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=raw) as unpacked:
            yield from iter(lambda: unpacked.read(BLOCK), b"")
    except EOFError as error:
        raise _damaged(file, "it is an incomplete gzip file", "Copy it again.") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(file, f"it is a damaged gzip file ({error})", "Copy it again.") from error


def _unzstd(raw: BinaryIO, file: Path) -> Iterator[bytes]:
    """One or more frames; zstandard's own reader does not notice a truncated file."""
    try:
        import zstandard
    except ImportError as error:
        raise UserError(
            f"Cannot read {file}: the library zstandard is not installed. Run pip install zstandard.", "dependency"
        ) from error
    frame = None
    try:
        while packed := raw.read(BLOCK):
            while packed:
                frame = frame or zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
                yield frame.decompress(packed)
                packed = frame.unused_data
                frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise _damaged(file, f"it is a damaged zstd file ({error})", "Copy it again.") from error
    if frame is not None:
        raise _damaged(file, "it is an incomplete zstd file", "Copy it again.")


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield lines without their ends."""
    begun: list[bytes] = []  # of a line that may be longer than a block
    for block in blocks:
        *ends, rest = block.split(b"\n")
        for end in ends:
            yield b"".join([*begun, end])
            begun = []
        begun.append(rest)
    if any(begun):
        yield b"".join(begun)


# ---------------------------------------------------------------- JSON


def _read_json(file: Path, column: str | None) -> Iterator[tuple[str, str | None]]:
    """JSON Lines; a .json file may also be one array or object over several lines."""
    lines = _lines(_blocks(file))
    if file.name.endswith(JSON):
        begin = list(_up_to_text(lines))
        lines = chain(begin, lines)
        if begin and not _is_object(begin[-1]):
            content = _parse(b"\n".join(lines), file, 0)
            for number, row in enumerate(content if isinstance(content, list) else [content], 1):
                yield f"{file.name}:{number}", _text_of(row, column, file, f"item {number}")
            return
    for number, line in enumerate(lines, 1):
        if line.strip():
            row = _parse(line, file, number)
            yield f"{file.name}:{number}", _text_of(row, column, file, f"line {number}")


def _up_to_text(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield blank lines and the first one that is not blank."""
    for line in lines:
        yield line
        if line.strip():
            return


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False


def _parse(content: bytes, file: Path, number: int) -> Any:
    """Parse a line, or with the number 0 a whole file."""
    what = f"line {number}" if number else "it"
    remedy = "Fix or remove that line." if number else "Correct it."
    try:
        return json.loads(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        where = f"line {number or error.lineno}"
        raise _damaged(file, f"{where} is not valid JSON ({error.msg})", remedy) from error
    except UnicodeDecodeError as error:
        where = f"line {number or content[: error.start].count(10) + 1}"
        raise _damaged(file, f"{where} is not UTF-8 text", "Convert the file to UTF-8.") from error
    except (ValueError, RecursionError) as error:  # thousands of digits, or of nested lists
        cause = f"{what} is not JSON that Python can read ({str(error).split(';')[0]})"
        raise _damaged(file, cause, remedy) from error


def _text_of(row: Any, column: str | None, file: Path, place: str) -> str | None:
    wanted = TEXT_COLUMNS if column is None else (column,)
    if isinstance(row, dict):
        name = next((name for name in wanted if name in row), None)
        if name is not None and isinstance(row[name], str | None):
            text: str | None = row[name]
            return text
    has = f"its columns are {', '.join(map(str, row))}" if isinstance(row, dict) else "it is not an object"
    raise _damaged(
        file,
        f"{place} has no text in {', '.join(wanted)}; {has}",
        "Expected a string there; name another column as PATH:COLUMN.",
    )


# ---------------------------------------------------------------- Parquet


def _read_parquet(file: Path, column: str | None) -> Iterator[tuple[str, str | None]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        wanted = TEXT_COLUMNS if column is None else (column,)
        name = next((name for name in wanted if name in table.schema_arrow.names), None)
        if name is None:
            columns = ", ".join(table.schema_arrow.names)
            raise _damaged(
                file,
                f"it has no text column {', '.join(wanted)}, only {columns}",
                "Name its column as PATH:COLUMN.",
            )
        number = 0
        for batch in table.iter_batches(batch_size=16, columns=[name]):
            for text in batch.column(0).to_pylist():
                number += 1
                if not isinstance(text, str | None):
                    dtype = table.schema_arrow.field(name).type
                    raise _damaged(file, f"column '{name}' has type {dtype}", "Its values must be strings.")
                yield f"{file.name}:{number}", text
    except (pyarrow.ArrowException, OSError) as error:  # Arrow reports a damaged page as an OSError
        raise _damaged(
            file, f"it is not a readable Parquet file ({str(error).splitlines()[0]})", "Copy or write it again."
        ) from error
