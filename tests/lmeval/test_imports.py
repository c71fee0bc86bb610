"""What a process that evaluates imports, in a process of its own."""

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


def test_libraries_are_left_out_of_garbage_collection_which_goes_on() -> None:
    assert outcome() == "True True True"


def test_the_collector_of_another_program_is_left_alone() -> None:
    assert outcome("gc.disable()") == "False False False"
    assert outcome("import torch") == "True False False"
