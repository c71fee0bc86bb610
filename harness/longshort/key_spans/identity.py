"""Which model an evaluator is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longshort.lmeval.weights import hash_of_weights

NOT_ITS_OWN = ("dtype", "trust_remote_code")  # arguments that do not name it


def identity_of(lm: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what identifies a loaded evaluator.

    These are its arguments, the dtype it was loaded in, and the commit of a model of the hub or the SHA-256 of the
    weights in a folder.

    Args:
        lm: lm-eval's ``hf`` model.
        arguments: that it was loaded with.

    Raises:
        UserError: its weights cannot be read ("broken").
    """
    given = {name: value for name, value in arguments.items() if name not in NOT_ITS_OWN}
    given |= {"revision": given.get("revision") or "main", "dtype": str(lm.model.dtype).removeprefix("torch.")}
    folder = Path(given["pretrained"])
    if folder.is_dir():
        return given | {"weights_sha256": hash_of_weights(folder)}
    commit = getattr(lm.model.config, "_commit_hash", None)
    return given | ({"commit": commit} if commit else {})
