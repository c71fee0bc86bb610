"""The settings of a checkpoint in a manifest: how each is read, and what relative paths start from."""

from __future__ import annotations

import difflib
import glob
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from longshort.corpora import readings
from longshort.lmeval.task_folder import tasks_folder
from longshort.options import settings_of
from longshort.settings import ADDED, Checkpoint, Resources
from longshort.settings.definition import Mark, Role, adapter, marked, names_of
from longshort.sweep.manifest.document import NULL, Node

SOURCES = ("pretrained", "folders", "revision", "revisions")  # what names checkpoints
LIKE_PATHS = ("./", "../", "~", "/")


@dataclass(frozen=True)
class Place:
    """What relative paths start from."""

    folder: Path

    def path(self, name: str) -> str:
        """The absolute path of a name that is a path."""
        return str(self._join(name).resolve())

    def checkpoint(self, name: str) -> str:
        """An absolute path where the name looks like one or is a folder here; else the name, which is the hub's."""
        is_path = name.startswith(LIKE_PATHS) or name in (".", "..") or self._is_there(name, Path.is_dir)
        return self.path(name) if is_path else name

    def corpus(self, name: str) -> str:
        """An absolute path or glob, with its column, where it matches a file; else the name."""
        for path, column in readings(name):
            if self._is_there(path, Path.exists) or self.matches(path):
                return str(self._join(path)) + (f":{column}" if column else "")
        return name

    def resolve(self, value: Any, name: str, settings_class: type[Checkpoint]) -> Any:
        """The value of a setting, made absolute if the setting is marked as a path."""
        if name in marked(settings_class, Mark.PATH):
            return self.path(value)
        return self.corpus(value) if name in marked(settings_class, Mark.CORPUS) else value

    def matches(self, pattern: str) -> list[str]:
        """Absolute paths that match a glob, sorted."""
        return sorted(glob.glob(str(self._join(pattern)), recursive=True))

    def _join(self, name: str) -> Path:
        try:
            return self.folder / Path(name).expanduser()
        except RuntimeError:  # ~name of nobody
            return self.folder / name

    def _is_there(self, name: str, test: Callable[[Path], bool]) -> bool:
        try:
            return test(self._join(name))
        except OSError:  # a name too long, a folder that may not be looked into
            return False


def refuse_unknown(parts: Mapping[str, Node], known: Iterable[str], what: str = "field") -> None:
    """Refuse a name that is not known, with the one it may be meant for.

    Raises:
        UserError: a name is not known.
    """
    known = tuple(known)
    for name, value in parts.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}."
            raise value.error(f"there is no {what} '{name}'; {advice}")


@lru_cache
def own_tasks() -> tuple[str, ...]:
    """Names that a glob can match: the tasks and groups of longshort, those in subfolders last."""
    folder = tasks_folder()
    names = []
    for file in sorted(folder.rglob("*.yaml"), key=lambda file: (len(file.parts), file)):
        match = re.search(r"^(?:task|group): *(\S+)", file.read_text("utf-8"), re.MULTILINE)
        if match:
            names.append(match[1])
    return tuple(names)


def names_of_fields(settings_class: type[Checkpoint] = Checkpoint) -> list[str]:
    """The fields that an entry can have besides those that name its checkpoints."""
    internal = names_of(settings_class, Role.INTERNAL)
    return [field.name for field in fields(settings_class) if field.name not in (*SOURCES, *internal)]


def read_fields(
    parts: Mapping[str, Node], place: Place, settings_class: type[Checkpoint] = Checkpoint
) -> dict[str, Any]:
    """The settings of a checkpoint that are given.

    Args:
        parts: values by the name of their field; names that are not settings are passed over.

    Raises:
        UserError: a value is wrong.
    """
    settings = {setting.name: setting for setting in settings_of(settings_class)}
    found = {}
    for name in names_of_fields(settings_class):
        if name not in parts:
            continue
        node = parts[name]
        if name in READERS:
            value = READERS[name](place, node)
        elif settings[name].type is str or (settings[name].is_list and not node.is_sequence):
            value = node.text()  # as written: 1.10 is not 1.1
        elif node.node.tag == NULL:
            raise node.error("there is no value. Give one, or remove the field")
        else:
            value = node.plain()
        found[name] = place.resolve(node.read(adapter(settings_class, name), value), name, settings_class)
    return found


def _tasks(_: Place, node: Node) -> list[str]:
    found: list[str] = []
    for pattern in node.texts():
        names = [pattern]
        if any(sign in pattern for sign in "*?["):
            names = [name for name in own_tasks() if fnmatchcase(name, pattern)]
            if not names:
                known = ", ".join(name for name in own_tasks() if name.startswith("longshort_"))
                raise node.error(f"'{pattern}' matches none of the longshort tasks: {known}")
        elif pattern.startswith("longshort"):  # all others are lm-eval's, which a worker knows
            refuse_unknown({pattern: node}, own_tasks(), "longshort task")
        found += [name for name in names if name not in found]
    return found


def _model_args(place: Place, node: Node) -> dict[str, Any]:
    arguments = {}
    for name, value in node.mapping().items():
        if name in SOURCES or name in names_of_fields():
            raise value.error(f"give {name} as a field of its own, not in model_args")
        arguments[name] = place.checkpoint(value.text()) if name in (*ADDED, "tokenizer") else value.plain()
        try:
            json.dumps(arguments[name])
        except (TypeError, ValueError, RecursionError) as error:
            raise value.error("this is not a number, text, truth value, or a list or mapping of them") from error
    return arguments


def _resources(_: Place, node: Node) -> Resources:
    parts = node.mapping()
    refuse_unknown(parts, (field.name for field in fields(Resources)))
    return Resources(**{name: part.read(adapter(Resources, name)) for name, part in parts.items()})


# Fields of another form than the type of the setting.
READERS: dict[str, Callable[[Place, Node], Any]] = {
    "tasks": _tasks,
    "model_args": _model_args,
    "resources": _resources,
}
