"""The request type that longshort adds to lm-eval's models: to evaluate the windows of a document.

lm-eval collects the requests of all tasks of a run by type, and answers each type with one call of the model's method
of that name, which `compat.install` adds. Tasks that need the same windows therefore share their forward passes. Models
of the ``hf`` backend are supported; others raise an error.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lm_eval.api.instance import Instance
from tqdm import tqdm

from longshort.corpora import Document
from longshort.errors import UserError
from longshort.lmeval import measure
from longshort.lmeval.backend import Backend, backend_of, batches, known_passes, remember_passes, within_memory
from longshort.lmeval.documents import EncodedDocument, encode
from longshort.lmeval.gaps import warn_of_gaps
from longshort.lmeval.measure import Measured
from longshort.lmeval.model_checks import (
    require_embeddings,
)
from longshort.lmeval.parallel import share
from longshort.lmeval.reading import Wanted, measure_documents
from longshort.scoring.offsets import FLOOR_DOCUMENTS, draw_offsets
from longshort.settings import EvalSettings

logger = logging.getLogger(__name__)

REQUEST = "longshort_windows"
PERPLEXITY = "longshort_perplexity"
MISALIGNMENT = "longshort_misalignment"
METRICS = {
    PERPLEXITY: measure.PREFIX_METRICS + measure.TAIL_METRICS + measure.MATRIX_METRICS,
    MISALIGNMENT: measure.PAIR_METRICS + measure.FLOOR_METRICS,
}  # by task; the matrices have no gaps of their own


@dataclass(frozen=True)
class Job:
    """One document to score. lm-eval logs `str` of it with the samples, so that leaves out the text."""

    document: Document
    index: int
    settings: EvalSettings
    task: str  # whose metrics are wanted

    def __str__(self) -> str:
        return f"{self.document.name} at lengths {list(self.settings.lengths)}"


@dataclass(frozen=True)
class Reading:
    """One document to evaluate, and the tasks that need it."""

    job: Job
    tasks: frozenset[str]


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
