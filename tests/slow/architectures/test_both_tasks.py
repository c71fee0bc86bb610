"""Sixty architectures at random: both tasks in one run against a dense reference, in settings drawn at random."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.lmeval.architectures import Drawn, at_random, require_agreement

pytestmark = pytest.mark.slow

SEED = 2026
CASES = at_random(SEED, 60)
agreed: list[str] = []


@pytest.mark.parametrize(("architecture", "drawn"), CASES, ids=[name for name, _ in CASES])
def test_both_tasks_agree_with_the_dense_reference(
    architecture: str, drawn: Drawn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    require_agreement(architecture, drawn, tmp_path)
    agreed.append(architecture)


def test_there_were_at_least_forty() -> None:
    print(f"seed {SEED}: {len(agreed)} of {len(CASES)} architectures: {agreed}")
    assert len(agreed) >= 40
