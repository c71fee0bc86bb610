"""Scores of a group of tasks at the lengths at which lm-eval reports no mean over its members."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from longshort.results.lengths import NOT_ASKED, is_bare
from longshort.results.reader import is_number


class Score(NamedTuple):
    """A mean over tasks."""

    value: float
    stderr: float | None  # None where a task has none
    n: int | None  # documents; None where lm-eval counts those of all lengths together


def leaves(data: Mapping[str, Any], group: str) -> list[str]:
    """Return the tasks of a group, also those of groups inside it; none for a task."""
    groups = data.get("group_subtasks") or {}
    found: list[str] = []
    waiting, seen = list(groups.get(group) or ()), {group}
    while waiting:
        name = waiting.pop(0)
        if name not in seen:
            seen.add(name)
            waiting += groups.get(name) or ()
            found += [] if groups.get(name) else [name]
    return found


def means_of_members(data: Mapping[str, Any], group: str) -> tuple[dict[str, Score], dict[str, str]]:
    """Return a group's scores at the lengths that its own metrics lack, and where its score is not of all its tasks.

    lm-eval's RULER group reports its mean at 4096 tokens alone, whatever lengths were evaluated. Its score at another
    length is the unweighted mean over its tasks, as at 4096.

    Args:
        data: the content of a results file.
        group: a group, or a task, which has no members.

    Returns:
        By the key ``L,FILTER``: the means over all tasks; and one line, without a full stop, for each length at which
        some of the tasks were not evaluated.
    """
    own, names = data["results"][group], leaves(data, group)
    parts = [data["results"].get(name) or {} for name in names]
    if not any(map(is_bare, own)):
        return {}, {}
    keys = {key for metrics in parts for key in metrics if is_bare(key) and metrics[key] != NOT_ASKED}
    found: dict[str, Score] = {}
    problems: dict[str, str] = {}
    for key in sorted(keys, key=lambda key: int(key.partition(",")[0])):
        missing = sum(not is_number(metrics.get(key)) or metrics[key] == NOT_ASKED for metrics in parts)
        if missing:
            problems[key] = f"{missing} of its {len(parts)} tasks have no score at this length"
        elif own.get(key, NOT_ASKED) == NOT_ASKED:
            found[key] = _mean(key, parts, _documents(data, names) if len(keys) == 1 else None)
    return found, problems


def _mean(key: str, parts: list[Mapping[str, Any]], n: int | None) -> Score:
    name, _, filter_name = key.partition(",")
    stderrs = [metrics.get(f"{name}_stderr,{filter_name}") for metrics in parts]
    known = [float(stderr) for stderr in stderrs if stderr is not None and is_number(stderr)]
    stderr = math.hypot(*known) / len(parts) if len(known) == len(parts) else None
    return Score(sum(metrics[key] for metrics in parts) / len(parts), stderr, n)


def _documents(data: Mapping[str, Any], names: list[str]) -> int | None:
    counts = [((data.get("n-samples") or {}).get(name) or {}).get("effective") for name in names]
    known = [count for count in counts if isinstance(count, int)]
    return sum(known) if len(known) == len(counts) else None
