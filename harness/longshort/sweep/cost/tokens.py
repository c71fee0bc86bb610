"""How much a model computes for each task: tokens, pairs of tokens, positions through the LM head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Any

from longshort.errors import UserError
from longshort.longbench.prompts import prompt_limit
from longshort.longbench.scores import DATASETS, LONGBENCH, task_of
from longshort.scoring.offsets import FLOOR_DOCUMENTS, draw_offsets
from longshort.settings import LONGPPL, Checkpoint, settings_from
from longshort.sweep.cost.shape import (
    USUAL_BYTES,
    WINDOW,
    bytes_per_number,
    has_rotary_positions,
    is_read_per_length,
    longest_addressable,
    whole,
)

PERPLEXITY, MISALIGNMENT = "longshort_perplexity", "longshort_misalignment"
RETRIEVAL = "longshort_retrieval"
VALUE_TOKENS = 8  # of a value of seven digits: a token for each and one for the space, the most that is usual
BYTES_PER_TOKEN = 4  # of English text and code


@dataclass(frozen=True)
class Work:
    """Tokens read, pairs of tokens attended, positions through the LM head, steps of generation."""

    tokens: int = 0
    pairs: float = 0.0
    scored: int = 0
    steps: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.tokens + other.tokens,
            self.pairs + other.pairs,
            self.scored + other.scored,
            self.steps + other.steps,
        )

    def __mul__(self, times: int) -> Work:
        return Work(self.tokens * times, self.pairs * times, self.scored * times, self.steps * times)


def work_of(tasks: Sequence[str], checkpoint: Checkpoint, config: Mapping[str, Any]) -> tuple[Work, list[str]]:
    """Return the work of tasks on documents that are long enough, and the assumptions, a sentence each.

    The tens of tokens with which a loaded model is probed are not counted.

    Raises:
        UserError: settings are out of range; a manifest rejects them earlier.
    """
    work, assumed = Work(), []
    if not {PERPLEXITY, MISALIGNMENT}.isdisjoint(tasks):
        work += _windows(tasks, checkpoint, config)
    for task in dict.fromkeys(tasks):
        if task not in (PERPLEXITY, MISALIGNMENT):
            of_task, assumptions = _other(task, checkpoint, config)
            work += of_task
            assumed += assumptions
    return work, assumed


def _other(task: str, checkpoint: Checkpoint, config: Mapping[str, Any]) -> tuple[Work, list[str]]:
    if task == LONGPPL:
        return _key_tokens(checkpoint, config)
    if task == RETRIEVAL:
        return _probes(checkpoint, config), []
    datasets = _datasets(task)
    if not datasets:
        return Work(), [f"{task}: its cost is not known and counts as 0"]
    assumed = [f"LongBench-E prompts of {BYTES_PER_TOKEN} bytes a token, answers of full length"]
    window = whole(checkpoint.model_args, ("max_length", "max_model_len")) or whole(config, WINDOW)
    if window is None:
        window = checkpoint.train_length
        assumed.append("LongBench-E in a window of train_length tokens")
    return sum((_longbench(checkpoint, name, window) for name in datasets), Work()), assumed


def _key_tokens(checkpoint: Checkpoint, config: Mapping[str, Any]) -> tuple[Work, list[str]]:
    """Work of the prefixes of all documents; few of their positions go through the LM head."""
    settings = settings_from(checkpoint.metadata())
    documents, lengths = _count(checkpoint, settings.num_docs), usable_lengths(checkpoint, config)
    if not lengths or not documents:
        return Work(), []
    read = lengths if len(lengths) > 1 and is_read_per_length(config, lengths[-1]) else lengths[-1:]
    work = sum((_pass(length, 0) for length in read), Work()) * documents
    if checkpoint.key_spans != "self":
        return work, []
    return work, [f"{LONGPPL}: the passes that find key tokens are not counted"]


def _probes(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Work:
    """Work of the probes of retrieval: one pass for each document, depth and length, without the value's last token."""
    settings = settings_from(checkpoint.metadata())
    probes = _count(checkpoint, settings.num_docs * settings.num_depths)
    lengths = usable_lengths(checkpoint, config)
    return sum((_pass(length - 1, VALUE_TOKENS) for length in lengths), Work()) * probes


def usable_lengths(checkpoint: Checkpoint, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the lengths that the model can address, ascending; the others are skipped."""
    limit = longest_addressable(checkpoint, config)
    return tuple(length for length in sorted(checkpoint.lengths) if limit is None or length <= limit)


def _count(checkpoint: Checkpoint, documents: int) -> int:
    """Return how many documents are read; `limit` has the meaning it has in lm-eval."""
    limit = checkpoint.limit
    if limit is None:
        return documents
    return min(documents, ceil(documents * limit) if limit < 1 else int(limit))


def _pass(length: int, scored: int) -> Work:
    return Work(length, length * length / 2, scored)


def _windows(tasks: Sequence[str], checkpoint: Checkpoint, config: Mapping[str, Any]) -> Work:
    """Work of the windows of all documents, as `longshort.lmeval.reading` evaluates them, each once for all tasks.

    These are the window of each length; for the misalignment its shorter contexts, of equal ones one; and for the
    perplexity the prefixes that are not among these windows.
    """
    settings = settings_from(checkpoint.metadata())
    documents, lengths = _count(checkpoint, settings.num_docs), usable_lengths(checkpoint, config)
    if not lengths or not documents:
        return Work()
    work = Work()
    if MISALIGNMENT in tasks:
        for length, *seconds in _drawn(settings.seed, documents, lengths, settings.num_draws):
            work += sum((_pass(second, second) for second in seconds), _pass(length, max(seconds)))
        work += _floors(checkpoint, config, min(documents, FLOOR_DOCUMENTS), lengths)
    else:
        work += sum((_pass(length, 0) for length in lengths), Work()) * documents
    if PERPLEXITY not in tasks:
        return work
    longest = lengths[-1]
    work += Work(scored=len(lengths) * settings.num_targets) * documents
    per_length = len(lengths) > 1 and is_read_per_length(config, longest)
    apart = [*(lengths[:-1] if per_length else ()), *([longest] if longest < settings.lengths[-1] else ())]
    work += sum((_pass(length, length - 1) for length in apart), Work()) * documents
    if longest == settings.lengths[-1]:  # all positions of this window are scored
        drawn = _drawn(settings.seed, documents, (longest,), settings.num_draws) if MISALIGNMENT in tasks else ()
        work += Work(scored=longest * documents - sum(max(seconds) for _, *seconds in drawn))
    # Whether one pass can serve all lengths is tested once, on the first document.
    return work if per_length or len(lengths) == 1 else work + _pass(lengths[0], lengths[0] - 1)


def _floors(checkpoint: Checkpoint, config: Mapping[str, Any], documents: int, lengths: Sequence[int]) -> Work:
    """Work of the numerical floors: the shorter contexts of some documents once more, if the model has floors."""
    if bytes_per_number(checkpoint, config) != USUAL_BYTES or not has_rotary_positions(config):
        return Work()
    settings = settings_from(checkpoint.metadata())
    lengths = tuple(length for length in lengths if not is_read_per_length(config, length))
    drawn = _drawn(settings.seed, documents, lengths, settings.num_draws)
    return sum(
        (_pass(second, 2 * (second - ceil(length / 2) + 1)) for length, *seconds in drawn for second in seconds), Work()
    )


@lru_cache(maxsize=64)
def _drawn(seed: int, documents: int, lengths: tuple[int, ...], draws: int) -> tuple[tuple[int, ...], ...]:
    """A length and its shorter contexts, of every document and length."""
    return tuple(
        (length, *(length - offset for offset in sorted(set(draw_offsets(seed, document, length, draws)))))
        for document in range(documents)
        for length in lengths
    )


def _datasets(task: str) -> list[str]:
    """The datasets of LongBench-E that a task measures: all, a category's, or one."""
    if task == LONGBENCH:
        return list(DATASETS)
    return [entry.name for entry in DATASETS.values() if task in (task_of(entry.name), task_of(entry.category))]


def _longbench(checkpoint: Checkpoint, dataset: str, window: int) -> Work:
    """Every row's prompt, truncated to the window, and its answer at full length."""
    entry = DATASETS[dataset]
    try:
        cut = prompt_limit(window, entry.max_new_tokens)
    except UserError:  # the window is too small for an answer: the dataset is skipped
        return Work()
    prompt, answer = min(entry.row_bytes // BYTES_PER_TOKEN, cut), entry.max_new_tokens
    pairs = (prompt + answer) ** 2 / 2
    return Work(prompt + answer, pairs, answer, answer) * _count(checkpoint, entry.num_rows)
