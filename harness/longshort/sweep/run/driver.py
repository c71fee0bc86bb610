"""The driver: submits what is missing, saves what comes back, tries again what may succeed."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from huggingface_hub import constants

from longshort.errors import UserError
from longshort.sweep.run.engines import Engine, Request
from longshort.sweep.run.failures import Failure
from longshort.sweep.run.process import Event
from longshort.sweep.store.folder import Folder, key_of, slug
from longshort.sweep.store.plan import Item, relabel, to_run

logger = logging.getLogger(__name__)

WAIT = 0.5  # seconds between looks at the clock while nothing happens


@dataclass
class Progress:
    """Where a sweep stands; what is watched.

    Attributes:
        items: by a name of their own, in the order in which they run.
        states: of each checkpoint and task: waiting, loading, running, done, or failed with its kind.
        failures: of each checkpoint and task that has no result.
        seconds: how long each checkpoint's worker took, the last one.
        notes: what was left out of results that are there.
    """

    items: dict[str, Item]
    states: dict[tuple[str, str], str] = field(default_factory=dict)
    failures: dict[tuple[str, str], Failure] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def unfinished(self, name: str) -> list[str]:
        """Tasks of a checkpoint that are neither done nor failed."""
        return [task for task in self.items[name].missing if self.states[name, task] not in ("done", "failed")]


Watch = Callable[[Progress, str | None], None]


def run_plan(items: Sequence[Item], folder: Folder, engine: Engine, watch: Watch) -> Progress:
    """Run what a plan lacks; the folder has to be locked.

    Ctrl-C and SIGTERM end all workers within seconds and lose nothing that was saved.

    Args:
        items: in the order in which they shall start.
        folder: where results go.
        engine: where workers run.
        watch: told of every change, with a line for people or None.

    Raises:
        KeyboardInterrupt: interrupted.
    """
    progress = Progress(to_run(items))
    driver = _Driver(progress, folder, engine, watch)
    try:
        relabelled = relabel(items, folder)
    except UserError as error:  # no reason not to measure what can be
        watch(progress, f"what the manifest says about checkpoints is not in all their results: {error}")
    else:
        if relabelled:
            watch(progress, f"{relabelled} results took over what the manifest says about their checkpoint")
    folder.record("sweep", jobs=len(progress.items), engine=engine.describe())
    with _interrupts():
        try:
            driver.run()
            seconds = round(time.monotonic() - progress.started, 3)
            folder.record("finished", seconds=seconds, workers=driver.most_at_once)
        except KeyboardInterrupt:
            engine.stop()
            folder.record("interrupted")
            raise
        finally:
            engine.stop()
    return progress


class _Driver:
    def __init__(self, progress: Progress, folder: Folder, engine: Engine, watch: Watch) -> None:
        self.progress, self.folder, self.engine, self.watch = progress, folder, engine, watch
        self.memory = dict.fromkeys(progress.items, "usual")
        self.again: dict[str, set[str]] = {name: set() for name in progress.items}  # kinds retried once
        self.last: dict[str, tuple[str | None, Failure]] = {}  # task, why the present attempt came to nothing
        self.since: dict[str, float] = {}  # start of each worker that runs
        self.most_at_once = 0

    def run(self) -> None:
        waiting = set()
        for name, item in self.progress.items.items():
            for task in item.missing:
                self.progress.states[name, task] = "waiting"
            if item.failure:
                self._fail(name, list(item.missing), item.failure)
            else:
                self._submit(name)
                waiting.add(name)
        while waiting:
            for name, event in self.engine.events(WAIT):
                if name in waiting and self._handle(name, event):
                    waiting.remove(name)
                if not waiting:
                    break
            self.watch(self.progress, None)

    def _submit(self, name: str) -> None:
        item = self.progress.items[name]
        item.missing = {task: item.missing[task] for task in self.progress.unfinished(name)}
        self.last.pop(name, None)
        checkpoint = item.checkpoint
        line = item.job(self.memory[name]).to_line()
        self.engine.submit(Request(name, line, checkpoint.resources, checkpoint.timeout))

    def _handle(self, name: str, event: Event) -> bool:
        """Act on an event; True when nothing more is to come of this checkpoint."""
        item, kind = self.progress.items[name], event["event"]
        if kind == "log":
            self.folder.log(item.checkpoint, event["text"])
        elif kind == "note":
            self.watch(self.progress, f"{item.checkpoint.name}: {event['message']}")
        elif kind == "starting":
            self.since[name] = time.monotonic()
            self.most_at_once = max(self.most_at_once, len(self.since))
        elif kind == "loading":
            self._set(name, self.progress.unfinished(name), "loading")
        elif kind == "loaded":
            self._record(name, "loaded", seconds=event["seconds"], imports=event.get("imports"))
        elif kind == "started":
            self._record(name, "started", task=event["task"])
            self._set(name, [event["task"]], "running")
        elif kind == "result":
            self._save(name, event)
        elif kind == "failed":
            self._failed(name, event)
        elif kind == "exit":
            return self._exit(name, event)
        return False

    def _set(self, name: str, tasks: Sequence[str], state: str) -> None:
        for task in tasks:
            self.progress.states[name, task] = state
        self.watch(self.progress, None)

    def _save(self, name: str, event: Event) -> None:
        item, task = self.progress.items[name], event["task"]
        data = json.loads(event["text"])
        inputs = item.inputs[task]
        if inputs["identity"] is None:  # the hub did not tell before
            inputs = inputs | {"identity": data["config"].get("model_sha") or None}
        try:
            self.folder.save(item.checkpoint, task, inputs, data)
        except UserError as error:
            self._fail(name, [task], Failure("unwritable", str(error)))
            return
        self.progress.states[name, task] = "done"
        self.progress.notes[name, task] = event["notes"]
        self._record(
            name, "done", task=task, key=key_of(inputs), seconds=event["seconds"], notes=event["notes"] or None
        )
        left_out = f" (left out: {'; '.join(event['notes'])})" if event["notes"] else ""
        self.watch(self.progress, f"{item.checkpoint.name}: {task} done in {event['seconds']:.0f} s{left_out}")

    def _failed(self, name: str, event: Event) -> None:
        failure, task = Failure(event["kind"], event["message"]), event.get("task")
        if task is None or failure.kind in ("out_of_memory", "hub"):
            self.last[name] = task, failure  # decided at the exit: another attempt may do
        else:
            self._fail(name, [task], failure)

    def _exit(self, name: str, event: Event) -> bool:
        left = self.progress.unfinished(name)
        if name in self.since:
            self.progress.seconds[name] = time.monotonic() - self.since.pop(name)
            self._record(name, "ended", seconds=round(self.progress.seconds[name], 3))
        if not left:
            return True
        task, failure = self.last.get(name) or (None, _died(event))
        again = self._may_try_again(name, failure)
        if not again and task and left != [task]:  # the other tasks may need less
            self._fail(name, [task], failure)
            again = True
        elif again:
            self._record(name, "retry", kind=failure.kind, message=failure.message, memory=self.memory[name])
            self.watch(self.progress, f"{self.progress.items[name].checkpoint.name}: {failure.kind}, tried again")
        if again:
            self._set(name, self.progress.unfinished(name), "waiting")
            self._submit(name)
            return False
        self._fail(name, left, failure)
        return True

    def _may_try_again(self, name: str, failure: Failure) -> bool:
        if failure.kind == "out_of_memory":
            offload = self.progress.items[name].checkpoint.cpu_offload
            following = {"usual": "small", "small": "offload" if offload else None}.get(self.memory[name])
            self.memory[name] = following or self.memory[name]
            return following is not None
        if failure.kind == "hub" and constants.HF_HUB_OFFLINE:  # what is not here now will not be in a minute
            return False
        if failure.kind in ("killed", "hub") and failure.kind not in self.again[name]:
            self.again[name].add(failure.kind)
            return True
        return False

    def _fail(self, name: str, tasks: Sequence[str], failure: Failure) -> None:
        for task in tasks:
            self.progress.states[name, task] = "failed"
            self.progress.failures[name, task] = failure
            self._record(name, "failed", task=task, kind=failure.kind, message=failure.message)
        checkpoint = self.progress.items[name].checkpoint
        self.watch(self.progress, f"{checkpoint.name}: failed, {failure.kind}: {failure.message}")

    def _record(self, name: str, event: str, **values: Any) -> None:
        checkpoint = self.progress.items[name].checkpoint
        about = {"checkpoint": checkpoint.name, "revision": checkpoint.revision, "id": slug(checkpoint)}
        self.folder.record(event, **about, **values)


def _died(event: Event) -> Failure:
    """The failure of a worker that ended without a word."""
    if event.get("stopped") == "timeout":
        return Failure("timeout", "it took longer than its timeout")
    code = event.get("code")
    if event.get("message"):
        return Failure("killed", event["message"])
    if isinstance(code, int) and code < 0:
        return Failure("killed", f"its process ended by {signal.Signals(-code).name}")
    return Failure("error", f"its process ended with code {code}; the log tells more")


@contextmanager
def _interrupts() -> Iterator[None]:
    """SIGTERM, as a cluster sends it, ends a sweep as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
