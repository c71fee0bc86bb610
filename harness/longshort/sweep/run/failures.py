"""Failure categories of exceptions, and of results without a value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from longshort.errors import Kind, UserError
from longshort.load_errors import kind_of
from longshort.results.floors import FLOOR_METRICS
from longshort.sweep.store.failure import Failure

LONGEST = 500  # characters of a message
KINDS: tuple[Kind, ...] = get_args(Kind)


def classify(error: BaseException) -> Failure:
    """Return the failure that an exception means: a `UserError` has its category, others one by their class."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UserError):
        return Failure(error.kind, message[:LONGEST])
    kind = kind_of(error)
    return Failure(kind or "error", (message if kind else f"{type(error).__name__}: {message}")[:LONGEST])


def why_empty(results: Mapping[str, Any], task: str) -> Failure | None:
    """Return why a task that ran to its end has no value at all, or None if it has one."""
    if any("," in name and not name.endswith("_stderr,none") for name in results["results"].get(task, {})):
        return None
    # A floor that cannot be measured does not explain a result without values.
    gaps = [gap for gap in _gaps(results) if not (isinstance(gap, Mapping) and _is_of_floor(gap))]
    recorded = [gap.get("kind") if isinstance(gap, Mapping) else None for gap in gaps]
    kinds: set[Kind] = {next((known for known in KINDS if known == kind), "error") for kind in recorded}
    kind = kinds.pop() if len(kinds) == 1 else "error"
    reasons = "; ".join(_reasons(gaps)) or "see the log"
    return Failure(kind, f"No value could be measured for {task}: {reasons}"[:LONGEST])


def gap_reasons(results: Mapping[str, Any]) -> list[str]:
    """Return why values are missing from a result, each reason once."""
    return _reasons(_gaps(results))


def _reasons(gaps: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(gap["reason"] if isinstance(gap, Mapping) else gap) for gap in gaps))


def _is_of_floor(gap: Mapping[str, Any]) -> bool:
    return str(gap.get("metric")).partition("@")[0] in FLOOR_METRICS


def _gaps(results: Mapping[str, Any]) -> Iterator[Any]:
    """What the tasks record about missing values: mappings with a reason and a kind, or a sentence."""
    for config in results["configs"].values():
        yield from ((config.get("metadata") or {}).get("scored") or {}).get("left_out") or ()
