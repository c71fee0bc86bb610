"""Generation requests of LongBench-E: a samsum answer ends at a newline token.

The newline *token* ends a samsum answer after at least one other token, and which token that is depends on the
tokenizer. lm-eval's ``until`` compares text: it would also stop at a leading newline and leave nothing.
"""

from __future__ import annotations

import copy
from typing import Any

from lm_eval.api.instance import Instance

from longshort.lmeval.parallel import SharedGeneration

DATASET_KEY = "longbench_e"  # key of the documents that holds the dataset's name


class LongBenchRequest(SharedGeneration):
    """A prompt of LongBench-E."""

    def for_model(self, lm: Any) -> Instance:
        """Return the request with, for samsum, the tokens that end the answer."""
        if self.doc[DATASET_KEY] != "samsum":
            return self
        newline = lm.tokenizer.encode("\n", add_special_tokens=False)[-1]
        prompt, settings = self.arguments
        ends = [token for token in (lm.eot_token_id, newline) if token is not None]
        request = copy.copy(self)
        request.arguments = (prompt, settings | {"eos_token_id": ends, "min_new_tokens": 1})
        return request
