"""The sweep folder: results by checkpoint and task, what happened, a log per checkpoint. One driver writes."""

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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from longshort.errors import UserError
from longshort.results import read, write_atomically
from longshort.settings import Checkpoint, plain_name

logger = logging.getLogger(__name__)

STATUS = "status.jsonl"
TABLE = "results.parquet"
LOCK = ".lock"
HASHES = ".hashes.json"
MARK = "longshort_sweep"  # what a results file says of how it was asked for
DIGITS = 12


@dataclass(frozen=True)
class Saved:
    """A result in force: its file, and what could have changed the number."""

    file: Path
    inputs: dict[str, Any]
    data: dict[str, Any]


def key_of(inputs: Mapping[str, Any]) -> str:
    """A hash of everything that can change a number."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:DIGITS]


def slug(checkpoint: Checkpoint) -> str:
    """A folder's name for a checkpoint on a corpus: readable, and never that of another."""
    added = [str(checkpoint.model_args.get(name)) for name in ("peft", "delta")]
    identity = json.dumps([checkpoint.pretrained, checkpoint.revision, *added, checkpoint.corpus])
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", plain_name(checkpoint))[-80:].strip("._")
    return f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


class Folder:
    """A sweep's folder, on disk.

    Attributes:
        path: of it.
        is_complete: False once something could not be recorded, as on a full disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_complete = True  # what is recorded, by this process

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other sweep out of the folder; the system frees it when the process ends, however it ends.

        Raises:
            UserError: another sweep works in it, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written: {error.strerror or error}. Choose another folder with -o."
            ) from error
        with os.fdopen(descriptor, "r+b", buffering=0) as file:  # a full disk shall not be met again when it closes
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                who = file.read().decode(errors="replace").strip() or "another process"
                raise UserError(
                    f"another sweep works in {self.path} ({who}). Wait for it, or choose another folder with -o."
                ) from error
            with contextlib.suppress(OSError):  # a full disk: who holds it is only for people
                file.truncate()
                file.write(f"process {os.getpid()} on {socket.gethostname()} since {now()}".encode())
            for left_over in (self.path / "results").rglob(".*.tmp"):  # of a driver killed while it wrote
                with contextlib.suppress(OSError):
                    left_over.unlink()
            yield

    # ---- results

    def result_folder(self, checkpoint: Checkpoint, task: str) -> Path:
        """Where the results of one task lie."""
        return self.path / "results" / slug(checkpoint) / task

    def saved(self, checkpoint: Checkpoint, task: str) -> Saved | None:
        """The result in force, or None; what is damaged is none."""
        found = map(_read, sorted(self.result_folder(checkpoint, task).glob("results_*.json")))
        return next((result for result in found if result), None)

    def all_saved(self) -> dict[tuple[str, str], Saved]:
        """All results in force, by `slug` and task; also those of checkpoints that no manifest names any more."""
        files = sorted((self.path / "results").glob("*/*/results_*.json"), reverse=True)
        return {(file.parts[-3], file.parts[-2]): result for file in files if (result := _read(file))}

    def save(self, checkpoint: Checkpoint, task: str, inputs: Mapping[str, Any], data: dict[str, Any]) -> Path:
        """Write a result and retire the one it replaces.

        Raises:
            UserError: the folder cannot be written, or the disk is full.
        """
        folder = self.result_folder(checkpoint, task)
        file = folder / f"results_{key_of(inputs)}.json"
        data = data | {MARK: {"inputs": dict(inputs), "saved": now()}}
        write_atomically(file, json.dumps(data, indent=2, ensure_ascii=False))
        for other in folder.glob("results_*.json"):
            if other != file:
                with contextlib.suppress(OSError):  # then the newer one still counts
                    other.rename(other.with_name(other.name.replace("results_", "outdated_", 1)))
        return file

    def write_table(self) -> int:
        """Rebuild `results.parquet` from all results files, also those copied in; return its number of rows.

        Raises:
            UserError: no results, or the file cannot be written.
        """
        reading = read(self.path)
        for note in reading.notes:
            logger.warning("%s", note)
        write_atomically(self.path / TABLE, reading.table.to_parquet(index=False))
        return len(reading.table)

    # ---- what happened

    def record(self, event: str, **values: Any) -> None:
        """Append to `status.jsonl`."""
        line = json.dumps({"time": now(), "event": event} | {k: v for k, v in values.items() if v is not None})
        try:
            with (self.path / STATUS).open("ab+") as file:
                if file.tell() and not _ends_line(file):
                    file.write(b"\n")  # a line that a crash cut off
                file.write(line.encode() + b"\n")
        except OSError as error:
            if self.is_complete:  # told once
                logger.warning("%s cannot be written: %s", self.path / STATUS, error.strerror or error)
            self.is_complete = False

    def events(self) -> list[dict[str, Any]]:
        """What `status.jsonl` tells; lines that a crash cut off are left out.

        Raises:
            UserError: the file is there and cannot be read.
        """
        file = self.path / STATUS
        try:
            lines = file.read_text("utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror or error}. Make it readable.") from error
        found = []
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    found.append(event)
        return found

    def log_file(self, checkpoint: Checkpoint) -> Path:
        """Where all that a checkpoint's workers print goes."""
        return self.path / "logs" / f"{slug(checkpoint)}.log"

    def log(self, checkpoint: Checkpoint, text: str) -> None:
        """Append to a checkpoint's log."""
        try:
            file = self.log_file(checkpoint)
            file.parent.mkdir(exist_ok=True)
            with file.open("a", encoding="utf-8") as log:
                log.write(text)
        except OSError:  # a full disk: what is lost is told by results, not by logs
            pass


def _read(file: Path) -> Saved | None:
    try:
        data = json.loads(file.read_text("utf-8"))
        return Saved(file, dict(data[MARK]["inputs"]), data)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        logger.warning("%s is damaged or incomplete: measured again", file)
        return None


def now() -> str:
    """The time, to the second, with its zone."""
    return datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="seconds")


def _ends_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")
