"""The sweep folder: results by checkpoint and task, a record of events, a log per checkpoint. One driver writes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from longshort.errors import UserError
from longshort.results import read, read_bytes, read_json, remove_left_over, write_atomically
from longshort.results.model_args import PRECISION, identity_args, variant_suffix
from longshort.results.tokens import OUTDATED, RECORD, TokenFile, token_file_of, write_tokens
from longshort.settings import ADDED, Checkpoint, plain_name
from longshort.sweep.manifest.names import variant_of

logger = logging.getLogger(__name__)

STATUS = "status.jsonl"
TABLE = "results.parquet"
LOCK = ".lock"
HASHES = ".hashes.json"
MARK = "longshort_sweep"  # the key in a results file for its inputs
DIGITS = 12


@dataclass(frozen=True)
class Saved:
    """A current result: its file, and everything that could have changed its numbers."""

    file: Path
    inputs: dict[str, Any]
    data: dict[str, Any]


def key_of(inputs: Mapping[str, Any]) -> str:
    """Return a hash of everything that can change a number."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:DIGITS]


def slug(checkpoint: Checkpoint) -> str:
    """Return a folder name for a checkpoint on a corpus: readable, and unique."""
    return _slug(checkpoint, variant_of(checkpoint))


def former_slug(checkpoint: Checkpoint) -> str:
    """Return the folder name of version 0.1.0, which did not distinguish model arguments other than adapters."""
    return _slug(checkpoint, {})


def _slug(checkpoint: Checkpoint, variant: Mapping[str, str]) -> str:
    added = [str(checkpoint.model_args.get(name)) for name in ADDED]
    parts = [checkpoint.pretrained, checkpoint.revision, *added, checkpoint.corpus, *([variant] if variant else [])]
    identity = json.dumps(parts, sort_keys=True)
    shown = {name: value for name, value in variant.items() if name not in PRECISION}  # as in tables
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", plain_name(checkpoint) + variant_suffix(shown))[-80:].strip("._")
    return f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def is_of(result: Saved, checkpoint: Checkpoint) -> bool:
    """Whether a result in a folder with the former name is of this variant of the checkpoint."""
    inputs = result.inputs
    arguments = {**(inputs.get("model_args") or {}), "dtype": inputs.get("dtype"), "pretrained": checkpoint.pretrained}
    return identity_args(arguments) == variant_of(checkpoint)


class Folder:
    """A sweep's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_complete = True  # False once an event could not be recorded, as on a full disk

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for this process; the system releases the lock when the process ends, however it ends.

        Raises:
            UserError: another sweep runs in it (kind "conflict"), or it cannot be written ("unwritable").
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"Cannot write to {self.path}: {error.strerror or error}. Choose another folder with -o.", "unwritable"
            ) from error
        with os.fdopen(descriptor, "r+b", buffering=0) as file:  # unbuffered: closing must not fail on a full disk
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                who = file.read().decode(errors="replace").strip() or "another process"
                raise UserError(
                    f"Another sweep runs in {self.path} ({who}). Wait for it, or choose another folder with -o.",
                    "conflict",
                ) from error
            with contextlib.suppress(OSError):  # a full disk: the content is only for people
                file.truncate()
                file.write(f"process {os.getpid()} on {socket.gethostname()} since {now()}".encode())
            for folder in (self.path, *self.path.glob("results/*/*")):
                remove_left_over(folder)
            yield

    # ---- results

    def result_folder(self, checkpoint: Checkpoint, task: str) -> Path:
        """Return the folder of one task's results."""
        return self.path / "results" / slug(checkpoint) / task

    def all_saved(self) -> dict[tuple[str, str], Saved]:
        """Return all current results by `slug` and task, also of checkpoints that no manifest names any more."""
        files = sorted((self.path / "results").glob("*/*/results_*.json"), reverse=True)
        return {(file.parts[-3], file.parts[-2]): result for file in files if (result := _read(file))}

    def adopt(self, checkpoints: Iterable[Checkpoint]) -> None:
        """Move results from the folders of version 0.1.0, whose names left out model arguments, to those of now."""
        for checkpoint in checkpoints:
            former = self.path / "results" / former_slug(checkpoint)
            if former.name == slug(checkpoint):
                continue
            for file in sorted(former.glob("*/results_*.json")):
                place = self.result_folder(checkpoint, file.parent.name)
                result = _read(file)
                if result and is_of(result, checkpoint) and not place.is_dir():
                    with contextlib.suppress(OSError):  # otherwise it is measured again
                        place.mkdir(parents=True)
                        file.rename(place / file.name)
                        file.parent.rmdir()
                        former.rmdir()

    def save(
        self,
        checkpoint: Checkpoint,
        task: str,
        inputs: Mapping[str, Any],
        data: dict[str, Any],
        tokens: TokenFile | None = None,
    ) -> Path:
        """Write a result after its token file, and rename those that it replaces.

        Raises:
            UserError: the folder cannot be written, or the disk is full (kind "unwritable"). If the token file cannot
                be written, the result is written without it.
        """
        folder = self.result_folder(checkpoint, task)
        key = key_of(inputs)
        file = folder / f"results_{key}.json"
        record, problem = write_tokens(tokens, folder / f"tokens_{key}.parquet")
        data = data | {MARK: {"inputs": dict(inputs), "saved": now()}} | ({RECORD: record} if record else {})
        write_atomically(file, json.dumps(data, indent=2, ensure_ascii=False))
        for other in folder.glob("results_*.json"):
            if other != file:
                _set_aside(other)
        if problem:
            raise problem
        return file

    def write_table(self) -> int:
        """Rebuild `results.parquet` from all results files, also those copied in; return its number of rows.

        Raises:
            UserError: there are no results, or the file cannot be written (kind "unwritable").
        """
        reading = read(self.path)
        for note in reading.notes:
            logger.warning("%s", note)
        write_atomically(self.path / TABLE, reading.table.to_parquet(index=False))
        return len(reading.table)

    # ---- events

    def record(self, event: str, **values: Any) -> None:
        """Append to `status.jsonl`."""
        line = json.dumps({"time": now(), "event": event} | {k: v for k, v in values.items() if v is not None})
        try:
            with (self.path / STATUS).open("ab+") as file:
                if file.tell() and not _ends_line(file):
                    file.write(b"\n")  # a line that a crash cut off
                file.write(line.encode() + b"\n")
        except OSError as error:
            if self.is_complete:  # warn once
                logger.warning("Cannot write %s: %s.", self.path / STATUS, error.strerror or error)
            self.is_complete = False

    def events(self) -> list[dict[str, Any]]:
        """Return the events in `status.jsonl`; lines that a crash cut off are skipped.

        Raises:
            UserError: the file exists and cannot be read (kind "data").
        """
        try:
            content = read_bytes(self.path / STATUS).decode("utf-8", errors="replace")
        except UserError as error:
            if error.kind == "not_found":
                return []
            raise
        found = []
        for line in content.splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    found.append(event)
        return found

    def log_file(self, checkpoint: Checkpoint) -> Path:
        """Return the file for the output of a checkpoint's workers."""
        return self.path / "logs" / f"{slug(checkpoint)}.log"

    def log(self, checkpoint: Checkpoint, text: str) -> None:
        """Append to a checkpoint's log."""
        file = self.log_file(checkpoint)
        with contextlib.suppress(OSError):  # a full disk: the results report what is lost
            file.parent.mkdir(exist_ok=True)
            with file.open("a", encoding="utf-8") as log:
                log.write(text)


def _set_aside(results: Path) -> None:
    """Rename outdated results and their token file."""
    with contextlib.suppress(OSError, UserError):  # they may name no token file
        tokens = token_file_of(results)
        tokens.rename(tokens.with_name(f"{OUTDATED}{tokens.name}"))
    with contextlib.suppress(OSError):
        results.rename(results.with_name(results.name.replace("results_", OUTDATED, 1)))


def _read(file: Path) -> Saved | None:
    try:
        data = read_json(file)
        return Saved(file, dict(data[MARK]["inputs"]), data)
    except (UserError, ValueError, KeyError, TypeError):
        logger.warning("%s is damaged or incomplete and will be measured again.", file)
        return None


def now() -> str:
    """Return the time to the second, with its zone."""
    return datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="seconds")


def _ends_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")
