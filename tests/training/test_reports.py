"""Loggers get the terms of the loss of every step, and the evaluations; stand-ins for their packages record them."""

import csv
import json
import sys

import pytest

from longshort.training import TrainConfig, train
from tests.errors import user_error
from tests.training.test_resume import folder, settings

__all__ = ["folder"]  # the fixture
TENSORBOARD = """
from pathlib import Path
class SummaryWriter:
    def __init__(self, log_dir):
        self.file = Path(log_dir) / "events.csv"
        self.file.parent.mkdir(parents=True)
    def add_text(self, *_): pass
    def add_scalar(self, name, value, step):
        with self.file.open("a") as file:
            print(name, value, step, file=file, sep=",")
    def flush(self): pass
    def close(self): pass
"""
TRACKIO = """
calls = []
class Config(dict):
    def update(self, other, **_): super().update(other)
config = Config()
class context_vars:
    class current_space_id:
        get = staticmethod(lambda: None)
def init(**settings):
    calls.append(("init", settings))
def log(values, *_, **more): calls.append(("log", values))
def finish(*_): calls.append(("finish", {}))
"""


@pytest.fixture
def package(tmp_path_factory, monkeypatch):
    """Make a package that can be imported."""

    def make(name, text):
        place = tmp_path_factory.mktemp("packages")
        (place / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(place)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return make


def run(folder, **changes):
    evaluated = {"eval_every": 2, "eval_lengths": (8,), "eval_docs": 1, "eval_corpus": str(folder / "corpus.jsonl")}
    config = TrainConfig(output=str(folder / "run"), **settings(folder, steps=3, **evaluated | changes))
    return train(config, progress=False)


def logged(output):
    """What the run has written itself: (step, name) → value."""
    values = {}
    for file, section in (("training_log.csv", "train"), ("evaluation_log.csv", "eval")):
        for row in csv.DictReader((output / file).open()):
            step = int(row.pop("step"))
            values |= {(step, f"{section}/{name}"): float(value) for name, value in row.items() if value}
    assert {"train/L_train", "train/misalign", "train/entropy", "train/jeffreys", "eval/ppl@8", "eval/sce"} <= {
        name for _, name in values
    }
    return values


def test_tensorboard(folder, package):
    package("tensorboardX", TENSORBOARD)
    output = run(folder, report_to=("tensorboard",))
    (file,) = (output / "runs").rglob("events.csv")
    seen = {(int(row[2]), row[0]): float(row[1]) for row in csv.reader(file.open())}
    own = logged(output)
    assert {key: seen[key] for key in own} == pytest.approx(own)
    assert json.loads((output / "longshort.json").read_text())["config"]["report_to"] == ["tensorboard"]


def test_trackio(folder, package):
    package("trackio", TRACKIO)
    output = run(folder, report_to=("trackio",))
    calls = sys.modules["trackio"].calls
    (start,) = [values for name, values in calls if name == "init"]
    assert start["name"] == "run"
    own, seen = logged(output), [values for name, values in calls if name == "log"]
    for name in {name for _, name in own}:
        expected = [value for (step, other), value in own.items() if other == name]
        assert [values[name] for values in seen if name in values] == pytest.approx(expected)


def test_without_loggers_there_is_none(folder, package):
    package("trackio", "raise RuntimeError('this must not be imported')")
    assert not (run(folder) / "runs").exists()


@pytest.mark.parametrize("names", [("tensorbord",), ("none", "wandb"), ("all",)])
def test_unknown_loggers(folder, names):
    with user_error("setting", f"'{names[0]}'", "tensorboard", "wandb", "trackio", "none", field="report_to"):
        run(folder, report_to=names)
