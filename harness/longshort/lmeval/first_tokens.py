"""The first tokens of a long text: those of the whole text, found without tokenizing all of it."""

from __future__ import annotations

import re
from typing import Any
from weakref import WeakKeyDictionary

CHARACTERS_PER_TOKEN = 6  # of the part that is tried first
MARGIN = 1024  # characters behind the tokens that are kept
WORDS = re.compile(r"\s\S+\s+\S+\s+\S+\s+\S")  # what a pre-tokenizer may look ahead to and beyond
SPACE = re.compile(r"(?<=[A-Za-z0-9]) (?=[A-Za-z0-9])")
SPACES = " ▁Ġ"  # what the model reads for a space: as text, in SentencePiece's alphabet, in that of bytes

Offsets = list[tuple[int, int]]

_joining: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def first_tokens(tokenizer: Any, text: str, num_tokens: int) -> tuple[list[int], Offsets]:
    """Return the first `num_tokens` token ids of a text (fewer if it is shorter), and the characters of each.

    They are those of the whole text. A part of it is tokenized, and twice as much until its first tokens end before a
    place that no token spans, whatever follows: `_are_final`. The text is tokenized as a whole where there is no such
    place, as in a text without white space.

    Args:
        tokenizer: a fast one.
        text: without half surrogate pairs.
        num_tokens: how many at most.

    Returns:
        Token ids without special tokens, and start and end of each in the text, in characters.
    """
    size = CHARACTERS_PER_TOKEN * num_tokens + 4 * MARGIN
    while True:
        part = text[:size]
        encoding = tokenizer(
            part, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
        )
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        if size >= len(text) or _are_final(tokenizer, part, offsets, encoding.word_ids(), num_tokens):
            return ids[:num_tokens], offsets[:num_tokens]
        size *= 2


def _are_final(tokenizer: Any, part: str, offsets: Offsets, words: list[int | None], num_tokens: int) -> bool:
    """Whether the first tokens of a part of a text are those of the whole text.

    The model tokenizes each pre-token on its own, so tokens are final once a later pre-token begins, if that is far
    enough from the end of the part: normalizers and pre-tokenizers decide by at most the next words, and added tokens
    have a greatest length.

    Without pre-tokenizer all of the text is one pre-token. There tokens are final before a space that no token spans
    because the vocabulary has none with a letter and then a space: what BPE merges, and which segmentation of a
    Unigram model is the best, is then decided separately before and after it.
    """
    if len(offsets) <= num_tokens:
        return False
    last = len(part) - MARGIN - max((len(token) for token in tokenizer.get_added_vocab()), default=0)
    for index in range(num_tokens, len(offsets)):
        if words[index] != words[index - 1]:
            start = offsets[index][0]
            if start <= last and WORDS.search(part, start):
                return True
            break
    if type(tokenizer.backend_tokenizer.model).__name__ not in ("BPE", "Unigram") or _joins_words(tokenizer):
        return False
    for space in SPACE.finditer(part, max(offsets[num_tokens - 1][1], 1), max(last, 0)):
        place = space.start()
        spans = any(start < place < end for start, end in offsets[num_tokens - 1 :] if start < place)
        return not spans and WORDS.search(part, place) is not None
    return False


def _joins_words(tokenizer: Any) -> bool:
    """Whether a token of the vocabulary has, or may have, a letter or digit and then a space."""
    if tokenizer not in _joining:
        backend = tokenizer.backend_tokenizer
        read = backend.normalizer.normalize_str("a b") if backend.normalizer else "a b"
        if backend.pre_tokenizer:
            read = "".join(piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(read))
        space = read[-2:-1]
        joined = re.compile(f"[A-Za-z0-9]{space}")
        is_known = read[-3:] == f"a{space}b" and space in SPACES
        _joining[tokenizer] = not is_known or any(joined.search(token) for token in tokenizer.get_vocab())
    return _joining[tokenizer]
