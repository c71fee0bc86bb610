"""Corpora that are local files: which files a name refers to, and which column of them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from longshort.corpora.document import Corpus, with_text
from longshort.corpora.rows import SUFFIXES, read_rows
from longshort.errors import UserError

ARCHIVE_OF_A_MAC = "__MACOSX"  # the folder of such an archive that has no data


def open_files(spec: str) -> Corpus:
    """Return the corpus of a path, folder or glob, with ``:COLUMN`` or without; documents are read when iterated.

    Raises:
        UserError: the file does not exist, or it has another format.
    """
    name, column, files = corpus_files(spec)
    known = ", ".join(SUFFIXES)
    if os.path.isdir(os.path.expanduser(name)):
        files = [file for file in files if file.name.endswith(SUFFIXES)]
        if not files:
            raise UserError(
                f"Cannot open corpus '{spec}': the folder has no {known} file (hidden files are skipped). "
                "Give another folder.",
                "not_found",
            )
    if not files:
        raise UserError(
            f"Cannot open corpus '{spec}': it is neither an existing file nor a known name. "
            f"Known: builtin, pg19, hf:OWNER/NAME, or a path or glob of {known}, with :COLUMN or without.",
            "not_found",
        )
    unknown = [file for file in files if not file.name.endswith(SUFFIXES)]
    if unknown:
        raise UserError(
            f"Cannot open corpus '{spec}': {unknown[0]} is not a {known} file. Convert it to one of these formats.",
            "data",
        )
    source = str(files[0].resolve()) if len(files) == 1 else f"{len(files)} files, {name}"
    return Corpus(
        spec,
        source,
        None,
        None,
        lambda: with_text(spec, (row for file in files for row in read_rows(file, column))),
    )


def corpus_files(spec: str) -> tuple[str, str | None, list[Path]]:
    """Return the path, folder or glob of a name, its column, and the files; no files if there are none."""
    for name, column in readings(spec):
        files = matching_files(name)
        if files or os.path.isdir(os.path.expanduser(name)):
            return name, column, files
    return spec, None, []


def readings(spec: str) -> Iterator[tuple[str, str | None]]:
    """Yield the ways to read ``PATH[:COLUMN]``, as path and column: a path may have colons of its own, and comes first.

    A column does not begin with a slash, as what follows the colon of a Windows drive or of a URL does.
    """
    yield spec, None
    for colon in () if spec.startswith("hf:") else reversed(range(1, len(spec))):
        path, column = spec[:colon], spec[colon + 1 :]
        if spec[colon] == ":" and not column.startswith(("/", "\\")):
            yield path, column or None


def matching_files(name: str) -> list[Path]:
    """Return the files that a path, folder or glob names, sorted; empty if there are none.

    A path that exists is taken literally, whatever characters its name has; a folder means all files below it.
    Folders and globs do not match names that begin with a dot: copies that editors and archives make of a file.
    This is the only reading of such a name, for corpora and for the fingerprints of their files.

    Args:
        name: path of a file or folder, or a glob (``**`` for any depth); ``~`` is the home folder.
    """
    name = os.path.expanduser(name)
    if os.path.isfile(name):
        return [Path(name)]
    if os.path.isdir(name):
        files = sorted(path for path in Path(name).rglob("*") if path.is_file())
        return [path for path in files if not is_hidden(path.relative_to(name).parts)]
    files = sorted(Path(match) for match in glob.glob(name, recursive=True) if os.path.isfile(match))
    return [path for path in files if ARCHIVE_OF_A_MAC in name or ARCHIVE_OF_A_MAC not in path.parts]


def is_hidden(parts: tuple[str, ...]) -> bool:
    """Whether a name in a path begins with a dot, or it lies in the folder of a Mac's archive."""
    return any(part.startswith(".") or part == ARCHIVE_OF_A_MAC for part in parts)
