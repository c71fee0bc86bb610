"""Documents as token ids of a model's own tokenizer, tokenized once for all tasks of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longshort.corpora import Document
from longshort.errors import UserError
from longshort.scoring.special_tokens import special_tokens_before


@dataclass(frozen=True)
class EncodedDocument:
    """A document's tokens, without special tokens.

    Attributes:
        name: name of the document.
        tokens: token ids, [N].
        byte_ends: UTF-8 bytes of text up to the end of each token, [N].
    """

    name: str
    tokens: Tensor
    byte_ends: NDArray[np.float64]

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
    fast = tokenizer.is_fast
    # JSON can carry half a surrogate pair, which tokenizers refuse.
    text = document.text.encode("utf-8", errors="replace").decode("utf-8")
    encoding = tokenizer(
        text,
        add_special_tokens=False,
        return_offsets_mapping=fast,
        return_attention_mask=False,
        verbose=False,
    )
    tokens = torch.tensor(encoding["input_ids"][:num_tokens], dtype=torch.long)
    if fast:
        character_ends = np.array([end for _, end in encoding["offset_mapping"][:num_tokens]], dtype=np.int64)
        ends = _bytes_up_to(text, character_ends)
    else:
        texts = (tokenizer.decode(encoding["input_ids"][: count + 1]) for count in range(len(tokens)))
        ends = np.array([len(text.encode("utf-8", "replace")) for text in texts], dtype=np.float64)
    return EncodedDocument(document.name, tokens, ends)


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
