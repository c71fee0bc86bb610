"""Key-token spans: the characters of each document of a corpus that an evaluator's key tokens are made of.

Read from a file of ``longshort key-spans``, or in the ``key_text`` format of LongPPL's repository. The file of
``longshort key-spans`` is JSON Lines: a header, then one line for each document.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longshort.corpora import Corpus, Document, fingerprint
from longshort.errors import UserError
from longshort.lmeval.weights import hash_of_weights
from longshort.results.files import parse_json, read_bytes

SELF = "self"  # the value of `key_spans` by which a model is its own evaluator
FORMAT, VERSION = "longshort key spans", 1
KEY_TEXT = "key_text"
SLICE = re.compile(r"slice_(\d+)\.txt")
SPAN = re.compile(r"\[ *(\d+) *, *(\d+) *\]")  # LongPPL's own reader evaluates it as Python

Span = tuple[int, int]  # first character, and the one after the last


@dataclass(frozen=True)
class DocumentSpans:
    """The key-token spans of one document."""

    spans: tuple[Span, ...]  # in the order of their starts; none inside another
    reach: int  # characters from the start of the text that the evaluator has read


@dataclass(frozen=True)
class KeySpans:
    """The key-token spans of documents, and where they come from."""

    documents: dict[str, DocumentSpans]  # by the SHA-256 of a document's text
    record: dict[str, Any]  # what results record: file, its SHA-256, evaluator, corpus, criterion


def merged(offsets: Iterable[Span]) -> tuple[Span, ...]:
    """Join spans where one ends and the next begins, as LongPPL does, and leave out those inside another.

    Spans that overlap without that, which tokens of parts of characters have, stay apart: a token across both is
    inside neither.
    """
    joined: list[Span] = []
    for start, end in offsets:
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    kept: list[Span] = []
    for start, end in sorted(set(joined), key=lambda span: (span[0], -span[1])):
        if not kept or end > kept[-1][1]:
            kept.append((start, end))
    return tuple(kept)


def tokens_inside(offsets: NDArray[np.int64], spans: Sequence[Span]) -> list[int]:
    """Return the tokens that lie wholly inside a span; never the first one, which no model predicts without BOS.

    Args:
        offsets: start and end of each token in characters, [N, 2].
        spans: as of `DocumentSpans`.
    """
    starts = [start for start, _ in spans]
    found = []
    for index, (start, end) in enumerate(offsets.tolist()):
        place = bisect_right(starts, start) - 1
        # Of spans that begin before the token, the last one ends last.
        if index and place >= 0 and end <= spans[place][1]:
            found.append(index)
    return found


def is_self_evaluated(record: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    """Whether the evaluator of key spans is the evaluated model itself, which is known to break the metric.

    Args:
        record: of the key spans.
        metadata: of the task, to which lm-eval adds the model's arguments.
    """
    evaluator = record.get("evaluator") or {}
    if record.get("format") == SELF:
        return True
    if record.get("format") != FORMAT or any(metadata.get(name) != evaluator.get(name) for name in ("peft", "delta")):
        return False
    names = [str(each.get("pretrained")) for each in (evaluator, metadata)]
    if _is_moved(evaluator, names[1]):
        return True
    names = [os.path.realpath(name) if os.path.isdir(name) else name for name in names]
    revisions = [str(each.get("revision") or "main") for each in (evaluator, metadata)]
    return names[0] == names[1] and revisions[0] == revisions[1]


def _is_moved(evaluator: Mapping[str, Any], pretrained: str) -> bool:
    """Whether an evaluator's folder has these weights but another path, as from another working directory.

    Weights are read only of a folder with its name.
    """
    if not evaluator.get("weights_sha256") or not os.path.isdir(pretrained):
        return False
    names = [Path(os.path.realpath(name)).name for name in (str(evaluator.get("pretrained")), pretrained)]
    return names[0] == names[1] and evaluator["weights_sha256"] == hash_of_weights(Path(pretrained))


def read_key_spans(spec: str, corpus: Corpus, documents: Sequence[Document]) -> KeySpans:
    """Read the key-token spans of a corpus's documents.

    Args:
        spec: a file of ``longshort key-spans``; a folder with LongPPL's ``slice_0.txt``, ``slice_1.txt``, …, for the
            documents of the corpus in their order; one of these files; or a file that has a line in their format for
            each document.
        corpus: that the documents are from.
        documents: those that will be scored.

    Raises:
        UserError: it does not exist ("not_found"), is truncated or damaged, or belongs to other documents ("data").
            Its `field` is ``key_spans``.
    """
    path = Path(spec).expanduser()
    if not os.path.exists(path):  # unlike Path.exists, also False for a name that is too long
        raise UserError(
            f"key_spans '{spec}' does not exist. Make it with 'longshort key-spans', or use self.",
            "not_found",
            "key_spans",
        )
    try:
        if os.path.isdir(path) or not _is_json(path):
            return _read_key_text(path, corpus, documents)
        return _read_own(path, corpus, documents)
    except UserError as error:  # of the readers of files
        raise UserError(error.message, error.kind, "key_spans") from error


def _is_json(path: Path) -> bool:
    return path.suffix in (".jsonl", ".json") or read_bytes(path).lstrip()[:1] == b"{"


# ---- the format of `longshort key-spans`


def header_of(
    evaluator: dict[str, Any], corpus: dict[str, Any], criterion: dict[str, Any], documents: int
) -> dict[str, Any]:
    """Return the first line of a file: what its spans depend on, and how many lines follow."""
    known = {"evaluator": evaluator, "corpus": corpus, "criterion": criterion, "documents": documents}
    return {"format": FORMAT, "version": VERSION} | known


def to_line(row: dict[str, Any]) -> str:
    """Return a header or a document as a line of the file."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n"


def row_of(document: Document, spans: Sequence[Span], reach: int, num_tokens: int, key_tokens: int) -> dict[str, Any]:
    """Return the line of one document.

    Args:
        reach: characters that the evaluator has read.
        num_tokens: tokens that it has read.
        key_tokens: how many of them are key tokens.
    """
    return {
        "name": document.name,
        "sha256": fingerprint([document]),
        "characters": reach,
        "tokens": num_tokens,
        "key_tokens": key_tokens,
        "spans": [list(span) for span in spans],
    }


def read_rows(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return header and documents of a complete file.

    Raises:
        UserError: it is truncated, damaged, or has another format ("data").
    """
    again = "Make it again with 'longshort key-spans'."
    lines = [line for line in read_bytes(path).split(b"\n") if line.strip()]
    if not lines:
        raise UserError(f"key spans {path}: the file is empty. {again}", "data")
    header, *rows = (parse_json(line, f"{path}, line {n}", again) for n, line in enumerate(lines, 1))
    if header.get("format") != FORMAT or header.get("version") != VERSION:
        found = header.get("version") if header.get("format") == FORMAT else "another format"
        raise UserError(
            f"{path} is not a file of key spans: its first line should be a header with format '{FORMAT}' and version "
            f"{VERSION}, and has {found}. {again}",
            "data",
        )
    parts = [header.get(name) for name in ("evaluator", "corpus", "criterion")]
    if not all(isinstance(part, dict) for part in parts) or not isinstance(header.get("documents"), int):
        raise UserError(f"{path}, line 1: evaluator, corpus, criterion or documents is missing. {again}", "data")
    if len(rows) != header["documents"]:
        raise UserError(
            f"{path} has {len(rows)} of the {header['documents']} documents that its header announces: it is "
            f"truncated. {again}",
            "data",
        )
    for number, row in enumerate(rows, 2):
        _check_row(row, f"{path}, line {number}")
    return header, rows


def _check_row(row: dict[str, Any], where: str) -> None:
    if not isinstance(row.get("sha256"), str) or not _is_count(row.get("characters")):
        raise UserError(f"{where}: sha256 or characters is missing. Make the file again.", "data")
    spans = row.get("spans")
    if not isinstance(spans, list):
        raise UserError(f"{where}: spans is not a list. Make the file again.", "data")
    for span in spans:
        if not (isinstance(span, list) and len(span) == 2 and all(map(_is_count, span)) and span[0] <= span[1]):
            raise UserError(f"{where}: {span} is not a span [start, end] of characters. Make the file again.", "data")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _read_own(path: Path, corpus: Corpus, documents: Sequence[Document]) -> KeySpans:
    header, rows = read_rows(path)
    by_text = {row["sha256"]: (number, row) for number, row in enumerate(rows, 2)}
    found: dict[str, DocumentSpans] = {}
    for document in documents:
        text = fingerprint([document])
        if text in by_text:
            number, row = by_text[text]
            spans = _checked([tuple(span) for span in row["spans"]], document, f"{path}, line {number}")
            found[text] = DocumentSpans(spans, min(row["characters"], len(document.text)))
    if documents and not found:
        raise UserError(
            f"key_spans '{path}' belongs to other texts: it has none of the {len(documents)} documents of corpus "
            f"'{corpus.spec}', and was made from corpus '{header['corpus'].get('spec')}'. Give both commands the same "
            "corpus, lengths and number of documents.",
            "data",
        )
    digest = hashlib.sha256(read_bytes(path)).hexdigest()
    record = {name: header[name] for name in ("evaluator", "corpus", "criterion")}
    return KeySpans(found, {"file": str(path), "format": FORMAT, "sha256": digest} | record)


def _checked(spans: Sequence[Any], document: Document, where: str) -> tuple[Span, ...]:
    beyond = next((span for span in spans if span[1] > len(document.text)), None)
    if beyond:
        raise UserError(
            f"{where}: span {list(beyond)} ends beyond the {len(document.text)} characters of document "
            f"{document.name}: the spans belong to another text. Make them again from this corpus.",
            "data",
        )
    return merged(sorted(spans))


# ---- LongPPL's key_text


def _read_key_text(path: Path, corpus: Corpus, documents: Sequence[Document]) -> KeySpans:
    """The spans of LongPPL's repository, which name no text: the i-th belong to the i-th document of the corpus."""
    texts = _slices(path)
    digest = hashlib.sha256()
    for index, (_, content) in sorted(texts.items()):
        digest.update(f"{index}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    wanted = {document.name: document for document in documents}
    found: dict[str, DocumentSpans] = {}
    for index, document in enumerate(islice(corpus, max(texts, default=-1) + 1)):
        if document.name in wanted and index in texts:
            where, content = texts[index]
            spans = _checked(_parse_slice(content, where), document, where)
            found[fingerprint([document])] = DocumentSpans(spans, len(document.text))
    if documents and not found:
        raise UserError(
            f"key_spans '{path}' has spans of documents {min(texts)} to {max(texts)}, and none of them is among the "
            f"{len(documents)} documents of corpus '{corpus.spec}' that are scored. Give the corpus that the spans "
            "were made from, in its order.",
            "data",
        )
    folder = path if path.is_dir() else path.parent
    record = {
        "file": str(path),
        "format": KEY_TEXT,
        "sha256": digest.hexdigest(),
        "evaluator": {"pretrained": folder.name},
    }
    return KeySpans(found, record)


def _slices(path: Path) -> dict[int, tuple[str, bytes]]:
    """By index of a document: where its spans are, for messages, and their text."""
    if path.is_dir():
        found = {int(match[1]): file for file in path.iterdir() if (match := SLICE.fullmatch(file.name))}
        if not found:
            raise UserError(
                f"key_spans '{path}': the folder has no slice_0.txt, slice_1.txt, … of LongPPL's key_text. Give one "
                "of its subfolders, or a file of 'longshort key-spans'.",
                "data",
            )
        return {index: (str(file), read_bytes(file)) for index, file in found.items()}
    lines = read_bytes(path).removesuffix(b"\n").split(b"\n")
    match = SLICE.fullmatch(path.name)
    if match and len(lines) == 1:
        return {int(match[1]): (str(path), lines[0])}
    return {index: (f"{path}, line {index + 1}", line) for index, line in enumerate(lines)}


def _parse_slice(content: bytes, where: str) -> list[Span]:
    """``[40, 45];[51, 58]`` as spans; nothing where an evaluator found no key token."""
    text = content.decode("utf-8", "replace").strip()
    spans: list[Span] = []
    for part in text.split(";") if text else ():
        match = SPAN.fullmatch(part.strip())
        if not match or int(match[1]) > int(match[2]):
            shown = part if len(part) <= 40 else f"{part[:40]}…"
            raise UserError(
                f"{where}: '{shown}' is not a span of LongPPL's key_text format, which is [START, END];[START, END]. "
                "The file is truncated or has another format; make or download it again.",
                "data",
            )
        spans.append((int(match[1]), int(match[2])))
    return spans
