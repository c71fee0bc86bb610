"""The list of checkpoints to evaluate: YAML, checked, with the line of every mistake."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longshort.errors import UserError
from longshort.lmeval.settings import DEFAULT_TASKS, Settings, settings_from
from longshort.sweep.document import Node, parse
from longshort.sweep.fields import ADDED, FIELDS, SOURCES, Place, refuse_unknown
from longshort.sweep.fields import Resources as Resources
from longshort.sweep.names import plain_name, told_apart
from longshort.sweep.origins import folders, own_record, revisions, shared_families

logger = logging.getLogger(__name__)

SCORED = ("corpus", "lengths", "train_length", "num_docs", "tail_tokens", "seed", "longbench_dir")
METADATA = (*SCORED, "family", "params", "train_tokens")  # of the tasks, see longshort.lmeval.settings


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint to evaluate, with all its settings.

    Attributes:
        pretrained: name on the hub, or absolute path of a folder.
        model_args: further arguments of lm-eval's ``hf`` backend.
        timeout: hours for all its tasks.
        cpu_offload: the last resort where memory runs out.
        gated, license: for people.
        line: of its entry in the manifest.
        label: its name for people, where its own would be that of another.
    """

    pretrained: str
    tasks: tuple[str, ...] = DEFAULT_TASKS
    revision: str = "main"
    family: str | None = None
    params: int | None = None
    train_tokens: int | None = None
    train_length: int = Settings.train_length
    model_args: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "auto"
    trust_remote_code: bool = False
    corpus: str = Settings.corpus
    lengths: tuple[int, ...] = Settings.lengths
    num_docs: int = Settings.num_docs
    tail_tokens: int | None = None
    seed: int = Settings.seed
    longbench_dir: str | None = None
    limit: float | None = None
    batch_size: int | str = 1
    resources: Resources = field(default_factory=Resources)
    timeout: float | None = None
    cpu_offload: bool = False
    gated: bool = False
    license: str | None = None
    line: int = 0
    label: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is a folder."""
        return Path(self.pretrained).is_absolute()

    @property
    def name(self) -> str:
        """For people, see `longshort.sweep.names`."""
        return self.label or plain_name(self)

    def metadata(self) -> dict[str, Any]:
        """Settings of longshort's tasks that are given."""
        given = {name: getattr(self, name) for name in METADATA if getattr(self, name) is not None}
        return given | {"lengths": list(self.lengths)}


def shipped() -> dict[str, Path]:
    """Manifests that come with longshort, by name."""
    return {file.stem: file for file in sorted((Path(__file__).parent / "manifests").glob("*.yaml"))}


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
