"""Workers on a Ray cluster, started by hand, on SLURM or on Kubernetes: Ray places them and notices lost nodes.

Each Ray task runs the same worker process as the local engine and streams its events back. A task that Ray loses
(a killed worker, a node gone) ends in an ``exit`` event; the driver then submits what was not saved once more,
which Ray itself could not know.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from longshort.errors import UserError
from longshort.sweep.engines import Request
from longshort.sweep.engines.local import threads
from longshort.sweep.process import Event, WorkerProcess

SECONDS_TO_RETURN = 15.0  # a head that is restarted, as on Kubernetes, is back by then


class RayEngine:
    """Runs workers as Ray tasks with resource requests.

    Args:
        address: of a running cluster, as `ray.init` takes it; without one Ray is started on this machine.
        workers: at most so many at once; by default what the cluster has room for.

    Raises:
        UserError: Ray is not installed, or the cluster does not answer.
    """

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError("--engine ray needs Ray: pip install 'longshort[ray]'.") from error
        self._ray = ray
        try:
            ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
        except Exception as error:  # ConnectionError, RuntimeError, ValueError, or a bare Exception after a timeout
            cause = " ".join(str(error).split())[:200].rstrip(".")
            if address:
                message = f"Ray at {address} does not answer: {cause}. Is 'ray start --head' running there?"
            else:
                message = f"Ray cannot be started on this machine: {cause}. Run the same command again."
            raise UserError(message) from error
        self._workers = workers
        self._task = ray.remote(run_worker)  # once: each further export asks the head
        self._head = "" if (address or "").startswith("ray://") else ray.get_runtime_context().gcs_address
        self._silent_since: float | None = None
        self._waiting: deque[Request] = deque()
        self._streams: dict[Any, str] = {}
        self._resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray has no types here

    def describe(self) -> str:
        """What it runs on, in a line."""
        resources = self._resources
        return f"Ray, {resources.get('CPU', 0):.0f} cores and {resources.get('GPU', 0):.0f} GPUs"

    def submit(self, request: Request) -> None:
        """Run a worker as soon as there is room, in the order they were given."""
        self._waiting.append(request)
        self._submit_waiting()

    def events(self, seconds: float) -> Iterator[tuple[str, Event]]:
        """Name and event, as they come; ends when none came for so long."""
        ray = self._ray
        while True:
            if not self._streams:
                return
            try:
                ready, _ = ray.wait(list(self._streams), timeout=seconds, fetch_local=False)
            except Exception as error:  # the cluster's head is gone: Ray has no one class for it
                raise self._lost(error) from error
            self._look_for_head()
            if not ready:
                return
            for stream in ready:
                yield from self._next(stream)

    def stop(self) -> None:
        """End all workers within seconds."""
        self._waiting.clear()
        for stream in self._streams:
            with contextlib.suppress(Exception):  # a cluster that is gone has no workers either
                self._ray.cancel(stream, force=True, recursive=False)
        self._streams.clear()
        self._ray.shutdown()

    def _submit_waiting(self) -> None:
        while self._waiting and (not self._workers or len(self._streams) < self._workers):
            request = self._waiting.popleft()
            resources = request.resources
            gpus = int(self._resources.get("GPU", 0) > 0) if resources.gpus is None else resources.gpus
            task = self._task.options(
                num_cpus=resources.cpus,
                num_gpus=gpus,
                memory=resources.memory,
                num_returns="streaming",
                max_retries=0,
                name=request.name,
            )
            stream = task.remote(request.line, threads(resources), request.hours)
            self._streams[stream] = request.name

    def _next(self, stream: Any) -> Iterator[tuple[str, Event]]:
        name = self._streams[stream]
        try:
            event: Event = self._ray.get(next(stream))
        except StopIteration:
            event = {"event": "exit", "code": None, "message": "its Ray task ended early"}
        except self._ray.exceptions.LocalRayletDiedError as error:  # the driver's own: nothing can be submitted
            raise self._lost(error) from error
        except self._ray.exceptions.RayError as error:
            event = {"event": "exit", "code": None, "message": f"{type(error).__name__}: {_first_line(error)}"}
        if event["event"] == "exit":
            del self._streams[stream]
            self._submit_waiting()
        yield name, event

    def _look_for_head(self) -> None:
        """Ray itself would end this process after a minute, without a word of ours."""
        if not self._head:
            return
        host, _, port = self._head.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            self._silent_since = None
        except OSError as error:
            self._silent_since = self._silent_since or time.monotonic()
            if time.monotonic() - self._silent_since > SECONDS_TO_RETURN:
                raise self._lost(error) from error

    def _lost(self, error: Exception) -> UserError:
        return UserError(f"the Ray cluster is gone ({_first_line(error)}). Start it again, then run the same command.")


def run_worker(line: str, environment: dict[str, str], hours: float | None) -> Iterator[Event]:
    """A worker's events, on a node of the cluster."""
    process = WorkerProcess(line, environment, hours)
    try:
        yield from process
    finally:
        process.stop()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".)")
