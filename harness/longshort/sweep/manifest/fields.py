"""The settings that a checkpoint can be given in a manifest: how each is read and checked."""

from __future__ import annotations

import difflib
import glob
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from longshort.errors import UserError
from longshort.lmeval.task_folder import tasks_folder
from longshort.settings import ADDED, MIN_LENGTH, Resources, settings_from
from longshort.sweep.manifest.document import Node

SOURCES = ("pretrained", "folders", "revision", "revisions")  # what names checkpoints
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
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
        """An absolute path or glob where it matches a file; else the name."""
        return str(self._join(name)) if self._is_there(name, Path.exists) or self.matches(name) else name

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
        UserError: there is one.
    """
    known = tuple(known)
    for name, value in parts.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}."
            raise value.error(f"there is no such {what}; {advice}")


@lru_cache
def own_tasks() -> tuple[str, ...]:
    """Names that a glob can match: longshort's tasks and groups, those of folders last."""
    folder = tasks_folder()
    names = []
    for file in sorted(folder.rglob("*.yaml"), key=lambda file: (len(file.parts), file)):
        match = re.search(r"^(?:task|group): *(\S+)", file.read_text("utf-8"), re.MULTILINE)
        if match:
            names.append(match[1])
    return tuple(names)


def _tasks(_: Place, node: Node) -> tuple[str, ...]:
    found: list[str] = []
    for pattern in node.texts():
        names = [pattern]
        if any(sign in pattern for sign in "*?["):
            names = [name for name in own_tasks() if fnmatchcase(name, pattern)]
            if not names:
                known = ", ".join(name for name in own_tasks() if name.startswith("longshort_"))
                raise node.error(f"'{pattern}' matches none of longshort's tasks: {known}")
        elif pattern.startswith("longshort"):  # all others are lm-eval's, which a worker knows
            refuse_unknown({pattern: node}, own_tasks(), "task of longshort")
        found += [name for name in names if name not in found]
    if not found:
        raise node.error("there is no task. Name at least one, as longshort_misalignment")
    return tuple(found)


def _lengths(_: Place, node: Node) -> tuple[int, ...]:
    if node.is_sequence:
        lengths = tuple(sorted({length.whole(MIN_LENGTH) for length in node.sequence()}))
        if not lengths:
            raise node.error("there is no length. Give at least one in tokens, as [2048, 4096]")
        return lengths
    text = node.text()
    try:
        return settings_from({"lengths": text}).lengths
    except UserError as error:
        raise node.error(str(error).removeprefix("lengths: ")) from error


def _model_args(place: Place, node: Node) -> dict[str, Any]:
    arguments = {}
    for name, value in node.mapping().items():
        if name in FIELDS or name in SOURCES:
            raise value.error(f"give {name} as a field of its own, not in model_args")
        arguments[name] = place.checkpoint(value.text()) if name in (*ADDED, "tokenizer") else value.plain()
        try:
            json.dumps(arguments[name])
        except (TypeError, ValueError, RecursionError) as error:
            raise value.error("this is no number, text, truth value, nor a list or mapping of them") from error
    return arguments


def _batch_size(_: Place, node: Node) -> int | str:
    return "auto" if node.plain() == "auto" else node.whole(1)


def _resources(_: Place, node: Node) -> Resources:
    parts = node.mapping()
    refuse_unknown(parts, (part.name for part in fields(Resources)))
    resources = Resources()
    if "gpus" in parts:
        resources = replace(resources, gpus=parts["gpus"].whole(0))
    if "cpus" in parts:
        resources = replace(resources, cpus=parts["cpus"].whole(1))
    if "memory" in parts:
        resources = replace(resources, memory=_bytes(parts["memory"]))
    return resources


def _bytes(node: Node) -> int:
    value = node.plain()
    match = re.fullmatch(r"([0-9.]+) *([KMGT]B)?", str(value).strip(), re.IGNORECASE)
    try:
        amount = int(float(match[1]) * UNITS.get((match[2] or "").upper(), 1)) if match else 0
    except (ValueError, OverflowError):
        amount = 0
    if amount < 1:
        raise node.error(f"{str(value)[:60]!r} is no amount of memory. Write it as 24GB, 500MB, or in bytes")
    return amount


# Fields of a checkpoint but its source. Their order is that of Checkpoint.
FIELDS: dict[str, Callable[[Place, Node], Any]] = {
    "tasks": _tasks,
    "family": lambda _, node: node.text(),
    "params": lambda _, node: node.whole(1),
    "train_tokens": lambda _, node: node.whole(1),
    "train_length": lambda _, node: node.whole(1),
    "model_args": _model_args,
    "dtype": lambda _, node: node.choice("auto", "float32", "bfloat16", "float16"),
    "trust_remote_code": lambda _, node: node.truth(),
    "corpus": lambda place, node: place.corpus(node.text()),
    "lengths": _lengths,
    "num_docs": lambda _, node: node.whole(1),
    "tail_tokens": lambda _, node: node.whole(1),
    "seed": lambda _, node: node.whole(0),
    "longbench_dir": lambda place, node: place.path(node.text()),
    "limit": lambda _, node: node.positive(),
    "batch_size": _batch_size,
    "resources": _resources,
    "timeout": lambda _, node: node.positive(),
    "cpu_offload": lambda _, node: node.truth(),
    "gated": lambda _, node: node.truth(),
    "license": lambda _, node: node.text(),
}
