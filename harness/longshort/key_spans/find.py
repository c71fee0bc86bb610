"""Finds the key-token spans of a corpus with an evaluator, and writes them; an interrupted run resumes."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

import longshort
from longshort.corpora import Document, fingerprint, open_corpus, select
from longshort.devices import require_device
from longshort.errors import UserError
from longshort.key_spans.identity import identity_of
from longshort.key_spans.part import Part
from longshort.lmeval.backend import Backend, automatic_batches, backend_of
from longshort.lmeval.documents import character_offsets
from longshort.lmeval.evaluate import load_checkpoint, require_folders
from longshort.lmeval.longppl_evaluator import find_spans
from longshort.lmeval.longppl_spans import header_of, read_rows, row_of, to_line
from longshort.lmeval.output import require_writable
from longshort.results import write_atomically
from longshort.scoring.key_tokens import Criterion
from longshort.settings import EvalSettings

logger = logging.getLogger(__name__)

# Tokens that the evaluator reads for each token of the longest length: another tokenizer may have more characters
# per token, and its tokens behind the last character that the evaluator has read cannot be judged.
READ_SHARE = 1.25


@dataclass(frozen=True)
class Found:
    """What a file has."""

    documents: int
    spans: int
    key_tokens: int
    candidates: int  # tokens after the first K of each document
    criterion: Criterion

    def summary(self, file: Path) -> str:
        """One line for the user."""
        share = f", {self.key_tokens / self.candidates:.1%} of {self.candidates:,} tokens" if self.candidates else ""
        return f"{file}: {self.key_tokens:,} key tokens in {self.spans:,} spans of {self.documents} documents{share}."


def find_key_spans(
    arguments: Mapping[str, Any],
    settings: EvalSettings,
    criterion: Criterion,
    output: Path,
    *,
    batch_size: int | None = None,
    device: str | None = None,
) -> Found:
    """Find the key-token spans of a corpus's documents and write them to a file.

    Documents that are done are kept in ``<output>.part`` until all are, and are not read again by another run with the
    same evaluator, corpus and criterion. The file appears when it is complete.

    Args:
        arguments: as lm-eval's ``--model_args`` for its ``hf`` backend; at least ``pretrained``, the evaluator.
        settings: corpus, lengths and number of documents, which select the documents as for an evaluation.
        criterion: when a token is a key token.
        output: the file.
        batch_size: windows per forward pass; by default as many as have 16,384 tokens together.
        device: "cpu", "cuda:0", …; by default a GPU if one is available.

    Raises:
        UserError: a corpus or an evaluator that cannot be read, lengths that leave no key tokens ("setting"), a file
            with the spans of another run ("conflict") or that cannot be written ("unwritable"), see `find_spans`.
    """
    longest = settings.lengths[-1]
    if longest <= criterion.short:
        raise UserError(
            f"lengths: the longest is {longest} tokens and the short context already has {criterion.short}, so that no "
            "token can be a key token. Give greater --lengths or a smaller --short.",
            "setting",
            "lengths",
        )
    require_folders(arguments)
    require_writable(output.parent)
    if device:
        require_device(device)
    corpus = open_corpus(settings.corpus)
    documents = select(corpus, settings.num_docs, longest + 1)
    if len(documents) < settings.num_docs:
        logger.warning("corpus '%s' has only %d of the %d documents", corpus.spec, len(documents), settings.num_docs)
    lm = load_checkpoint(arguments, batch_size=batch_size, device=device)
    backend = backend_of(lm, "longshort key-spans")
    header = header_of(
        identity_of(lm, arguments),
        {
            "spec": corpus.spec,
            "source": corpus.source,
            "revision": corpus.revision,
            "split": corpus.split,
            "sha256": fingerprint(documents),
        },
        asdict(criterion),
        len(documents),
    ) | {"num_tokens": math.ceil(READ_SHARE * longest), "longshort": longshort.__version__}
    rows = _known(output, header)
    if rows is None:
        part = Part.open(output, header, [fingerprint([document]) for document in documents])
        with nullcontext() if batch_size else automatic_batches():
            _find(backend, documents, criterion, header["num_tokens"], part)
        rows = part.rows
        write_atomically(output, "".join(map(to_line, [header, *rows])))
        part.remove()
    found = _found(rows, criterion)
    if not found.key_tokens:
        why = "no document has more than --short tokens" if not found.candidates else "no token meets the thresholds"
        logger.warning("no key tokens: %s", why)
    return found


def _find(backend: Backend, documents: Sequence[Document], criterion: Criterion, num_tokens: int, part: Part) -> None:
    """Add the documents that are missing."""
    rest = documents[len(part.rows) :]
    if part.rows and rest:
        logger.warning("%s has %d of %d documents; resuming.", part.path, len(part.rows), len(documents))
    counts = [len(character_offsets(backend.lm.tokenizer, document, num_tokens)[0]) for document in rest]
    costs = [_tokens_read(count + len(backend.special_tokens), criterion) for count in counts]
    with tqdm(total=sum(costs), desc="finding key tokens", unit="token", unit_scale=True) as progress:
        for index, document in enumerate(rest):
            found = find_spans(backend, document, num_tokens, criterion, progress.update)
            part.add(row_of(document, found.spans, found.reach, found.num_tokens, found.num_key_tokens))
            progress.update(sum(costs[: index + 1]) - progress.n)  # windows without a candidate were not read


def _tokens_read(num_tokens: int, criterion: Criterion) -> int:
    """Tokens of all forward passes over one document, at most."""
    scored = max(0, num_tokens - criterion.short)
    windows = math.ceil(scored / criterion.stride)
    return num_tokens + windows * criterion.short + scored if windows else num_tokens


def _known(output: Path, header: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The documents of a complete file of the same evaluator, corpus and criterion; None if there is no file.

    Raises:
        UserError: the file is another one ("conflict").
    """
    if not os.path.lexists(output):
        return None
    try:
        known, rows = read_rows(output)
    except UserError as error:
        raise UserError(f"{output} exists and is not a file of key spans. Choose another -o.", "conflict") from error
    different = [name for name in header if known.get(name) != header[name]]
    if different:
        before, now = (json.dumps(each.get(different[0]), ensure_ascii=False) for each in (known, header))
        raise UserError(
            f"{output} has the spans of another {different[0]}: {before}, not {now}. Choose another -o, or remove it.",
            "conflict",
        )
    logger.warning("%s is complete; nothing was read.", output)
    return rows


def _found(rows: Sequence[Mapping[str, Any]], criterion: Criterion) -> Found:
    spans, key_tokens = (sum(count) for count in zip(*((len(r["spans"]), r["key_tokens"]) for r in rows), strict=True))
    candidates = sum(max(0, row["tokens"] - criterion.short) for row in rows)
    return Found(len(rows), spans, key_tokens, candidates, criterion)
