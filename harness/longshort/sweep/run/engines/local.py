"""Workers on this machine, as many as its devices allow, each pinned to its own."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from queue import Empty, Queue

from longshort.devices import available_cpus
from longshort.settings import Resources
from longshort.sweep.run.engines import Request, refusal
from longshort.sweep.run.events import Event, Exit, Starting
from longshort.sweep.run.process import WorkerProcess

logger = logging.getLogger(__name__)


class LocalEngine:
    """Gives each worker its GPUs, cores and memory, and starts the next when they are free again.

    Args:
        workers: maximum number at once; by default as many as the resources allow.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.gpus = visible_gpus()
        self.cpus = available_cpus()
        self.memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self.workers = workers
        self._is_crowded = False  # and the user has been warned
        self._free = list(self.gpus)
        self._waiting: list[Request] = []
        self._running: dict[str, tuple[Request, WorkerProcess, list[str]]] = {}
        self._events: Queue[tuple[str, Event]] = Queue()

    def describe(self) -> str:
        """Return what it runs on, in one line."""
        devices = f"{len(self.gpus)} GPUs" if self.gpus else f"{self.cpus} CPU cores"
        return f"this machine, {devices}" + (f", at most {self.workers} workers" if self.workers else "")

    def submit(self, request: Request) -> None:
        """Run a worker as soon as its resources are free, in the order of submission."""
        wanted = self._gpus_for(request.resources)
        if wanted > len(self.gpus) or (request.resources.memory or 0) > self.memory:
            asked, there = f"{(request.resources.memory or 0) / 1e9:.3g} GB", f"{self.memory / 1e9:.3g} GB"
            if wanted > len(self.gpus):
                asked, there = f"{wanted} GPUs", f"{len(self.gpus)}"
            for event in refusal(request.name, f"it asks for {asked}, more than this machine has ({there})"):
                self._events.put(event)
            return
        if not wanted:
            self._warn_of_crowding(request.resources.cpus)
        self._waiting.append(request)
        self._start_waiting()

    def events(self, seconds: float) -> Iterator[tuple[str, Event]]:
        """Yield name and event as they come; return when none has come for so long."""
        while True:
            try:
                name, event = self._events.get(timeout=seconds)
            except Empty:
                return
            if isinstance(event, Exit) and name in self._running:
                self._free = sorted(self._free + self._running.pop(name)[2])
                self._start_waiting()
            yield name, event

    def stop(self) -> None:
        """End all workers within seconds."""
        self._waiting.clear()
        threads = [threading.Thread(target=process.stop) for _, process, _ in self._running.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _gpus_for(self, resources: Resources) -> int:
        return min(1, len(self.gpus)) if resources.gpus is None else resources.gpus

    def _warn_of_crowding(self, cpus: int) -> None:
        """Threads that wait for one another spin; measured on two cores, twice as many take 20 times as long."""
        if self._is_crowded or not self.workers or self.workers == 1 or self.workers * cpus <= self.cpus:
            return
        self._is_crowded = True
        logger.warning(
            "%d workers of %d threads share %d cores, which can make them many times slower. Say 'resources: "
            "{cpus: %d}' in the manifest, or give fewer --workers.",
            *(self.workers, cpus, self.cpus, max(1, self.cpus // self.workers)),
        )

    def _start_waiting(self) -> None:
        while self._waiting and self._fits(self._waiting[0].resources):
            request = self._waiting.pop(0)
            count = self._gpus_for(request.resources)
            devices, self._free = self._free[:count], self._free[count:]
            environment = threads(request.resources) | {"CUDA_VISIBLE_DEVICES": ",".join(devices)}
            process = WorkerProcess(request.line, environment, request.hours)
            self._running[request.name] = request, process, devices
            self._events.put((request.name, Starting()))
            threading.Thread(target=self._listen, args=(request.name, process), daemon=True).start()

    def _fits(self, resources: Resources) -> bool:
        running = [request.resources for request, _, _ in self._running.values()]
        if not running:
            return True  # alone, a request for more cores than there are is no obstacle
        memory = sum(other.memory or 0 for other in running) + (resources.memory or 0)
        count = self._gpus_for(resources)
        cores = sum(other.cpus for other in running) + resources.cpus
        return (
            len(running) < (self.workers or len(self.gpus) + self.cpus)
            and count <= len(self._free)
            and memory <= self.memory
            and (count > 0 or bool(self.workers) or cores <= self.cpus)
        )

    def _listen(self, name: str, process: WorkerProcess) -> None:
        for event in process:
            self._events.put((name, event))


def threads(resources: Resources) -> dict[str, str]:
    """Its cores are its threads, on every engine: their number can change a sum's last digit."""
    return {name: str(resources.cpus) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, without importing torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name.strip() and name.strip() != "-1"]
    if not shutil.which("nvidia-smi"):
        return []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True)
        count = sum(line.startswith("GPU ") for line in done.stdout.splitlines())
        return [str(index) for index in range(count)]
    return []
