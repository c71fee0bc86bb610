"""What happens to a worker, as typed events; between processes each is one line of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import get_args

from longshort.errors import Kind


@dataclass(frozen=True)
class Starting:
    """The engine starts the worker; the first event of every attempt."""


@dataclass(frozen=True)
class Loading:
    """The worker imports libraries and loads the checkpoint."""


@dataclass(frozen=True)
class Loaded:
    """The checkpoint is loaded, after some seconds, of which the imports took their part."""

    seconds: float
    imports: float | None = None


@dataclass(frozen=True)
class Started:
    """A task has begun."""

    task: str


@dataclass(frozen=True)
class TokenPart:
    """The next part of a token file."""

    data: str  # bytes as base64


@dataclass(frozen=True)
class TokensSent:
    """The token file of the next result is complete; it may be the same as that of the result before."""

    rows: int
    sha256: str


@dataclass(frozen=True)
class Result:
    """A task is done."""

    task: str
    seconds: float  # how long it took
    text: str  # the results file, as JSON
    notes: list[str] = field(default_factory=list)  # why values are missing from it


@dataclass(frozen=True)
class Failed:
    """A task failed, or with `task` None the checkpoint before its first task."""

    kind: Kind
    message: str
    task: str | None = None


@dataclass(frozen=True)
class Log:
    """Text that the worker printed."""

    text: str


@dataclass(frozen=True)
class Note:
    """A line for people."""

    message: str


@dataclass(frozen=True)
class Exit:
    """The worker has ended; the last event of every attempt."""

    code: int | None  # exit status; below 0 the signal that ended it; None where the engine lost it
    stopped: str | None = None  # why the engine stopped it: "timeout" or "interrupted"
    message: str | None = None  # why the engine lost it


Event = Starting | Loading | Loaded | Started | TokenPart | TokensSent | Result | Failed | Log | Note | Exit
CLASSES: dict[str, type[Event]] = {event_class.__name__.lower(): event_class for event_class in get_args(Event)}


def to_line(event: Event) -> str:
    """Return an event as `parse` reads it."""
    return json.dumps({"event": type(event).__name__.lower(), **asdict(event)}) + "\n"


def parse(line: str | bytes) -> Event:
    """Return the event in a line of JSON.

    Raises:
        ValueError: the line is not an event, as when a kill cut it off.
    """
    values = json.loads(line)
    try:
        return CLASSES[values.pop("event")](**values)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not an event: {line!r:.100}") from error
