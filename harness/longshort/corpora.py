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

from longshort.errors import UserError

Split = Literal["train", "validation", "test"]

TEXT_COLUMNS = ("text", "content", "document")  # tried in this order in JSONL and Parquet files
SUFFIXES = (".txt", ".jsonl", ".jsonl.zst", ".parquet")
OFFLINE_ADVICE = (
    "What works offline: 'builtin', a path to .txt, .jsonl, .jsonl.zst or .parquet files, "
    "or with HF_HUB_OFFLINE=1 a dataset in the hub's local cache."
)

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
    if spec == "pg19":
        # The test split has a small repository of its own.
        name = "emozilla/pg19-test" if split == "test" else "emozilla/pg19"
        return _open_hub(spec, name, None, split, "text")
    if spec.startswith("hf:"):
        name, *rest = spec.removeprefix("hf:").split(":")
        owner, _, dataset = name.partition("/")
        if not owner or not dataset or "/" in dataset or len(rest) > 3:
            raise UserError(f"corpus '{spec}': expected hf:OWNER/NAME[:CONFIG][:SPLIT][:COLUMN].")
        config, hub_split, column = [*rest, "", "", ""][:3]
        return _open_hub(spec, name, config or None, hub_split or split, column or "text")
    return _open_files(spec)


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
        raise UserError(f"corpus '{corpus.spec}' ({corpus.source}) holds no document with text in it.")
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
        raise UserError("corpus 'builtin': this Python was installed without its sources. Name a local file.")
    for digest, name in sorted((hashlib.sha256(name.encode()).digest(), name) for name in texts):
        if _part(digest[0]) == split:
            text = texts[name]
            yield Document(name, text if isinstance(text, str) else text.read_text("utf-8", errors="replace"))


def _part(byte: int) -> Split:
    """Assign a document by its name alone: 10 % validation, 20 % test, the rest train."""
    return "validation" if byte < 26 else "test" if byte < 77 else "train"


# ---------------------------------------------------------------- local files


def _open_files(spec: str) -> Corpus:
    path = Path(spec).expanduser()
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.name.endswith(SUFFIXES) and file.is_file()]
        if not files:
            raise UserError(f"corpus '{spec}': the folder holds no {', '.join(SUFFIXES)} file.")
    else:
        files = [Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file()]
        if path.is_file() and not files:  # a name with brackets in it
            files = [path]
    if not files:
        raise UserError(
            f"corpus '{spec}' is neither a file that exists nor a known name. "
            "Known: builtin, pg19, hf:OWNER/NAME, or a path or glob of .txt, .jsonl, .jsonl.zst, .parquet."
        )
    unknown = [file for file in files if not file.name.endswith(SUFFIXES)]
    if unknown:
        raise UserError(f"corpus '{spec}': {unknown[0]} is none of {', '.join(SUFFIXES)}.")
    files.sort()
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
            raise UserError(f"{file} is not UTF-8 text (byte {error.start}). Convert it to UTF-8 first.") from error
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror or error}.") from error


def _read_jsonl(file: Path) -> Iterator[Document]:
    with file.open("rb") as raw:
        for number, line in enumerate(_zstd_lines(raw, file) if file.suffix == ".zst" else raw, 1):
            where = f"{file}, line {number}"
            try:
                row = json.loads(line.decode("utf-8-sig")) if line.strip() else None
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: not valid JSON ({error.msg}).") from error
            except UnicodeDecodeError as error:
                raise UserError(f"{where}: not UTF-8 text. Convert the file to UTF-8 first.") from error
            except (ValueError, RecursionError) as error:  # thousands of digits, or of lists in each other
                raise UserError(f"{where}: not valid JSON that can be read ({str(error).split(';')[0]}).") from error
            if line.strip():
                yield Document(f"{file.name}:{number}", _text_of(row, where))


def _zstd_lines(raw: BinaryIO, file: Path) -> Iterator[bytes]:
    """Lines of a file of one or more frames; zstandard's own reader takes a cut-off file for a whole one."""
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
        raise UserError(f"{file}: damaged zstd file ({error}). Copy it again.") from error
    if frame is not None:
        raise UserError(f"{file}: incomplete zstd file. Copy it again.")
    if rest:
        yield rest


def _read_parquet(file: Path) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        column = next((name for name in TEXT_COLUMNS if name in table.schema_arrow.names), None)
        if column is None:
            raise UserError(
                f"{file} has no text column. Expected one of {', '.join(TEXT_COLUMNS)}; "
                f"it has {', '.join(table.schema_arrow.names)}."
            )
        number = 0
        for batch in table.iter_batches(batch_size=16, columns=[column]):
            for text in batch.column(0).to_pylist():
                number += 1
                if not isinstance(text, str | None):
                    raise UserError(
                        f"{file}: column '{column}' holds {table.schema_arrow.field(column).type}, not text."
                    )
                yield Document(f"{file.name}:{number}", text or "")
    except (pyarrow.ArrowException, OSError) as error:  # Arrow reports a damaged page as an OSError
        raise UserError(f"{file} is not a readable Parquet file ({str(error).splitlines()[0]}).") from error


def _text_of(row: Any, where: str) -> str:
    if isinstance(row, dict):
        for name in TEXT_COLUMNS:
            if isinstance(row.get(name), str):
                return str(row[name])
    raise UserError(f"{where}: no text. Expected an object with one of {', '.join(TEXT_COLUMNS)}.")


# ---------------------------------------------------------------- hub


def _open_hub(spec: str, name: str, config: str | None, split: str, column: str) -> Corpus:
    from huggingface_hub import HfApi, constants

    revision = None
    if not constants.HF_HUB_OFFLINE:
        try:
            revision = HfApi().dataset_info(name, timeout=30).sha
        except Exception as error:  # the hub client's transports share no base class from version to version
            raise _hub_error(spec, name, f"the hub did not give it ({error})") from error

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
                        f"corpus '{spec}': no text column '{column}'; it has {', '.join(map(str, row))}. "
                        "Name one as hf:OWNER/NAME:CONFIG:SPLIT:COLUMN."
                    )
                yield Document(f"{name}:{split}:{number}", row[column])
        except UserError:
            raise
        except Exception as error:  # datasets passes on whatever its transports and readers raise
            raise _hub_error(spec, name, str(error)) from error

    return Corpus(spec, f"https://huggingface.co/datasets/{name}", revision, split, read)


def _hub_error(spec: str, name: str, cause: str) -> UserError:
    cause = cause.strip().splitlines()[0].rstrip(".") if cause.strip() else "no answer"
    return UserError(f"corpus '{spec}' (hub dataset {name}): {cause}. {OFFLINE_ADVICE}")
