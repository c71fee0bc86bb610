"""The benchmark of growth: exponents of a known law, and one point of each kind."""

from argparse import Namespace

import pytest
from benchmarks import growth


def test_the_exponent_of_a_known_law_and_its_picture(tmp_path):
    """Above a constant, that the lower half shows, time grows with the power 2; memory does not grow."""
    rows = [
        {"axis": "tokens", "value": x, "seconds": 1e-9 * x**2 + (x < 10), "bytes": 5e6}
        for x in (1, 2, 4, 100, 200, 400)
    ]
    fits = {"tokens": {name: growth.exponent(rows, "tokens", name) for name in growth.MEASURES}}
    assert fits["tokens"]["seconds"]["slope"] == pytest.approx(2)
    assert fits["tokens"]["bytes"]["slope"] == pytest.approx(0, abs=1e-9)
    assert growth.exponent(rows[:2], "tokens", "seconds") is None
    growth.draw(rows, fits, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    growth.show([*rows, {"axis": "tokens", "value": 800, "error": "out of memory"}], fits)


def test_a_point(monkeypatch):
    monkeypatch.setattr(growth, "USUAL", {"tokens": 128, "vocabulary": 300, "documents": 1})
    monkeypatch.setattr("benchmarks.scoring.limit_memory", lambda: None)  # it would hold for the tests that follow
    point = growth.measure(Namespace(side="documents", value=2, hidden=16, layers=1))
    assert point["seconds"] > 0
    assert point["value"] > 0
