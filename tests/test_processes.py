"""Pools of processes: none outlives the process that made it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from longshort.processes import process_pool
from tests.errors import user_error

SLEEPING = """
import os, sys, time
from longshort.processes import process_pool
if __name__ == "__main__":
    with process_pool(1, "the test") as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_each_process_is_prepared() -> None:
    with process_pool(2, "the test", os.putenv, "LONGSHORT_TEST", "prepared") as pool:
        shown = pool.submit(subprocess.check_output, "echo $LONGSHORT_TEST", shell=True).result()
    assert shown.strip() == b"prepared"


def test_a_killed_process_is_reported() -> None:
    with user_error("killed", "the figures"), process_pool(1, "the figures") as pool:
        pool.submit(die).result()


def test_an_error_ends_the_processes() -> None:
    before = multiprocessing.active_children()
    with suppress(KeyError), process_pool(1, "the test") as pool:
        pool.submit(time.sleep, 600)
        raise KeyError
    limit = time.monotonic() + 30
    while set(multiprocessing.active_children()) - set(before):
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_or_interrupted_process_takes_its_workers_with_it(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "script.py"
    script.write_text(SLEEPING)
    first = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert first.stdout is not None
    worker = int(first.stdout.readline())
    assert is_running(worker)
    first.send_signal(number)
    assert first.wait(30) != 0
    limit = time.monotonic() + 30
    while is_running(worker):
        assert time.monotonic() < limit
        time.sleep(0.05)
