"""Read the list of checkpoints to evaluate from YAML; errors name the line and the field."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from longshort.errors import Kind, UserError
from longshort.settings import ADDED, LONGPPL, Checkpoint
from longshort.settings.definition import build
from longshort.sweep.manifest.document import Node, parse
from longshort.sweep.manifest.expand import folders, own_record, revisions, shared_families
from longshort.sweep.manifest.fields import SOURCES, Place, names_of_fields, read_fields, refuse_unknown
from longshort.sweep.manifest.names import variant_of, with_unique_names

logger = logging.getLogger(__name__)


def shipped() -> dict[str, Path]:
    """Manifests that come with longshort, by name."""
    return {file.stem: file for file in sorted((Path(__file__).parent / "shipped").glob("*.yaml"))}


def load_manifest(name_or_path: str, settings_class: type[Checkpoint] = Checkpoint) -> list[Checkpoint]:
    """Read a manifest: a file, or the name of a shipped one.

    Relative paths in a file start from its folder, in a shipped one from the working directory.

    Args:
        settings_class: the settings that its entries can have.

    Raises:
        UserError: the file cannot be read (`not_found` or `data`), or an entry is wrong. The `field` is then the
            path of the wrong value, such as ``checkpoints[3].lengths[0]``.
    """
    path = Path(name_or_path)
    is_shipped = not path.is_file() and name_or_path in shipped()
    if is_shipped:
        path, here = shipped()[name_or_path], Path.cwd()
    else:
        here = path.absolute().parent
    top = parse(_text(path, name_or_path), name_or_path)
    try:
        return _read(top, Place(here), settings_class)
    except UserError as error:
        if not is_shipped:
            raise
        # A shipped manifest is right, but what it evaluates may have to be made first, as its description says.
        raise UserError(f"{error} {top.mapping()['description'].text()}", error.kind, error.field) from error


def _text(path: Path, name: str) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a name that no file can have
        kind: Kind = "not_found" if isinstance(error, FileNotFoundError) else "data"
        cause = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(
            f"manifest '{name}' cannot be read: {cause}. Name a YAML file, or a shipped one: {', '.join(shipped())}.",
            kind,
        ) from error


def _read(top: Node, place: Place, settings_class: type[Checkpoint]) -> list[Checkpoint]:
    parts = top.mapping("manifest")
    refuse_unknown(parts, ("description", "defaults", "checkpoints"))
    if "checkpoints" not in parts:
        raise top.error("there is no list of checkpoints. Add one, as 'checkpoints: [{pretrained: NAME}]'")
    defaults = parts["defaults"].mapping() if "defaults" in parts else {}
    refuse_unknown(defaults, names_of_fields(settings_class))
    usual = read_fields(defaults, place, settings_class)
    found = [
        checkpoint
        for entry in parts["checkpoints"].sequence()
        for checkpoint in _entry(entry, usual, place, settings_class, defaults.get("tasks"))
    ]
    if not found:
        raise parts["checkpoints"].error("the list is empty. Add '- pretrained: NAME'")
    _refuse_twins(found, top.file)
    for line in shared_families(found):
        logger.warning("%s: %s", top.file, line)
    return with_unique_names(found)


def _entry(
    entry: Node,
    usual: Mapping[str, Any],
    place: Place,
    settings_class: type[Checkpoint],
    usual_tasks: Node | None,
) -> list[Checkpoint]:
    """The checkpoints of one entry. Its fields win over a checkpoint's own record, and that over the defaults."""
    parts = entry.mapping()
    refuse_unknown(parts, (*SOURCES, *names_of_fields(settings_class)))
    if ("pretrained" in parts) == ("folders" in parts):
        raise entry.error("give either pretrained, a name or folder, or folders, a glob of them")
    given = read_fields(parts, place, settings_class)
    if "pretrained" in parts:
        names = [place.checkpoint(parts["pretrained"].text())]
    else:
        names = folders(place, parts["folders"])
    checkpoints = []
    for revision, of_revision in revisions(parts):
        for name in names:
            values = {**usual, **own_record(name), **of_revision, **given}
            try:
                checkpoint = build(
                    settings_class, {"pretrained": name, "revision": revision, "line": entry.line} | values
                )
            except UserError as error:  # what only all settings together show, as tail_tokens above lengths
                raise parts.get(error.field or "", entry).error(error.message) from error
            checkpoints.append(_with_key_spans(checkpoint, parts.get("tasks", usual_tasks), entry))
    return checkpoints


def _with_key_spans(checkpoint: Checkpoint, tasks: Node | None, entry: Node) -> Checkpoint:
    """The checkpoint without LongPPL if that lacks its key tokens and only a glob matches it.

    Raises:
        UserError: it is named.
    """
    if checkpoint.key_spans is not None or LONGPPL not in checkpoint.tasks:
        return checkpoint
    others = tuple(task for task in checkpoint.tasks if task != LONGPPL)
    if tasks is None or LONGPPL in tasks.texts() or not others:
        raise (tasks or entry).error(f"{LONGPPL} needs key_spans: a file of 'longshort key-spans', or self")
    logger.warning("line %d: %s was skipped, since key_spans is not set.", entry.line, LONGPPL)
    return replace(checkpoint, tasks=others)


def _refuse_twins(checkpoints: list[Checkpoint], manifest: str) -> None:
    """Refuse two entries whose results would be the same rows of the table."""
    first: dict[tuple[object, ...], Checkpoint] = {}
    for checkpoint in checkpoints:
        added = [str(checkpoint.model_args.get(name)) for name in ADDED]
        variant = tuple(variant_of(checkpoint).items())
        for task in checkpoint.tasks:
            identity = (checkpoint.pretrained, checkpoint.revision, *added, variant, checkpoint.corpus, task)
            twin = first.setdefault(identity, checkpoint)
            if twin is not checkpoint:
                raise UserError(
                    f"{manifest}, lines {twin.line} and {checkpoint.line}: both ask for {task} of "
                    f"{checkpoint.name} on {checkpoint.corpus}; their results could not be distinguished"
                    f"{_what_differs(twin, checkpoint)}. Remove one.",
                    "setting",
                    "checkpoints",
                )


def _what_differs(one: Checkpoint, other: Checkpoint) -> str:
    """The settings in which two entries differ, none of which is part of a checkpoint's identity."""
    settings = [field for field in names_of_fields(type(one)) if field not in ("tasks", "model_args")]
    names = [name for name in settings if getattr(one, name) != getattr(other, name)]
    arguments = sorted(one.model_args.keys() | other.model_args.keys())
    names += [name for name in arguments if one.model_args.get(name) != other.model_args.get(name)]
    return f", as {', '.join(names)} does not make another checkpoint" if names else ""
