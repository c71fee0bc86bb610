"""Which failures are retried, and how: the one function that decides whether a checkpoint is attempted again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from longshort.errors import Kind

Memory = Literal["usual", "small", "offload"]

# How often an attempt is repeated unchanged, where another one may succeed.
REPEATS: dict[Kind, int] = {"killed": 1, "hub": 1}
RETRIED: tuple[Kind, ...] = (*REPEATS, "out_of_memory")  # every category with a rule in `next_attempt`


@dataclass(frozen=True)
class Attempt:
    """How a worker tries a checkpoint."""

    memory: Memory = "usual"  # "small": one document at a time, smaller chunks; "offload": also weights in main memory
    repeated: tuple[Kind, ...] = ()  # the categories for which an attempt was repeated, one entry per repetition


def next_attempt(kind: Kind, attempt: Attempt, *, cpu_offload: bool, is_offline: bool) -> Attempt | None:
    """Return the attempt that follows a failed one, or None where another would fail as well.

    Args:
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
    if attempt.repeated.count(kind) < REPEATS.get(kind, 0):
        return replace(attempt, repeated=(*attempt.repeated, kind))
    return None
