"""Names a corpus, yields its documents, and records where they came from.

``pg19``, ``builtin``, a local path or glob with ``:COLUMN`` or without, or ``hf:OWNER/NAME[:CONFIG][:SPLIT][:COLUMN]``.
"""

from __future__ import annotations

import hashlib
import heapq
import platform
from collections.abc import Iterable
from itertools import islice
from typing import Any

from longshort.corpora.builtin import Split, read_builtin
from longshort.corpora.document import Corpus, Document
from longshort.corpora.files import corpus_files, is_hidden, matching_files, open_files, readings
from longshort.corpora.hub import open_hub
from longshort.corpora.rows import SUFFIXES, TEXT_COLUMNS
from longshort.errors import UserError

__all__ = [
    "BYTES_PER_TOKEN",
    "MAX_DOCUMENTS_READ",
    "SUFFIXES",
    "TEXT_COLUMNS",
    "Corpus",
    "Document",
    "Split",
    "corpus_files",
    "fingerprint",
    "hub_dataset",
    "is_hidden",
    "matching_files",
    "open_corpus",
    "readings",
    "select",
    "update_fingerprint",
]

# A token of today's vocabularies covers fewer bytes of prose than this, so a document that has as many
# bytes per token wanted is long enough under each of them, and all checkpoints score the same documents.
BYTES_PER_TOKEN = 8
# A hub stream may hold millions of documents; a search for long ones ends here.
MAX_DOCUMENTS_READ = 10_000


def open_corpus(spec: str, split: Split = "test") -> Corpus:
    """Return the corpus that `spec` names; documents are read when iterated.

    Args:
        spec: ``pg19``, ``builtin``, a path, folder or glob of .txt, .json, .jsonl (also .gz or .zst) or .parquet
            files with ``:COLUMN`` or without, or ``hf:OWNER/NAME[:CONFIG][:SPLIT][:COLUMN]`` (an empty part takes
            its default).
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
            lambda: read_builtin(split),
        )
    name = hub_dataset(spec, split)
    if name is not None:
        rest = spec.split(":")[2:]
        owner, _, dataset = name.partition("/")
        if not owner or not dataset or "/" in dataset or len(rest) > 3:
            raise UserError(f"corpus '{spec}': expected hf:OWNER/NAME[:CONFIG][:SPLIT][:COLUMN].", "setting")
        config, hub_split, column = [*rest, "", "", ""][:3]
        return open_hub(spec, name, config or None, hub_split or split, column or "text")
    return open_files(spec)


def hub_dataset(spec: str, split: Split = "test") -> str | None:
    """Return the hub dataset that a corpus name refers to, OWNER/NAME, or None for a corpus that is not on the hub."""
    if spec == "pg19":  # the test split has a small repository of its own
        return "emozilla/pg19-test" if split == "test" else "emozilla/pg19"
    return spec.removeprefix("hf:").split(":")[0] if spec.startswith("hf:") else None


def select(corpus: Corpus, num_docs: int, max_length: int) -> list[Document]:
    """Choose the documents to score, the same ones for every model and tokenizer.

    The first `num_docs` documents of at least ``BYTES_PER_TOKEN * max_length`` bytes, in corpus order; where
    the corpus has fewer, the longest of the others fill the remaining places.

    Args:
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
