"""Documents as token ids of a model's own tokenizer, tokenized once for all tasks of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longshort.corpora import Document
from longshort.errors import UserError
from longshort.lmeval.first_tokens import first_tokens
from longshort.scoring.special_tokens import special_tokens_before

# Of tokenizers that only decode, in tokens.
DECODED_EXACTLY = 256
CUT = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer decodes to for a part of a character
CONTEXTS = (16, 64)  # the text that a token adds rarely depends on more before it


@dataclass(frozen=True)
class EncodedDocument:
    """A document's tokens, without special tokens."""

    name: str
    tokens: Tensor  # token ids, [N]
    byte_ends: NDArray[np.float64]  # UTF-8 bytes of text up to the end of each token, [N]

    def num_bytes(self, start: int, stop: int) -> float:
        """Return the UTF-8 bytes of the text of tokens[start:stop]."""
        before = self.byte_ends[start - 1] if start else 0.0
        return float(self.byte_ends[stop - 1] - before)


_encoded: WeakKeyDictionary[Any, dict[tuple[Document, int], EncodedDocument]] = WeakKeyDictionary()


def encode(lm: Any, document: Document, num_tokens: int) -> EncodedDocument:
    """Return the first `num_tokens` tokens of a document (fewer if it is shorter), from the cache of this `lm`."""
    cache = _encoded.setdefault(lm, {})
    key = (document, num_tokens)
    if key not in cache:
        cache[key] = _encode(lm.tokenizer, document, num_tokens)
    return cache[key]


def pieces(tokenizer: Any, document: Document, num_tokens: int) -> list[str]:
    """Return the text of each of a document's first tokens, [N]; joined they are the text of all of them.

    A character that several tokens share is the text of the last of them, and the others have none. Text between two
    tokens belongs to the second one. Of tokenizers that only decode, the text is what they decode.
    """
    text = well_formed(document.text)
    if tokenizer.is_fast:
        _, offsets = first_tokens(tokenizer, text, num_tokens)
        starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
        ends = np.maximum.accumulate(ends)
        shares = (starts[:-1] <= starts[1:]) & (starts[1:] < ends[:-1])  # its last character with the next token
        ends[:-1] = np.where(shares, starts[1:], ends[:-1])
    else:
        ids = _slow_ids(tokenizer, text, num_tokens)
        text = tokenizer.decode(ids)
        ends = _decoded_sizes(tokenizer, ids, lambda decoded: len(decoded.rstrip(CUT)))
        ends[-1:] = len(text)
    bounds = np.maximum.accumulate(ends.clip(0, len(text))).astype(np.int64).tolist()
    return [text[start:end] for start, end in pairwise([0, *bounds])]


def character_offsets(tokenizer: Any, document: Document, num_tokens: int) -> tuple[list[int], NDArray[np.int64]]:
    """Return a document's first tokens and the characters of its text that each is made of.

    Tokens that share a character, as those of its bytes, each claim it. Whether a token claims the space before its
    word is up to its tokenizer.

    Returns:
        Token ids without special tokens, [N], and start and end of each in characters, [N, 2].

    Raises:
        UserError: the tokenizer only decodes, and not to the text of the document ("unsupported").
    """
    text = well_formed(document.text)
    if tokenizer.is_fast:
        ids, offsets = first_tokens(tokenizer, text, num_tokens)
        return ids, np.array(offsets, dtype=np.int64).reshape(-1, 2)
    ids = _slow_ids(tokenizer, text, num_tokens)
    if not text.startswith(tokenizer.decode(ids).rstrip(CUT)):
        raise UserError(
            f"the tokenizer {type(tokenizer).__name__} does not report which characters its tokens are made of, and "
            f"what it decodes differs from the text of {document.name}. Give a fast tokenizer: tokenizer=….",
            "unsupported",
            "tokenizer",
        )
    ends = _decoded_sizes(tokenizer, ids, lambda decoded: len(decoded.rstrip(CUT)))
    ends = np.maximum.accumulate(ends).astype(np.int64)
    starts = np.concatenate([[0], ends[:-1]])[: len(ids)]
    for index in reversed(range(len(ids))):
        if ends[index] == starts[index]:  # part of a character that a later token completes
            ends[index] = ends[index + 1] if index + 1 < len(ids) else min(starts[index] + 1, len(text))
    return ids, np.stack([starts, ends], axis=1)


def special_tokens(lm: Any) -> list[int]:
    """Return the ids that the tokenizer puts before a text by default, or none with ``add_bos_token=False``.

    Raises:
        UserError: ``add_bos_token=True``, and the tokenizer has none ("setting").
    """
    wanted = getattr(lm, "add_bos_token", None)
    tokens = [] if wanted is False else special_tokens_before(lm.tokenizer)
    if wanted and not tokens:
        raise UserError(
            "add_bos_token=True, but the tokenizer puts no token before a text. Leave the argument out, or give a "
            "tokenizer with a BOS token: tokenizer=….",
            "setting",
            "add_bos_token",
        )
    return tokens


def _encode(tokenizer: Any, document: Document, num_tokens: int) -> EncodedDocument:
    text = well_formed(document.text)
    if tokenizer.is_fast:
        ids, offsets = first_tokens(tokenizer, text, num_tokens)
        character_ends = np.array([end for _, end in offsets], dtype=np.int64)
        ends = _bytes_up_to(text[: max(character_ends, default=0)], character_ends)
    else:
        ids = _slow_ids(tokenizer, text, num_tokens)
        ends = _decoded_bytes(tokenizer, ids)
    return EncodedDocument(document.name, torch.tensor(ids, dtype=torch.long), ends)


def well_formed(text: str) -> str:
    """Replace half surrogate pairs, which JSON can carry and tokenizers refuse."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _slow_ids(tokenizer: Any, text: str, num_tokens: int) -> list[int]:
    encoding = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids: list[int] = encoding["input_ids"][:num_tokens]
    return ids


def _decoded_bytes(tokenizer: Any, ids: list[int]) -> NDArray[np.float64]:
    return _decoded_sizes(tokenizer, ids, lambda decoded: len(decoded.encode("utf-8", "replace")))


def _decoded_sizes(tokenizer: Any, ids: list[int], size_of: Callable[[str], int]) -> NDArray[np.float64]:
    """Return the size of the decoded text up to each token, such as its UTF-8 bytes, [N], in time linear in N.

    Each token adds what it adds to the text of the few tokens before it: what is cut there, such as a character or a
    leading space, is cut with it and without it. Where that gives other numbers than decoding every prefix, for the
    first tokens or for all together, more are decoded at once, and at last every prefix.
    """

    def size(start: int, stop: int) -> int:
        return size_of(tokenizer.decode(ids[start:stop]))

    exact = [size(0, index + 1) for index in range(min(DECODED_EXACTLY, len(ids)))]
    for context in CONTEXTS if len(ids) > DECODED_EXACTLY else ():
        ends: list[int] = []
        for first in range(0, len(ids), CONTEXTS[0]):
            start, stop = max(0, first - context), min(first + CONTEXTS[0], len(ids))
            before = ends[first - 1] - size(start, first) if start else 0
            ends += [before + size(start, index + 1) for index in range(first, stop)]
        if ends[: len(exact)] == exact and ends[-1] == size(0, len(ids)):
            return np.array(ends, dtype=np.float64)
    rest = [size(0, index + 1) for index in range(len(exact), len(ids))]
    return np.array(exact + rest, dtype=np.float64)


def _bytes_up_to(text: str, character_ends: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the UTF-8 bytes up to each token's last character; tokens that share a character share its bytes."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    sizes = 1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF)
    byte_ends = np.concatenate([[0], np.cumsum(sizes)])[character_ends].astype(np.float64)
    # A byte-level token may end within a character: all its tokens then claim the same end.
    values, first, counts = np.unique(byte_ends, return_index=True, return_counts=True)
    before = np.concatenate([[0.0], values[:-1]])
    for value, start, count, previous in zip(values, first, counts, before, strict=True):
        if count > 1:
            byte_ends[start : start + count] = np.linspace(previous, value, count + 1)[1:]
    return byte_ends
