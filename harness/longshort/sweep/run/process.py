"""Runs a worker process and passes on its events; the same on every engine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from queue import SimpleQueue
from typing import IO

from longshort.sweep.run.events import Event, Exit, Log, parse

SECONDS_TO_END = 2.0  # between the request to end and the kill
LOG_BYTES = 4096


class WorkerProcess:
    """A running worker. Iterate it for its events; the last one is `Exit`.

    Args:
        line: the job, from `longshort.sweep.run.job.Job.to_line`.
        environment: variables in addition to the driver's own, such as the visible devices.
        hours: after which it is killed; None for no limit.
    """

    def __init__(self, line: str, environment: Mapping[str, str], hours: float | None) -> None:
        self._stopping: str | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "longshort.sweep.run.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | dict(environment),
            start_new_session=True,  # Ctrl-C is the driver's; and its children can be killed with it
        )
        self.pid = self._process.pid
        self._input = _given(self._process.stdin)
        with contextlib.suppress(OSError):  # it is dead already, which its exit reports
            self._input.write(line.encode())
            self._input.flush()  # and left open, see the worker
        self._timer = threading.Timer(hours * 3600 if hours else threading.TIMEOUT_MAX, self.stop, ("timeout",))
        self._timer.daemon = True
        if hours:
            self._timer.start()

    def __iter__(self) -> Iterator[Event]:
        queue: SimpleQueue[Event | None] = SimpleQueue()
        readers = [
            threading.Thread(target=read, args=(_given(stream), queue.put), daemon=True)
            for read, stream in ((_read_events, self._process.stdout), (_read_log, self._process.stderr))
        ]
        for thread in (*readers, threading.Thread(target=self._clean_up, daemon=True)):
            thread.start()
        for _ in readers:
            while (event := queue.get()) is not None:
                yield event
        code = self._process.wait()
        self._timer.cancel()
        with contextlib.suppress(OSError):
            self._input.close()
        yield Exit(code, self._stopping)

    def stop(self, reason: str = "interrupted") -> None:
        """Ask it to end, and kill it if it does not."""
        self._stopping = self._stopping or reason
        with contextlib.suppress(OSError):
            self._process.terminate()
        try:
            self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._kill_group()

    def _clean_up(self) -> None:
        """What it started does not outlive it, nor hold its pipes open."""
        self._process.wait()
        self._kill_group()

    def _kill_group(self) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)


def _given(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("the worker was started without pipes")
    return stream


def _read_events(stream: IO[bytes], put: Callable[[Event | None], None]) -> None:
    for line in stream:
        try:
            event = parse(line)
        except ValueError:  # cut off by a kill
            continue
        put(event)
    put(None)


def _read_log(stream: IO[bytes], put: Callable[[Event | None], None]) -> None:
    while chunk := os.read(stream.fileno(), LOG_BYTES):
        put(Log(chunk.decode("utf-8", errors="replace")))
    put(None)
