"""A pool of processes that ends with the process that made it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from longshort.errors import UserError

# A forked process would inherit the threads of torch and of progress bars in no state to run.
SPAWN = multiprocessing.get_context("spawn")


@contextmanager
def process_pool(
    workers: int, what: str, prepare: Callable[..., object] | None = None, *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """Open a pool whose processes end when this one is interrupted or killed.

    Args:
        workers: number of processes.
        what: what runs in them, for the message.
        prepare: a function of a module that each process calls first.
        arguments: of `prepare`.

    Raises:
        UserError: a process was killed (kind ``killed``).
    """
    others = multiprocessing.active_children()
    with ProcessPoolExecutor(workers, SPAWN, _prepare, (prepare, *arguments)) as pool:
        try:
            yield pool
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                if process not in others:
                    process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise UserError(
                    f"A process of {what} was killed, perhaps because memory ran out. Run the same command again, with "
                    "fewer --workers where it has that option.",
                    "killed",
                ) from error
            raise


def _prepare(prepare: Callable[..., object] | None, *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C reaches the first process, which ends the others
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    if prepare is not None:
        prepare(*arguments)


def _end_with_the_first() -> None:
    """A killed process cannot tell its workers; they would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
