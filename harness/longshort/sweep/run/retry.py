"""Which failures are retried, and how: the one function that decides whether a checkpoint is attempted again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from longshort.errors import Kind

Memory = Literal["usual", "small", "offload"]

ONCE: tuple[Kind, ...] = ("killed", "hub")  # another attempt may succeed without a change
RETRIED: tuple[Kind, ...] = (*ONCE, "out_of_memory")  # every category with a rule in `next_attempt`


@dataclass(frozen=True)
class Attempt:
    """How a worker tries a checkpoint.

    Attributes:
        memory: "usual"; "small": one document at a time and smaller chunks; "offload": also weights in main memory.
        retried: failure categories for which the checkpoint has been retried.
    """

    memory: Memory = "usual"
    retried: frozenset[Kind] = frozenset()


def next_attempt(kind: Kind, attempt: Attempt, *, cpu_offload: bool, is_offline: bool) -> Attempt | None:
    """Return the attempt that follows a failed one, or None where another would fail as well.

    Args:
        kind: the category of the failure.
        attempt: the one that failed.
        cpu_offload: whether weights may be kept in main memory.
        is_offline: whether the hub must not be asked; what is not cached now will not be on a retry.
    """
    if kind == "out_of_memory":
        if attempt.memory == "usual":
            return replace(attempt, memory="small")
        if attempt.memory == "small" and cpu_offload:
            return replace(attempt, memory="offload")
        return None
    if kind == "hub" and is_offline:
        return None
    if kind in ONCE and kind not in attempt.retried:
        return replace(attempt, retried=attempt.retried | {kind})
    return None
