"""Sweeps that lose a process to SIGKILL, twenty times, on both engines: ``make campaign CASES=kills``.

The tree must not change while the campaign runs: run it in a clone. See `tests.slow.kills.kill` for what is judged.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.slow.kills.kill import LOCAL_KILLS, RAY_KILLS, Run, kill_and_rerun, prepare, settle, undisturbed

KINDS = (*LOCAL_KILLS, *RAY_KILLS)
KILLS = 20
CHECKPOINTS = 3
ATTEMPTS = 3  # at a sweep that ended before its kill

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kills")]  # one after the other: they look for processes


@dataclass
class Campaign:
    """A folder with what the sweeps read, the seconds of undisturbed sweeps by engine, and all runs."""

    place: Path
    seconds: dict[str, float] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)


@pytest.fixture(scope="module")
def campaign() -> Iterator[Campaign]:
    # Short: the paths of Ray's sockets must fit into 107 characters.
    with tempfile.TemporaryDirectory(prefix="kill", dir="/tmp") as folder:
        campaign = Campaign(Path(folder).resolve())
        prepare(campaign.place, CHECKPOINTS)
        campaign.seconds = {engine: undisturbed(campaign.place, engine) for engine in ("local", "ray")}
        yield campaign
        assert settle(campaign.runs) == []


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_sweep_resumes(
    number: int, campaign: Campaign, record_row: Callable[[str, dict[str, Any]], None]
) -> None:
    kind = KINDS[number % len(KINDS)]
    chance = random.Random(number)
    latest = campaign.seconds["ray" if kind in RAY_KILLS else "local"]
    for attempt in range(ATTEMPTS):
        killed = kill_and_rerun(campaign.place, f"killed{number:02}-{attempt}", kind, latest, chance)
        campaign.runs += killed.runs
        if killed.row["killed"] or killed.row["faults"]:
            break
        latest /= 2  # it ended before its kill: the machine is faster than it was
    row = killed.row
    record_row("sweep_campaign", row | {"faults": "; ".join(row["faults"])})
    assert row["killed"]
    assert row["faults"] == []
