"""Kills a process of a sweep at a random moment, runs the same command again, and judges what came of it.

A sweep of tiny checkpoints runs undisturbed once per engine. Then a sweep in a fresh folder loses a process to
SIGKILL: the driver or a worker, under Ray the process of a Ray task, the Ray head or the driver. The same command is
run until it ends with code 0. Then the folder has to hold the numbers of the undisturbed run, nothing half-written and
nothing measured twice, and no process of the sweep may be left.

Linux only: processes are found in /proc.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd

from longshort.sweep.store.folder import TABLE, Folder
from longshort.testing import save_checkpoint, save_corpus

LOCAL_KILLS = ("driver", "worker")
RAY_KILLS = ("Ray task", "Ray head", "driver under Ray")
RAYS_OWN = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")  # no task of ours
RERUNS = 3
SECONDS = 180.0  # for one command
SECONDS_TO_END = 10.0  # for the workers of a driver that is gone
SECONDS_FOR_RAY = 120.0  # Ray's own agents end about 60 s after their raylet was killed
SECONDS_BETWEEN_LOOKS = 0.1
MARK = "LONGSHORT_KILL_CAMPAIGN"
MANIFEST = """defaults:
  corpus: text.jsonl
  lengths: [16, 32, 64]
  num_docs: 6
  train_length: 32
  dtype: float32
  resources: {gpus: 0, cpus: 1}
checkpoints:
  - folders: models/*
"""

Identity = tuple[int, int]  # process number and start time: numbers come back


@dataclass(frozen=True)
class Process:
    """What /proc tells of a process that runs."""

    identity: Identity
    parent: int
    command: str

    @property
    def is_worker(self) -> bool:
        """Whether it evaluates checkpoints, or was forked by one that does."""
        return "longshort.sweep.run.worker" in self.command


@dataclass
class Run:
    """A driver and all processes that came from it."""

    driver: subprocess.Popen[bytes]
    mark: str
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    known: dict[Identity, Process] = field(default_factory=dict)
    alive: dict[Identity, Process] = field(default_factory=dict)
    late: set[str] = field(default_factory=set)

    @property
    def has_workers(self) -> bool:
        """Whether a worker was there at the last look."""
        return any(process.is_worker for process in self.alive.values())

    def look(self) -> None:
        """Find its processes: those that carry its mark, and children of those known (Ray's hide their marks)."""
        if self.ended is None and self.driver.poll() is not None:
            self.ended = time.monotonic()
        now = processes(self.mark, self.known.keys())
        self.known |= now
        self.alive = now
        if self.ended is not None and time.monotonic() - self.ended > SECONDS_TO_END:
            self.late |= {process.command[:60] for process in now.values() if process.is_worker}


def processes(mark: str, known: Collection[Identity]) -> dict[Identity, Process]:
    """Processes that run and carry the mark in their environment, or descend from those known."""
    everything, marked = {}, set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            fields = (folder / "stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()
            if fields[0] == "Z":  # dead, and nobody asked how
                continue
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            number = int(folder.name)
            everything[number] = Process((number, int(fields[19])), int(fields[1]), command)
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                marked.add(number)
    found = marked | {number for number, process in everything.items() if process.identity in known}
    while more := {n for n, process in everything.items() if process.parent in found} - found:
        found |= more
    return {everything[number].identity: everything[number] for number in found}


def start(place: Path, folder: str, engine: str) -> Run:
    """Start a sweep in a session of its own."""
    mark = uuid4().hex
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "RAY_TMPDIR": str(place / "ray"),
        "SPT_NOENV": "1",
        MARK: mark,
    }
    command = [sys.executable, "-m", "longshort", "sweep", "manifest.yaml", "-o", folder, "--workers", "2"]
    command += ["--engine", "ray"] if engine == "ray" else []
    with (place / f"{folder}.output").open("ab") as output:
        driver = subprocess.Popen(
            command, cwd=place, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    return Run(driver, mark)


def wait(runs: Sequence[Run]) -> bool:
    """Wait for the driver of the last run, keeping an eye on all; False where it took too long and was killed."""
    run = runs[-1]
    while run.ended is None:
        for each in runs:
            each.look()
        if time.monotonic() - run.started > SECONDS:
            run.driver.kill()
            run.driver.wait()
            run.look()
            return False
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return True


def victims(run: Run, kind: str) -> list[Process]:
    """Processes that a kill of this kind may hit."""
    if kind.startswith("driver"):
        return [process for process in run.alive.values() if process.identity[0] == run.driver.pid]
    if kind == "worker":
        leaders = [process for process in run.alive.values() if process.is_worker]
        return [process for process in leaders if process.parent == run.driver.pid]
    if kind == "Ray task":
        names = [process for process in run.alive.values() if process.command.startswith("ray::")]
        return [process for process in names if process.command not in RAYS_OWN]
    heads = ("/gcs_server ", "/raylet ")
    return [process for process in run.alive.values() if any(head in f"{process.command} " for head in heads)]


def kill(run: Run, kind: str, moment: float, chance: random.Random) -> str | None:
    """Kill a process at a moment, or as soon as there is one; return its command, None where the run ended before."""
    while run.ended is None and time.monotonic() - run.started < SECONDS:
        run.look()
        candidates = victims(run, kind)
        if candidates and time.monotonic() - run.started >= moment:
            victim = chance.choice(sorted(candidates, key=lambda process: process.identity))
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim.identity[0], signal.SIGKILL)
                return victim.command
        time.sleep(SECONDS_BETWEEN_LOOKS / 2)
    return None


def numbers(folder: Path) -> tuple[dict[str, str], list[str]]:
    """What was measured, by checkpoint and task, as text, digit by digit; and what is wrong with the files."""
    found: dict[str, str] = {}
    faults = []
    for file in sorted(folder.rglob("results_*.json")):
        name = str(file.parent.relative_to(folder / "results"))
        if name in found:
            faults.append(f"two results of {name}")
        try:
            found[name] = json.dumps(json.loads(file.read_text("utf-8"))["results"], sort_keys=True)
        except (OSError, ValueError, KeyError) as error:
            faults.append(f"{name}: half-written or damaged ({error})")
    names = [file.name for pattern in ("*.tmp", "outdated_*") for file in folder.rglob(pattern)]
    return found, faults + [f"left over: {name}" for name in names]


def measured_again(folder: Path, saved: set[str], before: int) -> list[str]:
    """Results measured again although they were saved; `saved` were there after the first `before` events."""
    faults, done = [], set()
    for index, event in enumerate(Folder(folder).events()):
        name = f"{event.get('id')}/{event.get('task')}"
        if event["event"] in ("started", "done"):
            if name in done or (index >= before and event["event"] == "started" and name in saved):
                faults.append(f"{name} {event['event']} again though saved")
            if event["event"] == "done":
                done.add(name)
    return faults


@dataclass
class Kill:
    """One kill and what came of it.

    Attributes:
        row: of the campaign's table; its faults are a list.
        runs: all that it took.
    """

    row: dict[str, Any]
    runs: list[Run]


def kill_and_rerun(place: Path, folder: str, kind: str, seconds: float, chance: random.Random) -> Kill:
    """Kill a sweep at a moment within `seconds`, run it again to its end, and judge the folder."""
    engine = "ray" if kind in RAY_KILLS else "local"
    runs = [start(place, folder, engine)]
    victim = kill(runs[0], kind, chance.uniform(0, seconds), chance)
    at = time.monotonic() - runs[0].started
    if victim and kind.startswith("driver"):
        runs[0].driver.wait(10)
    saved = set(numbers(place / folder)[0])
    before = len(Folder(place / folder).events())
    codes, faults = rerun(place, folder, engine, runs)
    row = {
        "kind": kind,
        "killed": bool(victim),
        "process": _short(victim or ""),
        "second": round(at, 1),
        "saved_before": len(saved),
        "codes": " ".join(map(str, codes)),
        "events_after": len(Folder(place / folder).events()) - before,
        "seconds_after": round((runs[-1].ended or 0) - runs[0].started - at, 1),
        "faults": faults + measured_again(place / folder, saved, before) + differences(place, folder),
    }
    return Kill(row, runs)


def rerun(place: Path, folder: str, engine: str, runs: list[Run]) -> tuple[list[int], list[str]]:
    """Run the command until it ends with code 0 and its workers are gone; return the exit codes and the faults."""
    codes: list[int] = []
    faults = []
    while not codes or (codes[-1] != 0 and len(codes) <= RERUNS):
        if codes:
            runs.append(start(place, folder, engine))
        if not wait(runs):
            faults.append(f"no end after {SECONDS:.0f} s")
        codes.append(runs[-1].driver.returncode)
    while any(run.has_workers for run in runs) and time.monotonic() - (runs[-1].ended or 0) < SECONDS_TO_END + 1:
        for run in runs:
            run.look()
        time.sleep(SECONDS_BETWEEN_LOOKS)
    for run in runs:
        faults += [f"worker outlived its driver by {SECONDS_TO_END:.0f} s: {name}" for name in sorted(run.late)]
    if codes[-1] != 0:
        faults.append(f"code {codes[-1]} after {RERUNS} reruns")
    return codes, faults


def differences(place: Path, folder: str) -> list[str]:
    """Where a folder does not hold what the undisturbed sweep measured."""
    found, faults = numbers(place / folder)
    expected = numbers(place / "undisturbed_local")[0]
    faults += [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    faults += [f"{name}: other numbers" for name in sorted(found) if found[name] != expected.get(name)]
    tables = [place / name / TABLE for name in (folder, "undisturbed_local")]
    rows = [len(pd.read_parquet(table)) if table.exists() else 0 for table in tables]
    return faults + ([f"{rows[0]} rows in the table instead of {rows[1]}"] if rows[0] != rows[1] else [])


def _short(command: str) -> str:
    words = [word.rpartition("/")[2] for word in command.split()]
    return " ".join(words[: 3 if "-m" in words else 1])


def settle(runs: Sequence[Run]) -> list[str]:
    """Wait for what Ray still has to end; return, and end, what stays."""
    left = []
    for run in runs:
        run.look()
        while run.alive and time.monotonic() - (run.ended or 0) < SECONDS_FOR_RAY:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            run.look()
        left += [f"left running: {process.command[:60]}" for process in run.alive.values()]
        for number, _ in run.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
    return left


def prepare(place: Path, count: int) -> None:
    """Checkpoints, a corpus and a manifest."""
    for index in range(count):
        kind = ("llama", "gpt2")[index % 2]
        save_checkpoint(place / "models" / f"{kind}-{index}", model_type=kind, seed=index)
    save_corpus(place / "text.jsonl", num_docs=6, num_bytes=3000)
    (place / "manifest.yaml").write_text(MANIFEST)


def undisturbed(place: Path, engine: str) -> float:
    """Run a sweep that nobody kills, whose numbers have to be those of the local engine; return its seconds."""
    run = start(place, f"undisturbed_{engine}", engine)
    assert wait([run]), "it takes too long"
    assert run.driver.returncode == 0, f"see {place}/undisturbed_{engine}.output"
    found, faults = numbers(place / f"undisturbed_{engine}")
    assert not faults
    assert found == numbers(place / "undisturbed_local")[0]
    return (run.ended or 0.0) - run.started
