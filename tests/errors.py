"""Assertions on errors, warnings and notes: their category, their field and their facts, whatever the words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest

from longshort.errors import Kind, UserError


def contains(message: str, *facts: object) -> bool:
    """Whether every fact (a file, a line, a field, a value) is there as a word of its own: 1 is not found in 16."""
    return all(re.search(_word(str(fact)), message) for fact in facts)


def _word(fact: str) -> str:
    before = r"(?<!\w)(?<!\d\.)" if fact[0].isalnum() else ""
    after = r"(?!\w|\.\d)" if fact[-1].isalnum() else ""
    return before + re.escape(fact) + after


def assert_facts(message: str, *facts: object) -> None:
    """It is one line, and contains the facts."""
    assert message
    assert "\n" not in message, message
    for fact in facts:
        assert contains(message, fact), (fact, message)


def assert_one(messages: Iterable[str], *facts: object) -> None:
    """Exactly one of the messages contains the facts."""
    messages = list(messages)
    assert sum(contains(message, *facts) for message in messages) == 1, (facts, messages)


def assert_error(error: BaseException | None, kind: Kind, *facts: object, field: str | None = None) -> None:
    """It is a `UserError` of this category and field, and its message contains the facts."""
    assert isinstance(error, UserError), repr(error)
    assert (error.kind, error.field) == (kind, field), repr(error)
    assert_facts(error.message, *facts)


@contextmanager
def user_error(kind: Kind, *facts: object, field: str | None = None) -> Iterator[None]:
    """What is inside raises such an error."""
    with pytest.raises(UserError) as caught:
        yield
    assert_error(caught.value, kind, *facts, field=field)
