"""The state of a running sweep, for the driver that changes it and the watch that shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from longshort.sweep.run.received import ReceivedTokens
from longshort.sweep.run.retry import Attempt
from longshort.sweep.store.failure import Failure
from longshort.sweep.store.plan import Item, to_run

TaskState = Literal["waiting", "loading", "running", "done", "failed"]


@dataclass
class CheckpointRun:
    """One checkpoint of a running sweep."""

    name: str  # unique in the sweep
    item: Item  # of the plan
    states: dict[str, TaskState]  # of each task that was missing
    failures: dict[str, Failure] = field(default_factory=dict)  # of each task that has failed
    attempt: Attempt = field(default_factory=Attempt)  # the current one
    # A failure of the current attempt, and the task it is of (None: all): what follows is decided when the worker ends.
    undecided: tuple[str | None, Failure] | None = None
    tokens: ReceivedTokens = field(default_factory=ReceivedTokens)  # per-token values from the current worker
    started: float | None = None  # when the current worker started; None while there is none
    seconds: float | None = None  # how long the last worker took

    @property
    def unfinished(self) -> list[str]:
        """Tasks that are neither done nor failed."""
        return [task for task, state in self.states.items() if state not in ("done", "failed")]


@dataclass
class Progress:
    """A running sweep."""

    runs: dict[str, CheckpointRun]  # by the checkpoints' names, in the order in which they start
    started: float = field(default_factory=time.monotonic)  # when the sweep began

    @property
    def states(self) -> dict[tuple[str, str], TaskState]:
        """The state of each checkpoint and task."""
        return {(name, task): state for name, run in self.runs.items() for task, state in run.states.items()}

    @property
    def failures(self) -> dict[tuple[str, str], Failure]:
        """The failure of each checkpoint and task that has no result."""
        return {(name, task): failure for name, run in self.runs.items() for task, failure in run.failures.items()}


Watch = Callable[[Progress, str | None], None]


def progress_of(items: Sequence[Item]) -> Progress:
    """Return the progress of a plan that has not begun."""
    planned = to_run(items).items()
    return Progress({name: CheckpointRun(name, item, dict.fromkeys(item.missing, "waiting")) for name, item in planned})
