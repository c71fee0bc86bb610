"""All cases of the robustness campaign."""

from __future__ import annotations

from tests.slow.robustness import analyzing, evaluating, longppl, others, sweeping, training
from tests.slow.robustness.case import Case

CASES = [
    *others.CASES,
    *evaluating.CASES,
    *longppl.CASES,
    *training.CASES,
    *sweeping.CASES,
    *analyzing.CASES,
]  # the longest first


def command_of(case: Case) -> str:
    """The subcommand, or the program if it is not longshort's."""
    return case.words[0] if case.program in ("longshort", "demo") else case.program


def id_of(case: Case) -> str:
    """The name of its test, for ``-k``."""
    return f"{command_of(case)}: {case.kind}: {case.name}"
