"""Command-line options made from a settings class, so that a setting is described in one place."""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import is_pydantic_dataclass

from longshort.errors import UserError
from longshort.settings.definition import SHOWN

READ_BY_TYPER = (str, int, float, bool, Path)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field of a settings class."""

    name: str
    type: Any  # without `None` and `Annotated`, as `tuple[int, ...]`
    help: str  # one sentence
    default: Any = None  # what the class takes where nothing is given
    is_required: bool = False  # whether it has no default

    @property
    def is_text(self) -> bool:
        """Whether typer passes the text as it is, since it cannot read the type: lists, mappings, unions."""
        return get_origin(self.type) is not Literal and self.type not in READ_BY_TYPER

    @property
    def is_list(self) -> bool:
        """Whether it is a tuple, given with commas."""
        return get_origin(self.type) is tuple


def settings_of(settings_class: type[Any]) -> list[Setting]:
    """The fields of a dataclass; their help is a text in the annotation, `Annotated[type, "help"]`."""
    hints = get_type_hints(settings_class, include_extras=True)
    return [
        Setting(
            field.name,
            _plain_type(hints[field.name]),
            next((text for text in getattr(hints[field.name], "__metadata__", ()) if isinstance(text, str)), ""),
            None if field.default is dataclasses.MISSING else field.default,
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(settings_class)
    ]


def options_of(
    settings_class: type[Any],
    *,
    into: str = "settings",
    only: Collection[str] | None = None,
    flags: Mapping[str, tuple[str, ...]] | None = None,
    optional: Collection[str] = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a typer command one option per field of a settings class.

    The options take the place of the command's parameter `into`, a dictionary of the values that were given: a
    setting that is not on the command line is not in it, so that the class's own default, or a preset's, applies.
    Lists are given as ``1,2,3`` and mappings as JSON; a pydantic dataclass gets the text, another the parsed value.
    Decorate twice to make options from two classes.

    Args:
        settings_class: a dataclass, of pydantic or not; see `settings_of`.
        into: name of the parameter that the options replace.
        only: the fields to make options of; all of them where this is None.
        flags: other flags than ``--name-of-field``, by field.
        optional: fields without a default that the command does without in some cases, and checks itself.
    """
    fields = [
        dataclasses.replace(setting, is_required=setting.is_required and setting.name not in optional)
        for setting in settings_of(settings_class)
        if only is None or setting.name in only
    ]
    parses = not is_pydantic_dataclass(settings_class)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def wrapper(**values: Any) -> None:
            given: dict[str, Any] = {}
            for setting in fields:
                value = values.pop(setting.name)
                if value is not None:
                    given[setting.name] = _parse(setting, value) if parses and setting.is_text else value
            command(**values, **{into: given})

        parameters: list[inspect.Parameter] = []
        for parameter in _parameters(command):
            if parameter.name == into:
                parameters += [_parameter(setting, (flags or {}).get(setting.name)) for setting in fields]
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        wrapper.__name__, wrapper.__doc__, wrapper.__module__ = command.__name__, command.__doc__, command.__module__
        wrapper.__annotations__ = {}
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
        return wrapper

    return decorate


@contextmanager
def usage_errors() -> Iterator[None]:
    """Report a wrong setting as wrong usage of the command line, with exit code 2."""
    try:
        yield
    except UserError as error:
        raise UserError(error.message, "usage", error.field) from error


def run_app(app: typer.Typer) -> None:
    """Run a command line. A `UserError` is one line on stderr and its exit code; a launch of many ranks prints one."""
    try:
        app()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"longshort: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _parameters(command: Callable[..., None]) -> list[inspect.Parameter]:
    hints = get_type_hints(command, include_extras=True)
    parameters = inspect.signature(command).parameters.values()
    return [parameter.replace(annotation=hints.get(parameter.name, parameter.annotation)) for parameter in parameters]


def _parameter(setting: Setting, flags: tuple[str, ...] | None) -> inspect.Parameter:
    flags = flags or (_flag(setting),)  # given explicitly, so that a switch has no --no-… form
    option = typer.Option(
        *flags, help=_help(setting), show_default=False, metavar=_metavar(setting.type) if setting.is_text else None
    )
    kind = str if setting.is_text else setting.type
    return inspect.Parameter(
        setting.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if setting.is_required else None,
        annotation=Annotated[kind if setting.is_required else kind | None, option],
    )


def _help(setting: Setting) -> str:
    default = setting.default
    if default is None or default is False or default in ((), {}):
        return setting.help
    text = ",".join(map(str, default)) if isinstance(default, tuple | list) else str(default)
    return f"{setting.help}  \\[default: {text}]"  # escaped: rich would take it for a style


def _metavar(of: Any) -> str | None:
    if get_origin(of) is tuple:
        return f"<{_plain_type(get_args(of)[0]).__name__},…>"
    return "<json>" if get_origin(of) is dict else None


def _flag(setting: Setting) -> str:
    return f"--{setting.name.replace('_', '-')}"


def _plain_type(annotation: Any) -> Any:
    """The type without `Annotated` and `| None`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _plain_type(get_args(annotation)[0])
    if origin in (Union, UnionType):
        members = [member for member in get_args(annotation) if member is not NoneType]
        return _plain_type(members[0]) if len(members) == 1 else annotation
    return annotation


def _parse(setting: Setting, text: str) -> Any:
    """A list from a text with commas, a mapping from JSON."""
    adapter = TypeAdapter(setting.type)
    try:
        if setting.is_list:
            return adapter.validate_python([part.strip() for part in text.split(",") if part.strip()])
        return adapter.validate_json(text)
    except ValidationError as error:
        shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
        wanted = "a list of values separated by commas" if setting.is_list else "a JSON object"
        message = f"{_flag(setting)}: '{shown}' is not {wanted}: {error.errors(include_url=False)[0]['msg']}."
        raise UserError(message, "usage", setting.name) from error
