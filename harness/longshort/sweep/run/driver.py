"""The driver: submits what is missing, saves the results, and retries what may succeed."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from huggingface_hub import constants

from longshort.errors import UserError
from longshort.sweep.run.engines import Engine, Request
from longshort.sweep.run.events import (
    Event,
    Exit,
    Failed,
    Loaded,
    Loading,
    Log,
    Note,
    Result,
    Started,
    Starting,
    TokenPart,
    TokensSent,
)
from longshort.sweep.run.failures import classify
from longshort.sweep.run.job import job_for
from longshort.sweep.run.progress import CheckpointRun, Progress, TaskState, Watch, progress_of
from longshort.sweep.run.received import ReceivedTokens
from longshort.sweep.run.retry import RETRIED, next_attempt
from longshort.sweep.store.failure import Failure
from longshort.sweep.store.folder import Folder, key_of, slug
from longshort.sweep.store.plan import Item, relabel

logger = logging.getLogger(__name__)

WAIT = 0.5  # seconds to wait for an event before the watch is updated


def run_plan(items: Sequence[Item], folder: Folder, engine: Engine, watch: Watch) -> Progress:
    """Run what a plan lacks; the folder has to be locked.

    Ctrl-C and SIGTERM end all workers within seconds and lose nothing that was saved.

    Args:
        items: in the order in which they start.
        watch: called after every change, with a line for people or None.

    Raises:
        KeyboardInterrupt: interrupted.
        UserError: the engine is lost (kind "cluster").
    """
    progress = progress_of(items)
    driver = _Driver(progress, folder, engine, watch)
    try:
        relabelled = relabel(items, folder)
    except UserError as error:  # does not prevent the rest from being measured
        watch(progress, f"Results whose description of the checkpoint could not be updated: {error}")
    else:
        if relabelled:
            watch(progress, f"Updated the description of the checkpoint in {relabelled} results.")
    folder.record("sweep", jobs=len(progress.runs), engine=engine.describe())
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
        self.most_at_once = 0  # workers

    def run(self) -> None:
        waiting: set[str] = set()
        for name, run in self.progress.runs.items():
            if run.item.failure:
                self._fail(run, run.unfinished, run.item.failure)
            else:
                self._submit(run)
                waiting.add(name)
        while waiting:
            for name, event in self.engine.events(WAIT):
                if name in waiting and self._handle(self.progress.runs[name], event):
                    waiting.remove(name)
                if not waiting:
                    break
            self.watch(self.progress, None)

    def _submit(self, run: CheckpointRun) -> None:
        run.undecided = None
        checkpoint = run.item.checkpoint
        line = job_for(run.item, tuple(run.unfinished), run.attempt.memory).to_line()
        self.engine.submit(Request(run.name, line, checkpoint.resources, checkpoint.timeout))

    def _handle(self, run: CheckpointRun, event: Event) -> bool:
        """Act on an event; return True after the last one of the checkpoint."""
        checkpoint = run.item.checkpoint
        match event:
            case Log(text):
                self.folder.log(checkpoint, text)
            case Note(message):
                self.watch(self.progress, f"{checkpoint.name}: {message}")
            case Starting():
                run.started = time.monotonic()
                running = sum(other.started is not None for other in self.progress.runs.values())
                self.most_at_once = max(self.most_at_once, running)
            case Loading():
                self._set(run, run.unfinished, "loading")
            case Loaded(seconds, imports):
                self._record(run, "loaded", seconds=seconds, imports=imports)
            case TokenPart() | TokensSent():
                run.tokens.add(event)
            case Started(task):
                run.tokens = ReceivedTokens()  # others are of a worker that has ended
                self._record(run, "started", task=task)
                self._set(run, [task], "running")
            case Result():
                self._save(run, event)
            case Failed(kind, message, task):
                if task is None or kind in RETRIED:
                    run.undecided = task, Failure(kind, message)
                else:
                    self._fail(run, [task], Failure(kind, message))
            case Exit():
                return self._exit(run, event)
        return False

    def _set(self, run: CheckpointRun, tasks: Sequence[str], state: TaskState) -> None:
        run.states |= dict.fromkeys(tasks, state)
        self.watch(self.progress, None)

    def _save(self, run: CheckpointRun, result: Result) -> None:
        checkpoint, task = run.item.checkpoint, result.task
        data = json.loads(result.text)
        inputs = run.item.inputs[task]
        if inputs["identity"] is None:  # the hub did not answer when the sweep was planned
            inputs = inputs | {"identity": data["config"].get("model_sha") or None}
        try:
            tokens, problem = run.tokens.take()
            self.folder.save(checkpoint, task, inputs, data, tokens)
            if problem:
                raise problem
        except UserError as error:
            self._fail(run, [task], classify(error))
            return
        run.states[task] = "done"
        seconds, notes = result.seconds, result.notes
        self._record(run, "done", task=task, key=key_of(inputs), seconds=seconds, notes=notes or None)
        missing = f" (missing values: {'; '.join(notes)})" if notes else ""
        self.watch(self.progress, f"{checkpoint.name}: {task} done in {seconds:.0f} s{missing}")

    def _exit(self, run: CheckpointRun, event: Exit) -> bool:
        if run.started is not None:
            run.seconds, run.started = time.monotonic() - run.started, None
            self._record(run, "ended", seconds=round(run.seconds, 3))
        unfinished = run.unfinished
        if not unfinished:
            return True
        task, failure = run.undecided or (None, _failure_of_exit(event))
        checkpoint = run.item.checkpoint
        attempt = next_attempt(
            failure.kind, run.attempt, cpu_offload=checkpoint.cpu_offload, is_offline=constants.HF_HUB_OFFLINE
        )
        if attempt:
            run.attempt = attempt
            self._record(run, "retry", kind=failure.kind, message=failure.message, memory=attempt.memory)
            self.watch(self.progress, f"{checkpoint.name}: {failure.kind}, retrying")
        elif task and unfinished != [task]:  # the other tasks may need less
            self._fail(run, [task], failure)
        else:
            self._fail(run, unfinished, failure)
            return True
        self._set(run, run.unfinished, "waiting")
        self._submit(run)
        return False

    def _fail(self, run: CheckpointRun, tasks: Sequence[str], failure: Failure) -> None:
        for task in tasks:
            run.states[task] = "failed"
            run.failures[task] = failure
            self._record(run, "failed", task=task, kind=failure.kind, message=failure.message)
        self.watch(self.progress, f"{run.item.checkpoint.name}: failed, {failure.kind}: {failure.message}")

    def _record(self, run: CheckpointRun, event: str, **values: Any) -> None:
        checkpoint = run.item.checkpoint
        about = {"checkpoint": checkpoint.name, "revision": checkpoint.revision, "id": slug(checkpoint)}
        self.folder.record(event, **about, **values)


def _failure_of_exit(event: Exit) -> Failure:
    """The failure of a worker that ended without reporting one."""
    if event.stopped == "timeout":
        return Failure("timeout", "It took longer than its timeout.")
    if event.message:
        return Failure("killed", event.message)
    if event.code is not None and event.code < 0:
        return Failure("killed", f"Its process was ended by {signal.Signals(-event.code).name}.")
    return Failure("error", f"Its process ended with code {event.code}. See the log.")


@contextmanager
def _interrupts() -> Iterator[None]:
    """SIGTERM, as a cluster sends it, ends a sweep like Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
