"""What all request types need of the ``hf`` backend: the model and its limits, batches, and retries in halves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn

from longshort.errors import UserError
from longshort.lmeval import measure
from longshort.lmeval.documents import special_tokens
from longshort.lmeval.measure import Gap, Measured
from longshort.lmeval.model_checks import (
    require_adapter_in_model,
    require_decoder_only,
    require_weights_as_trained,
)
from longshort.scoring.causality import causal_length
from longshort.scoring.positions import addressable_length
from longshort.settings.types import MIN_LENGTH

logger = logging.getLogger(__name__)

AUTO_BATCH_TOKENS = 16_384  # with batch size auto: as many documents per forward as make this many tokens
Item = TypeVar("Item")
Answer = TypeVar("Answer")
_is_automatic = ContextVar("is_automatic", default=False)


@contextmanager
def automatic_batches() -> Iterator[None]:
    """Choose the batch size of documents automatically inside the context, whatever batch size the model has.

    lm-eval's own tasks keep the model's batch size: with "auto", lm-eval tries batches of the model's maximum length.
    """
    token = _is_automatic.set(True)
    try:
        yield
    finally:
        _is_automatic.reset(token)


@dataclass(frozen=True)
class Backend:
    """What measuring needs of an lm-eval ``hf`` model."""

    lm: Any  # lm-eval's model object
    model: nn.Module  # the causal LM inside it
    special_tokens: list[int]  # ids that the tokenizer adds before a text
    limits: dict[int, Gap]  # by longest usable length, why longer ones are skipped

    def usable(self, lengths: Sequence[int], result: Measured, names: Sequence[str]) -> list[int]:
        """Return the lengths that the model can address; the others are recorded in `result`."""
        return usable_lengths(self.limits, lengths, result, names)


def usable_lengths(
    limits: Mapping[int, Gap], lengths: Sequence[int], result: Measured, names: Sequence[str]
) -> list[int]:
    """Return the lengths within all limits; the others are recorded in `result`.

    Args:
        limits: by longest usable length, why longer ones are skipped.
        names: of the metrics.
    """
    for limit, gap in limits.items():
        for length in lengths:
            if length > limit:
                result.skip(names, length, gap)
    return [length for length in lengths if all(length <= limit for limit in limits)]


def backend_of(lm: Any, tasks: str) -> Backend:
    """Return what measuring needs of an lm-eval model, which must be a decoder-only one of the ``hf`` backend.

    Args:
        tasks: their names, for messages.

    Raises:
        UserError: it cannot be measured ("unsupported").
    """
    model = getattr(lm, "model", None)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"the lm-eval backend {type(lm).__name__} cannot be used for {tasks}, which needs the "
            "next-token distributions of the model. Use --model hf.",
            "unsupported",
        )
    require_adapter_in_model(model)
    require_weights_as_trained(lm)
    require_decoder_only(model, getattr(lm, "backend", None))
    special = special_tokens(lm)
    if 2 * len(special) >= MIN_LENGTH:
        raise UserError(
            f"the tokenizer puts {len(special)} special tokens before a text, which leave nothing of a context of "
            f"{MIN_LENGTH // 2} tokens. Use model argument add_bos_token=False, or another tokenizer.",
            "unsupported",
        )
    known = (
        (addressable_length(model), "beyond the {} positions the model can address"),
        (causal_length(model), "beyond the {} tokens to which the model is causal"),
        # Given by the user; the config's own maximum may be exceeded.
        (getattr(lm, "_max_length", None), "beyond max_length={}"),
    )
    limits = {int(limit): Gap("length", reason.format(limit)) for limit, reason in known if limit}
    return Backend(lm, model, special, limits)


# How a model's prefixes are read, decided by a probe on the first, longest document, and the lengths it was tried on.
_passes: WeakKeyDictionary[nn.Module, tuple[str, frozenset[int]]] = WeakKeyDictionary()


def known_passes(model: nn.Module, lengths: Sequence[int]) -> str | None:
    """Return how prefixes of these lengths are read, or None unless all were among the lengths that were tried."""
    if len(lengths) == 1:
        return measure.SINGLE_PASS
    passes, tried = _passes.get(model, (None, frozenset()))
    return passes if tried.issuperset(lengths) else None


def remember_passes(model: nn.Module, passes: str, lengths: Sequence[int]) -> None:
    """Keep how prefixes of these lengths are read, for `known_passes`."""
    _passes[model] = passes, frozenset(lengths)


def rows_per_forward(lm: Any, num_tokens: int) -> int:
    """Return the batch size for sequences of this length."""
    size = lm.batch_size
    if _is_automatic.get() or not isinstance(size, int):  # "auto"
        size = max(1, min(lm.max_batch_size, AUTO_BATCH_TOKENS // num_tokens))
    return int(size)


def batches(lm: Any, indices: list[int], num_tokens: int) -> Iterator[list[int]]:
    """Split documents of equal length by the batch size."""
    size = rows_per_forward(lm, num_tokens)
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def within_memory(
    measure_batch: Callable[[Sequence[Item]], list[Answer]], batch: Sequence[Item], num_tokens: int
) -> list[Answer]:
    """Measure a batch; if memory runs out, in halves.

    Args:
        measure_batch: returns an answer for each item.
        num_tokens: of each item, for the message.

    Raises:
        UserError: memory does not suffice for a single item ("out_of_memory").
    """
    size = len(batch)
    try:
        return measure_batch(batch)
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        if size == 1:
            raise UserError(
                f"out of memory at {num_tokens} tokens and batch size 1. Use shorter lengths or a smaller dtype, or "
                "spread the model over devices: --model_args parallelize=True.",
                "out_of_memory",
            ) from error
    clear_device_cache()
    middle = size // 2
    logger.warning("out of memory at batch size %d; continuing with %d", size, middle)
    return within_memory(measure_batch, batch[:middle], num_tokens) + within_memory(
        measure_batch, batch[middle:], num_tokens
    )
