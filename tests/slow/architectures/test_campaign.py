"""Every architecture that transformers loads as a causal LM, against float64: ``make campaign CASES=architectures``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from tests.slow.architectures.cases import CASES, Case
from tests.slow.architectures.score import score

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_architecture_agrees_with_float64_or_is_refused(
    case: Case, record_row: Callable[[str, dict[str, Any]], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "longshort")  # the table says which models fall back to full logits
    row = score(case)
    record_row("architectures", row)
    assert not row["faults"], row["faults"]
