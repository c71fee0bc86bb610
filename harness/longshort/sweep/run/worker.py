"""One checkpoint in a process of its own: loaded once, evaluated task by task, or for several tasks together.

``python -m longshort.sweep.run.worker`` reads a job as one line of JSON on its standard input and answers with
events, one line of JSON each, on its standard output; what libraries print goes to standard error. Its input
stays open as long as its parent lives: at the end of input it ends at once, so that no worker outlives a killed
driver. A crash, a leak or a checkpoint's code ends with the process.
"""

from __future__ import annotations

import base64
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from longshort.settings import DEFAULT_TASKS
from longshort.sweep.run.events import Event, Failed, Loaded, Loading, Result, Started, TokenPart, TokensSent, to_line
from longshort.sweep.run.failures import classify, gap_reasons, why_empty
from longshort.sweep.run.job import Job, job_from
from longshort.sweep.store.fingerprint import versions

Report = Callable[[Event], None]

SMALLER_CHUNKS = 8
BYTES_OF_PART = 3 * 2**20  # of a token file in one event; a multiple of 3, so that base64 needs no padding
SHARE_OF_GPU = 0.5  # for weights, where others are offloaded: the rest is for activations


def evaluate(job: Job, report: Report) -> None:
    """Evaluate a job's tasks."""
    mine = versions()
    others = [f"{name} {mine.get(name)} for {other}" for name, other in job.versions.items() if mine.get(name) != other]
    if others:
        report(Failed("versions", f"this worker has {', '.join(others)}"))
        return
    if job.memory != "usual":
        job = replace(job, batch_size=1)
    report(Loading())
    start = time.monotonic()
    try:
        from longshort.lmeval.imports import import_libraries

        import_libraries()
        imports = time.monotonic() - start
        lm, arguments = _load(job)
    except Exception as error:  # anything may be wrong with a checkpoint
        report(_failed(error))
        return
    report(Loaded(round(time.monotonic() - start, 3), round(imports, 3)))
    for tasks in _together(job.tasks):
        if not _evaluate_tasks(lm, arguments, job, tasks, report):
            return


def _together(tasks: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Tasks that are evaluated together: perplexity and misalignment share their forward passes."""
    shared = tuple(task for task in tasks if task in DEFAULT_TASKS)
    if shared:
        yield shared
    yield from ((task,) for task in tasks if task not in shared)


def _evaluate_tasks(lm: Any, arguments: dict[str, Any], job: Job, tasks: tuple[str, ...], report: Report) -> bool:
    """Evaluate tasks together; return False if no others can follow in this process."""
    from longshort.lmeval.evaluate import results_of

    start = time.monotonic()
    for task in tasks:
        report(Started(task))
    try:
        results = _measure(lm, arguments, job, tasks)
    except Exception as error:  # the other tasks are still evaluated
        failed = [_failed(error, task) for task in tasks]
        for each in failed:
            report(each)
        return failed[0].kind != "out_of_memory"  # a new process continues, with less
    seconds = (time.monotonic() - start) / len(tasks)
    sent: set[str] = set()
    for task in tasks:
        outcome = _outcome(results_of(results, task), job, task, seconds)
        if isinstance(outcome, Result):
            _send_tokens(results, sent, report)
        report(outcome)
    return True


def _send_tokens(results: dict[str, Any], sent: set[str], report: Report) -> None:
    """Report the token file of the next result; a file that was sent for another result is only named."""
    from longshort.results.tokens import RECORD

    if tokens := results.get(RECORD):
        content = b"" if tokens.sha256 in sent else tokens.content
        for start in range(0, len(content), BYTES_OF_PART):
            report(TokenPart(base64.b64encode(content[start : start + BYTES_OF_PART]).decode()))
        report(TokensSent(tokens.rows, tokens.sha256))
        sent.add(tokens.sha256)


def _load(job: Job) -> tuple[Any, dict[str, Any]]:
    """The checkpoint as lm-eval's model, and the arguments it was loaded with."""
    from longshort.lmeval import evaluate as lmeval

    arguments = job.model_args | (_offload() if job.memory == "offload" else {})
    lmeval.require_folders(arguments)
    return lmeval.load_checkpoint(arguments, batch_size=job.batch_size), arguments


def _measure(lm: Any, arguments: dict[str, Any], job: Job, tasks: tuple[str, ...]) -> dict[str, Any]:
    from longshort.lmeval import evaluate as lmeval

    prepared = lmeval.prepare_tasks(tasks, dict(arguments) | job.metadata, job.task_args)
    divisor = 1 if job.memory == "usual" else SMALLER_CHUNKS
    return lmeval.evaluate_loaded(
        lm, arguments, prepared, batch_size=job.batch_size, limit=job.limit, chunk_divisor=divisor
    )


def _outcome(results: dict[str, Any], job: Job, task: str, seconds: float) -> Result | Failed:
    from longshort.lmeval.evaluate import problems
    from longshort.lmeval.output import to_json

    failure = why_empty(results, task)
    if failure:
        return Failed(failure.kind, failure.message, task)
    _name_revision(results, job)
    notes = problems(results) + gap_reasons(results)
    return Result(task, round(seconds, 3), to_json(results), notes)


def _failed(error: Exception, task: str | None = None) -> Failed:
    traceback.print_exception(error)  # into the log
    failure = classify(error)
    return Failed(failure.kind, failure.message, task)


def _offload() -> dict[str, Any]:
    """Weights where there is room: half of each GPU, else main memory."""
    import psutil
    import torch

    if not torch.cuda.is_available():
        return {}
    total = min(torch.cuda.mem_get_info(index)[1] for index in range(torch.cuda.device_count()))
    return {
        "parallelize": True,
        "max_memory_per_gpu": int(total * SHARE_OF_GPU),
        "max_cpu_memory": psutil.virtual_memory().available,  # without it, lm-eval would offload to the disk
    }


def _name_revision(results: dict[str, Any], job: Job) -> None:
    """Record the name of the revision; the commit stays as ``model_sha``."""
    config = results["config"]
    config["model_sha"] = config.get("model_sha") or job.model_args.get("revision", "")
    config["model_args"] = config["model_args"] | {"revision": job.revision}
    config["model_revision"] = job.revision


def main() -> None:
    """Read a job, answer with events."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is not an event
    sys.stdout = sys.stderr
    lock = threading.Lock()

    def report(event: Event) -> None:
        with lock:
            events.write(to_line(event))
            events.flush()

    job = job_from(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    evaluate(job, report)
    events.close()
    os._exit(0)  # does not wait for threads of libraries or of a checkpoint's code


def _end_with_parent() -> None:
    # Not sys.stdin: its lock would be held in the processes that lm-eval forks, which then could not end.
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
