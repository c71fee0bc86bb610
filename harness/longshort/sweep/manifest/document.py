"""YAML whose every value knows its line and the way to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import yaml

from longshort.errors import UserError

DEEPEST = 50  # of values in values; PyYAML's C loader ends the process at some ten thousand
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a thousand entries in a second, not in ten

# PyYAML's constructors raise whatever comes where a tag does not fit its value.
UNREADABLE = (
    yaml.YAMLError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Node:
    """A value in a file.

    Attributes:
        file: for messages.
        path: as ``checkpoints[3].lengths``.
        node: of PyYAML.
    """

    file: str
    path: str
    node: yaml.Node

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

    def error(self, problem: str) -> UserError:
        """The mistake, with its line and field, on one line."""
        where = f", {self.path}" if self.path else ""
        end = "" if problem.endswith("?") else "."
        return UserError(" ".join(f"{self.file}, line {self.line}{where}: {problem.rstrip('.')}{end}".split()))

    def mapping(self, what: str = "value") -> dict[str, Node]:
        """Its parts by name."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error(f"this {what} has to be a mapping, as 'name: value'")
        parts: dict[str, Node] = {}
        for key, value in self.node.value:
            name = str(getattr(key, "value", ""))
            part = Node(self.file, f"{self.path}.{name}" if self.path else name, value)
            if not isinstance(key, yaml.ScalarNode) or name in parts:
                raise part.error("it is given twice" if name in parts else "a name has to be text")
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
            raise self.error("this is no plain value") from error

    def text(self) -> str:
        """Text that is not empty."""
        value = self.node.value.strip() if isinstance(self.node, yaml.ScalarNode) else ""
        is_null = self.node.tag == "tag:yaml.org,2002:null"
        if not value or is_null or "\0" in value or not _is_unicode(value):
            raise self.error("this has to be text")
        return str(value)

    def texts(self) -> list[str]:
        """A list of texts, or one text with commas."""
        if self.is_sequence:
            return [element.text() for element in self.sequence()]
        return [part.strip() for part in self.text().split(",") if part.strip()]

    def whole(self, least: int) -> int:
        """A whole number; 7e9 is one."""
        value = self._number(f"a whole number of at least {least}")
        if value != int(value) or value < least:
            raise self.error(f"{self._shown()} is not a whole number of at least {least}")
        return int(value)

    def positive(self) -> float:
        """A number above 0."""
        value = self._number("a number above 0")
        if value <= 0:
            raise self.error(f"{self._shown()} is not a number above 0")
        return value if value != int(value) else int(value)

    def truth(self) -> bool:
        """True or false."""
        value = self.plain()
        if not isinstance(value, bool):
            raise self.error(f"{self._shown()} is neither true nor false")
        return value

    def choice(self, *options: str) -> str:
        """One of some names."""
        if self.plain() not in options:
            raise self.error(f"{self._shown()} is none of {', '.join(options)}")
        return self.text()

    def _shown(self) -> str:
        """As the file has it, in part where it is long."""
        if not isinstance(self.node, yaml.ScalarNode):
            return "a list" if self.is_sequence else "a mapping"
        return repr(self.node.value[:60])

    def _number(self, what: str) -> float:
        value = self.plain()
        try:
            if isinstance(value, bool) or not isinstance(value, int | float | str) or not math.isfinite(float(value)):
                raise ValueError
            return float(value) if not isinstance(value, int) else value
        except (ValueError, OverflowError) as error:
            raise self.error(f"{self._shown()} is not {what}") from error


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
            raise UserError(f"{file}{line}: more than {DEEPEST} lists or mappings in each other. Correct it.")


def parse(text: str, file: str) -> Node:
    """Read YAML.

    Raises:
        UserError: it is none, or empty.
    """
    try:
        _refuse_depth(text, file)
        node = yaml.compose(text, LOADER)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise UserError(f"{file}{f', line {mark.line + 1}' if mark else ''}: not valid YAML ({problem}).") from error
    if node is None:
        raise UserError(f"{file} is empty. Give a list of checkpoints.")
    return Node(file, "", node)
