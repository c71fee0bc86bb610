"""Generation for LongBench-E on lm-eval's hf backend: samsum's newline end, and data parallel as in our other tasks.

A task can only ask for `generate_until` with settings that every backend knows. That the newline *token* ends a
samsum answer, after at least one other token, is a matter of the tokenizer: `until` would also stop at a leading
newline and leave nothing. So the hf backend's method is wrapped; what is not of ours passes through unchanged.
"""

from __future__ import annotations

import copy
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from longshort.lmeval.requests import share

MARK = "longbench_e"  # key of our documents, holding the dataset's name


def register() -> None:
    """Wrap the hf backend's `generate_until`, once."""
    original = HFLM.generate_until
    if getattr(original, "_longshort", False):
        return

    def generate_until(self: Any, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        answers: dict[int, str] = {}
        ours = [index for index, request in enumerate(requests) if MARK in (request.doc or {})]
        mine = ours[self.rank :: self.world_size]
        theirs = sorted(set(range(len(requests))) - set(ours))
        for indices in (mine, theirs):
            if indices:
                batch = [_with_newline_end(self, requests[index]) for index in indices]
                generated = dict(zip(indices, original(self, batch, disable_tqdm=disable_tqdm), strict=True))
                answers |= share(self, generated) if indices is mine else generated
            elif indices is mine and ours:  # more processes than documents: the others wait for this one
                answers |= share(self, {})
        return [answers[index] for index in range(len(requests))]

    generate_until._longshort = True  # type: ignore[attr-defined]  # a function may carry a mark
    HFLM.generate_until = generate_until


def _with_newline_end(lm: Any, request: Instance) -> Instance:
    if (request.doc or {}).get(MARK) != "samsum":
        return request
    newline = lm.tokenizer.encode("\n", add_special_tokens=False)[-1]
    request = copy.copy(request)
    prompt, settings = request.arguments
    ends = [token for token in (lm.eot_token_id, newline) if token is not None]
    request.arguments = (prompt, settings | {"eos_token_id": ends, "min_new_tokens": 1})
    return request
