"""The request type of `longshort_retrieval`: the values that retrieval probes ask for, scored at every length.

On the ``hf`` backend only the value's positions go through the LM head. On other backends each probe is an ordinary
``loglikelihood`` request of lm-eval, whose ``is_greedy`` says whether the value was recalled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from lm_eval.api.instance import Instance
from torch import nn
from tqdm import tqdm

from longshort.corpora import Document
from longshort.errors import UserError
from longshort.lmeval.backend import Backend, backend_of, batches, usable_lengths, within_memory
from longshort.lmeval.documents import pieces, well_formed
from longshort.lmeval.gaps import warn_of_gaps
from longshort.lmeval.measure import Gap, Measured
from longshort.lmeval.model_checks import require_embeddings
from longshort.lmeval.parallel import share
from longshort.lmeval.retrieval_keys import KEYS
from longshort.lmeval.retrieval_probes import (
    DIGITS,
    QUESTION,
    Needle,
    Probe,
    Prompt,
    depth_shares,
    draw_probe,
    fit_prompt,
)
from longshort.scoring.continuation import score_continuation
from longshort.settings import EvalSettings

RETRIEVAL = "longshort_retrieval"  # the task and its request type
METRICS = ("recall", "recall_nll")
QUESTIONS_IN_TEXT = Gap("text", "the document itself has too many of the questions")


@dataclass(frozen=True)
class ProbeJob:
    """One probe at all lengths. lm-eval logs `str` of it with the samples, so that leaves out the text."""

    document: Document  # the haystack
    index: int  # of the document
    depth: int  # index of the depth of the needle that is asked for
    settings: EvalSettings

    def __str__(self) -> str:
        share = depth_shares(self.settings.num_depths)[self.depth]
        return f"{self.document.name} at depth {share} and lengths {list(self.settings.lengths)}"


class Score(NamedTuple):
    """What a model says of the value of one prompt."""

    recall: float  # 1 if every token of the value is the most probable one, else 0
    nll: float  # nats per token of the value
    batch_size: int = 0  # prompts that were read together; 0 where the backend decides


@dataclass(frozen=True)
class Scorer:
    """What scoring prompts needs of an lm-eval model."""

    encode: Callable[[str], list[int]]  # token ids of a text, with the special tokens that are put before it
    tokenizer: Any  # of transformers, or None where the ends of a text's tokens are not known
    limits: Mapping[int, Gap]  # by longest usable length, why longer ones are skipped
    score: Callable[[Sequence[Prompt]], list[Score]]


def answer(lm: Any, requests: list[Instance]) -> list[Measured]:
    """Score every request's probe at each of its lengths.

    In data parallel each process scores the probes of a share of the documents and gets all answers.

    Raises:
        UserError: the backend, the model or its tokenizer cannot be used ("unsupported").
    """
    jobs: list[ProbeJob] = [request.arguments[1] for request in requests]
    scorer = _of_hf(lm) if isinstance(getattr(lm, "model", None), nn.Module) else _of_other(lm)
    _require_distinct(scorer.encode)
    by_settings: dict[EvalSettings, dict[int, ProbeJob]] = defaultdict(dict)
    for index, job in enumerate(jobs):
        by_settings[job.settings][index] = job
    answers: dict[int, Measured] = {}
    for settings, group in by_settings.items():
        mine = {index: job for index, job in group.items() if job.index % lm.world_size == lm.rank}
        answers |= share(lm, _measure(scorer, settings, mine, shows_progress=lm.rank == 0))
        if lm.rank == 0:
            by_index = {job.index: job for job in group.values()}
            merged = by_document((job.index, answers[index]) for index, job in group.items())
            warn_of_gaps(RETRIEVAL, [(by_index[index], measured) for index, measured in merged.items()])
    return [answers[index] for index in range(len(jobs))]


def by_document(answers: Iterable[tuple[int, Measured]]) -> dict[int, Measured]:
    """Return the values and gaps of each document, those of its probes together; of one metric the last value.

    Args:
        answers: of probes, with the index of their document.
    """
    merged: dict[int, Measured] = defaultdict(lambda: Measured(batch_size=0))
    for index, measured in answers:
        merged[index].values |= measured.values
        merged[index].gaps |= measured.gaps
        merged[index].batch_size = max(merged[index].batch_size, measured.batch_size)
    return dict(merged)


def _measure(
    scorer: Scorer, settings: EvalSettings, jobs: Mapping[int, ProbeJob], *, shows_progress: bool
) -> dict[int, Measured]:
    """Score probes with equal settings, by their index."""
    results = {index: Measured(batch_size=0) for index in jobs}
    probes: dict[int, Probe] = {}
    usable: list[int] = []
    for index, job in jobs.items():
        usable = usable_lengths(scorer.limits, settings.lengths, results[index], METRICS)
        if probe := draw(job):
            probes[index] = probe
        else:
            for length in usable:
                results[index].skip(METRICS, length, QUESTIONS_IN_TEXT)
    documents = {job.index: job.document for job in jobs.values()}
    ends = {index: _ends(scorer, document, usable) for index, document in documents.items()}
    texts = {index: well_formed(document.text) for index, document in documents.items()}
    total = len(probes) * len(usable)
    with tqdm(total=total, desc="scoring probes", unit="probe", disable=not shows_progress) as progress:
        for length in reversed(usable):  # the longest first, so that memory runs out early or never
            prompts: dict[int, Prompt] = {}
            for index, probe in probes.items():
                document = jobs[index].index
                prompt = fit_prompt(probe, texts[document], length, scorer.encode, ends[document])
                if isinstance(prompt, Gap):
                    results[index].skip(METRICS, length, prompt)
                else:
                    prompts[index] = prompt
            for index, score in zip(prompts, scorer.score(list(prompts.values())), strict=True):
                results[index].add(f"recall@{length}", score.recall)
                results[index].add(f"recall_nll@{length}", score.nll)
                results[index].batch_size = max(results[index].batch_size, score.batch_size)
            progress.update(len(probes))
    return results


def draw(job: ProbeJob) -> Probe | None:
    """Return the needles of a probe, or None if its document has too many of the questions itself."""
    settings = job.settings
    return draw_probe(
        settings.seed,
        job.index,
        job.depth,
        num_depths=settings.num_depths,
        num_needles=settings.num_needles,
        text=job.document.text,
    )


def _ends(scorer: Scorer, document: Document, lengths: Sequence[int]) -> Sequence[int]:
    """Characters after which a document may be cut: the ends of its tokens, or any where these are not known."""
    if scorer.tokenizer is None or not lengths:
        return range(len(well_formed(document.text)) + 1)
    tokens = pieces(scorer.tokenizer, document, lengths[-1])
    return [0, *accumulate(map(len, tokens))]


# ---- backends


def _of_hf(lm: Any) -> Scorer:
    backend = backend_of(lm, RETRIEVAL)

    def encode(text: str) -> list[int]:
        encoding = lm.tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [*backend.special_tokens, *encoding["input_ids"]]

    return Scorer(encode, lm.tokenizer, backend.limits, partial(_score_on_hf, backend))


def _score_on_hf(backend: Backend, prompts: Sequence[Prompt]) -> list[Score]:
    """Score prompts in batches of equally many tokens."""
    require_embeddings(backend.model, prompts)
    by_tokens: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_tokens[len(prompt.tokens)].append(index)
    scores: dict[int, Score] = {}
    for num_tokens, indices in sorted(by_tokens.items(), reverse=True):
        for batch in batches(backend.lm, indices, num_tokens):
            found = within_memory(partial(_score_batch, backend.model), [prompts[index] for index in batch], num_tokens)
            scores |= zip(batch, found, strict=True)
    return [scores[index] for index in range(len(prompts))]


def _score_batch(model: nn.Module, prompts: Sequence[Prompt]) -> list[Score]:
    tokens = torch.stack([prompt.tokens for prompt in prompts])  # [B, N]
    found = score_continuation(model, tokens, max(prompt.num_targets for prompt in prompts))  # [B, K]
    nll, is_top = found.nll.cpu().double(), found.is_top.cpu()
    return [
        Score(
            float(is_top[row, -prompt.num_targets :].min()),
            float(nll[row, -prompt.num_targets :].mean()),
            len(prompts),
        )
        for row, prompt in enumerate(prompts)
    ]


def _of_other(lm: Any) -> Scorer:
    """Plain ``loglikelihood`` requests, for any backend that shows its token ids."""

    def encode(text: str) -> list[int]:
        ids = lm.tok_encode(text) if hasattr(lm, "tok_encode") else None
        if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
            raise UserError(
                f"the lm-eval backend {type(lm).__name__} cannot be used for {RETRIEVAL}: it returns no token ids of a "
                "text, in which lengths are counted. Use --model hf, or give the backend a tokenizer.",
                "unsupported",
            )
        return ids

    encode(QUESTION)  # before other properties of a backend without tokens are used
    limit = getattr(lm, "max_length", None)
    limits = {limit: Gap("length", f"beyond max_length={limit}")} if isinstance(limit, int) else {}
    tokenizer = getattr(lm, "tokenizer", None)
    return Scorer(encode, tokenizer if hasattr(tokenizer, "is_fast") else None, limits, partial(_score_on_other, lm))


def _score_on_other(lm: Any, prompts: Sequence[Prompt]) -> list[Score]:
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=(prompt.context, prompt.continuation), idx=0)
        for prompt in prompts
    ]
    try:
        found = lm.loglikelihood(requests) if requests else []
    except NotImplementedError as error:
        raise UserError(
            f"the lm-eval backend {type(lm).__name__} cannot be used for {RETRIEVAL}: it answers no loglikelihood "
            "requests. Use --model hf, or another backend with log-probabilities.",
            "unsupported",
        ) from error
    return [
        Score(float(is_greedy), -float(log_likelihood) / prompt.num_targets)
        for prompt, (log_likelihood, is_greedy) in zip(prompts, found, strict=True)
    ]


def _require_distinct(encode: Callable[[str], list[int]]) -> None:
    """Refuse tokenizers for which two keys or two digits are the same, as where both are unknown tokens.

    Raises:
        UserError: there are such ("unsupported").
    """
    by_key = {key: Needle(key, "", 0.5).question for key in KEYS}
    by_digit = {digit: f"{by_key[KEYS[0]]} {digit * DIGITS}" for digit in "0123456789"}
    for what, texts in (("keys", by_key), ("digits", by_digit)):
        first: dict[tuple[int, ...], str] = {}
        for name, text in texts.items():
            other = first.setdefault(tuple(encode(text)), name)
            if other != name:
                raise UserError(
                    f"{RETRIEVAL}: the tokenizer does not distinguish the {what} {other} and {name}, so that values "
                    "cannot be asked for. Use another tokenizer, or leave out this task.",
                    "unsupported",
                )
