"""What exactly a checkpoint and a corpus are: commits of the hub, hashes of local files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import BinaryIO

from longshort.corpora import corpus_files, hub_dataset, matching_files
from longshort.errors import UserError
from longshort.load_errors import kind_of
from longshort.results import read_json, write_atomically
from longshort.settings import Checkpoint, loaded_from
from longshort.sweep.store.failure import Failure

LIBRARIES = ("longshort", "lm-eval", "torch", "transformers", "tokenizers", "datasets", "peft")
CONNECTIONS = 16
SECONDS = 20.0  # time limit for an answer of the hub
IGNORED = (".md", ".png", ".csv", ".gitattributes", ".lock", ".txt.tmp")  # not part of the checkpoint


@dataclass(frozen=True)
class Resolved:
    """What a name refers to now."""

    identity: str | None  # a commit of the hub, or ``sha256:…`` over a folder's files; None if it is not known
    failure: Failure | None = None  # why there is nothing to load, if that is known already


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that can change a number."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name).partition("+")[0]  # +cpu only names the wheel of torch
        except PackageNotFoundError:
            continue
    return found


class Hashes:
    """SHA-256 of files, remembered by size and time of change between runs: weights are many gigabytes."""

    def __init__(self, memory: Path) -> None:
        self.memory = memory
        self.known: dict[str, list[object]] = {}
        with contextlib.suppress(UserError):  # none yet, or damaged: hashed again
            self.known = read_json(memory)

    def file(self, path: Path) -> str:
        """Return the hash of one file's bytes."""
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
        """Return the hash of several files and their names."""
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
    """Return what each (name, revision) refers to: checkpoints, and adapters, delta weights and tokenizers for them.

    Args:
        recorded: commits of earlier results, used where the hub cannot be asked.
    """
    wanted = {source for checkpoint in checkpoints for source in sources(checkpoint)}
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        found = pool.map(lambda source: _resolve(source[0], source[1], hashes, recorded.get(source)), wanted)
        return dict(zip(wanted, found, strict=True))


def sources(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Return name and revision of everything that a checkpoint is loaded from; itself first."""
    _, *added = loaded_from(checkpoint)
    tokenizer = checkpoint.model_args.get("tokenizer")
    others = [*added, str(tokenizer)] if tokenizer else added
    return [(checkpoint.pretrained, checkpoint.revision)] + [(name, "main") for name in others]


def _resolve(name: str, revision: str, hashes: Hashes, recorded: str | None) -> Resolved:
    folder = Path(name)
    if folder.is_absolute() or folder.is_dir():
        if not folder.is_dir():
            return Resolved(None, Failure("not_found", f"{name}: There is no such folder."))
        try:
            files = [(path.relative_to(folder).as_posix(), path) for path in _files_of(folder)]
            return Resolved(hashes.files(files))
        except OSError as error:
            return Resolved(None, Failure("broken", f"Cannot read {name}: {error.strerror or error}."))
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

    if not constants.HF_HUB_OFFLINE:
        try:
            info = HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=SECONDS)
            return Resolved(info.sha)
        except Exception as error:  # the network and the hub's client share no base class
            failure_kind = kind_of(error)
            if failure_kind in ("not_found", "gated"):
                message = f"{kind} '{name}' at revision '{revision or 'main'}': {' '.join(str(error).split())}"
                return Resolved(None, Failure(failure_kind, message[:300]))
    # The recorded commit comes first: the cache may hold an older one, of another program.
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
    """Return the hash and column of a local corpus, the commit of one on the hub, or for ``builtin`` Python's version.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    if spec == "builtin":
        return f"python {platform.python_version()}"
    if dataset := hub_dataset(spec):
        return _ask_hub(dataset, None, "dataset", recorded).identity
    name, column, _ = corpus_files(spec)
    identity = hash_of_files("corpus", name, hashes)
    return f"{identity} column {column}" if column else identity


def hash_of_files(field: str, spec: str, hashes: Hashes) -> str:
    """Return the hash of the files that the value of a setting names.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    files = matching_files(spec)
    if not files:
        message = f"{field} '{spec}' is not a file, a folder, or a glob that matches a file. Correct the manifest."
        raise UserError(message, "not_found", field)
    try:
        return hashes.files((file.name, file) for file in files)
    except OSError as error:
        message = f"{field} '{spec}' cannot be read: {error.strerror or error}. Make it readable."
        raise UserError(message, "data", field) from error
