"""The campaigns' tables: what each slow test records becomes a row; ``--tables FOLDER`` writes them.

The rows travel as a test's user properties, so that they reach the process that writes also from parallel workers.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.slow.tables import WRITERS

rows: dict[str, list[dict[str, Any]]] = defaultdict(list)


@pytest.fixture
def record_row(record_property: Callable[[str, object], None]) -> Callable[[str, dict[str, Any]], None]:
    """Record a row of a campaign's table, whether the test then passes or fails."""
    return lambda campaign, row: record_property("campaign", json.dumps([campaign, row]))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        for name, value in report.user_properties:
            if name == "campaign":
                campaign, row = json.loads(str(value))
                rows[campaign].append(row)


def pytest_sessionfinish(session: pytest.Session) -> None:
    folder = session.config.getoption("--tables", default=None)
    if folder and not hasattr(session.config, "workerinput"):
        for campaign, found in rows.items():
            WRITERS[campaign](found, Path(folder) / campaign)
