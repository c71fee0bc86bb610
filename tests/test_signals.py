"""What tests start heeds the signals that they send, whatever the process that runs them ignores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PARENT = """
import signal, subprocess, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
import tests.conftest
subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
"""
CHILD = """
import signal
print(*(number.name for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is signal.SIG_IGN))
"""


def test_children_heed_signals_that_a_background_job_ignores() -> None:
    """Except SIGHUP, so that nohup works."""
    command = [sys.executable, "-c", PARENT, CHILD]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["SIGHUP"]
