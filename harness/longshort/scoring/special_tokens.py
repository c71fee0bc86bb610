"""The special tokens that a tokenizer adds to a text."""

from __future__ import annotations

from typing import Any


def special_tokens_before(tokenizer: Any) -> list[int]:
    """Return the ids that a tokenizer puts before every text by default: usually BOS or none.

    It is given token ids instead of a text: there is no text that all vocabularies have a token for.
    """
    if not tokenizer.is_fast:
        ids = list(tokenizer.build_inputs_with_special_tokens([-1]))  # -1 is in no vocabulary
        return ids[: ids.index(-1)]
    if tokenizer.backend_tokenizer.post_processor is None:
        return []
    from tokenizers import Tokenizer, models

    token = Tokenizer(models.WordLevel({"x": 0}, unk_token="x")).encode("x")
    encoding = tokenizer.backend_tokenizer.post_processor.process(token, None, True)
    return list(encoding.ids[: encoding.special_tokens_mask.index(0)])
