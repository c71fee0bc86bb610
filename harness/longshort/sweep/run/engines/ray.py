"""Workers on a Ray cluster, started by hand, on SLURM or on Kubernetes: Ray places them and notices lost nodes.

Each Ray task runs the same worker process as the local engine and streams its events back. A task that Ray loses
(a killed worker, a node gone) ends in an `Exit` event; the driver then submits what was not saved once more,
which Ray itself could not know.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from longshort.errors import UserError
from longshort.sweep.run.engines import Request, refusal
from longshort.sweep.run.engines.connection import cause_of, connect, reach
from longshort.sweep.run.engines.local import threads
from longshort.sweep.run.events import Event, Exit, Note, Starting, parse, to_line
from longshort.sweep.run.process import WorkerProcess

SECONDS_TO_RETURN = 10.0  # of a head that is restarted
SECONDS_BETWEEN_LOOKS = 1.0  # at the nodes


class RayEngine:
    """Runs workers as Ray tasks with resource requests.

    Args:
        address: see `longshort.sweep.run.engines.connection.connect`.
        workers: maximum number at once; by default as many as the cluster has resources for.
        node_wait: seconds after which a request that no node can meet fails. Ray itself would wait forever.

    Raises:
        UserError: Ray is not installed, or the cluster does not answer.
    """

    def __init__(self, address: str | None = None, workers: int | None = None, node_wait: float = 60.0) -> None:
        self._ray = connect(address)
        self._workers = workers
        self._node_wait = node_wait
        self._task = self._ray.remote(run_worker)  # once: each further export asks the head
        self._head = self._ray.get_runtime_context().gcs_address
        self._silent_since: float | None = None
        self._waiting: deque[Request] = deque()
        self._streams: dict[Any, Request] = {}
        self._begun: set[str] = set()  # requests that run on a node
        self._homeless: dict[str, float] = {}  # requests that no node could meet, and since when
        self._looked = 0.0
        self._own: deque[tuple[str, Event]] = deque()  # events that are not a worker's
        self._resources: dict[str, float] = self._ray.cluster_resources()

    def describe(self) -> str:
        """Return what it runs on, in one line."""
        resources = self._resources
        return f"Ray, {resources.get('CPU', 0):.0f} cores and {resources.get('GPU', 0):.0f} GPUs"

    def submit(self, request: Request) -> None:
        """Run a worker as soon as its resources are free, in the order of submission."""
        self._waiting.append(request)
        self._submit_waiting()

    def events(self, seconds: float) -> Iterator[tuple[str, Event]]:
        """Yield name and event as they come; return when none has come for so long."""
        while self._streams or self._own:
            while self._own:
                yield self._own.popleft()
            if not self._streams:
                return
            try:
                ready, _ = self._ray.wait(list(self._streams), timeout=seconds, fetch_local=False)
            except Exception as error:  # the cluster's head is gone: Ray has no one class for it
                raise self._lost(error) from error
            self._look_for_head()
            if self._silent_since is None:  # otherwise the question would block
                self._look_for_nodes()
            if not ready and not self._own:
                return
            for stream in ready:
                if stream in self._streams:
                    yield from self._next(stream)

    def stop(self) -> None:
        """End all workers within seconds."""
        self._waiting.clear()
        for stream in self._streams:
            self._cancel(stream)
        self._streams.clear()  # to cancel one after the shutdown would start Ray again
        self._ray.shutdown()

    def _submit_waiting(self) -> None:
        while self._waiting and (not self._workers or len(self._streams) < self._workers):
            request = self._waiting.popleft()
            wanted = self._wanted(request)
            task = self._task.options(
                num_cpus=wanted["CPU"],
                num_gpus=wanted["GPU"],
                memory=request.resources.memory,
                num_returns="streaming",
                max_retries=0,
                name=request.name,
            )
            # Ray hides GPUs that a task has not asked for only if it asked for some.
            environment = threads(request.resources) | ({} if wanted["GPU"] else {"CUDA_VISIBLE_DEVICES": ""})
            self._streams[task.remote(request.line, environment, request.hours)] = request

    def _wanted(self, request: Request) -> dict[str, int]:
        """By Ray's names for resources."""
        given = request.resources
        gpus = int(self._resources.get("GPU", 0) > 0) if given.gpus is None else given.gpus
        return {"CPU": given.cpus, "GPU": gpus, "memory": given.memory or 0}

    def _next(self, stream: Any) -> Iterator[tuple[str, Event]]:
        name = self._streams[stream].name
        try:
            event: Event = parse(self._ray.get(next(stream)))
            self._begun.add(name)
        except StopIteration:
            event = Exit(None, message="Its Ray task ended early.")
        except self._ray.exceptions.LocalRayletDiedError as error:  # the driver's own: nothing can be submitted
            raise self._lost(error) from error
        except self._ray.exceptions.RayError as error:
            event = Exit(None, message=f"{type(error).__name__}: {cause_of(error)}")
        if isinstance(event, Exit):
            self._forget(stream)
        yield name, event

    def _forget(self, stream: Any) -> None:
        name = self._streams.pop(stream).name
        self._begun.discard(name)
        self._homeless.pop(name, None)
        self._submit_waiting()

    def _cancel(self, stream: Any) -> None:
        with contextlib.suppress(Exception):  # a cluster that is gone has no workers either
            self._ray.cancel(stream, force=True, recursive=False)

    def _look_for_nodes(self) -> None:
        """Fail requests that no node could meet even if it were idle."""
        now = time.monotonic()
        pending = {stream: request for stream, request in self._streams.items() if request.name not in self._begun}
        if not pending or now - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        self._looked = now
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        for stream, request in pending.items():
            wanted = self._wanted(request)
            if any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
                self._homeless.pop(request.name, None)
                continue
            since = self._homeless.setdefault(request.name, now)
            if now - since >= self._node_wait:
                self._cancel(stream)
                remedy = "Correct its resources, or wait longer for nodes with --node-wait"
                self._own.extend(refusal(request.name, f"{_unmet(wanted, nodes)}. {remedy}"))
                self._forget(stream)
            elif since == now:
                message = f"{_unmet(wanted, nodes)}: it waits {self._node_wait:.0f} s for one"
                self._own.append((request.name, Note(message)))

    def _look_for_head(self) -> None:
        """Ray itself would end this process after a minute, without our message."""
        try:
            reach(self._head)
            self._silent_since = None
        except OSError as error:
            self._silent_since = self._silent_since or time.monotonic()
            if time.monotonic() - self._silent_since > SECONDS_TO_RETURN:
                raise self._lost(error) from error

    def _lost(self, error: Exception) -> UserError:
        cause = cause_of(error)
        return UserError(f"The Ray cluster is gone ({cause}). Start it again, then run the same command.", "cluster")


def run_worker(line: str, environment: dict[str, str], hours: float | None) -> Iterator[str]:
    """Run a worker on a node of the cluster; yield its events as lines."""
    yield to_line(Starting())
    process = WorkerProcess(line, environment, hours)
    try:
        for event in process:  # not `yield from map`: Ray sends into the generator
            yield to_line(event)
    finally:
        process.stop()


def _unmet(wanted: Mapping[str, float], nodes: list[dict[str, float]]) -> str:
    """What no node has; where each has a part of it, all that is asked for."""
    units = {"CPU": (1, "cores"), "GPU": (1, "GPUs"), "memory": (1e9, "GB")}
    most = {name: max((node.get(name, 0) for node in nodes), default=0) for name in wanted}
    names = [name for name in wanted if most[name] < wanted[name]] or [name for name in wanted if wanted[name]]
    asked, there = (
        ", ".join(f"{amounts[name] / units[name][0]:.3g} {units[name][1]}" for name in names)
        for amounts in (wanted, most)
    )
    return f"it asks for {asked}; no node of the cluster has that (at most {there})"
