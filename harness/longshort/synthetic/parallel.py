"""Runs settings one after the other, or several at once in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from longshort.errors import UserError

Setting = tuple[str, str]
Run = Callable[..., dict[str, Any]]

_steps: Any = None  # in a worker: the counter it shares with the study


def run_all(
    run: Run, config: object, settings: Sequence[Setting], device: str, workers: int, advance: Callable[[int], object]
) -> Iterator[tuple[Setting, dict[str, Any]]]:
    """Yield each setting with its result, as they finish.

    Args:
        run: a function of a module, called as run(config, task, encoding, device, advance).
        config: handed to it.
        settings: task and encoding of each.
        device: handed to it.
        workers: how many at once; 1 runs them in this process.
        advance: is called with a number of steps, now and then, when they are done.

    Raises:
        UserError: a process was killed (kind ``killed``).
    """
    if workers == 1:
        for setting in settings:
            yield setting, run(config, *setting, device, advance)
        return
    context = multiprocessing.get_context("spawn")  # a forked process would inherit torch's threads in no state to run
    counter, counted = context.Value("q", 0), 0
    others = multiprocessing.active_children()
    with ProcessPoolExecutor(workers, context, _prepare, (counter,)) as pool:
        running = {pool.submit(run, config, *setting, device, _advance): setting for setting in settings}
        try:
            while running:
                finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                now = counter.value
                advance(now - counted)
                counted = now
                for future in finished:
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "A process of the study was killed, perhaps because memory ran out. Run the same command again with "
                "fewer --workers; it resumes.",
                "killed",
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                if process not in others:
                    process.terminate()
            raise


def _advance(steps: int) -> None:
    with _steps.get_lock():
        _steps.value += steps


def _prepare(steps: Any) -> None:
    global _steps
    _steps = steps
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C reaches the study itself, which ends its workers
    threading.Thread(target=_end_with_the_study, daemon=True).start()


def _end_with_the_study() -> None:
    """A killed study tells its workers nothing; they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
