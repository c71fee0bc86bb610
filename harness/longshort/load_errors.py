"""Why a checkpoint cannot be loaded: the failure category, and one line for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from longshort.errors import Kind, UserError

AGAIN = "Download or save it again."
LONGEST = 400  # characters quoted from a library's message

# Exception classes by name, so that no library has to be imported to recognize them. The first match counts:
# GatedRepoError is a RepositoryNotFoundError, and most of the hub client's exceptions are HfHubHTTPErrors.
KIND_BY_CLASS: tuple[tuple[str, Kind], ...] = (
    ("OutOfMemoryError", "out_of_memory"),
    ("MemoryError", "out_of_memory"),
    ("GatedRepoError", "gated"),
    ("RepositoryNotFoundError", "not_found"),
    ("RevisionNotFoundError", "not_found"),
    ("RemoteEntryNotFoundError", "not_found"),
    ("HFValidationError", "not_found"),
    ("LocalEntryNotFoundError", "hub"),
    ("OfflineModeIsEnabled", "hub"),
    ("HfHubHTTPError", "hub"),
    ("TransportError", "hub"),
    ("ConnectionError", "hub"),
    ("SafetensorError", "broken"),
    ("JSONDecodeError", "broken"),
)
# These errors have no class of their own, only a ValueError's or RuntimeError's text. Nothing else here reads words.
REMOTE_CODE = "trust_remote_code"  # transformers, for a checkpoint that brings code
MEMORY = ("out of memory", "can't allocate memory")  # torch, for a GPU and for main memory
MISMATCHED = "ignore_mismatched_sizes"  # transformers, for weights of another shape


def kind_of(error: BaseException) -> Kind | None:
    """Return the failure category of an exception, or None where neither it nor any of its causes has a known one.

    The origin of a chain of exceptions is asked first, because the outer ones only guess at the reason. A `UserError`
    has a category of its own.
    """
    return next((kind for cause in _causes(error) if (kind := _kind(cause))), None)


def load_error(source: str | Path | None, error: Exception, what: str = "checkpoint", name: str = "") -> UserError:
    """Return the `UserError` to raise for a checkpoint, config or tokenizer that cannot be loaded.

    Args:
        source: folder, file or hub name it was loaded from; None if it was built without reading a file.
        error: what the library raised.
        what: what was loaded, for the message.
        name: its name in the message, by default `source`.
    """
    message = f"Cannot load {what} '{name or source}': {why_not_loaded(source, error)}"
    return UserError(message, kind_of(error) or "broken")


def why_not_loaded(source: str | Path | None, error: Exception) -> str:
    """Return the cause and, where it is known, the remedy on one line, from whatever a library raised.

    Args:
        source: folder, file or hub name; None if no file was read.
        error: what the library raised.
    """
    cause = " ".join(str(error).split())[:LONGEST] or type(error).__name__
    if source is None:
        return cause
    path = Path(source).expanduser()
    if not path.exists() and kind_of(error) in (None, "not_found", "gated", "hub"):
        return f"there is no such folder, and the hub did not provide it ({cause}). Give a folder or a hub model."
    if unreadable := _unreadable(path):
        return f"{unreadable} cannot be read: permission denied. Make it readable."
    if type(error).__name__ == "SafetensorError":
        return f"its weights are damaged or incomplete ({cause}). {AGAIN}"
    if isinstance(error, json.JSONDecodeError):
        return f"one of its JSON files (config or tokenizer) is damaged ({cause}). {AGAIN}"
    if path.is_dir() and not (path / "config.json").exists():
        return f"it has no config.json ({cause}). Give a folder that save_pretrained wrote."
    if MISMATCHED in cause:
        return f"its weights have other shapes than its config.json says. {AGAIN}"
    return cause


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exceptions of a chain, the origin first."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return reversed(chain)


def _kind(error: BaseException) -> Kind | None:
    if isinstance(error, UserError):
        return error.kind
    names = {cls.__name__ for cls in type(error).__mro__}
    for name, kind in KIND_BY_CLASS:
        if name in names:
            return kind
    if isinstance(error, ValueError) and REMOTE_CODE in str(error):
        return "no_trust_remote_code"
    if isinstance(error, RuntimeError) and any(text in str(error) for text in MEMORY):
        return "out_of_memory"
    return None


def _unreadable(path: Path) -> Path | None:
    """The file that may not be read; safetensors reports such a file as missing."""
    try:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                file.open("rb").close()
    except PermissionError as error:
        return Path(error.filename)
    return None
