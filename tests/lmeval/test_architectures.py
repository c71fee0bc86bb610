"""A dozen architectures at random: both tasks in one run against a dense reference. `tests/slow` has more of them."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from tests.lmeval.architectures import (
    TOLERANCE,
    Drawn,
    at_random,
    draw_settings,
    evaluate,
    expected,
    greatest_errors,
    language_model,
    require_agreement,
    texts,
    with_reference,
)

SEED = 19
CASES = at_random(SEED, 14)  # two of these are refused
agreed: list[str] = []


@pytest.mark.parametrize(("architecture", "drawn"), CASES, ids=[name for name, _ in CASES])
def test_both_tasks_agree_with_the_dense_reference(architecture: str, drawn: Drawn, tmp_path: Path) -> None:
    require_agreement(architecture, drawn, tmp_path)
    agreed.append(architecture)


def test_there_were_a_dozen() -> None:
    print(f"seed {SEED}: {agreed}")
    assert len(agreed) >= 12


def test_a_wrong_or_missing_value_of_any_metric_is_seen(tmp_path: Path) -> None:
    drawn = draw_settings(random.Random(0))
    model, reference = with_reference("llama", drawn)
    documents = texts(0)
    found, _ = evaluate(language_model(model, drawn), drawn, tmp_path, documents)
    right = expected(reference, drawn, documents)
    assert max(greatest_errors(found, right).values()) <= TOLERANCE
    for name, value in found[1].items():
        for wrong in (value + 1e-3 * max(1, abs(value)), math.nan):
            other = [found[0], found[1] | {name: wrong}]
            failed = [metric for metric, error in greatest_errors(other, right).items() if error > TOLERANCE]
            assert failed == [name.partition("@")[0]]
    with pytest.raises(AssertionError):
        greatest_errors([found[0], found[1] | {"ppl@41": 1.0}], right)
