"""From one results file to rows of the tidy table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshort.errors import UserError
from longshort.results.metrics import is_ours, values_of
from longshort.results.model_args import (
    ADDED,
    CHECKPOINT,
    PRECISION,
    SETTINGS,
    as_text,
    identity_args,
    normal_path,
    parse_model_args,
    plain_dtype,
    variant_suffix,
)
from longshort.results.reader import Reader
from longshort.results.source import Source

# Not settings that a number depends on.
ABOUT = ("family", "params", "train_tokens", "train_length", "version", "scored", "corpus", "save_tokens")
ASKED = ("limit", "gen_kwargs", "system_instruction", "chat_template", "fewshot_as_multiturn", "num_fewshot")


@dataclass
class Row:
    """One value."""

    columns: dict[str, Any]  # its values by column of the table
    base: str  # the checkpoint without its adapter and arguments
    precision: dict[str, str]  # its arguments that the name has only where variants differ in them
    saved_dtype: str  # what ``dtype=auto`` stood for, where it is recorded
    settings: dict[str, str]  # how it was measured, for the note on values that were measured again
    has_family: bool  # whether the family was given
    date: float  # in seconds; 0 before lm-eval 0.4.3, which did not record it
    origin: dict[str, str]  # version of the task and SHA-256 of its documents, where they are recorded


def rows_of(source: Source, task: str, reader: Reader) -> Iterator[Row]:
    """Yield a row for each metric of a task.

    Raises:
        UserError: the file names no model (kind "data").
        ValueError: the file is not as lm-eval writes it; as AttributeError, KeyError, TypeError.
    """
    data = source.data
    config = data.get("config") or {}
    arguments = parse_model_args(config.get("model_args"))
    metadata = metadata_of(data, task)
    base = _base(source, arguments, metadata)
    identity = identity_args({"pretrained": base} | arguments)
    precision = {name: identity.pop(name) for name in PRECISION if name in identity}
    added = next((normal_path(as_text(arguments[name])) for name in ADDED if arguments.get(name)), "")
    about = _about(config, metadata, reader) | {
        "checkpoint": (f"{base}+{added}" if added else base) + variant_suffix(identity),
        "revision": str(config.get("model_revision") or as_text(arguments.get("revision")) or "main"),
        "family": str(metadata.get("family") or Path(base).name),
        "task": task,
        # A run's metadata reaches every task, also those with data of their own.
        "corpus": str(metadata["corpus"]) if metadata.get("corpus") and is_ours(task) else None,
    }
    settings = _settings(data, task, arguments, metadata)
    saved_dtype = "" if "dtype" in precision else plain_dtype(as_text(config.get("model_dtype")))
    date = reader.number(data.get("date"), "date") or 0
    origin = {
        "task version": as_text((data.get("versions") or {}).get(task)),
        "documents": as_text((metadata.get("scored") or {}).get("sha256")),
    }
    for values in values_of(data, task, metadata, reader, base):
        yield Row(about | values, base, precision, saved_dtype, settings, bool(metadata.get("family")), date, origin)


def metadata_of(data: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return a task's own metadata; a group has none in lm-eval's results and takes that of its first member."""
    configs, groups = data.get("configs") or {}, data.get("group_subtasks") or {}
    while task not in configs and groups.get(task):
        task = groups[task][0]
    return (configs.get(task) or {}).get("metadata") or {}


def _base(source: Source, arguments: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    names = [arguments.get("pretrained"), metadata.get("pretrained"), source.data.get("model_name")]
    names += [arguments.get(name) for name in CHECKPOINT]
    name = next((name for name in names if name), None)
    if name is None:
        problem = "it names no model, neither in config.model_args nor as model_name"
        raise UserError(f"Cannot read {source.file}: {problem}. Run that evaluation again.", "data")
    return normal_path(str(name))  # of lm_eval's ./name and of `longshort eval`'s name one checkpoint


def _about(config: Mapping[str, Any], metadata: Mapping[str, Any], reader: Reader) -> dict[str, Any]:
    counted = reader.whole(config.get("model_num_parameters"), "config.model_num_parameters")
    params = reader.whole(metadata.get("params"), "params") or counted
    return {
        "params": None if params == -1 else params,  # lm-eval's "cannot tell"
        "train_tokens": reader.whole(metadata.get("train_tokens"), "train_tokens"),
        "train_length": reader.whole(metadata.get("train_length"), "train_length"),
    }


def _settings(
    data: Mapping[str, Any], task: str, arguments: Mapping[str, Any], metadata: Mapping[str, Any]
) -> dict[str, str]:
    """How a task was evaluated, apart from its model: two values of one model may differ in it."""
    config = data.get("config") or {}
    found = {name: arguments[name] for name in SETTINGS if name in arguments}
    found |= {name: value for name, value in metadata.items() if name not in (*ABOUT, *arguments)}
    found |= {
        name: (data.get("n-shot") or {}).get(task) if name == "num_fewshot" else config.get(name) for name in ASKED
    }
    found["backend"] = config.get("model")
    texts = {name: as_text(value) for name, value in found.items()}
    return {
        name: hashlib.sha256(json.dumps(text).encode()).hexdigest()[:8] if len(text) > 40 else text
        for name, text in texts.items()
        if text
    }
