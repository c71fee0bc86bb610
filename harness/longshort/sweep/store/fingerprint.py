"""What exactly a checkpoint and a corpus are: commits of the hub, hashes of local files."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import logging
import os
import platform
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import BinaryIO

from longshort.errors import UserError
from longshort.results import write_atomically
from longshort.settings import Checkpoint
from longshort.sweep.run.failures import Failure, classify

logger = logging.getLogger(__name__)

LIBRARIES = ("longshort", "lm-eval", "torch", "transformers", "tokenizers", "datasets", "peft")
CONNECTIONS = 16
SECONDS = 20.0  # the hub has to answer within
IGNORED = (".md", ".png", ".csv", ".gitattributes", ".lock", ".txt.tmp")  # beside a checkpoint, not of it


@dataclass(frozen=True)
class Resolved:
    """What a name stands for now.

    Attributes:
        identity: a commit of the hub, or ``sha256:…`` over a folder's files; None where it cannot be told.
        failure: why there is nothing to load, if that is known already.
    """

    identity: str | None
    failure: Failure | None = None


def versions() -> dict[str, str]:
    """Of the libraries that can change a number."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name).partition("+")[0]  # torch's +cpu tells of the wheel
        except PackageNotFoundError:
            continue
    return found


class Hashes:
    """SHA-256 of files, remembered by size and time of change between runs: weights are many gigabytes."""

    def __init__(self, memory: Path) -> None:
        self.memory = memory
        self.known: dict[str, list[object]] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):  # none yet, or damaged: hashed again
            self.known = dict(json.loads(memory.read_text("utf-8")))

    def file(self, path: Path) -> str:
        """Of one file's bytes."""
        stat = path.stat()
        stamp: list[object] = [stat.st_size, stat.st_mtime_ns]
        known = self.known.get(str(path))
        if known and known[:2] == stamp:
            return str(known[2])
        with path.open("rb") as file:
            digest = _digest(file)
        self.known[str(path)] = [*stamp, digest]
        return digest

    def files(self, paths: Iterable[tuple[str, Path]]) -> str:
        """Of several files and their names."""
        digest = hashlib.sha256()
        for name, path in sorted(paths):
            digest.update(f"{name}\0{self.file(path)}\n".encode())
        return f"sha256:{digest.hexdigest()}"

    def save(self) -> None:
        """Keep them for the next run."""
        write_atomically(self.memory, json.dumps(self.known))


def _digest(file: BinaryIO) -> str:  # hashlib.file_digest needs Python 3.11
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()


def resolve_all(
    checkpoints: Iterable[Checkpoint], hashes: Hashes, recorded: Mapping[tuple[str, str], str]
) -> dict[tuple[str, str], Resolved]:
    """What each (name, revision) stands for: of checkpoints, and of adapters and delta weights on them.

    Args:
        checkpoints: of the manifest.
        hashes: of local files.
        recorded: commits of earlier results, taken where the hub cannot be asked.
    """
    wanted = {source for checkpoint in checkpoints for source in sources(checkpoint)}
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        found = pool.map(lambda source: _resolve(source[0], source[1], hashes, recorded.get(source)), wanted)
        return dict(zip(wanted, found, strict=True))


def sources(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Name and revision of everything that a checkpoint is loaded from; itself first."""
    added = (checkpoint.model_args.get(key) for key in ("peft", "delta", "tokenizer"))
    return [(checkpoint.pretrained, checkpoint.revision)] + [(str(name), "main") for name in added if name]


def _resolve(name: str, revision: str, hashes: Hashes, recorded: str | None) -> Resolved:
    folder = Path(name)
    if folder.is_absolute() or folder.is_dir():
        if not folder.is_dir():
            return Resolved(None, Failure("not_found", f"{name}: no such folder"))
        try:
            files = [(path.relative_to(folder).as_posix(), path) for path in _files_of(folder)]
            return Resolved(hashes.files(files))
        except OSError as error:
            return Resolved(None, Failure("broken", f"{name} cannot be read: {error.strerror or error}"))
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return Resolved(revision)
    return _ask_hub(name, revision, "model", recorded)


def _files_of(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(IGNORED) and not path.relative_to(folder).parts[0].startswith(".")
    ]


def _ask_hub(name: str, revision: str | None, kind: str, recorded: str | None) -> Resolved:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError

    if not constants.HF_HUB_OFFLINE:
        try:
            info = HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=SECONDS)
            return Resolved(info.sha)
        except HFValidationError as error:
            return Resolved(None, Failure("not_found", " ".join(str(error).split())))
        except Exception as error:  # whatever the network and the hub come up with: the kinds are ours
            failure = classify(error)
            if failure.kind in ("not_found", "gated"):
                remedy = f"{kind} '{name}' at revision '{revision or 'main'}': {failure.message}"
                return Resolved(None, Failure(failure.kind, remedy[:300]))
    # What was measured before stays: a cache may hold an older commit, of another program.
    return Resolved(recorded or _cached_commit(name, revision or "main", kind))


def _cached_commit(name: str, revision: str, kind: str) -> str | None:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    reference = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind) / "refs" / revision
    try:
        return reference.read_text("utf-8").strip() or None
    except OSError:
        return None


def identify_corpus(spec: str, hashes: Hashes, recorded: str | None) -> str | None:
    """The hash of a local corpus, the commit of one on the hub, the Python that brings ``builtin``.

    Raises:
        UserError: no such file.
    """
    if spec == "builtin":
        return f"python {platform.python_version()}"
    if spec == "pg19":
        return _ask_hub("emozilla/pg19-test", None, "dataset", recorded).identity
    if spec.startswith("hf:"):
        return _ask_hub(spec.removeprefix("hf:").split(":")[0], None, "dataset", recorded).identity
    return _hash_of_files(spec, hashes, f"corpus '{spec}'")


def identify_longbench(spec: str | None, hashes: Hashes) -> str | None:
    """The hash of local LongBench files; the hub's are at a revision fixed in the code.

    Raises:
        UserError: no such file.
    """
    return _hash_of_files(spec, hashes, f"longbench_dir '{spec}'") if spec else None


def _hash_of_files(spec: str, hashes: Hashes, what: str) -> str:
    path = Path(spec).expanduser()
    paths = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else []
    if not paths:
        paths = [Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name)]
    if not paths:
        raise UserError(f"{what} is no file, folder or glob that matches one. Correct the manifest.")
    try:
        return hashes.files((file.name, file) for file in paths)
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error.strerror or error}.") from error
