"""The hash of the weights in a folder, by which a checkpoint is known wherever its folder is."""

from __future__ import annotations

import hashlib
from pathlib import Path

from longshort.errors import UserError

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def hash_of_weights(folder: Path) -> str:
    """Return the SHA-256 of the files of weights in a folder, in the order of their names.

    Raises:
        UserError: they cannot be read ("broken").
    """
    digest = hashlib.sha256()
    try:
        for path in sorted(path for path in folder.iterdir() if path.name.endswith(WEIGHTS)):
            with path.open("rb") as file:
                while block := file.read(2**22):
                    digest.update(block)
    except OSError as error:
        raise UserError(f"Cannot read the weights of {folder}: {error.strerror or error}.", "broken") from error
    return digest.hexdigest()
