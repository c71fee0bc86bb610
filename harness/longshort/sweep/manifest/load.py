"""The list of checkpoints to evaluate: YAML, checked, with the line of every mistake."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longshort.errors import UserError
from longshort.settings import ADDED, Checkpoint, settings_from
from longshort.sweep.manifest.document import Node, parse
from longshort.sweep.manifest.expand import folders, own_record, revisions, shared_families
from longshort.sweep.manifest.fields import FIELDS, SOURCES, Place, refuse_unknown
from longshort.sweep.manifest.names import told_apart

logger = logging.getLogger(__name__)


def shipped() -> dict[str, Path]:
    """Manifests that come with longshort, by name."""
    return {file.stem: file for file in sorted((Path(__file__).parent / "shipped").glob("*.yaml"))}


def load_manifest(name_or_path: str) -> list[Checkpoint]:
    """Read a manifest: a file, or the name of a shipped one.

    Relative paths in a file are relative to its folder, in a shipped one to the working directory.

    Raises:
        UserError: no such file, or a mistake in it, with its line and field.
    """
    path = Path(name_or_path)
    is_shipped = not path.is_file() and name_or_path in shipped()
    if is_shipped:
        path, here = shipped()[name_or_path], Path.cwd()
    else:
        here = path.absolute().parent
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        known = ", ".join(shipped())
        cause = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(
            f"manifest '{name_or_path}' cannot be read: {cause}. Name a YAML file, or a shipped one: {known}."
        ) from error
    top = parse(text, name_or_path)
    try:
        return _read(top, Place(here))
    except UserError as error:
        if not is_shipped:
            raise
        # It is right, but what it wants may not be here, as its description tells.
        raise UserError(f"{error} {top.mapping()['description'].text()}") from error


def _read(top: Node, place: Place) -> list[Checkpoint]:
    parts = top.mapping("manifest")
    refuse_unknown(parts, ("description", "defaults", "checkpoints"))
    if "checkpoints" not in parts:
        raise top.error("there is no list of checkpoints. Add one, as 'checkpoints: [{pretrained: NAME}]'")
    defaults = parts["defaults"].mapping() if "defaults" in parts else {}
    refuse_unknown(defaults, FIELDS)
    usual = _fields(defaults, place)
    found = [checkpoint for entry in parts["checkpoints"].sequence() for checkpoint in _entry(entry, usual, place)]
    if not found:
        raise parts["checkpoints"].error("the list is empty. Add '- pretrained: NAME'")
    _refuse_twins(found, top.file)
    for line in shared_families(found):
        logger.warning("%s: %s", top.file, line)
    return told_apart(found)


def _fields(parts: Mapping[str, Node], place: Place) -> dict[str, Any]:
    return {name: FIELDS[name](place, node) for name, node in parts.items() if name in FIELDS}


def _entry(entry: Node, usual: dict[str, Any], place: Place) -> list[Checkpoint]:
    parts = entry.mapping()
    refuse_unknown(parts, (*SOURCES, *FIELDS))
    if ("pretrained" in parts) == ("folders" in parts):
        raise entry.error("give either pretrained, a name or folder, or folders, a glob of them")
    given = _fields(parts, place)
    if "pretrained" in parts:
        names = [place.checkpoint(parts["pretrained"].text())]
    else:
        names = folders(place, parts["folders"])
    checkpoints = []
    for revision, of_revision in revisions(parts):
        for name in names:
            values = usual | own_record(name) | of_revision | given
            checkpoint = Checkpoint(pretrained=name, revision=revision, line=entry.line, **values)
            _check(checkpoint, parts, entry)
            checkpoints.append(checkpoint)
    return checkpoints


def _check(checkpoint: Checkpoint, parts: Mapping[str, Node], entry: Node) -> None:
    """What only all settings together show, as tail_tokens beside lengths."""
    try:
        settings_from(checkpoint.metadata())
    except UserError as error:
        name = next((name for name in parts if str(error).startswith(name)), None)
        raise (parts[name] if name else entry).error(str(error)) from error


def _refuse_twins(checkpoints: list[Checkpoint], manifest: str) -> None:
    lines: dict[tuple[str, ...], int] = {}
    for checkpoint in checkpoints:
        added = [str(checkpoint.model_args.get(name)) for name in ADDED]
        for task in checkpoint.tasks:
            identity = (checkpoint.pretrained, checkpoint.revision, *added, checkpoint.corpus, task)
            if identity in lines:
                raise UserError(
                    f"{manifest}, lines {lines[identity]} and {checkpoint.line}: both ask for {task} of "
                    f"{checkpoint.name} on {checkpoint.corpus}; the table could not tell them apart. Remove one."
                )
            lines[identity] = checkpoint.line
