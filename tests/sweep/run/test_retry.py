"""Which failures are retried, and how."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest

from longshort.errors import Kind
from longshort.sweep.run.retry import REPEATS, RETRIED, Attempt, Memory, next_attempt

USUAL, SMALL, OFFLOAD = (Attempt(memory) for memory in get_args(Memory))
KILLED, HUB = Attempt(repeated=("killed",)), Attempt(repeated=("hub",))
SMALL_KILLED = Attempt("small", ("killed",))


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
        ("killed", HUB, False, False, Attempt(repeated=("hub", "killed"))),
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
    assert len(attempts) - 1 == REPEATS.get(kind, len(get_args(Memory)) - 1)


def test_an_attempt_is_repeated_as_often_as_its_category_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REPEATS, "timeout", 3)
    attempts: list[Attempt | None] = [USUAL]
    while attempts[-1]:
        attempts.append(next_attempt("timeout", attempts[-1], cpu_offload=False, is_offline=False))
    assert attempts[1:] == [Attempt(repeated=("timeout",) * count) for count in (1, 2, 3)] + [None]
