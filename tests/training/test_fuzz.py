"""Records of training that were spoiled: the run is found finished, or its folder refused in one line."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from hypothesis import HealthCheck, given, settings

from longshort.training.config import TrainConfig
from longshort.training.partial import REPORTING, is_finished
from tests.mutations import mutated, outcome

CONFIG = TrainConfig(output="out", base="base", corpus="builtin", train_length=16, steps=4).resolved()


DEFAULTS = json.loads(json.dumps(asdict(TrainConfig(output="", base=""))))  # of what an older record lacks
SETTINGS = json.loads(json.dumps({name: value for name, value in asdict(CONFIG).items() if name != "output"}))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=mutated({"config": SETTINGS, "steps": 4, "final": {"L_train": 1.0}}))
def test_a_record_is_that_of_this_run_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "longshort.json").write_bytes(content)
    finished, message = outcome(is_finished, tmp_path, CONFIG)
    assert bool(finished) != bool(message)
    if finished:
        recorded = DEFAULTS | json.loads(content.decode("utf-8"))["config"]
        assert {name: recorded[name] for name in SETTINGS if name not in REPORTING} == {
            name: value for name, value in SETTINGS.items() if name not in REPORTING
        }
    else:
        assert str(tmp_path) in message
