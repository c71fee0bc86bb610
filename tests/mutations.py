"""Valid JSON spoiled as files are: values deleted or of another type, bytes cut off, keys twice, other encodings."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from longshort.errors import UserError

ODD: list[Any] = [
    None, True, -1, 0, 1.5, 10**20, 10**400, -0.0, 1e308, float("nan"), float("inf"), "", "x", "1e999", "a\nb",
    "\ud800", "\0", [], [1], [[]], {}, {"a": 1}, [{"a": None}],
]  # fmt: skip
DEEP = 100_000


def outcome(reader: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, str]:
    """What a reader gives, or None and the one line in which it refuses; any other exception goes on."""
    try:
        return reader(*arguments, **options), ""
    except UserError as error:
        message = str(error)
    assert message
    assert "\n" not in message
    return None, message


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> bytes:
    """The text of a JSON value after one to three changes, and perhaps damage to its bytes."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        value = _changed(draw, value)
    return draw(damaged(json.dumps(value).encode())) if draw(st.booleans()) else json.dumps(value).encode()


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes that were cut off, overwritten, or written in another way."""
    at = draw(st.integers(0, len(content)))
    kind = draw(st.sampled_from(["cut", "noise", "twice", "digits", "deep", "encoding", "mark", "lines"]))
    if kind == "cut":
        return content[:at]
    if kind == "noise":
        return content[:at] + draw(st.binary(min_size=1, max_size=8)) + content[at + 1 :]
    if kind == "twice":  # the first key again, before itself
        key, colon, _ = content.partition(b":")
        return key + b": 0, " + key.lstrip(b"{[ ") + content[len(key) :] if colon else content
    if kind == "digits":
        return content.replace(b"1", b"1" * 5000, 1)
    if kind == "deep":
        return content.replace(b"[", b"[" * DEEP, 1)
    if kind == "encoding":
        return content.decode("utf-8", errors="replace").encode("utf-16")
    return b"\xef\xbb\xbf" + content if kind == "mark" else content.replace(b",", b",\n")


def _changed(draw: st.DrawFn, value: Any) -> Any:
    """A value with something in it, at any depth, deleted or replaced."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 4)):
        keys: list[Any] = sorted(value) if isinstance(value, dict) else list(range(len(value)))
        key = draw(st.sampled_from(keys))
        if draw(st.integers(0, 3)) == 0:
            del value[key]
        else:
            value[key] = _changed(draw, value[key])
        return value
    return copy.deepcopy(draw(st.sampled_from(ODD)))
