"""The context length that a metric is of: ``ppl@4096``, RULER's ``4096``, LongBench-E's ``score@8k+``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

BARE = "score"  # what a metric is called that lm-eval names by its length alone, as RULER's tasks do
SMALLEST = 32  # below, the number in another task's acc@N counts answers, not tokens
# Their number counts answers or ranks, whatever it is: pass@64, recall@100.
RANKED = frozenset(
    ("pass", "maj", "cons", "best", "hit", "hits", "top", "recall", "precision", "ndcg", "map", "mrr", "r", "p")
)

LENGTH = re.compile(r"[1-9][0-9]{0,14}")
OURS = re.compile(r"(.+)@([0-9]{1,15})")
RANGE = re.compile(r"[0-9]+-[0-9]+")  # acc@1024-2048
BUCKET = re.compile(r"([0-9]+)-[0-9]+k|([0-9]+)k\+")  # score@4-8k, score@8k+, in thousands of words
# Meant for a length; a single digit is the name of a class.
LIKE_BARE = re.compile(r"(?![0-9]$)([+\-]?[0-9][0-9.]*[kKmM]?|[+\-]?(nan|inf))", re.IGNORECASE)
LIKE_LENGTH = re.compile(r"[+\-]?[0-9.]|[+\-]?(nan|inf)", re.IGNORECASE)  # the beginning of a number
NOT_ASKED = -1  # RULER's value at a length that was not asked for
BABILONG = re.compile(r"([0-9]{1,6})([kM])")


class PerLength(NamedTuple):
    """The name of a metric, taken apart."""

    metric: str
    length: int | None = None  # in tokens, in words for a bucket of LongBench-E; None for a metric without one
    problem: str = ""  # why a name that has a length is malformed, without a full stop


def per_length(name: str, task: str, metadata: Mapping[str, Any], *, is_ours: bool) -> PerLength:
    """Return a metric and its context length, which tasks write in several ways.

    - ``METRIC@L``. In other tasks than longshort's, numbers below 32 and those of pass@k and the like are not lengths.
    - A number alone (RULER): the metric ``score`` at this length.
    - ``score@4-8k``, ``score@8k+`` (LongBench-E): the whole name, at the number of words where the bucket begins.
    - BABILong: ``max_seq_lengths`` of its task's metadata, as "4k", which is 4096 tokens.

    Args:
        name: of the metric, without its filter.
        task: its task.
        metadata: of the task.
        is_ours: whether the task is one of longshort's.
    """
    base, at, length = name.rpartition("@")
    if bucket := BUCKET.fullmatch(length if at else ""):
        return PerLength(name, 1000 * int(bucket[1] or bucket[2]))
    if is_ours:
        match = OURS.fullmatch(name)
        return PerLength(match[1], int(match[2])) if match else PerLength(name)
    if at:
        return _after_at(name, base, length)
    if LIKE_BARE.fullmatch(name):
        return _of_number(BARE, name, name)
    return _of_task(name, task, metadata)


def is_bucket(metric: str) -> bool:
    """Whether a metric is of documents of some lengths, in words, as LongBench-E's ``score@4-8k``."""
    return BUCKET.fullmatch(metric.rpartition("@")[2]) is not None


def is_bare(key: str) -> bool:
    """Whether a key of a task's metrics, METRIC,FILTER, names its metric by a length alone."""
    name, comma, _ = key.partition(",")
    return bool(comma and LIKE_BARE.fullmatch(name) and LENGTH.fullmatch(name))


def _after_at(name: str, base: str, length: str) -> PerLength:
    if not base or not length:
        return PerLength(name, None, f"it has no {'length after' if base else 'metric before'} the @")
    is_count = base.rpartition("_")[2].lower() in RANKED or (LENGTH.fullmatch(length) and int(length) < SMALLEST)
    if is_count or RANGE.fullmatch(length) or not LIKE_LENGTH.match(length):
        return PerLength(name)
    return _of_number(base, length, name)


def _of_number(metric: str, length: str, name: str) -> PerLength:
    if LENGTH.fullmatch(length):
        return PerLength(metric, int(length))
    return PerLength(name, None, f"{length!r} is not a length, which is a whole number of tokens, as 4096")


def _of_task(name: str, task: str, metadata: Mapping[str, Any]) -> PerLength:
    """BABILong evaluates one length per run and does not name it in its metrics."""
    given = metadata.get("max_seq_lengths")
    if not task.startswith("babilong") or given is None:
        return PerLength(name)
    match = BABILONG.fullmatch(str(given))
    if match:
        return PerLength(name, int(match[1]) * (1024 if match[2] == "k" else 1024**2))
    return PerLength(name, None, f"its length, max_seq_lengths, is {given!r}, not one such as '4k'")
