"""Names a corpus, yields its documents, and records where they came from.

``pg19``, ``builtin``, a local path or glob, or ``hf:OWNER/NAME[:CONFIG][:SPLIT][:COLUMN]``.
"""

from __future__ import annotations

import glob
import hashlib
import heapq
import json
import os
import platform
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

from longshort.errors import Kind, UserError

Split = Literal["train", "validation", "test"]

TEXT_COLUMNS = ("text", "content", "document")  # tried in this order in JSONL and Parquet files
SUFFIXES = (".txt", ".jsonl", ".jsonl.zst", ".parquet")
OFFLINE_ADVICE = (
    "Available offline: 'builtin', a path to .txt, .jsonl, .jsonl.zst or .parquet files, "
    "or with HF_HUB_OFFLINE=1 a dataset in the hub's local cache."
)
HUB_NOT_FOUND = {"RepositoryNotFoundError", "RevisionNotFoundError", "DatasetNotFoundError", "HFValidationError"}

# A token of today's vocabularies covers fewer bytes of prose than this, so a document that has as many
# bytes per token wanted is long enough under each of them, and all checkpoints score the same documents.
BYTES_PER_TOKEN = 8
# A hub stream may hold millions of documents; a search for long ones ends here.
MAX_DOCUMENTS_READ = 10_000


@dataclass(frozen=True)
class Document:
    """One text: never joined with another, never padded."""

    name: str
    text: str

    @property
    def num_bytes(self) -> int:
        """Length in UTF-8 bytes."""
        return len(self.text.encode("utf-8", errors="surrogatepass"))


@dataclass(frozen=True)
class Corpus:
    """A source of documents that can be read again from the start.

    Attributes:
        spec: the name the user gave.
        source: what it stands for: files, a hub dataset, the Python installation.
        revision: commit of a hub dataset, version of Python, or None for local files.
        split: the part of it that is read; None where the source has no parts.
    """

    spec: str
    source: str
    revision: str | None
    split: str | None
    _read: Callable[[], Iterable[Document]]

    def __iter__(self) -> Iterator[Document]:
        return iter(self._read())


def open_corpus(spec: str, split: Split = "test") -> Corpus:
    """Return the corpus that `spec` names; documents are read when iterated.

    Args:
        spec: ``pg19``, ``builtin``, a path, folder or glob of .txt, .jsonl, .jsonl.zst or .parquet files,
            or ``hf:OWNER/NAME[:CONFIG][:SPLIT][:COLUMN]`` (an empty part takes its default).
        split: train, validation or test, where the source has them. Local files have none.

    Raises:
        UserError: no such file, an unknown name, or a hub that cannot be reached.
    """
    if spec == "builtin":
        return Corpus(
            spec,
            "long texts of the Python installation",
            platform.python_version(),
            split,
            lambda: _builtin(split),
        )
    name = hub_dataset(spec, split)
    if name is not None:
        rest = spec.split(":")[2:]
        owner, _, dataset = name.partition("/")
        if not owner or not dataset or "/" in dataset or len(rest) > 3:
            raise UserError(f"corpus '{spec}': expected hf:OWNER/NAME[:CONFIG][:SPLIT][:COLUMN].", "setting")
        config, hub_split, column = [*rest, "", "", ""][:3]
        return _open_hub(spec, name, config or None, hub_split or split, column or "text")
    return _open_files(spec)


def hub_dataset(spec: str, split: Split = "test") -> str | None:
    """Return the hub dataset that a corpus name stands for, OWNER/NAME, or None for a corpus that is not on the hub."""
    if spec == "pg19":  # the test split has a small repository of its own
        return "emozilla/pg19-test" if split == "test" else "emozilla/pg19"
    return spec.removeprefix("hf:").split(":")[0] if spec.startswith("hf:") else None


def matching_files(spec: str) -> list[Path]:
    """Return the files that a path, folder or glob names, sorted; empty if there are none.

    A path that exists is taken literally, whatever characters its name has; a folder stands for all files below it.
    This is the only reading of such a name, for corpora and for the fingerprints of their files.

    Args:
        spec: path of a file or folder, or a glob (``**`` for any depth); ``~`` is the home folder.
    """
    name = os.path.expanduser(spec)
    if os.path.isfile(name):
        return [Path(name)]
    if os.path.isdir(name):
        return sorted(path for path in Path(name).rglob("*") if path.is_file())
    return sorted(Path(match) for match in glob.glob(name, recursive=True) if os.path.isfile(match))


def select(corpus: Corpus, num_docs: int, max_length: int) -> list[Document]:
    """Choose the documents to score, the same ones for every model and tokenizer.

    The first `num_docs` documents of at least ``BYTES_PER_TOKEN * max_length`` bytes, in corpus order; where
    the corpus has fewer, the longest of the others fill the remaining places.

    Args:
        corpus: where from.
        num_docs: how many at most.
        max_length: the greatest length that will be scored, in tokens.

    Raises:
        UserError: the corpus holds no document.
    """
    wanted = BYTES_PER_TOKEN * max_length
    long: list[tuple[int, Document]] = []
    others: list[tuple[int, int, Document]] = []  # a heap: the shortest, and among equals the last, goes first
    for index, document in enumerate(islice(corpus, MAX_DOCUMENTS_READ)):
        size = document.num_bytes
        if size >= wanted:
            long.append((index, document))
            if len(long) == num_docs:
                break
        elif document.text:
            push = heapq.heappush if len(others) < num_docs else heapq.heappushpop
            push(others, (size, -index, document))
    fill = heapq.nlargest(num_docs - len(long), others)
    chosen = long + [(-negative, document) for _, negative, document in fill]
    if not chosen:
        raise UserError(
            f"Cannot use corpus '{corpus.spec}' ({corpus.source}): no document has text. Give another corpus.", "text"
        )
    return [document for _, document in sorted(chosen, key=lambda pair: pair[0])]


def fingerprint(documents: Iterable[Document]) -> str:
    """SHA-256 over the documents' texts, in order."""
    digest = hashlib.sha256()
    for document in documents:
        update_fingerprint(digest, document)
    return digest.hexdigest()


def update_fingerprint(digest: Any, document: Document) -> None:
    """Add the next document to a SHA-256 object that, after the last one, holds their `fingerprint`."""
    text = document.text.encode("utf-8", errors="surrogatepass")
    digest.update(len(text).to_bytes(8, "big"))
    digest.update(text)


# ---------------------------------------------------------------- builtin


NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "__pycache__"}


def _builtin(split: Split) -> Iterator[Document]:
    """The reference manual's topics and the standard library's sources, in an order that mixes them."""
    texts: dict[str, Any] = {}
    try:
        from pydoc_data.topics import topics

        texts.update({f"manual/{name}": text for name, text in topics.items()})
    except ImportError:  # some distributions leave the manual out
        pass
    library = Path(sysconfig.get_path("stdlib"))
    for folder, folders, files in os.walk(library):
        folders[:] = [name for name in folders if name not in NOT_LIBRARY]  # and what is in them: they may be large
        for file in files:
            if file.endswith(".py"):
                path = Path(folder, file)
                texts[f"library/{path.relative_to(library).as_posix()}"] = path
    if not texts:
        raise UserError(
            "Cannot read corpus 'builtin': this Python was installed without its sources. Give a local file.",
            "not_found",
        )
    for digest, name in sorted((hashlib.sha256(name.encode()).digest(), name) for name in texts):
        if _part(digest[0]) == split:
            text = texts[name]
            yield Document(name, text if isinstance(text, str) else text.read_text("utf-8", errors="replace"))


def _part(byte: int) -> Split:
    """Assign a document by its name alone: 10 % validation, 20 % test, the rest train."""
    return "validation" if byte < 26 else "test" if byte < 77 else "train"


# ---------------------------------------------------------------- local files


def _open_files(spec: str) -> Corpus:
    files = matching_files(spec)
    if os.path.isdir(os.path.expanduser(spec)):
        files = [file for file in files if file.name.endswith(SUFFIXES)]
        if not files:
            known = ", ".join(SUFFIXES)
            raise UserError(
                f"Cannot open corpus '{spec}': the folder has no {known} file. Give another folder.", "not_found"
            )
    if not files:
        raise UserError(
            f"Cannot open corpus '{spec}': it is neither an existing file nor a known name. "
            "Known: builtin, pg19, hf:OWNER/NAME, or a path or glob of .txt, .jsonl, .jsonl.zst, .parquet.",
            "not_found",
        )
    unknown = [file for file in files if not file.name.endswith(SUFFIXES)]
    if unknown:
        raise UserError(
            f"Cannot open corpus '{spec}': {unknown[0]} is not a {', '.join(SUFFIXES)} file. "
            "Convert it to one of these formats.",
            "data",
        )
    source = str(files[0].resolve()) if len(files) == 1 else f"{len(files)} files, {spec}"
    return Corpus(spec, source, None, None, lambda: _read_files(files))


def _read_files(files: list[Path]) -> Iterator[Document]:
    for file in files:
        try:
            if file.name.endswith(".txt"):
                yield Document(file.name, file.read_text("utf-8-sig"))
            elif file.name.endswith(".parquet"):
                yield from _read_parquet(file)
            else:
                yield from _read_jsonl(file)
        except UnicodeDecodeError as error:
            raise _damaged(file, f"byte {error.start} is not UTF-8 text", "Convert it to UTF-8.") from error
        except OSError as error:
            kind: Kind = "not_found" if isinstance(error, FileNotFoundError) else "data"
            raise UserError(f"Cannot read {file}: {error.strerror or error}. Give a readable file.", kind) from error


def _damaged(file: Path, cause: str, remedy: str) -> UserError:
    return UserError(f"Cannot read {file}: {cause}. {remedy}", "data")


def _read_jsonl(file: Path) -> Iterator[Document]:
    with file.open("rb") as raw:
        for number, line in enumerate(_zstd_lines(raw, file) if file.suffix == ".zst" else raw, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except json.JSONDecodeError as error:
                cause = f"line {number} is not valid JSON ({error.msg})"
                raise _damaged(file, cause, "Fix or remove that line.") from error
            except UnicodeDecodeError as error:
                raise _damaged(file, f"line {number} is not UTF-8 text", "Convert the file to UTF-8.") from error
            except (ValueError, RecursionError) as error:  # thousands of digits, or of nested lists
                cause = f"line {number} is not JSON that Python can read ({str(error).split(';')[0]})"
                raise _damaged(file, cause, "Fix or remove that line.") from error
            yield Document(f"{file.name}:{number}", _text_of(row, file, number))


def _zstd_lines(raw: BinaryIO, file: Path) -> Iterator[bytes]:
    """Lines of a file of one or more frames; zstandard's own reader does not notice a truncated file."""
    import zstandard

    rest = b""
    frame = None
    try:
        while packed := raw.read(1 << 20):
            while packed:
                frame = frame or zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
                *lines, rest = (rest + frame.decompress(packed)).split(b"\n")
                yield from lines
                packed = frame.unused_data
                frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise _damaged(file, f"it is a damaged zstd file ({error})", "Copy it again.") from error
    if frame is not None:
        raise _damaged(file, "it is an incomplete zstd file", "Copy it again.")
    if rest:
        yield rest


def _read_parquet(file: Path) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        column = next((name for name in TEXT_COLUMNS if name in table.schema_arrow.names), None)
        if column is None:
            columns = ", ".join(table.schema_arrow.names)
            raise _damaged(
                file, f"it has no text column, only {columns}", f"Name the column one of {', '.join(TEXT_COLUMNS)}."
            )
        number = 0
        for batch in table.iter_batches(batch_size=16, columns=[column]):
            for text in batch.column(0).to_pylist():
                number += 1
                if not isinstance(text, str | None):
                    dtype = table.schema_arrow.field(column).type
                    raise _damaged(file, f"column '{column}' has type {dtype}", "Its values must be strings.")
                yield Document(f"{file.name}:{number}", text or "")
    except (pyarrow.ArrowException, OSError) as error:  # Arrow reports a damaged page as an OSError
        raise _damaged(
            file, f"it is not a readable Parquet file ({str(error).splitlines()[0]})", "Copy or write it again."
        ) from error


def _text_of(row: Any, file: Path, number: int) -> str:
    if isinstance(row, dict):
        for name in TEXT_COLUMNS:
            if isinstance(row.get(name), str):
                return str(row[name])
    columns = ", ".join(TEXT_COLUMNS)
    raise _damaged(file, f"line {number} has no text", f"Expected an object with a string in one of {columns}.")


# ---------------------------------------------------------------- hub


def _open_hub(spec: str, name: str, config: str | None, split: str, column: str) -> Corpus:
    from huggingface_hub import HfApi, constants

    revision = None
    if not constants.HF_HUB_OFFLINE:
        try:
            revision = HfApi().dataset_info(name, timeout=30).sha
        except Exception as error:  # the hub client's transports share no base class from version to version
            raise _hub_error(spec, name, error) from error

    def read() -> Iterator[Document]:
        import datasets

        # Offline only a complete, cached copy can be opened; online a stream spares the download.
        try:
            rows = datasets.load_dataset(
                name, config, split=split, revision=revision, streaming=not constants.HF_HUB_OFFLINE
            )
            for number, row in enumerate(rows):
                if not isinstance(row.get(column), str):
                    raise UserError(
                        f"Cannot read corpus '{spec}': it has no text column '{column}', only "
                        f"{', '.join(map(str, row))}. Name one as hf:OWNER/NAME:CONFIG:SPLIT:COLUMN.",
                        "data",
                    )
                yield Document(f"{name}:{split}:{number}", row[column])
        except UserError:
            raise
        except Exception as error:  # datasets passes on whatever its transports and readers raise
            raise _hub_error(spec, name, error) from error

    return Corpus(spec, f"https://huggingface.co/datasets/{name}", revision, split, read)


def _hub_error(spec: str, name: str, error: Exception) -> UserError:
    cause = next(iter(str(error).strip().splitlines()), "no answer").rstrip(".")
    names = {cls.__name__ for cls in type(error).__mro__}  # of a client that need not be imported to recognize them
    kind: Kind = "gated" if "GatedRepoError" in names else "not_found" if names & HUB_NOT_FOUND else "hub"
    return UserError(f"Cannot read corpus '{spec}' (hub dataset {name}): {cause}. {OFFLINE_ADVICE}", kind)
