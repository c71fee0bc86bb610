"""What the annotation of a setting says, and how its value is validated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from functools import cache
from typing import Any, NamedTuple, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from longshort.errors import UserError

SHOWN = 60  # characters of a wrong value in a message
CONFIG = ConfigDict(extra="forbid", defer_build=True)  # schemas are built on first use, not for --help

T = TypeVar("T")


class Role(Enum):
    """What a change of the setting means for results that have been measured. `NUMBERS` where none is given."""

    NUMBERS = "the numbers change: measure again"
    SOURCE = "other weights or data are read; the sweep records them by a hash of their content"
    ABOUT = "only describes the checkpoint, for the analysis: rewrite the results, measure nothing"
    RUN = "only how the evaluation runs: the results stay valid"
    INTERNAL = "set by the program, not by a user"


class Mark(Enum):
    """What else an annotation can say."""

    MANIFEST_ONLY = "`longshort eval` has no option for it, or one of another form"
    PATH = "a path; a relative one in a manifest starts from the manifest's folder"
    CORPUS = "a path or glob if it matches a file, else a name"


class Problem(NamedTuple):
    """What is wrong with a value."""

    location: tuple[int | str, ...]  # of the value, as ("lengths", 1)
    value: Any
    text: str  # as "is not a whole number of at least 1", without a full stop


def build(settings_class: type[T], values: Mapping[str, Any]) -> T:
    """Make a settings object from values as a user gave them.

    Raises:
        UserError: a value is wrong. Its `field` is the name of the setting.
    """
    try:
        return settings_class(**values)
    except ValidationError as error:
        problem = problem_in(error)
        name = str(problem.location[0])
        shown = repr(problem.value)
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"
        raise UserError(f"{name}: {shown} {problem.text}.", "setting", name) from error


def adapter(settings_class: type, name: str) -> TypeAdapter[Any]:
    """What validates a single setting."""
    return _adapter(settings_class, name)


def problem_in(error: ValidationError) -> Problem:
    """The first of the problems that pydantic found."""
    details = error.errors(include_url=False)[0]
    context = details.get("ctx", {})
    text = {
        "literal_error": f"is not one of {context.get('expected')}",
        "bool_type": "is neither true nor false",
        "value_error": str(context.get("error")),
    }.get(details["type"], f"is not valid: {details['msg']}")
    return Problem(details["loc"], details["input"], text)


def names_of(settings_class: type, role: Role) -> list[str]:
    """The settings of one role."""
    return [name for name, notes in _notes(settings_class).items() if _role(notes) is role]


def marked(settings_class: type, mark: Mark) -> list[str]:
    """The settings with a mark."""
    return [name for name, notes in _notes(settings_class).items() if mark in notes]


@cache
def _adapter(settings_class: type, name: str) -> TypeAdapter[Any]:
    return TypeAdapter(get_type_hints(settings_class, include_extras=True)[name])


@cache
def _notes(settings_class: type) -> dict[str, tuple[Any, ...]]:
    hints = get_type_hints(settings_class, include_extras=True)
    return {f.name: getattr(hints[f.name], "__metadata__", ()) for f in fields(settings_class)}


def _role(notes: tuple[Any, ...]) -> Role:
    return next((note for note in notes if isinstance(note, Role)), Role.NUMBERS)
