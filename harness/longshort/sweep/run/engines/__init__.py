"""Where workers run: on this machine, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from longshort.settings import Resources
from longshort.sweep.run.process import Event


@dataclass(frozen=True)
class Request:
    """One worker to run.

    Attributes:
        name: of the job, told with each of its events.
        line: the job, from `longshort.sweep.run.worker.Job.to_line`.
        resources: what it needs.
        hours: how long it may take.
    """

    name: str
    line: str
    resources: Resources
    hours: float | None


def refusal(name: str, message: str) -> list[tuple[str, Event]]:
    """The events of a request that cannot be met."""
    failed = {"event": "failed", "kind": "setting", "message": message}
    return [(name, failed), (name, {"event": "exit", "code": 0, "stopped": None})]


class Engine(Protocol):
    """Runs workers until told to stop; every submitted one ends in an ``exit`` event.

    Beside a worker's own events there are ``starting``, the first, and ``note``, a line for people.
    """

    def describe(self) -> str:
        """What it runs on, in a line."""

    def submit(self, request: Request) -> None:
        """Run a worker as soon as there is room, in the order they were given."""

    def events(self, seconds: float) -> Iterator[tuple[str, Event]]:
        """Name and event, as they come; ends when none came for so long."""

    def stop(self) -> None:
        """End all workers within seconds."""
