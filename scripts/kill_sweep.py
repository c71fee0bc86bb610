"""Kills sweeps at random moments and checks that running the same command again leaves no trace of it.

    python scripts/kill_sweep.py --engine ray --kills 20 -o results/sweep_campaign

A sweep of tiny checkpoints runs undisturbed once per engine. Then sweeps in fresh folders lose a process to SIGKILL,
in turn: the driver or a worker and, with --engine ray, the process of a Ray task, the Ray head or the driver under
Ray. The same command is run until it ends with code 0. Then the folder has to hold the numbers of the undisturbed
run, nothing half-written and nothing measured twice, and no process of the sweep may be left.

Linux only: processes are found in /proc. Exit code 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the tiny checkpoints are those of the tests

from longshort.errors import UserError, one_line_for_user_errors  # noqa: E402
from longshort.results import write_atomically  # noqa: E402
from longshort.sweep.store.folder import TABLE, Folder  # noqa: E402

LOCAL_KILLS = ("driver", "worker")
RAY_KILLS = ("Ray task", "Ray head", "driver under Ray")
RAYS_OWN = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")  # no task of ours
RERUNS = 3
ATTEMPTS = 3  # at a sweep that ended before its kill
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


def case(
    place: Path, folder: str, kind: str, seconds: float, chance: random.Random
) -> tuple[dict[str, Any], list[Run]]:
    """One kill and what came of it: a row of the table, whose faults are a list, and all runs it took."""
    engine = "ray" if kind in RAY_KILLS else "local"
    moment = chance.uniform(0, seconds)
    faults: list[str] = []
    runs = [start(place, folder, engine)]
    victim = kill(runs[0], kind, moment, chance)
    at = time.monotonic() - runs[0].started
    if victim and kind.startswith("driver"):
        runs[0].driver.wait(10)
    saved = set(numbers(place / folder)[0])
    before = len(Folder(place / folder).events())
    codes: list[int] = []
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
    found, wrong = numbers(place / folder)
    expected = numbers(place / "undisturbed_local")[0]
    faults += wrong + measured_again(place / folder, saved, before)
    faults += [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    faults += [f"{name}: other numbers" for name in sorted(found) if found[name] != expected.get(name)]
    tables = [place / name / TABLE for name in (folder, "undisturbed_local")]
    rows = [len(pd.read_parquet(table)) if table.exists() else 0 for table in tables]
    faults += [f"{rows[0]} rows in the table instead of {rows[1]}"] if rows[0] != rows[1] else []
    words = [word.rpartition("/")[2] for word in (victim or "").split()]
    name = " ".join(words[: 3 if "-m" in words else 1])
    row: dict[str, Any] = {
        "kind": kind,
        "killed": bool(victim),
        "process": name,
        "second": round(at, 1),
        "saved_before": len(saved),
        "codes": " ".join(str(code) for code in codes),
        "events_after": len(Folder(place / folder).events()) - before,
        "seconds_after": round((runs[-1].ended or 0) - runs[0].started - at, 1),
        "faults": faults,
    }
    return row, runs


def settle(rows: Sequence[tuple[dict[str, Any], list[Run]]]) -> None:
    """Wait for what Ray still has to end, add what stays to the faults, and end it."""
    for row, runs in rows:
        for run in runs:
            run.look()
            while run.alive and time.monotonic() - (run.ended or 0) < SECONDS_FOR_RAY:
                time.sleep(SECONDS_BETWEEN_LOOKS)
                run.look()
            row["faults"] += [f"left running: {process.command[:60]}" for process in run.alive.values()]
            for number, _ in run.alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)


def prepare(place: Path, count: int) -> None:
    """Checkpoints, a corpus and a manifest."""
    from longshort.testing import save_checkpoint, save_corpus

    for index in range(count):
        kind = ("llama", "gpt2")[index % 2]
        save_checkpoint(place / "models" / f"{kind}-{index}", model_type=kind, seed=index)
    save_corpus(place / "text.jsonl", num_docs=6, num_bytes=3000)
    (place / "manifest.yaml").write_text(MANIFEST)


def undisturbed(place: Path, engine: str) -> float:
    """Run a sweep that nobody kills; return its seconds.

    Raises:
        UserError: it fails, or its numbers are not those of the local engine.
    """
    run = start(place, f"undisturbed_{engine}", engine)
    if not wait([run]) or run.driver.returncode:
        raise UserError(f"the undisturbed sweep ({engine}) failed; see {place}/undisturbed_{engine}.output.")
    found, faults = numbers(place / f"undisturbed_{engine}")
    if faults or found != numbers(place / "undisturbed_local")[0]:
        raise UserError(f"the undisturbed sweep ({engine}) has other numbers than the local one: {faults}")
    return (run.ended or 0.0) - run.started


def report(rows: Sequence[dict[str, Any]], seconds: dict[str, float], output: Path, seed: int) -> None:
    """Write the table, for programs and for people."""
    rows = [row for row in rows if row["killed"] or row["faults"]]
    if not rows:
        return
    table = pd.DataFrame(rows)
    table["faults"] = ["; ".join(faults) for faults in table["faults"]]
    write_atomically(output / "campaign.csv", table.to_csv(index=False))
    lines = ["| " + " | ".join(row) + " |" for row in [list(table), ["---"] * len(table.columns)]]
    lines += ["| " + " | ".join(str(value) for value in row) + " |" for row in table.itertuples(index=False)]
    wrong = int((table["faults"] != "").sum())
    took = ", ".join(f"{value:.0f} s ({engine})" for engine, value in seconds.items())
    head = f"{len(table)} kills, {wrong} with faults. Seed {seed}; the undisturbed sweep took {took}."
    write_atomically(output / "campaign.md", "\n".join(["# Killed sweeps", "", head, "", *lines, ""]))


def main() -> None:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="ray: kills under Ray, too")
    parser.add_argument("--kinds", nargs="+", choices=(*LOCAL_KILLS, *RAY_KILLS), help="only these, in turn")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--checkpoints", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "results" / "sweep_campaign")
    parser.add_argument("--work", type=Path, help="folder for the sweeps, which stay; by default a temporary one")
    arguments = parser.parse_args()
    kinds = arguments.kinds or (LOCAL_KILLS + (RAY_KILLS if arguments.engine == "ray" else ()))
    chance = random.Random(arguments.seed)
    with contextlib.ExitStack() as stack:
        # Short: the paths of Ray's sockets must fit into 107 characters.
        work = arguments.work or stack.enter_context(tempfile.TemporaryDirectory(prefix="kill", dir="/tmp"))
        place = Path(work).resolve()
        place.mkdir(parents=True, exist_ok=True)
        prepare(place, arguments.checkpoints)
        engines = ["local"] + (["ray"] if set(kinds) & set(RAY_KILLS) else [])
        seconds = {engine: undisturbed(place, engine) for engine in engines}
        print(seconds, flush=True)
        rows: list[tuple[dict[str, Any], list[Run]]] = []
        for number in range(arguments.kills):
            kind = kinds[number % len(kinds)]
            latest = seconds["ray" if kind in RAY_KILLS else "local"]
            for attempt in range(ATTEMPTS):
                row, runs = case(place, f"killed{number:02}-{attempt}", kind, latest, chance)
                rows.append((row, runs))
                if row["killed"] or row["faults"]:
                    break
                latest /= 2  # it ended before: the machine is faster than it was
            print(*row.values(), sep="\t", flush=True)
            report([row for row, _ in rows], seconds, arguments.output, arguments.seed)
        settle(rows)
        report([row for row, _ in rows], seconds, arguments.output, arguments.seed)
    if any(row["faults"] for row, _ in rows):
        sys.exit(1)


if __name__ == "__main__":
    one_line_for_user_errors()
    main()
