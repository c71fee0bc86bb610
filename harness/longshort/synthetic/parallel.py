"""Runs settings one after the other, or several at once in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from typing import Any

from longshort.processes import SPAWN, process_pool

Setting = tuple[str, str]
Run = Callable[..., dict[str, Any]]

_steps: Any = None  # in a worker: the counter it shares with the study


def run_all(
    run: Run, config: object, settings: Sequence[Setting], device: str, workers: int, advance: Callable[[int], object]
) -> Iterator[tuple[Setting, dict[str, Any]]]:
    """Yield each setting with its result, as they finish.

    Args:
        run: a function of a module, called as run(config, task, encoding, device, advance).
        config, device: handed to it.
        settings: task and encoding of each.
        workers: how many at once; 1 runs them in this process.
        advance: is called with a number of steps, now and then, when they are done.

    Raises:
        UserError: a process was killed (kind ``killed``).
    """
    if workers == 1:
        for setting in settings:
            yield setting, run(config, *setting, device, advance)
        return
    counter, counted = SPAWN.Value("q", 0), 0
    with process_pool(workers, "the study", _count_in, counter) as pool:
        running = {pool.submit(run, config, *setting, device, _advance): setting for setting in settings}
        while running:
            finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            now = counter.value
            advance(now - counted)
            counted = now
            for future in finished:
                yield running.pop(future), future.result()


def _count_in(steps: Any) -> None:
    global _steps
    _steps = steps


def _advance(steps: int) -> None:
    with _steps.get_lock():
        _steps.value += steps
