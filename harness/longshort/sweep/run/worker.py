"""One checkpoint in a process of its own: loaded once, evaluated task by task.

``python -m longshort.sweep.run.worker`` reads a job as one line of JSON on its standard input and answers with
events, one line of JSON each, on its standard output; what libraries print goes to standard error. Its input
stays open as long as its parent lives: at the end of input it ends at once, so that no worker outlives a killed
driver. A crash, a leak or a checkpoint's code ends with the process.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from longshort.sweep.run.failures import Failure, classify, gaps, lacking

Say = Callable[..., None]

SMALLER_CHUNKS = 8
SHARE_OF_GPU = 0.5  # for weights, where others are offloaded: the rest is for activations


@dataclass(frozen=True)
class Job:
    """What a worker is told.

    Attributes:
        model_args: of lm-eval's ``hf`` backend, with the commit to load as its revision.
        tasks: names.
        metadata: settings of longshort's tasks.
        revision: the name that the results shall carry in place of the commit.
        limit: documents per task.
        batch_size: documents per forward.
        memory: "usual"; "small": one document at a time and smaller chunks; "offload": also weights in main memory.
        versions: of the driver's libraries; another version here would be another number.
    """

    model_args: dict[str, Any]
    tasks: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict)
    revision: str = "main"
    limit: float | None = None
    batch_size: int | str = 1
    memory: str = "usual"
    versions: dict[str, str] = field(default_factory=dict)

    def to_line(self) -> str:
        """As `job_from` reads it."""
        return json.dumps(asdict(self)) + "\n"


def job_from(line: str) -> Job:
    """Read what `Job.to_line` wrote."""
    values = json.loads(line)
    return Job(**values | {"tasks": tuple(values["tasks"])})


def evaluate(job: Job, say: Say) -> None:
    """Evaluate a job's tasks; tell each result and failure through `say`."""
    from longshort.sweep.store.fingerprint import versions

    mine = versions()
    others = [f"{name} {mine.get(name)} for {other}" for name, other in job.versions.items() if mine.get(name) != other]
    if others:
        say("failed", **asdict(Failure("versions", f"this worker has {', '.join(others)}")))
        return
    say("loading")
    start = time.monotonic()
    try:
        from longshort.lmeval.imports import import_libraries

        import_libraries()
        imports = time.monotonic() - start
        from longshort.lmeval import evaluate as lmeval
        from longshort.lmeval.output import to_json

        arguments = job.model_args | (_offload() if job.memory == "offload" else {})
        batch_size, divisor = (job.batch_size, 1) if job.memory == "usual" else (1, SMALLER_CHUNKS)
        lmeval.require_checkpoint(str(arguments["pretrained"]))
        lm = lmeval.load_checkpoint(arguments, batch_size=batch_size)
    except Exception as error:  # anything may be wrong with a checkpoint; it is told, by kind
        _tell(error, say)
        return
    say("loaded", seconds=round(time.monotonic() - start, 3), imports=round(imports, 3))
    for task in job.tasks:
        start = time.monotonic()
        say("started", task=task)
        try:
            prepared = lmeval.prepare_tasks([task], dict(arguments) | job.metadata)
            results = lmeval.evaluate_loaded(
                lm, arguments, prepared, batch_size=batch_size, limit=job.limit, chunk_divisor=divisor
            )
        except Exception as error:  # the other tasks go on
            if _tell(error, say, task).kind == "out_of_memory":
                return  # in a new process, with less
            continue
        failure = lacking(results, task)
        if failure:
            say("failed", task=task, **asdict(failure))
            continue
        _name_revision(results, job)
        text = to_json(results)
        problems = lmeval.problems(results)
        say("result", task=task, seconds=round(time.monotonic() - start, 3), text=text, notes=problems + gaps(results))


def _tell(error: Exception, say: Say, task: str | None = None) -> Failure:
    traceback.print_exception(error)  # into the log
    failure = classify(error)
    say("failed", task=task, **asdict(failure))
    return failure


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
        "max_cpu_memory": psutil.virtual_memory().available,  # unnamed, main memory would be passed over for the disk
    }


def _name_revision(results: dict[str, Any], job: Job) -> None:
    """Record the revision by the name it was asked for; the commit stays as ``model_sha``."""
    config = results["config"]
    config["model_sha"] = config.get("model_sha") or job.model_args.get("revision", "")
    config["model_args"] = config["model_args"] | {"revision": job.revision}
    config["model_revision"] = job.revision


def main() -> None:
    """Read a job, answer with events."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no event
    sys.stdout = sys.stderr
    lock = threading.Lock()

    def say(event: str, **values: Any) -> None:
        with lock:
            events.write(json.dumps({"event": event, **values}) + "\n")
            events.flush()

    job = job_from(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    evaluate(job, say)
    events.close()
    os._exit(0)  # threads of libraries, or a checkpoint's, do not hold up the next


def _end_with_parent() -> None:
    # Not sys.stdin: its lock would be held in the processes that lm-eval forks, which then could not end.
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
