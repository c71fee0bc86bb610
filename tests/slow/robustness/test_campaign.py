"""Bad input for every command, and how it fails: ``make campaign CASES=robustness``.

Every case is a command in a folder of its own, with something wrong: a file, a manifest, a checkpoint, a corpus,
results, an option, a folder that cannot be written, an interruption. It has to end with its exit code, 1 where
something failed and 2 where the command line is wrong, and one line that names the cause; no traceback, nothing lost,
nothing left behind or half written. Interrupted commands have to end well when they are run again.

Linux, as root: cases of permissions give up root's right to ignore them, full disks are mounted. The hub is out of
reach in all of them. The tree must not change while the campaign runs: run it in a clone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.slow.robustness.case import Case
from tests.slow.robustness.cases import CASES, command_of, id_of
from tests.slow.robustness.check import try_case
from tests.slow.robustness.inputs import build
from tests.slow.tables import commit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good inputs, which the cases copy and spoil."""
    folder = tmp_path_factory.mktemp("inputs")
    build(folder)
    return folder


@pytest.mark.parametrize("case", CASES, ids=id_of)
def test_bad_input_fails_well(
    case: Case, inputs: Path, tmp_path: Path, record_row: Callable[[str, dict[str, Any]], None]
) -> None:
    verdict = try_case(case, inputs, tmp_path / "here")
    row = {
        "program": case.program,
        "command": command_of(case),
        "kind": case.kind,
        "case": case.name,
        "expected": "ends, the rerun with 0" if case.interruption else str(case.code),
        "code": verdict.code,
        "line": verdict.line,
        "other_lines": verdict.noise,
        "seconds": round(verdict.seconds, 1),
        "faults": "; ".join(verdict.faults),
        "commit": commit(),
    }
    record_row("robustness", row)
    assert verdict.faults == [], verdict.line
