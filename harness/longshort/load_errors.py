"""Why a checkpoint cannot be loaded, as a person would say it."""

from __future__ import annotations

import json
from pathlib import Path

AGAIN = "Download or save it again."
LONGEST = 400  # characters of what a library says


def why_not_loaded(source: str | Path | None, error: Exception) -> str:
    """Cause and, where it is known, remedy, in one line; from whatever a library raised while it loaded a checkpoint.

    Args:
        source: folder, file or name on the hub; None where nothing was read.
        error: what was raised.
    """
    cause = " ".join(str(error).split())[:LONGEST] or type(error).__name__
    if source is None:
        return cause
    path = Path(source).expanduser()
    if not path.exists():
        return f"nothing of this name is here, and the hub did not give it ({cause}). Name a folder, or a hub model."
    if unreadable := _unreadable(path):
        return f"{unreadable} cannot be read: permission denied. Make it readable."
    if type(error).__name__ == "SafetensorError":  # of a library that need not be imported to tell
        return f"its weights are damaged or incomplete ({cause}). {AGAIN}"
    if isinstance(error, json.JSONDecodeError):
        return f"a JSON file in it, of its config or tokenizer, is damaged ({cause}). {AGAIN}"
    if "config.json" in cause and path.is_dir() and not (path / "config.json").exists():
        return "it has no config.json. Name a folder that save_pretrained wrote."
    if "ignore_mismatched_sizes" in cause:
        return f"its weights have other shapes than its config.json says. {AGAIN}"
    return cause


def _unreadable(path: Path) -> Path | None:
    """What may not be read; safetensors calls such a file missing."""
    try:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                file.open("rb").close()
    except PermissionError as error:
        return Path(error.filename)
    return None
