"""Which failures are retried, and how."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest

from longshort.errors import Kind
from longshort.sweep.run.retry import RETRIED, Attempt, Memory, next_attempt

USUAL, SMALL, OFFLOAD = (Attempt(memory) for memory in get_args(Memory))
KILLED, HUB = Attempt(retried=frozenset({"killed"})), Attempt(retried=frozenset({"hub"}))
SMALL_KILLED = Attempt("small", frozenset({"killed"}))


@pytest.mark.parametrize(
    ("kind", "attempt", "cpu_offload", "is_offline", "following"),
    [
        ("out_of_memory", USUAL, False, False, SMALL),
        ("out_of_memory", USUAL, True, True, SMALL),
        ("out_of_memory", SMALL, False, False, None),
        ("out_of_memory", SMALL, True, False, OFFLOAD),
        ("out_of_memory", OFFLOAD, True, False, None),
        ("out_of_memory", KILLED, False, False, SMALL_KILLED),
        ("killed", USUAL, False, False, KILLED),
        ("killed", USUAL, False, True, KILLED),
        ("killed", KILLED, True, False, None),
        ("killed", SMALL, False, False, SMALL_KILLED),
        ("killed", HUB, False, False, Attempt(retried=frozenset({"hub", "killed"}))),
        ("hub", USUAL, False, False, HUB),
        ("hub", USUAL, False, True, None),
        ("hub", HUB, False, False, None),
    ],
)
def test_the_next_attempt(
    kind: Kind, attempt: Attempt, cpu_offload: bool, is_offline: bool, following: Attempt | None
) -> None:
    assert next_attempt(kind, attempt, cpu_offload=cpu_offload, is_offline=is_offline) == following


@pytest.mark.parametrize("kind", sorted(set(get_args(Kind)) - set(RETRIED)))
def test_other_categories_are_not_retried(kind: Kind) -> None:
    for memory, cpu_offload, is_offline in product(get_args(Memory), (False, True), (False, True)):
        assert next_attempt(kind, Attempt(memory), cpu_offload=cpu_offload, is_offline=is_offline) is None


@pytest.mark.parametrize("kind", RETRIED)
def test_no_category_is_retried_forever(kind: Kind) -> None:
    attempts: list[Attempt] = []
    attempt: Attempt | None = USUAL
    while attempt:
        assert attempt not in attempts
        attempts.append(attempt)
        attempt = next_attempt(kind, attempt, cpu_offload=True, is_offline=False)
    assert len(attempts) == (3 if kind == "out_of_memory" else 2)
