"""YAML whose every value knows its line and the way to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import yaml

from longshort.errors import UserError

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a thousand entries in a second, not in ten


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

    def error(self, part: str, problem: str) -> UserError:
        """The mistake, with its line and field."""
        where = ".".join(name for name in (self.path, part) if name)
        return UserError(f"{self.file}, line {self.line}{', ' + where if where else ''}: {problem.rstrip('.')}.")

    def mapping(self, what: str = "value") -> dict[str, Node]:
        """Its parts by name."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error("", f"this {what} has to be a mapping, as 'name: value'")
        parts: dict[str, Node] = {}
        for key, value in self.node.value:
            name = str(getattr(key, "value", ""))
            part = Node(self.file, f"{self.path}.{name}" if self.path else name, value)
            if not isinstance(key, yaml.ScalarNode) or name in parts:
                raise part.error("", "it is given twice" if name in parts else "a name has to be text")
            parts[name] = part
        return parts

    def sequence(self) -> list[Node]:
        """Its elements."""
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.error("", "this has to be a list")
        return [Node(self.file, f"{self.path}[{index}]", value) for index, value in enumerate(self.node.value)]

    def plain(self) -> Any:
        """A number, text, truth value, or lists and mappings of them."""
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_object(self.node, deep=True)
        except (yaml.YAMLError, ValueError, OverflowError, TypeError, RecursionError) as error:
            raise self.error("", "this is no plain value") from error

    def text(self) -> str:
        """Text that is not empty."""
        if not isinstance(self.node, yaml.ScalarNode) or not self.node.value.strip() or "\0" in self.node.value:
            raise self.error("", "this has to be text")
        return str(self.node.value).strip()

    def texts(self) -> list[str]:
        """A list of texts, or one text with commas."""
        if self.is_sequence:
            return [element.text() for element in self.sequence()]
        return [part.strip() for part in self.text().split(",") if part.strip()]

    def whole(self, least: int) -> int:
        """A whole number; 7e9 is one."""
        value = self._number(f"a whole number of at least {least}")
        if value != int(value) or value < least:
            raise self.error("", f"{self.plain()!r} is not a whole number of at least {least}")
        return int(value)

    def positive(self) -> float:
        """A number above 0."""
        value = self._number("a number above 0")
        if value <= 0:
            raise self.error("", f"{self.plain()!r} is not a number above 0")
        return value if value != int(value) else int(value)

    def truth(self) -> bool:
        """True or false."""
        value = self.plain()
        if not isinstance(value, bool):
            raise self.error("", f"{value!r} is neither true nor false")
        return value

    def choice(self, *options: str) -> str:
        """One of some names."""
        if self.plain() not in options:
            raise self.error("", f"{self.plain()!r} is none of {', '.join(options)}")
        return self.text()

    def _number(self, what: str) -> float:
        value = self.plain()
        try:
            if isinstance(value, bool) or not isinstance(value, int | float | str) or not math.isfinite(float(value)):
                raise ValueError
            return float(value) if not isinstance(value, int) else value
        except (ValueError, OverflowError) as error:
            raise self.error("", f"{str(value)[:60]!r} is not {what}") from error


def parse(text: str, file: str) -> Node:
    """Read YAML.

    Raises:
        UserError: it is none, or empty.
    """
    try:
        node = yaml.compose(text, LOADER)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise UserError(f"{file}{f', line {mark.line + 1}' if mark else ''}: not valid YAML ({problem}).") from error
    if node is None:
        raise UserError(f"{file} is empty. Give a list of checkpoints.")
    return Node(file, "", node)
