"""Assertions on errors: their category, their field and the facts of the message, whatever its words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from longshort.errors import Kind, UserError


def assert_facts(message: str, *facts: object) -> None:
    """One line contains every fact (a file, a line, a field, a value) as a word of its own: 1 is not found in 16."""
    assert message
    assert "\n" not in message, message
    for fact in facts:
        assert re.search(rf"(?<!\w)(?<!\d\.){re.escape(str(fact))}(?!\w|\.\d)", message), (fact, message)


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
