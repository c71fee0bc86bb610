"""Where workers run: on this machine, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from longshort.settings import Resources
from longshort.sweep.run.events import Event, Exit, Failed


@dataclass(frozen=True)
class Request:
    """One worker to run."""

    name: str  # of the job; each of its events comes with it
    line: str  # the job, from `longshort.sweep.run.job.Job.to_line`
    resources: Resources  # what it needs
    hours: float | None  # how long it may take


def refusal(name: str, message: str) -> list[tuple[str, Event]]:
    """The events of a request that cannot be met."""
    return [(name, Failed("setting", message)), (name, Exit(0))]


class Engine(Protocol):
    """Runs workers until it is stopped; the events of each begin with `Starting` and end with `Exit`."""

    def describe(self) -> str:
        """Return what it runs on, in one line."""

    def submit(self, request: Request) -> None:
        """Run a worker as soon as its resources are free, in the order of submission."""

    def events(self, seconds: float) -> Iterator[tuple[str, Event]]:
        """Yield name and event as they come; return when none has come for so long."""

    def stop(self) -> None:
        """End all workers within seconds."""
