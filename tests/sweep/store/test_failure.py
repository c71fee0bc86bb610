"""Failures grouped by category."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from longshort.errors import Kind
from longshort.sweep.store.failure import ADVICE, failure_lines


def test_every_category_has_advice() -> None:
    assert set(ADVICE) == set(get_args(Kind))
    assert all(ADVICE.values())


def test_the_guide_names_every_category_that_a_checkpoint_can_fail_with() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "sweeps.md").read_text("utf-8")
    table = guide.partition("| failure category |")[2].partition("\n\n")[0] + "\n"
    named = set(re.findall(r"`(\w+)`(?=[^|]*\|[^|\n]*\|\n)", table.replace("|---|---|", "")))
    of_the_whole_run = {"usage", "conflict", "cluster", "incomplete"}  # no checkpoint fails with these
    assert set(get_args(Kind)) - of_the_whole_run <= named


def test_failures_are_grouped_by_category() -> None:
    rows = [("m", "a", "broken", "why"), ("m", "b", "broken", "why"), ("n", "a", "gated", "ask")]
    assert failure_lines(rows) == [
        f"broken: {ADVICE['broken']}",
        "  m (a, b): why",
        f"gated: {ADVICE['gated']}",
        "  n (a): ask",
    ]


def test_a_category_of_another_version_is_shown() -> None:
    assert failure_lines([("m", "a", "of_tomorrow", "why")]) == [f"of_tomorrow: {ADVICE['error']}", "  m (a): why"]
