"""Manifests written for a test, and folders that they name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longshort.errors import UserError
from longshort.settings import Checkpoint, settings_from
from longshort.sweep.manifest.load import load_manifest

RECORD = {
    "base": "meta-llama/Llama-2-7b-hf",
    "config": {"base": "meta-llama/Llama-2-7b-hf", "model_config": None},
    "train_length": 4096,
    "tokens_seen": 52_428_800,
    "needs_remote_code": True,
    "model": {"num_parameters": 6_738_415_616},
}


def load(folder: Path, text: str) -> list[Checkpoint]:
    file = folder / "manifest.yaml"
    file.write_text(text, "utf-8")
    return load_manifest(str(file))


def entries(folder: Path, *lines: str) -> list[Checkpoint]:
    return load(folder, "checkpoints:\n" + "".join(f"  - {line}\n" for line in lines))


def make_folder(folder: Path, record: dict[str, Any] | str | None = None, config: bool = True) -> Path:
    folder.mkdir(parents=True)
    if config:
        (folder / "config.json").write_text("{}")
    if record is not None:
        (folder / "longshort.json").write_text(record if isinstance(record, str) else json.dumps(record))
    return folder


def assert_error(
    folder: Path, entry: str, field: str | None, *facts: str, line: int = 2, kind: str = "setting"
) -> None:
    """An entry is refused in one line that names the file, the line, the field and the facts."""
    assert_manifest_error(folder, f"checkpoints:\n  - {entry}\n", field, *facts, line=line, kind=kind)


def assert_manifest_error(
    folder: Path, text: str, field: str | None, *facts: str, line: int, kind: str = "setting"
) -> None:
    """A manifest is refused in one line that names the file, the line, the field and the facts."""
    with pytest.raises(UserError) as caught:
        load(folder, text)
    error = caught.value
    assert (error.kind, error.field) == (kind, field), str(error)
    where = f"{folder / 'manifest.yaml'}, line {line}"
    assert error.message.startswith(f"{where}, {field}: " if field else f"{where}: "), str(error)
    for fact in facts:
        assert fact in error.message
    assert "\n" not in error.message


def assert_loads_or_reports(folder: Path, text: str) -> None:
    try:
        found = load(folder, text)
    except UserError as error:
        found, message = [], str(error)
    else:
        message = ""
    assert bool(found) != bool(message)
    assert "\n" not in message
    for checkpoint in found:
        settings_from(checkpoint.metadata())
        json.dumps(dict(checkpoint.model_args))
