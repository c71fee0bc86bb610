"""YAML in which every value knows its line and its path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from longshort.errors import Kind, UserError
from longshort.settings.definition import problem_in

DEEPEST = 50  # lists or mappings in each other; PyYAML's C loader ends the process at some ten thousand
SHOWN = 60  # characters of a value in a message
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a thousand entries in a second, not in ten
NULL = "tag:yaml.org,2002:null"

# PyYAML's constructors raise any of these where a tag does not fit its value.
UNREADABLE = (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

T = TypeVar("T")


@dataclass(frozen=True)
class Node:
    """A value in a file."""

    file: str  # its name, for messages
    path: str  # such as ``checkpoints[3].lengths``
    node: yaml.Node  # PyYAML's

    @property
    def line(self) -> int:
        """Counted from 1."""
        return int(self.node.start_mark.line) + 1

    @property
    def is_mapping(self) -> bool:
        """Whether it has named parts."""
        return isinstance(self.node, yaml.MappingNode)

    @property
    def is_sequence(self) -> bool:
        """Whether it is a list."""
        return isinstance(self.node, yaml.SequenceNode)

    def error(self, problem: str, kind: Kind = "setting") -> UserError:
        """The error on one line, with file, line and path; its `field` is the path."""
        where = f", {self.path}" if self.path else ""
        end = "" if problem.endswith("?") else "."
        message = f"{self.file}, line {self.line}{where}: {problem.rstrip('.')}{end}"
        return UserError(" ".join(message.split()), kind, self.path or None)

    def mapping(self, what: str = "value") -> dict[str, Node]:
        """Its parts by name."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error(f"this {what} has to be a mapping, such as 'name: value'")
        parts: dict[str, Node] = {}
        for key, value in self.node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.error("the name of a field has to be text")
            name = str(key.value)
            part = Node(self.file, f"{self.path}.{name}" if self.path else name, value)
            if name in parts:
                raise part.error("this field is given twice. Remove one")
            parts[name] = part
        return parts

    def sequence(self) -> list[Node]:
        """Its elements."""
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.error("this has to be a list")
        return [Node(self.file, f"{self.path}[{index}]", value) for index, value in enumerate(self.node.value)]

    def plain(self) -> Any:
        """A number, text, truth value, or lists and mappings of them."""
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_object(self.node, deep=True)
        except UNREADABLE as error:
            raise self.error("this is not a plain value: a number, text, true or false, or a list of them") from error

    def text(self) -> str:
        """Text that is not empty."""
        value = self.node.value.strip() if isinstance(self.node, yaml.ScalarNode) else ""
        if not value or self.node.tag == NULL or "\0" in value or not _is_unicode(value):
            raise self.error("this has to be text")
        return str(value)

    def texts(self) -> list[str]:
        """A list of texts, or one text with commas."""
        if self.is_sequence:
            return [element.text() for element in self.sequence()]
        return [part.strip() for part in self.text().split(",") if part.strip()]

    def read(self, adapter: TypeAdapter[T], value: Any = None) -> T:
        """Its plain value, or `value` instead, validated.

        Raises:
            UserError: it is wrong, with the line and the path of the part that is.
        """
        try:
            return adapter.validate_python(self.plain() if value is None else value)
        except ValidationError as error:
            problem = problem_in(error)
            part = self._part(problem.location)
            raise part.error(f"{part._shown()} {problem.text}") from error

    def _part(self, location: Sequence[int | str]) -> Node:
        """The element of a list that pydantic names; itself where the value is another."""
        if self.is_sequence and location and isinstance(location[0], int):
            return self.sequence()[location[0]]
        return self

    def _shown(self) -> str:
        """As the file has it, in part where it is long."""
        if not isinstance(self.node, yaml.ScalarNode):
            return "a list" if self.is_sequence else "a mapping"
        return repr(self.node.value[:SHOWN])


def parse(text: str, file: str) -> Node:
    """Read YAML.

    Raises:
        UserError: it is not valid YAML, or empty.
    """
    try:
        _refuse_depth(text, file)
        node = yaml.compose(text, LOADER)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise UserError(f"{file}{line}: not valid YAML ({problem}). Correct it.", "data") from error
    if node is None:
        raise UserError(f"{file} is empty. Give a list of checkpoints.", "data")
    return Node(file, "", node)


def _is_unicode(value: str) -> bool:
    """Whether it can be written to a file or a terminal; half a surrogate pair cannot."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _refuse_depth(text: str, file: str) -> None:
    depth = 0
    for event in yaml.parse(text, LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            line = f", line {event.start_mark.line + 1}" if event.start_mark else ""
            raise UserError(f"{file}{line}: more than {DEEPEST} lists or mappings in each other. Correct it.", "data")
