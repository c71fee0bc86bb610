"""What a worker is asked to do, sent to it as one line of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from longshort.sweep.run.retry import Memory
from longshort.sweep.store.fingerprint import sources, versions
from longshort.sweep.store.plan import Item


@dataclass(frozen=True)
class Job:
    """One checkpoint and some of its tasks."""

    model_args: dict[str, Any]  # of lm-eval's ``hf`` backend, with the commit to load as its revision
    tasks: tuple[str, ...]  # names
    metadata: dict[str, Any] = field(default_factory=dict)  # settings of longshort's tasks
    task_args: dict[str, Any] = field(default_factory=dict)  # metadata of other tasks
    revision: str = "main"  # the name that the results record in place of the commit
    limit: float | None = None  # documents per task
    batch_size: int | str | None = None  # documents per forward pass; by default as in `longshort eval`
    memory: Memory = "usual"  # see `longshort.sweep.run.retry.Attempt`
    versions: dict[str, str] = field(default_factory=dict)  # of the driver's libraries; others give other numbers

    def to_line(self) -> str:
        """Return the job as `job_from` reads it."""
        return json.dumps(asdict(self)) + "\n"


def job_from(line: str) -> Job:
    """Read what `Job.to_line` wrote."""
    values = json.loads(line)
    return Job(**values | {"tasks": tuple(values["tasks"])})


def job_for(item: Item, tasks: tuple[str, ...], memory: Memory = "usual") -> Job:
    """Return the job of some tasks of a planned checkpoint."""
    checkpoint = item.checkpoint
    commit = next(iter(item.inputs.values()))["identity"]
    # Adapters and tokenizers have revisions of their own, but lm-eval knows one.
    pinned = commit and not checkpoint.is_local and len(sources(checkpoint)) == 1
    return Job(
        model_args=checkpoint.loading | ({"revision": commit} if pinned else {}) | dict(checkpoint.model_args),
        tasks=tasks,
        metadata=checkpoint.metadata(),
        task_args=dict(checkpoint.task_args or {}),
        revision=checkpoint.revision,
        limit=checkpoint.limit,
        batch_size=checkpoint.batch_size,
        memory=memory,
        versions=versions(),
    )
