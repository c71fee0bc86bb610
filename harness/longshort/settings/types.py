"""The types of settings: what forms a value can be given in, and its bounds."""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

MIN_LENGTH = 8  # below, half a length and a BOS leave no position to compare
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def _number(value: Any) -> int | float:
    """A finite number, which may be given as text; NaN for anything else. True is not one, 2.0 is 2."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return math.nan
    if not math.isfinite(number):
        return math.nan
    if isinstance(value, int):
        return value
    return int(number) if number.is_integer() else number


def _whole(value: Any, least: int) -> int:
    """A whole number; pydantic itself takes True and refuses "7e9"."""
    number = _number(value)
    if not isinstance(number, int) or number < least:
        raise ValueError(f"is not a whole number of at least {least}")
    return number


def _positive(value: Any) -> int | float:
    number = _number(value)
    if not number > 0:
        raise ValueError("is not a number above 0")
    return number


def _split(value: Any) -> Any:
    """The parts of a text with commas, or of a single number."""
    if isinstance(value, int | float | str):
        return [part.strip() for part in str(value).split(",") if part.strip()]
    return value


def _ascending(lengths: tuple[int, ...]) -> tuple[int, ...]:
    if not lengths:
        raise ValueError("is empty. Give at least one length in tokens, as in lengths=[2048,4096]")
    return tuple(sorted(set(lengths)))


def _some(tasks: tuple[str, ...]) -> tuple[str, ...]:
    if not tasks:
        raise ValueError("names no task. Name at least one, or omit it to run the longshort tasks")
    return tasks


def _batch_size(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"auto(:[0-9]+)?", value):
        return value
    try:
        return _whole(value, 1)
    except ValueError as error:
        raise ValueError("is neither auto nor a whole number of at least 1") from error


def _memory(value: Any) -> int:
    match = re.fullmatch(r"([0-9.]+) *([KMGT]B)?", str(value).strip(), re.IGNORECASE)
    try:
        amount = int(float(match[1]) * UNITS.get((match[2] or "").upper(), 1)) if match else 0
    except (ValueError, OverflowError):
        amount = 0
    if amount < 1:
        raise ValueError("is not an amount of memory. Write it as 24GB, 500MB, or in bytes")
    return amount


def _json_object(value: Any) -> Any:
    """The object in a JSON text; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value, object_pairs_hook=_each_key_once)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError("is not JSON. Write it as '{\"max_seq_lengths\": [4096, 8192]}'") from error
    if not isinstance(found, dict):
        raise ValueError("is not a JSON object. Write it as '{\"max_seq_lengths\": [4096, 8192]}'")
    return found


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("has a key twice. Remove one of them")
    return found


def _plain_mapping(value: dict[str, Any]) -> dict[str, Any]:
    try:
        return dict(json.loads(json.dumps(value, allow_nan=False)))  # recorded as JSON, so it has to be the same there
    except (TypeError, ValueError, RecursionError) as error:
        what = "numbers, texts, truth values, and lists and objects of them"
        raise ValueError(f"holds more than JSON can: {what}") from error


Text = Annotated[str, BeforeValidator(str)]
Count = Annotated[int, BeforeValidator(lambda value: _whole(value, 1))]
CountOrZero = Annotated[int, BeforeValidator(lambda value: _whole(value, 0))]
Positive = Annotated[float, BeforeValidator(_positive), AfterValidator(_number)]  # 2.0 is recorded as 2
Switch = Annotated[bool, Field(strict=True)]
Length = Annotated[int, BeforeValidator(lambda value: _whole(value, MIN_LENGTH))]
Lengths = Annotated[tuple[Length, ...], BeforeValidator(_split), AfterValidator(_ascending)]
Names = Annotated[tuple[Text, ...], BeforeValidator(_split), AfterValidator(_some)]
BatchSize = Annotated[int | str, BeforeValidator(_batch_size)]
Memory = Annotated[int, BeforeValidator(_memory)]
JsonObject = Annotated[dict[str, Any], BeforeValidator(_json_object), AfterValidator(_plain_mapping)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
