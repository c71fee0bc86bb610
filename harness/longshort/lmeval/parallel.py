"""Data parallel: how several processes share the requests of longshort's tasks.

Every process builds all requests (see `base.LongShortTask`), answers a share of them, and gets the answers of all.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from lm_eval.api.instance import Instance

Answer = TypeVar("Answer")


class SharedGeneration(Instance):
    """A `generate_until` request that every process holds and one process answers, on the ``hf`` backend."""

    def for_model(self, lm: Any) -> Instance:
        """Return the request with the settings that depend on the model's tokenizer."""
        return self


def share(lm: Any, answers: dict[int, Answer]) -> dict[int, Answer]:
    """Return the answers of all processes, by index of request, on every process."""
    if lm.world_size == 1:
        return answers
    gathered: list[dict[int, Answer]] = [{} for _ in range(lm.world_size)]
    torch.distributed.all_gather_object(gathered, answers)
    return {index: answer for of_process in gathered for index, answer in of_process.items()}
