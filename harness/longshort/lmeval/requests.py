"""The two request types that longshort adds to lm-eval's models.

lm-eval dispatches a request by method name on the model, so each type is a method of its `LM` base class.
Models of the `hf` backend answer it; others say clearly that they cannot.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from torch import nn
from tqdm import tqdm

from longshort.corpora import Document
from longshort.errors import UserError
from longshort.lmeval import measure
from longshort.lmeval.documents import EncodedDocument, encode, special_prefix
from longshort.lmeval.measure import Measured
from longshort.lmeval.model_checks import require_decoder_only, require_rows
from longshort.lmeval.offsets import draw_second_length
from longshort.scoring.positions import addressable_length
from longshort.settings import EvalSettings

logger = logging.getLogger(__name__)

PERPLEXITY = "longshort_perplexity"
MISALIGNMENT = "longshort_misalignment"

AUTO_BATCH_TOKENS = 16_384  # with --batch_size auto: as many documents per forward as make this many tokens


@dataclass(frozen=True)
class Job:
    """One document to score. lm-eval logs it with the samples, so its text stays out of `str`."""

    document: Document
    index: int
    settings: EvalSettings

    def __str__(self) -> str:
        return f"{self.document.name} at lengths {list(self.settings.lengths)}"


@dataclass(frozen=True)
class Backend:
    """What measuring needs of an lm-eval `hf` model.

    Attributes:
        lm: lm-eval's model object.
        model: the causal LM in it.
        prefix: special tokens that the tokenizer puts before a text.
        limits: greatest usable length to the reason why.
    """

    lm: Any
    model: nn.Module
    prefix: list[int]
    limits: dict[int, str]

    def usable(self, lengths: Sequence[int], result: Measured, names: Sequence[str]) -> list[int]:
        """The lengths within the model's reach; the others are named in `result`."""
        for limit, reason in self.limits.items():
            for length in lengths:
                if length > limit:
                    result.leave_out(names, length, reason)
        return [length for length in lengths if all(length <= limit for limit in self.limits)]


def answer_perplexity(lm: LM, requests: list[Instance]) -> list[Measured]:
    """Answer `longshort_perplexity` requests: prefixes and tails at every length."""
    return _answer(lm, requests, PERPLEXITY, _perplexity)


def answer_misalignment(lm: LM, requests: list[Instance]) -> list[Measured]:
    """Answer `longshort_misalignment` requests: pairs of contexts at every length."""
    return _answer(lm, requests, MISALIGNMENT, _misalignment)


def register() -> None:
    """Make every lm-eval model know the two request types."""
    setattr(LM, PERPLEXITY, answer_perplexity)
    setattr(LM, MISALIGNMENT, answer_misalignment)


Measure = Callable[[Backend, list[Job], list[EncodedDocument]], list[Measured]]

# How a model's prefixes are read, decided by a probe on the first, longest document, and the lengths it was tried on.
_passes: WeakKeyDictionary[nn.Module, tuple[str, int, int]] = WeakKeyDictionary()


def _answer(lm: Any, requests: list[Instance], request_type: str, measure_documents: Measure) -> list[Measured]:
    """Measure every request's document; in data parallel each process a share, and all get all answers."""
    backend = _backend(lm, request_type)
    jobs: list[Job] = [request.arguments[1] for request in requests]
    mine = list(range(lm.rank, len(jobs), lm.world_size))
    answers: dict[int, Measured] = {}
    encoded = {
        index: encode(lm, jobs[index].document, jobs[index].settings.lengths[-1] + 1)
        for index in tqdm(mine, desc="tokenizing", unit="document", disable=lm.rank != 0, leave=False)
    }
    require_rows(backend.model, encoded.values())
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
            "next-token distributions of a model itself. Use --model hf."
        )
    require_decoder_only(model, getattr(lm, "backend", None))
    limits = {}
    positions = addressable_length(model)
    if positions is not None:
        limits[positions] = f"beyond the {positions} positions the model can address"
    if getattr(lm, "_max_length", None):  # given by the user; the config's own maximum is what we look beyond
        limits[int(lm._max_length)] = f"beyond max_length={lm._max_length}"
    return Backend(lm, model, special_prefix(lm), limits)


def _perplexity(backend: Backend, jobs: list[Job], documents: list[EncodedDocument]) -> list[Measured]:
    settings, num_tokens, prefix = jobs[0].settings, len(documents[0].tokens), backend.prefix
    gaps = Measured()
    lengths = backend.usable(settings.lengths, gaps, measure.PREFIX_METRICS + measure.TAIL_METRICS)
    short = [length for length in lengths if length > num_tokens + len(prefix)]
    for length in short:
        gaps.leave_out(measure.PREFIX_METRICS, length, measure.TOO_SHORT)
    parts = [[gaps] for _ in documents]
    readable = [length for length in lengths if length not in short]
    if readable:
        known = _known_passes(backend.model, readable)
        for part, result in zip(
            parts, measure.measure_prefixes(backend.model, documents, readable, prefix, known), strict=True
        ):
            part.append(result)
        if known is None and parts[0][-1].passes:
            _passes[backend.model] = parts[0][-1].passes, readable[0], readable[-1]
    if num_tokens <= settings.lengths[-1]:  # the targets are those of the longest context
        for length in lengths:
            gaps.leave_out(measure.TAIL_METRICS, length, measure.TOO_SHORT)
    elif lengths:
        tails = measure.measure_tails(
            backend.model, documents, lengths, settings.lengths[-1] + 1, settings.num_targets, prefix
        )
        for part, result in zip(parts, tails, strict=True):
            part.append(result)
    return [measure.merge(part) for part in parts]


def _known_passes(model: nn.Module, lengths: Sequence[int]) -> str | None:
    """How prefixes of these lengths are read; None where it is not known, as beyond the lengths of an earlier run."""
    if len(lengths) == 1:
        return measure.SINGLE_PASS
    passes, least, most = _passes.get(model, (None, 0, 0))
    return passes if least <= lengths[0] and lengths[-1] <= most else None


def _misalignment(backend: Backend, jobs: list[Job], documents: list[EncodedDocument]) -> list[Measured]:
    results = []
    for job, document in zip(jobs, documents, strict=True):  # each has context lengths of its own
        gaps = Measured()
        parts = [gaps]
        for length in backend.usable(job.settings.lengths, gaps, measure.PAIR_METRICS):
            if length >= len(document.tokens):
                gaps.leave_out(measure.PAIR_METRICS, length, measure.TOO_SHORT)
            else:
                second = draw_second_length(job.settings.seed, job.index, length)
                parts.append(measure.measure_pair(backend.model, document.tokens, length, second, backend.prefix))
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
                f"out of memory at {len(pairs[0][1].tokens)} tokens and batch size 1. Ask for smaller lengths, "
                "a smaller dtype, or spread the model: --model_args parallelize=True.",
                "out_of_memory",
            ) from error
    clear_device_cache()
    middle = len(pairs) // 2
    logger.warning("out of memory at batch size %d; going on with %d", len(pairs), middle)
    first, second = pairs[:middle], pairs[middle:]
    return _within_memory(backend, measure_documents, first) + _within_memory(backend, measure_documents, second)


Answer = TypeVar("Answer")


def share(lm: Any, answers: dict[int, Answer]) -> dict[int, Answer]:
    """Every process's answers, by index of request, on every process: see `base.LongShortTask`."""
    if lm.world_size == 1:
        return answers
    gathered: list[dict[int, Answer]] = [{} for _ in range(lm.world_size)]
    torch.distributed.all_gather_object(gathered, answers)
    _let_processes_lack_metrics(lm)
    return {index: answer for share in gathered for index, answer in share.items()}


def _let_processes_lack_metrics(lm: Any) -> None:
    """lm-eval 0.4.13 raises KeyError where another process lacks a metric that the first one has."""
    gather = lm.gather_object

    def gather_object(obj: Any, dst: int = 0) -> Any:
        gathered = gather(obj, dst)
        for by_task in gathered or ():
            for task, metrics in by_task.items():
                if isinstance(metrics, dict):
                    by_task[task] = defaultdict(list, metrics)
        return gathered

    lm.gather_object = gather_object


def _warn_of_gaps(request_type: str, jobs: list[Job], answers: dict[int, Measured]) -> None:
    """One line per reason: what was left out, of how many documents, which."""
    gaps: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))  # reason → metric → documents
    for index, answer in sorted(answers.items()):
        for metric, reason in answer.left_out.items():
            gaps[reason][metric].append(jobs[index].document.name)
    for reason, metrics in gaps.items():
        for names in sorted(set(map(tuple, metrics.values()))):
            which = [metric for metric, documents in metrics.items() if tuple(documents) == names]
            few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            logger.warning(
                "%s: left out %s for %d of %d documents (%s): %s",
                request_type,
                ", ".join(which),
                len(names),
                len(answers),
                few,
                reason,
            )
