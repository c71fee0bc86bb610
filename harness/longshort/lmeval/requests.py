"""The two request types that longshort adds to lm-eval's models.

lm-eval calls the method of a model that is named like the request type; `compat.install` adds these two to its
models. Those of the ``hf`` backend answer them, others raise an error that says so.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
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
from longshort.scoring.causality import causal_length
from longshort.scoring.offsets import draw_offsets
from longshort.scoring.positions import addressable_length
from longshort.settings import EvalSettings

logger = logging.getLogger(__name__)

PERPLEXITY = "longshort_perplexity"
MISALIGNMENT = "longshort_misalignment"

AUTO_BATCH_TOKENS = 16_384  # with --batch_size auto: as many documents per forward as make this many tokens


@dataclass(frozen=True)
class Job:
    """One document to score. lm-eval logs `str` of it with the samples, so that leaves out the text."""

    document: Document
    index: int
    settings: EvalSettings

    def __str__(self) -> str:
        return f"{self.document.name} at lengths {list(self.settings.lengths)}"


@dataclass(frozen=True)
class Backend:
    """What measuring needs of an lm-eval ``hf`` model."""

    lm: Any  # lm-eval's model object
    model: nn.Module  # the causal LM inside it
    special_tokens: list[int]  # ids that the tokenizer puts before a text
    limits: dict[int, Gap]  # longest usable length to the gap that longer ones leave

    def usable(self, lengths: Sequence[int], result: Measured, names: Sequence[str]) -> list[int]:
        """Return the lengths that the model can address; the others are recorded in `result`."""
        for limit, gap in self.limits.items():
            for length in lengths:
                if length > limit:
                    result.skip(names, length, gap)
        return [length for length in lengths if all(length <= limit for limit in self.limits)]


def answer_perplexity(lm: LM, requests: list[Instance]) -> list[Measured]:
    """Answer `longshort_perplexity` requests: prefixes and tails at every length."""
    return _answer(lm, requests, PERPLEXITY, _perplexity)


def answer_misalignment(lm: LM, requests: list[Instance]) -> list[Measured]:
    """Answer `longshort_misalignment` requests: pairs of contexts at every length."""
    return _answer(lm, requests, MISALIGNMENT, _misalignment)


Measure = Callable[[Backend, list[Job], list[EncodedDocument]], list[Measured]]

# How a model's prefixes are read, decided by a probe on the first, longest document, and the lengths it was tried on.
_passes: WeakKeyDictionary[nn.Module, tuple[str, int, int]] = WeakKeyDictionary()


def _answer(lm: Any, requests: list[Instance], request_type: str, measure_documents: Measure) -> list[Measured]:
    """Measure every request's document; in data parallel each process measures a share and gets all answers."""
    backend = _backend(lm, request_type)
    jobs: list[Job] = [request.arguments[1] for request in requests]
    mine = list(range(lm.rank, len(jobs), lm.world_size))
    answers: dict[int, Measured] = {}
    encoded = {
        index: encode(lm, jobs[index].document, jobs[index].settings.lengths[-1] + 1)
        for index in tqdm(mine, desc="tokenizing", unit="document", disable=lm.rank != 0, leave=False)
    }
    require_embeddings(backend.model, encoded.values())
    # Documents of equal length share a forward; the longest go first, so that memory runs out early or never.
    by_shape: dict[tuple[int, EvalSettings], list[int]] = defaultdict(list)
    for index in mine:
        by_shape[len(encoded[index].tokens), jobs[index].settings].append(index)
    total = sum(len(encoded[index].tokens) for index in mine)
    with tqdm(total=total, desc=request_type, unit="token", unit_scale=True, disable=lm.rank != 0) as progress:
        for (num_tokens, _), indices in sorted(by_shape.items(), key=lambda item: -item[0][0]):
            for batch in _batches(lm, indices, num_tokens):
                pairs = [(jobs[index], encoded[index]) for index in batch]
                answers |= zip(batch, _within_memory(backend, measure_documents, pairs), strict=True)
                progress.update(num_tokens * len(batch))
    answers = share(lm, answers)
    if lm.rank == 0:
        _warn_of_gaps(request_type, jobs, answers)
    return [answers[index] for index in range(len(jobs))]


def _backend(lm: Any, request_type: str) -> Backend:
    model = getattr(lm, "model", None)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"the lm-eval backend {type(lm).__name__} cannot answer '{request_type}' requests: they need the "
            "next-token distributions of the model. Use --model hf.",
            "unsupported",
        )
    require_adapter_in_model(model)
    require_weights_as_trained(lm)
    require_decoder_only(model, getattr(lm, "backend", None))
    known = (
        (addressable_length(model), "beyond the {} positions the model can address"),
        (causal_length(model), "beyond the {} tokens to which the model is causal"),
        # Given by the user; the config's own maximum may be exceeded.
        (getattr(lm, "_max_length", None), "beyond max_length={}"),
    )
    limits = {int(limit): Gap("length", reason.format(limit)) for limit, reason in known if limit}
    return Backend(lm, model, special_tokens(lm), limits)


def _perplexity(backend: Backend, jobs: list[Job], documents: list[EncodedDocument]) -> list[Measured]:
    """Measure documents of equal length and with equal settings."""
    settings = jobs[0].settings
    gaps = Measured()
    lengths = backend.usable(settings.lengths, gaps, measure.PREFIX_METRICS + measure.TAIL_METRICS)
    parts = [_prefixes(backend, documents, lengths, gaps), _tails(backend, settings, documents, lengths, gaps)]
    return [measure.merge([gaps, *of_document]) for of_document in zip(*parts, strict=True)]


def _prefixes(
    backend: Backend, documents: list[EncodedDocument], lengths: Sequence[int], gaps: Measured
) -> list[Measured]:
    """Measure the prefixes of documents of equal length; lengths beyond it are recorded in `gaps`."""
    num_tokens = len(documents[0].tokens) + len(backend.special_tokens)
    for length in lengths:
        if length > num_tokens:
            gaps.skip(measure.PREFIX_METRICS, length, measure.TOO_SHORT)
    readable = [length for length in lengths if length <= num_tokens]
    if not readable:
        return [Measured() for _ in documents]
    known = _known_passes(backend.model, readable)
    results = measure.measure_prefixes(backend.model, documents, readable, backend.special_tokens, known)
    if known is None and results[0].passes:
        _passes[backend.model] = results[0].passes, readable[0], readable[-1]
    return results


def _tails(
    backend: Backend, settings: EvalSettings, documents: list[EncodedDocument], lengths: Sequence[int], gaps: Measured
) -> list[Measured]:
    """Measure the fixed targets of documents of equal length, which follow the longest context."""
    longest = settings.lengths[-1]
    if len(documents[0].tokens) <= longest:
        for length in lengths:
            gaps.skip(measure.TAIL_METRICS, length, measure.TOO_SHORT)
        return [Measured() for _ in documents]
    if not lengths:
        return [Measured() for _ in documents]
    return measure.measure_tails(
        backend.model, documents, lengths, longest + 1, settings.num_targets, backend.special_tokens
    )


def _known_passes(model: nn.Module, lengths: Sequence[int]) -> str | None:
    """Return how prefixes of these lengths are read, or None beyond the lengths that were tried before."""
    if len(lengths) == 1:
        return measure.SINGLE_PASS
    passes, shortest, longest = _passes.get(model, (None, 0, 0))
    return passes if shortest <= lengths[0] and lengths[-1] <= longest else None


def _misalignment(backend: Backend, jobs: list[Job], documents: list[EncodedDocument]) -> list[Measured]:
    results = []
    for job, document in zip(jobs, documents, strict=True):  # the offsets differ from document to document
        settings, gaps = job.settings, Measured()
        parts = [gaps]
        for length in backend.usable(settings.lengths, gaps, measure.PAIR_METRICS):
            if length >= len(document.tokens):
                gaps.skip(measure.PAIR_METRICS, length, measure.TOO_SHORT)
                continue
            offsets = draw_offsets(settings.seed, job.index, length, settings.num_draws)
            seconds = [length - offset for offset in offsets]
            parts.append(measure.measure_pairs(backend.model, document.tokens, length, seconds, backend.special_tokens))
        results.append(measure.merge(parts))
    return results


def _batches(lm: Any, indices: list[int], num_tokens: int) -> Iterator[list[int]]:
    """Split documents of equal length by lm-eval's batch size."""
    size = lm.batch_size
    if not isinstance(size, int):  # "auto"
        size = max(1, min(lm.max_batch_size, AUTO_BATCH_TOKENS // num_tokens))
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def _within_memory(
    backend: Backend, measure_documents: Measure, pairs: list[tuple[Job, EncodedDocument]]
) -> list[Measured]:
    """Measure a batch; where memory does not suffice, in halves."""
    try:
        return measure_documents(backend, [job for job, _ in pairs], [document for _, document in pairs])
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        if len(pairs) == 1:
            raise UserError(
                f"out of memory at {len(pairs[0][1].tokens)} tokens and batch size 1. Use shorter lengths or a smaller "
                "dtype, or spread the model over devices: --model_args parallelize=True.",
                "out_of_memory",
            ) from error
    clear_device_cache()
    middle = len(pairs) // 2
    logger.warning("out of memory at batch size %d; continuing with %d", len(pairs), middle)
    first, second = pairs[:middle], pairs[middle:]
    return _within_memory(backend, measure_documents, first) + _within_memory(backend, measure_documents, second)


def _warn_of_gaps(request_type: str, jobs: list[Job], answers: dict[int, Measured]) -> None:
    """Log one line per reason: which metrics were skipped, for how many documents and which."""
    by_reason: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))  # reason → metric → documents
    for index, answer in sorted(answers.items()):
        for metric, gap in answer.gaps.items():
            by_reason[gap.reason][metric].append(jobs[index].document.name)
    for reason, metrics in by_reason.items():
        for names in sorted(set(map(tuple, metrics.values()))):
            skipped = [metric for metric, documents in metrics.items() if tuple(documents) == names]
            logger.warning(
                "%s: skipped %s for %d of %d documents (%s): %s",
                request_type,
                ", ".join(skipped),
                len(names),
                len(answers),
                listed(names),
                reason,
            )
