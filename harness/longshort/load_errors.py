"""Why a checkpoint cannot be loaded: the failure category, and one line for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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
    ("ImportError", "dependency"),
)
# These errors have no class of their own, only a ValueError's or RuntimeError's text. Nothing else here reads words.
REMOTE_CODE = "trust_remote_code"  # transformers, for a checkpoint that brings code
MEMORY = ("out of memory", "can't allocate memory")  # torch, for a GPU and for main memory
MISMATCHED = "ignore_mismatched_sizes"  # transformers, for weights of another shape

IS_ADAPTER = (
    "it is a PEFT adapter. Give the merged model or, in an evaluation, the checkpoint that it was trained on and the "
    "model argument peft=…"
)
WEIGHT_FILES = tuple(
    f"{name}{end}" for name in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json")
)
SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")
ROPE_FIELDS = ("rope_scaling", "rope_parameters")
TRUST = "The checkpoint brings its own code: set trust_remote_code=True."
FOREIGN_CODE = (
    "Give a checkpoint that brings the code for it (auto_map in its config.json) and set trust_remote_code=True."
)
ROPE_REMEDIES = {
    "su": "It is an old name of 'longrope': write that instead.",
    "mrope": "For text alone it equals 'default': write that instead.",
}


def kind_of(error: BaseException) -> Kind | None:
    """Return the failure category of an exception, or None where neither it nor any of its causes has a known one.

    The origin of a chain of exceptions is asked first, because the outer ones only guess at the reason. A `UserError`
    has a category of its own.
    """
    return next((kind for cause in _causes(error) if (kind := _kind(cause))), None)


def load_error(
    source: str | Path | None,
    error: Exception,
    what: str = "checkpoint",
    name: str = "",
    config: Mapping[str, Any] | None = None,
) -> UserError:
    """Return the `UserError` to raise for a checkpoint, config or tokenizer that cannot be loaded.

    Args:
        source: folder, file or hub name it was loaded from; None if it was built without reading a file.
        error: what the library raised.
        what: what was loaded, for the message.
        name: its name in the message, by default `source`.
        config: of a model that was built without reading a file.
    """
    kind: Kind
    has_weights = any(_file(source, name) for name in WEIGHT_FILES)
    if what != "adapter" and _file(source, "adapter_config.json") and not has_weights:
        kind, reason = "broken", IS_ADAPTER
    elif problem := sentencepiece_problem(source, error):
        kind, reason = problem
    else:
        rope = _rope_problem(config or _json(source, "config.json"), error)
        kind, reason = kind_of(error) or "broken", rope or why_not_loaded(source, error)
    return UserError(f"Cannot load {what} '{name or source}': {reason}", kind)


def sentencepiece_problem(source: str | Path | None, error: Exception) -> tuple[Kind, str] | None:
    """Return why a checkpoint's tokenizer cannot be read if it has a SentencePiece file alone, with the category.

    transformers then tries tiktoken, and asks for that.
    """
    if not any(isinstance(cause, ImportError) for cause in _causes(error)) or _file(source, "tokenizer.json"):
        return None
    files = [file for name in SENTENCEPIECE_FILES if (file := _file(source, name))]
    # A file of tiktoken is text; this is how a SentencePiece model's first field begins.
    file = next((file for file in files if file.read_bytes()[:1] == b"\n"), None)
    if file is None:
        return None
    if all(map(_is_installed, ("sentencepiece", "google.protobuf"))):
        return "broken", f"its {file.name} is damaged. {AGAIN}"
    return "dependency", (
        f"its tokenizer is a SentencePiece model ({file.name}, without a tokenizer.json), and the library for that is "
        "not installed. Install it: pip install sentencepiece protobuf (or longshort[tokenizers])."
    )


def _is_installed(library: str) -> bool:
    try:
        return find_spec(library) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False


def _rope_problem(config: Mapping[str, Any], error: Exception) -> str | None:
    """Why a model cannot be built if its RoPE type is the key that transformers does not have."""
    keys = [cause.args[0] for cause in _causes(error) if isinstance(cause, KeyError) and cause.args]
    for field, rope_type in _rope_types(config):
        if rope_type in keys:
            remedy = TRUST if "auto_map" in config else ROPE_REMEDIES.get(rope_type, FOREIGN_CODE)
            return (
                f"its config has the RoPE type '{rope_type}' (in {field}), which transformers does not have. {remedy}"
            )
    return None


def _rope_types(config: Mapping[str, Any], field: str = "") -> Iterator[tuple[str, str]]:
    """The RoPE types in a config, of its text model and kinds of layers too, with the field that has each."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _rope_types(value, name if name in ROPE_FIELDS else field)
        elif field and name in ("rope_type", "type"):
            yield field, value


def _file(source: str | Path | None, name: str) -> Path | None:
    """A file of a checkpoint in a folder, or in the cache of the hub; None if there is none."""
    if source is None:
        return None
    path = Path(source).expanduser() / name
    if path.parent.is_dir():
        return path if path.is_file() else None
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(str(source), name)
    except errors.HFValidationError:  # a path, not a name
        return None
    return Path(cached) if isinstance(cached, str) else None


def _json(source: str | Path | None, name: str) -> Mapping[str, Any]:
    """A JSON file of a checkpoint; empty where there is none, or none that can be read."""
    try:
        file = _file(source, name)
        content = json.loads(file.read_text("utf-8")) if file else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def why_not_loaded(source: str | Path | None, error: Exception) -> str:
    """Return the cause and, where it is known, the remedy on one line, from whatever a library raised.

    Args:
        source: folder, file or hub name; None if no file was read.
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
    if path.is_dir() and not any((path / name).exists() for name in ("config.json", "adapter_config.json")):
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
