"""The imports of a process that evaluates, tried in a process of its own."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, sys
from longshort.lmeval.imports import import_libraries
assert "torch" not in sys.modules
{before}
import_libraries()
print(gc.isenabled(), gc.get_freeze_count() > 100_000, "longshort.lmeval.tasks" in sys.modules)
"""


def outcome(before: str = "") -> str:
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(before=before)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_libraries_are_frozen_and_garbage_collection_continues() -> None:
    assert outcome() == "True True True"


def test_the_collector_of_another_program_stays_as_it_is() -> None:
    assert outcome("gc.disable()") == "False False False"
    assert outcome("import torch") == "True False False"
