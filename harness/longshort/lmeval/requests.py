"""The request type that longshort adds to lm-eval's models: to evaluate the windows of a document.

lm-eval collects the requests of all tasks of a run by type, and answers each type with one call of the model's method
of that name, which `compat.install` adds. Tasks that need the same windows therefore share their forward passes. Models
of the ``hf`` backend are supported; others raise an error.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from lm_eval.api.instance import Instance
from torch import nn
from tqdm import tqdm

from longshort.corpora import Document
from longshort.errors import UserError, listed
from longshort.lmeval import measure
from longshort.lmeval.documents import EncodedDocument, encode, special_tokens
from longshort.lmeval.measure import Gap, Measured
from longshort.lmeval.model_checks import (
    require_adapter_in_model,
    require_decoder_only,
    require_embeddings,
    require_weights_as_trained,
)
from longshort.lmeval.parallel import share
from longshort.lmeval.reading import Wanted, measure_documents
from longshort.scoring.causality import causal_length
from longshort.scoring.offsets import FLOOR_DOCUMENTS, draw_offsets
from longshort.scoring.positions import addressable_length
from longshort.settings import EvalSettings
from longshort.settings.types import MIN_LENGTH

logger = logging.getLogger(__name__)

REQUEST = "longshort_windows"
PERPLEXITY = "longshort_perplexity"
MISALIGNMENT = "longshort_misalignment"
METRICS = {
    PERPLEXITY: measure.PREFIX_METRICS + measure.TAIL_METRICS + measure.MATRIX_METRICS,
    MISALIGNMENT: measure.PAIR_METRICS + measure.FLOOR_METRICS,
}  # by task; the matrices have no gaps of their own

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
class Job:
    """One document to score. lm-eval logs `str` of it with the samples, so that leaves out the text."""

    document: Document
    index: int
    settings: EvalSettings
    task: str  # whose metrics are wanted

    def __str__(self) -> str:
        return f"{self.document.name} at lengths {list(self.settings.lengths)}"


class HasDocument(Protocol):
    """A job of this or another request type."""

    @property
    def document(self) -> Document:
        """What is read."""


@dataclass(frozen=True)
class Reading:
    """One document to evaluate, and the tasks that need it."""

    job: Job
    tasks: frozenset[str]


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


# How a model's prefixes are read, decided by a probe on the first, longest document, and the lengths it was tried on.
_passes: WeakKeyDictionary[nn.Module, tuple[str, frozenset[int]]] = WeakKeyDictionary()


def answer(lm: Any, requests: list[Instance]) -> list[Measured]:
    """Measure every request's document, once for all tasks; each request gets the metrics of its own task.

    In data parallel each process measures a share of the documents and gets all answers.
    """
    jobs: list[Job] = [request.arguments[1] for request in requests]
    _require_one_token_file(jobs)
    tasks: dict[Job, set[str]] = defaultdict(set)
    for job in jobs:
        tasks[replace(job, task="")].add(job.task)
    read = [Reading(job, frozenset(of_job)) for job, of_job in tasks.items()]
    backend = backend_of(lm, " and ".join(sorted({job.task for job in jobs})))
    measured = dict(zip(tasks, _measure_all(backend, read), strict=True))
    answers = [measured[replace(job, task="")].only(METRICS[job.task]) for job in jobs]
    if lm.rank == 0:
        for task in METRICS:
            warn_of_gaps(task, [pair for pair in zip(jobs, answers, strict=True) if pair[0].task == task])
    return answers


def _require_one_token_file(jobs: Sequence[Job]) -> None:
    """Refuse tasks whose documents or windows differ, as own YAML files may set them, in one file of per-token values.

    Raises:
        UserError: they differ ("setting").
    """
    settings = [each.to_metadata() for each in dict.fromkeys(job.settings for job in jobs if job.settings.save_tokens)]
    for one, two in itertools.pairwise(settings):
        name = next((name for name in (*one, *two) if one.get(name) != two.get(name)), None)
        if name is None:
            continue
        raise UserError(
            f"save_tokens writes one file for all tasks of a run, and these have different {name}: {one.get(name)} and "
            f"{two.get(name)}. Give them the same settings, or evaluate them one by one.",
            "setting",
            "save_tokens",
        )


def _measure_all(backend: Backend, readings: list[Reading]) -> list[Measured]:
    """Measure each document; in data parallel each process measures a share and gets all results."""
    lm = backend.lm
    mine = list(range(lm.rank, len(readings), lm.world_size))
    encoded = {
        index: encode(lm, readings[index].job.document, readings[index].job.settings.lengths[-1] + 1)
        for index in tqdm(mine, desc="tokenizing", unit="document", disable=lm.rank != 0, leave=False)
    }
    require_embeddings(backend.model, encoded.values())
    # Documents of equal length share a forward; the longest go first, so that memory runs out early or never.
    by_shape: dict[tuple[int, EvalSettings, frozenset[str]], list[int]] = defaultdict(list)
    for index in mine:
        reading = readings[index]
        by_shape[len(encoded[index].tokens), reading.job.settings, reading.tasks].append(index)
    total = sum(len(encoded[index].tokens) for index in mine)
    answers: dict[int, Measured] = {}
    with tqdm(total=total, desc="reading documents", unit="token", unit_scale=True, disable=lm.rank != 0) as progress:
        for (num_tokens, _, _), indices in sorted(by_shape.items(), key=lambda item: -item[0][0]):
            for batch in batches(lm, indices, num_tokens):
                documents = [(readings[index], encoded[index]) for index in batch]
                measured = within_memory(partial(_measure, backend), documents, num_tokens)
                answers |= zip(batch, measured, strict=True)
                progress.update(num_tokens * len(batch))
    answers = share(lm, answers)
    return [answers[index] for index in range(len(readings))]


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


def _measure(backend: Backend, documents: Sequence[tuple[Reading, EncodedDocument]]) -> list[Measured]:
    """Measure documents of equal length, with equal settings, for the same tasks."""
    first = documents[0][0]
    settings, gaps = first.job.settings, Measured()
    names = [name for task in sorted(first.tasks) for name in METRICS[task]]
    without_gaps = measure.MATRIX_METRICS + measure.FLOOR_METRICS
    usable = backend.usable(settings.lengths, gaps, [name for name in names if name not in without_gaps])
    seconds = [_seconds(reading.job, usable) for reading, _ in documents]
    perplexity = PERPLEXITY in first.tasks
    num_tokens = len(documents[0][1].tokens) + len(backend.special_tokens)
    prefixes = [length for length in usable if length <= num_tokens]
    known = known_passes(backend.model, prefixes) if perplexity and prefixes else None
    wanted = Wanted(settings, usable, perplexity, passes=known)
    if MISALIGNMENT in first.tasks:
        floors = [reading.job.index < FLOOR_DOCUMENTS for reading, _ in documents]
        wanted = replace(wanted, seconds=seconds, floors=floors)
    encoded = [document for _, document in documents]
    results = measure_documents(backend.model, encoded, backend.special_tokens, wanted)
    if known is None and results[0].passes:
        remember_passes(backend.model, results[0].passes, prefixes)
    for result in results:
        result.gaps |= gaps.gaps
    return results


def _seconds(job: Job, lengths: Sequence[int]) -> dict[int, list[int]]:
    """Lengths of the shorter contexts of one document, by length."""
    settings = job.settings
    return {
        length: [length - offset for offset in draw_offsets(settings.seed, job.index, length, settings.num_draws)]
        for length in lengths
    }


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


def warn_of_gaps(task: str, answers: Sequence[tuple[HasDocument, Measured]]) -> None:
    """Log one line per reason: which metrics were skipped, for how many documents and which."""
    by_reason: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))  # reason → metric → documents
    for job, answer in answers:
        for metric, gap in answer.gaps.items():
            by_reason[gap.reason][metric].append(job.document.name)
    for reason, metrics in by_reason.items():
        for names in sorted(set(map(tuple, metrics.values()))):
            skipped = [metric for metric, documents in metrics.items() if tuple(documents) == names]
            logger.warning(
                "%s: skipped %s for %d of %d documents (%s): %s",
                task,
                ", ".join(skipped),
                len(names),
                len(answers),
                listed(names),
                reason,
            )
