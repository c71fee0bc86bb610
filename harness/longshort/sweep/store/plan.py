"""The plan of a sweep: which results are valid, which are missing, and why."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from longshort.errors import UserError
from longshort.lmeval.longppl_spans import SELF
from longshort.lmeval.task_folder import tasks_folder
from longshort.results import write_atomically
from longshort.results.metrics import is_ours
from longshort.results.tokens import RECORD, token_file_of
from longshort.settings import DEFAULT_TASKS, LONGPPL, Checkpoint
from longshort.settings.definition import Role
from longshort.sweep.store.failure import Failure
from longshort.sweep.store.fingerprint import (
    Hashes,
    Resolved,
    hash_of_files,
    identify_corpus,
    resolve_all,
    sources,
    versions,
)
from longshort.sweep.store.folder import HASHES, MARK, Folder, Saved, former_slug, is_of, slug

logger = logging.getLogger(__name__)

CONTENTS = {  # inputs that are identified by their content
    "identity": "the checkpoint",
    "corpus_identity": "the corpus",
    "added": "the adapter",
    "key_spans": "the file of key spans",
}


@dataclass
class Item:
    """One checkpoint in the plan."""

    checkpoint: Checkpoint  # of the manifest
    inputs: dict[str, dict[str, Any]]  # of each task, everything that can change its numbers
    done: list[str] = field(default_factory=list)  # tasks with a valid result
    # tasks to run, with the reason where there is a result that is no longer valid
    missing: dict[str, str | None] = field(default_factory=dict)
    failure: Failure | None = None  # why it need not be tried, as when it does not exist

    @property
    def reasons(self) -> list[str]:
        """Why tasks run again, a line each."""
        return [f"{self.checkpoint.name}: {task} again: {reason}" for task, reason in self.missing.items() if reason]


def make_plan(checkpoints: Sequence[Checkpoint], folder: Folder) -> list[Item]:
    """Compare a manifest with a folder's results.

    Raises:
        UserError: a local corpus, a file of key spans or of LongBench does not exist or cannot be read.
    """
    hashes = Hashes(folder.path / HASHES)
    saved = folder.all_saved()
    known: dict[tuple[str, str], str] = {}
    for inputs in (before.inputs for before in saved.values()):
        if inputs.get("identity"):
            known[str(inputs.get("pretrained")), str(inputs.get("revision"))] = inputs["identity"]
    resolved = resolve_all(checkpoints, hashes, known)
    corpora = _corpora(checkpoints, hashes, list(saved.values()))
    # LongBench data on the hub are at a revision fixed in the code.
    folders = {checkpoint.longbench_dir for checkpoint in checkpoints}
    archives = {spec: hash_of_files("longbench_dir", spec, hashes) if spec else None for spec in folders}
    spans = {checkpoint.key_spans for checkpoint in checkpoints if LONGPPL in checkpoint.tasks}
    key_spans = {spec: _identify_key_spans(spec, hashes) for spec in spans}
    libraries, task_versions = versions(), _task_versions()
    items = []
    for checkpoint in checkpoints:
        common = _inputs(checkpoint, resolved, corpora[checkpoint.corpus], archives[checkpoint.longbench_dir])
        inputs = {
            task: common
            | {"task": task, "task_version": task_versions.get(task), "versions": libraries}
            | {"settings": checkpoint.values(Role.NUMBERS) | ({"task_args": None} if is_ours(task) else {})}
            for task in checkpoint.tasks
        }
        if LONGPPL in inputs:
            inputs[LONGPPL]["key_spans"] = key_spans[checkpoint.key_spans]
        item = Item(checkpoint, inputs)
        for task in checkpoint.tasks:
            result = _result(saved, checkpoint, task)
            reason = None if result is None else why_invalid(result.inputs, inputs[task])
            if result is not None and reason is None and checkpoint.save_tokens and task in DEFAULT_TASKS:
                reason = _why_without_tokens(result, hashes)
            if result is not None and reason is None:
                item.done.append(task)
            else:
                item.missing[task] = reason
        lost = next((found.failure for s in sources(checkpoint) if (found := resolved[s]).failure), None)
        item.failure = lost if item.missing else None
        items.append(item)
    if folder.path.is_dir():
        try:
            hashes.save()
        except UserError as error:
            logger.warning("%s", error)
    return items


def to_run(items: Sequence[Item]) -> dict[str, Item]:
    """Return the items with missing results by a unique name: their `slug`, numbered where several entries share it."""
    found: dict[str, Item] = {}
    count: Counter[str] = Counter()
    for item in items:
        if item.missing:
            name = slug(item.checkpoint)
            count[name] += 1
            found[name if count[name] == 1 else f"{name}+{count[name]}"] = item
    return found


def relabel(items: Sequence[Item], folder: Folder) -> int:
    """Update what results record about their checkpoint from the manifest; return how many changed.

    Raises:
        UserError: a file cannot be written.
    """
    changed = 0
    saved = folder.all_saved()
    for item in items:
        about = item.checkpoint.values(Role.ABOUT)
        for task in item.done:
            result = saved.get((slug(item.checkpoint), task))
            if result and _set_about(result, about):
                write_atomically(result.file, json.dumps(result.data, indent=2, ensure_ascii=False))
                changed += 1
    return changed


def why_invalid(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return why a result is no longer valid, or None if it is."""
    reasons = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            parts = [part for part in sorted(old.keys() | new.keys()) if old.get(part) != new.get(part)]
            reasons += [f"{part} was {old.get(part)}, is {new.get(part)}" for part in parts]
        elif name in CONTENTS:
            what = CONTENTS[name]
            short = [str(identity).removeprefix("sha256:")[:20] for identity in (old, new)]
            reasons.append(f"{what} has changed ({short[0]}, now {short[1]})")
        else:
            reasons.append(f"{name} was {old}, is {new}")
    return "; ".join(reasons) or None


def _why_without_tokens(result: Saved, hashes: Hashes) -> str | None:
    """Return why a valid result lacks its token file, or None if it does not."""
    try:
        file = token_file_of(result.file)
        return None if hashes.file(file) == result.data[RECORD].get("sha256") else f"{file.name} was changed"
    except UserError:
        return "it was measured without save_tokens"
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror or error})"


def _result(saved: Mapping[tuple[str, str], Saved], checkpoint: Checkpoint, task: str) -> Saved | None:
    """The current result, or that of version 0.1.0, which a sweep will move."""
    former = saved.get((former_slug(checkpoint), task))
    return saved.get((slug(checkpoint), task)) or (former if former and is_of(former, checkpoint) else None)


def _inputs(
    checkpoint: Checkpoint,
    resolved: Mapping[tuple[str, str], Resolved],
    corpus: str | None,
    archive: str | None,
) -> dict[str, Any]:
    first, *others = sources(checkpoint)
    return {
        "pretrained": checkpoint.pretrained,
        "revision": checkpoint.revision,
        "identity": resolved[first].identity,
        "added": [resolved[source].identity for source in others],
        "model_args": dict(checkpoint.model_args),
        "dtype": checkpoint.dtype,
        "corpus_identity": corpus,
        "longbench": archive,
    }


def _corpora(checkpoints: Sequence[Checkpoint], hashes: Hashes, saved: Sequence[Saved]) -> dict[str, str | None]:
    before: dict[str, str] = {}
    for result in saved:
        if result.inputs.get("corpus_identity"):
            before[result.inputs["settings"]["corpus"]] = result.inputs["corpus_identity"]
    found = {}
    for spec, line in {checkpoint.corpus: checkpoint.line for checkpoint in reversed(checkpoints)}.items():
        try:
            found[spec] = identify_corpus(spec, hashes, before.get(spec))
        except UserError as error:
            raise UserError(f"Line {line} of the manifest: {error}", error.kind, error.field) from error
    return found


def _identify_key_spans(spec: str | None, hashes: Hashes) -> str | None:
    """The hash of the files of key spans; a model's own depend on nothing else."""
    return hash_of_files("key_spans", spec, hashes) if spec and spec != SELF else spec


def _task_versions() -> dict[str, Any]:
    """Of longshort's tasks; those of lm-eval's change with its own version."""
    found: dict[str, Any] = {}
    for file in tasks_folder().glob("*.yaml"):
        text = file.read_text("utf-8").replace("!function ", "")
        content = yaml.safe_load(text)
        name = content.get("task") if isinstance(content.get("task"), str) else content.get("group")
        found[str(name)] = (content.get("metadata") or {}).get("version")
    return found


def _set_about(result: Saved, about: Mapping[str, Any]) -> bool:
    changed = False
    for config in result.data.get("configs", {}).values():
        metadata = config.get("metadata")
        if not isinstance(metadata, dict):
            continue
        for name, value in about.items():
            if metadata.get(name) != value:
                changed = True
                metadata.pop(name, None)
                if value is not None:
                    metadata[name] = value
    return changed and MARK in result.data
