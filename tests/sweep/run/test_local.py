"""Which devices the local engine gives to which worker, with GPUs that are pretended."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longshort.settings import Resources
from longshort.sweep.run.engines import Request, local
from longshort.sweep.run.engines.local import LocalEngine, visible_gpus
from longshort.sweep.run.events import Event, Exit, Failed
from longshort.testing import save_corpus
from tests.errors import assert_facts
from tests.sweep.conftest import reports, save_reporting, sweep, write_manifest


class Held:
    """In place of a worker process: runs until it is told to end."""

    running: ClassVar[dict[str, Held]] = {}

    def __init__(self, line: str, environment: dict[str, str], hours: float | None) -> None:
        self.line, self.environment, self.ended = line, environment, threading.Event()
        self.running[line] = self

    @property
    def devices(self) -> list[str]:
        return [name for name in self.environment["CUDA_VISIBLE_DEVICES"].split(",") if name]

    def __iter__(self) -> Iterator[Event]:
        self.ended.wait(30)
        yield Exit(0)

    def stop(self, reason: str = "interrupted") -> None:
        self.ended.set()

    def end(self, engine: LocalEngine) -> None:
        """End it, and let the engine learn of it."""
        del self.running[self.line]
        self.ended.set()
        assert (self.line, Exit(0)) in engine.events(5)


@pytest.fixture(autouse=True)
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setattr(local, "WorkerProcess", Held)
    monkeypatch.setattr(local, "available_cpus", lambda: 4)
    monkeypatch.setattr(Held, "running", {})


def submit(engine: LocalEngine, name: str, **resources: int) -> None:
    engine.submit(Request(name, name, Resources(**resources), None))


def devices() -> dict[str, list[str]]:
    return {name: worker.devices for name, worker in Held.running.items()}


def test_each_worker_has_a_gpu_of_its_own_and_the_next_takes_what_is_freed() -> None:
    engine = LocalEngine()
    for name in "abcd":
        submit(engine, name)
    assert devices() == {"a": ["0"], "b": ["1"], "c": ["2"]}
    Held.running["b"].end(engine)
    assert devices() == {"a": ["0"], "c": ["2"], "d": ["1"]}


def test_two_gpus_for_one_worker_and_the_order_is_kept() -> None:
    engine = LocalEngine()
    submit(engine, "one")
    submit(engine, "pair", gpus=2)
    submit(engine, "wide", gpus=3)
    submit(engine, "late")
    assert devices() == {"one": ["0"], "pair": ["1", "2"]}
    Held.running["one"].end(engine)
    assert set(devices()) == {"pair"}  # late does not overtake: wide would wait for ever
    Held.running["pair"].end(engine)
    assert devices() == {"wide": ["0", "1", "2"]}


def test_more_than_there_is_is_refused_by_name_and_the_rest_runs() -> None:
    engine = LocalEngine()
    submit(engine, "wide", gpus=4)
    submit(engine, "big", memory=10**18)
    submit(engine, "one")
    refused = {name: event for name, event in engine.events(0.01) if isinstance(event, Failed)}
    assert "4 GPUs" in refused["wide"].message
    assert "(3)" in refused["wide"].message
    assert "1e+09 GB" in refused["big"].message
    assert {event.kind for event in refused.values()} == {"setting"}
    assert set(devices()) == {"one"}


def test_a_job_without_gpus_sees_none_and_cores_bound_how_many_run() -> None:
    engine = LocalEngine()
    for name in "abc":
        submit(engine, name, gpus=0, cpus=2)
    assert devices() == {"a": [], "b": []}
    assert Held.running["a"].environment["OMP_NUM_THREADS"] == "2"


def test_without_gpus_a_worker_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for given_ in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given_)
        assert visible_gpus() == []
    engine = LocalEngine(workers=1)
    submit(engine, "a")
    submit(engine, "b")
    assert devices() == {"a": []}


def test_gpus_are_counted_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf 'GPU 0: X (UUID: a)\\n  MIG 1g (UUID: b)\\nGPU 1: X (UUID: c)\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert visible_gpus() == ["0", "1"]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert visible_gpus() == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=st.lists(st.integers(0, 3), max_size=8), choice=st.randoms(use_true_random=False))
def test_no_gpu_is_ever_given_twice_and_all_come_back(wanted: list[int], choice: object) -> None:
    Held.running.clear()
    engine = LocalEngine(workers=8)
    for number, gpus in enumerate(wanted):
        submit(engine, str(number), gpus=gpus)
    ran: list[str] = []
    while Held.running:
        held = [device for worker in Held.running.values() for device in worker.devices]
        assert len(held) == len(set(held))
        assert set(held) <= {"0", "1", "2"}
        for name, worker in Held.running.items():
            assert len(worker.devices) == wanted[int(name)]
        ran += [name for name in Held.running if name not in ran]
        choice.choice(list(Held.running.values())).end(engine)  # type: ignore[attr-defined]  # a random.Random
    assert ran == [str(number) for number in range(len(wanted))]
    assert engine._free == ["0", "1", "2"]


def test_a_worker_gets_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one, through the command line."""
    monkeypatch.undo()
    save_corpus(tmp_path / "text.jsonl", num_docs=3, num_bytes=700)
    save_reporting(tmp_path, "one")
    settings_ = "trust_remote_code: true, tasks: longshort_misalignment, lengths: [16]"
    write_manifest(tmp_path, f"  - {{pretrained: models/one, {settings_}, resources: {{gpus: 2, cpus: 1}}}}\n")
    done = sweep(tmp_path, "manifest.yaml", "-o", "out", CUDA_VISIBLE_DEVICES="4,7")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1 checkpoints to run; this machine, 2 GPUs" in done.stdout
    (report,) = reports(tmp_path, "one")
    assert report["CUDA_VISIBLE_DEVICES"] == "4,7"
    assert report["OMP_NUM_THREADS"] == "1"


def test_more_threads_than_cores_are_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    engine = LocalEngine(workers=4)  # on four cores
    submit(engine, "a", cpus=1)
    assert not caplog.messages
    submit(engine, "b", cpus=2)
    submit(engine, "c", cpus=2)
    (told,) = caplog.messages
    assert_facts(told, "4 workers", "2 threads", "4 cores", "'resources: {cpus: 1}'")
    caplog.clear()
    for workers in (None, 1, 2):
        submit(LocalEngine(workers), f"alone{workers}", cpus=2)
    assert not caplog.messages
