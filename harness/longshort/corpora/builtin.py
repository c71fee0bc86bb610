"""The corpus ``builtin``: long texts that every Python installation has."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from longshort.corpora.document import Document
from longshort.errors import UserError

Split = Literal["train", "validation", "test"]

NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "__pycache__"}


def read_builtin(split: Split) -> Iterator[Document]:
    """Yield the reference manual's topics and the standard library's sources, in an order that mixes them.

    Raises:
        UserError: the installation has neither.
    """
    texts: dict[str, Any] = {}
    try:
        from pydoc_data.topics import topics

        texts.update({f"manual/{name}": text for name, text in topics.items()})
    except ImportError:  # some distributions leave the manual out
        pass
    library = Path(sysconfig.get_path("stdlib"))
    for folder, folders, files in os.walk(library):
        folders[:] = [name for name in folders if name not in NOT_LIBRARY]  # and what is in them: they may be large
        for file in files:
            if file.endswith(".py"):
                path = Path(folder, file)
                texts[f"library/{path.relative_to(library).as_posix()}"] = path
    if not texts:
        raise UserError(
            "Cannot read corpus 'builtin': this Python was installed without its sources. Give a local file.",
            "not_found",
        )
    for digest, name in sorted((hashlib.sha256(name.encode()).digest(), name) for name in texts):
        if _part(digest[0]) == split:
            text = texts[name]
            yield Document(name, text if isinstance(text, str) else text.read_text("utf-8", errors="replace"))


def _part(byte: int) -> Split:
    """Assign a document by its name alone: 10 % validation, 20 % test, the rest train."""
    return "validation" if byte < 26 else "test" if byte < 77 else "train"
