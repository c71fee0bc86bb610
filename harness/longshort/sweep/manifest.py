"""The list of checkpoints to evaluate: YAML, checked, with the line of every mistake."""

from __future__ import annotations

import difflib
import glob
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from longshort.errors import UserError
from longshort.lmeval.folder import tasks_folder
from longshort.lmeval.settings import settings_from
from longshort.sweep.document import Node, parse

RECORD = "longshort.json"
ADDED = ("peft", "delta")  # what lm-eval puts on a checkpoint
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SCORED = ("corpus", "lengths", "train_length", "num_docs", "tail_tokens", "seed", "longbench_dir")
METADATA = (*SCORED, "family", "params", "train_tokens")  # of the tasks, see longshort.lmeval.settings
OWN_KEYS = ("revision", "revisions", "folders", "pretrained")


@dataclass(frozen=True)
class Resources:
    """What a worker needs.

    Attributes:
        gpus: None: one where there is one.
        cpus: cores, also its threads.
        memory: of main memory, in bytes.
    """

    gpus: int | None = None
    cpus: int = 2
    memory: int | None = None


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
    """

    pretrained: str
    tasks: tuple[str, ...] = ("longshort_perplexity", "longshort_misalignment")
    revision: str = "main"
    family: str | None = None
    params: int | None = None
    train_tokens: int | None = None
    train_length: int = 4096
    model_args: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "auto"
    trust_remote_code: bool = False
    corpus: str = "pg19"
    lengths: tuple[int, ...] = (2048, 4096, 8192, 16384, 32768)
    num_docs: int = 32
    tail_tokens: int | None = None
    seed: int = 0
    longbench_dir: str | None = None
    limit: float | None = None
    batch_size: int | str = 1
    resources: Resources = Resources()
    timeout: float | None = None
    cpu_offload: bool = False
    gated: bool = False
    license: str | None = None
    line: int = 0

    @property
    def is_local(self) -> bool:
        """Whether it is a folder."""
        return Path(self.pretrained).is_absolute()

    @property
    def name(self) -> str:
        """For people: a hub name with its revision, or a folder's last part."""
        name = Path(self.pretrained).name if self.is_local else self.pretrained
        added = "".join(f"+{Path(str(self.model_args[key])).name}" for key in ADDED if self.model_args.get(key))
        return name + added + ("" if self.revision == "main" else f"@{self.revision}")

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
    if not path.is_file() and name_or_path in shipped():
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
    return _Reader(name_or_path, here).read(parse(text, name_or_path))


class _Reader:
    def __init__(self, name: str, here: Path) -> None:
        self.name, self.here = name, here

    def read(self, top: Node) -> list[Checkpoint]:
        parts = top.mapping("manifest")
        _refuse_unknown(parts, top, ("description", "defaults", "checkpoints"))
        if "checkpoints" not in parts:
            raise top.error("", "there is no list of checkpoints")
        defaults = parts["defaults"].mapping() if "defaults" in parts else {}
        _refuse_unknown(defaults, parts.get("defaults", top), tuple(FIELDS))
        usual = {name: FIELDS[name](self, node) for name, node in defaults.items()}
        found: list[Checkpoint] = []
        for entry in parts["checkpoints"].sequence():
            found += self._entry(entry, usual)
        if not found:
            raise parts["checkpoints"].error("", "the list is empty")
        _refuse_twins(found, self.name)
        return found

    def _entry(self, entry: Node, usual: dict[str, Any]) -> list[Checkpoint]:
        parts = entry.mapping()
        _refuse_unknown(parts, entry, (*OWN_KEYS, *FIELDS))
        if ("pretrained" in parts) == ("folders" in parts):
            raise entry.error("", "give either pretrained, a name or folder, or folders, a glob of them")
        given = {name: FIELDS[name](self, node) for name, node in parts.items() if name in FIELDS}
        names = self._folders(parts["folders"]) if "folders" in parts else [self._pretrained(parts["pretrained"])]
        checkpoints = []
        for revision, of_revision in _revisions(parts):
            for name in names:
                values = usual | _own_record(name) | of_revision | given
                checkpoint = Checkpoint(pretrained=name, revision=revision, line=entry.line, **values)
                checkpoints.append(_checked(checkpoint, parts, entry))
        return checkpoints

    def _pretrained(self, node: Node) -> str:
        name = node.text()
        if (self.here / name).is_dir() or name.startswith(("./", "../", "~", "/")) or name in (".", ".."):
            return self.path(name)
        return name

    def _folders(self, node: Node) -> list[str]:
        found: list[str] = []
        for pattern in node.texts():
            matches = sorted(glob.glob(str(self.here / Path(pattern).expanduser()), recursive=True))
            folders = [
                self.path(match)
                for match in matches
                if Path(match).is_dir()
                and not match.rstrip("/").endswith(".partial")
                and any((Path(match) / name).is_file() for name in ("config.json", RECORD))
            ]
            if not folders:
                raise node.error("", f"'{pattern}' matches no folder with a config.json (from {self.here})")
            found += [folder for folder in folders if folder not in found]
        return found

    def path(self, name: str) -> str:
        """An absolute path, from one relative to the manifest."""
        return str((self.here / Path(name).expanduser()).resolve())

    def path_if_there(self, name: str) -> str:
        """An absolute path where the name is a path or a glob; else the name."""
        path = self.here / Path(name).expanduser()
        return str(path) if path.exists() or glob.glob(str(path), recursive=True) else name


def _revisions(parts: Mapping[str, Node]) -> list[tuple[str, dict[str, Any]]]:
    """Each revision with what follows from it."""
    if "revision" in parts and "revisions" in parts:
        raise parts["revisions"].error("", "give revision or revisions, not both")
    if "revisions" not in parts:
        return [(parts["revision"].text() if "revision" in parts else "main", {})]
    node = parts["revisions"]
    if not node.is_mapping:
        return [(name, {}) for name in node.texts()]
    rule = node.mapping()
    _refuse_unknown(rule, node, ("template", "values", "first", "last", "every", "tokens_per_step"))
    template = rule["template"].text() if "template" in rule else "step{}"
    if template.count("{}") != 1:
        raise rule["template"].error("", f"'{template}' must hold one {{}}, for the step")
    if "values" in rule:
        steps = [value.whole(0) for value in rule["values"].sequence()]
    elif {"first", "last"} <= rule.keys():
        every = rule["every"].whole(1) if "every" in rule else 1
        steps = list(range(rule["first"].whole(0), rule["last"].whole(0) + 1, every))
    else:
        raise node.error("", "give values, or first, last and every")
    if not steps:
        raise node.error("", "there is no revision in this range")
    tokens = rule["tokens_per_step"].whole(1) if "tokens_per_step" in rule else None
    return [
        (template.replace("{}", str(step)), {"train_tokens": step * tokens} if tokens and step else {})
        for step in steps
    ]


@lru_cache(maxsize=4096)
def _record_of(folder: str) -> dict[str, Any]:
    file = Path(folder) / RECORD
    try:
        record = json.loads(file.read_text("utf-8"))
        base = record.get("base")
        has_base = isinstance(base, str) and not base.endswith(".json")  # else a config it was trained from
        own: dict[str, Any] = {
            "family": Path(base if has_base else folder).name,
            "params": int(record["model"]["num_parameters"]),
            "train_tokens": int(record["tokens_seen"]),
            "train_length": int(record["train_length"]),
        }
        if min(own["params"], own["train_tokens"], own["train_length"]) < 1:
            raise ValueError
        return own
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{file} is damaged or no record of 'longshort train'. Remove it, and say family, params and "
            "train_length in the manifest."
        ) from error


def _own_record(name: str) -> dict[str, Any]:
    """What a checkpoint of our training says of itself."""
    return dict(_record_of(name)) if Path(name).is_absolute() else {}


def _checked(checkpoint: Checkpoint, parts: Mapping[str, Node], entry: Node) -> Checkpoint:
    try:
        settings_from(checkpoint.metadata())
    except UserError as error:
        name = str(error).partition(":")[0].partition("=")[0].partition(" ")[0]
        raise parts.get(name, entry).error("", str(error)) from error
    return checkpoint


def _refuse_unknown(parts: Mapping[str, Node], node: Node, known: tuple[str, ...]) -> None:
    for name, value in parts.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}."
            raise value.error("", f"there is no such field; {advice}")


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


# ---- fields


@lru_cache
def own_tasks() -> tuple[str, ...]:
    """Names that a glob can match: longshort's tasks and groups."""
    names = []
    for file in sorted(tasks_folder().glob("*.yaml")):
        match = re.search(r"^(?:task|group): *(\S+)", file.read_text("utf-8"), re.MULTILINE)
        if match:
            names.append(match[1])
    return tuple(names)


def _tasks(_: _Reader, node: Node) -> tuple[str, ...]:
    found: list[str] = []
    for pattern in node.texts():
        names = [pattern]
        if any(sign in pattern for sign in "*?["):
            names = [name for name in own_tasks() if fnmatchcase(name, pattern)]
            if not names:
                raise node.error("", f"'{pattern}' matches none of {', '.join(own_tasks())}")
        found += [name for name in names if name not in found]
    if not found:
        raise node.error("", "there is no task")
    return tuple(found)


def _lengths(_: _Reader, node: Node) -> tuple[int, ...]:
    if node.is_sequence:
        return tuple(sorted({length.whole(8) for length in node.sequence()}))
    try:
        return settings_from({"lengths": node.text()}).lengths
    except UserError as error:
        raise node.error("", str(error).removeprefix("lengths: ").rstrip(".")) from error


def _model_args(reader: _Reader, node: Node) -> dict[str, Any]:
    arguments = {}
    for name, value in node.mapping().items():
        if name in FIELDS or name in OWN_KEYS:
            raise value.error("", f"give {name} as a field of its own, not in model_args")
        arguments[name] = value.plain()
        if name in (*ADDED, "tokenizer"):
            path = value.text()
            is_path = (reader.here / path).is_dir() or path.startswith(("./", "../", "~", "/"))
            arguments[name] = reader.path(path) if is_path else path
    return arguments


def _batch_size(_: _Reader, node: Node) -> int | str:
    return "auto" if node.plain() == "auto" else node.whole(1)


def _resources(_: _Reader, node: Node) -> Resources:
    parts = node.mapping()
    _refuse_unknown(parts, node, tuple(part.name for part in fields(Resources)))
    resources = Resources()
    if "gpus" in parts:
        resources = replace(resources, gpus=parts["gpus"].whole(0))
    if "cpus" in parts:
        resources = replace(resources, cpus=parts["cpus"].whole(1))
    if "memory" in parts:
        resources = replace(resources, memory=_bytes(parts["memory"]))
    return resources


def _bytes(node: Node) -> int:
    match = re.fullmatch(r"([0-9.]+) *([KMGT]B)?", str(node.plain()).strip(), re.IGNORECASE)
    try:
        if match:
            return int(float(match[1]) * UNITS.get((match[2] or "").upper(), 1))
    except ValueError:
        pass
    raise node.error("", f"{node.plain()!r} is no amount of memory, as 24GB")


FIELDS: dict[str, Callable[[_Reader, Node], Any]] = {
    "tasks": _tasks,
    "family": lambda _, node: node.text(),
    "params": lambda _, node: node.whole(1),
    "train_tokens": lambda _, node: node.whole(1),
    "train_length": lambda _, node: node.whole(1),
    "model_args": _model_args,
    "dtype": lambda _, node: node.choice("auto", "float32", "bfloat16", "float16"),
    "trust_remote_code": lambda _, node: node.truth(),
    "corpus": lambda reader, node: reader.path_if_there(node.text()),
    "lengths": _lengths,
    "num_docs": lambda _, node: node.whole(1),
    "tail_tokens": lambda _, node: node.whole(1),
    "seed": lambda _, node: node.whole(0),
    "longbench_dir": lambda reader, node: reader.path(node.text()),
    "limit": lambda _, node: node.positive(),
    "batch_size": _batch_size,
    "resources": _resources,
    "timeout": lambda _, node: node.positive(),
    "cpu_offload": lambda _, node: node.truth(),
    "gated": lambda _, node: node.truth(),
    "license": lambda _, node: node.text(),
}
