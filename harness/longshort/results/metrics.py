"""The values of one task in a results file, by metric and context length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from longshort.results.groups import means_of_members
from longshort.results.lengths import BARE, NOT_ASKED, is_bare, per_length
from longshort.results.reader import Reader

TASK_PREFIXES = ("longshort_", "longshort-")
LONGPPL = "longshort_longppl"


def is_ours(task: str) -> bool:
    """Whether a task is one of longshort's."""
    return task.startswith(TASK_PREFIXES)


def is_self_evaluated(task: str, metadata: Mapping[str, Any]) -> bool:
    """Whether the key tokens of LongPPL are those that the evaluated model found itself, so that they show little."""
    spans = (metadata.get("scored") or {}).get("key_spans") or {}
    return task == LONGPPL and (metadata.get("key_spans") == "self" or bool(spans.get("self_evaluated")))


def values_of(
    data: Mapping[str, Any], task: str, metadata: Mapping[str, Any], reader: Reader, base: str
) -> Iterator[dict[str, Any]]:
    """Yield metric, length, value, stderr and n of everything that a task measured.

    Args:
        data: the content of the file.
        metadata: of the task.
        reader: receives a note for each metric whose name is malformed, whose value is not a number, or whose
            length another metric has as well.
        base: name of the checkpoint, for the notes.
    """
    metrics, of = data["results"][task], f"of {task} ({base})"
    means, gaps = ({}, {}) if is_ours(task) else means_of_members(data, task)
    for key, gap in gaps.items():
        reader.notes.append(f"{reader.file}: {key} {of}: {gap}. Skipped.")
    # Every document counts in lm-eval's number of documents, also for a metric that is of those of one length.
    lengths = {key for key in metrics if is_bare(key) and metrics[key] != NOT_ASKED} | means.keys() | gaps.keys()
    counts = _counts(data, task, metadata)
    for (metric, length), key in _names(metrics, task, metadata, reader, of, gaps).items():
        name, _, filter_name = key.partition(",")
        stderr = f"{name}_stderr,{filter_name}"
        count = None if key in lengths and len(lengths) > 1 else counts.get(key, counts.get(""))
        yield {
            "metric": f"{metric}_self" if is_self_evaluated(task, metadata) else metric,
            "length": length,
            "value": metrics[key],
            "stderr": reader.number(metrics.get(stderr), f"{stderr} {of}"),
            "n": reader.whole(count, f"number of documents of {key} {of}"),
        }
    for key, score in means.items():
        name, _, filter_name = key.partition(",")
        if reader.number(score.value, f"mean {key} {of}", is_value=True) is not None:
            yield {
                "metric": _filtered(BARE, filter_name),
                "length": int(name),
                "value": score.value,
                "stderr": reader.number(score.stderr, f"standard error of {key} {of}"),
                "n": reader.whole(score.n, f"number of documents of {key} {of}"),
            }


def _counts(data: Mapping[str, Any], task: str, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Numbers of documents by key; by the empty key, that of all others."""
    # Of a group lm-eval counts per metric itself; its members' counts are theirs.
    counts = data["results"][task].get("sample_count")
    if counts is None:
        counts = {f"{name},none": n for name, n in ((metadata.get("scored") or {}).get("documents") or {}).items()}
    total = {"": (data.get("n-samples") or {}).get(task, {}).get("effective")}
    return total | dict(counts)


def _names(
    metrics: Mapping[str, Any],
    task: str,
    metadata: Mapping[str, Any],
    reader: Reader,
    of: str,
    skipped: Mapping[str, Any],
) -> dict[tuple[str, int | None], str]:
    """The keys of a task's values by metric and length; notes on the others."""
    found: dict[tuple[str, int | None], str] = {}
    repeated: set[tuple[str, int | None]] = set()
    for key, value in metrics.items():
        name, comma, filter_name = key.partition(",")
        if not comma or name.endswith("_stderr") or key in skipped or (is_bare(key) and value == NOT_ASKED):
            continue
        metric, length, problem = per_length(name, task, metadata, is_ours=is_ours(task))
        if problem:
            reader.notes.append(f"{reader.file}: metric {key!r} {of} is malformed: {problem}. Skipped.")
        elif reader.number(value, f"{key} {of}", is_value=True) is not None:
            identity = (metric if is_ours(task) else _filtered(metric, filter_name), length)
            if identity in found:
                keys = [found[identity], key]
                values = " and ".join(f"{key!r} ({metrics[key]})" for key in keys)
                reader.notes.append(f"{reader.file}: {values} {of} are both {metric} at {length} tokens. Skipped.")
                repeated.add(identity)
            found.setdefault(identity, key)
    return {identity: key for identity, key in found.items() if identity not in repeated}


def _filtered(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric},{filter_name}"
