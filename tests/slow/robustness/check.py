"""Runs a case in a folder of its own, and says what is wrong with what came of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from tests.slow.robustness.case import Case, unmount

SECONDS = 900.0  # for one command, also where the machine is busy
SECONDS_TO_END = 180.0  # after a signal
LONGEST_LINE = 900  # characters of an error that a person still reads
BOX = "╭╮╰╯─│"
TEMPORARY = ("*.tmp", "*.partial", "tmp*")
MARK = "longshort: "
REMEDY = re.compile(r"[.;:?] \S")  # a second sentence or clause, after the one that names the cause
INTERRUPTED = {signal.SIGINT: (130, -signal.SIGINT), signal.SIGKILL: (-signal.SIGKILL,)}
DEMO = """
from pathlib import Path
from longshort.demo import Scale, run_demo
from longshort.cli import app
app.registered_commands = [command for command in app.registered_commands if command.name != "demo"]
@app.command("demo")
def demo(out: Path = Path("longshort-demo")) -> None:
    run_demo(out, Scale(base_steps=60, steps=4, batch_size=2, num_docs=3, lengths=(64, 128, 256),
                        alphas=(0.0, 0.1), extensions=("none", "clex")))
from longshort.cli import main
main()
"""


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        code: its exit code.
        stdout, stderr: what it printed.
        before, after: `snapshot` of its folder.
    """

    code: int
    stdout: str
    stderr: str
    before: dict[str, str]
    after: dict[str, str]


@dataclass
class Verdict:
    """What a case came to: the line it printed, warnings of others before it, and what is wrong."""

    case: Case
    code: int = 0
    line: str = ""
    noise: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def snapshot(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder by its path; of a folder that is empty, "folder"."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not any(path.iterdir()):
            found[name] = "folder"
    return found


def try_case(case: Case, inputs: Path, place: Path) -> Verdict:
    """Run a case in the new folder `place` and judge it."""
    verdict = Verdict(case)
    started = time.monotonic()
    place.mkdir(parents=True)
    try:
        for name in case.inputs:
            source = inputs / name
            shutil.copytree(source, place / name) if source.is_dir() else shutil.copy(source, place / name)
        for step in case.steps:
            step(place)
        if case.interruption:
            verdict.faults = _interrupted(case, place, verdict)
        else:
            outcome = run(case, place)
            verdict.code, verdict.faults = outcome.code, faults_of(case, outcome, place)
            errors, noise = error_lines(outcome)
            verdict.line, verdict.noise = " / ".join(errors), len(noise)
    finally:
        unmount(place)
    verdict.seconds = time.monotonic() - started
    return verdict


def argv(case: Case) -> list[str]:
    """The whole command line."""
    root = Path(__file__).resolve().parents[3]
    program = {
        "longshort": [sys.executable, "-m", "longshort"],
        "lm_eval": [sys.executable, "-m", "lm_eval"],
        "train.py": [sys.executable, str(root / "scripts" / "train.py")],
        "demo": [sys.executable, "-c", DEMO],
    }[case.program]
    without = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if case.locked else []
    tasks = str(root / "tasks")
    return [*without, *program, *(tasks if word == "TASKS" else word for word in case.words)]


def environment(case: Case) -> dict[str, str]:
    """Of the command: no hub, no GPU, one thread, plain text."""
    return os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "COLUMNS": str(case.columns),
        "NO_COLOR": "1",
        "TERM": "dumb",
        "PYTHONUNBUFFERED": "1",
    }


def run(case: Case, place: Path) -> Outcome:
    """Run a case's command to its end."""
    before = snapshot(place)
    output = subprocess.PIPE
    if case.pipe:
        reader, output = os.pipe()
        os.close(reader)
    process = subprocess.Popen(
        argv(case),
        cwd=place,
        env=environment(case),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    if case.pipe:
        os.close(output)
    try:
        stdout, stderr = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        _end(process)
        stdout, stderr = process.communicate()
        stderr += f"\nTraceback: no end within {SECONDS:.0f} s\n".encode()
    texts = [(text or b"").decode("utf-8", errors="replace") for text in (stdout, stderr)]
    return Outcome(process.returncode, *texts, before, snapshot(place))


def error_lines(outcome: Outcome) -> tuple[list[str], list[str]]:
    """The lines that tell the error, a box of them as one; and all other lines of stderr."""
    errors, noise, box = [], [], []
    for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", outcome.stderr)):
        if line.startswith("│"):
            box.append(line.strip(BOX + " "))
        elif line.startswith(MARK) or line.startswith("Error: "):
            errors.append(line.removeprefix(MARK).removeprefix("Error: ").strip())
        elif line.strip(BOX + " Error") and not line.startswith(("Usage: ", "Try ")):
            noise.append(line)
    return errors + ([" ".join(box)] if box else []), noise


def faults_of(case: Case, outcome: Outcome, place: Path) -> list[str]:
    """What is wrong: the exit code, what is printed, what is left of the folder."""
    errors, _ = error_lines(outcome)
    told = " ".join(outcome.stderr.split()) if case.lines > 1 else " ".join(errors)
    faults = []
    if outcome.code != case.code:
        faults.append(f"exit code {outcome.code}, not {case.code}")
    if "Traceback" in outcome.stderr + outcome.stdout:
        faults.append("a traceback")
    silent = case.code == 0 or case.pipe
    box = BOX[0] in outcome.stderr  # of the command line's parser, which names the option and what it takes
    if not silent and not errors:
        faults.append("no line that tells the error")
    if len(errors) > case.lines:
        faults.append(f"{len(errors)} error lines, not {case.lines}")
    if not silent:
        faults += [f"not named: {fact}" for fact in case.expected_facts if not names(told, fact)]
        if not any(advises(error) for error in errors) and not box:
            faults.append("no remedy")
    long = [error for error in errors if len(error) > LONGEST_LINE]
    if long:
        faults.append(f"a line of {len(long[0])} characters")
    half = half_written(place, outcome.before, outcome.after)
    return faults + lost(case, outcome) + [f"half written: {name}" for name in half]


def names(text: str, fact: str) -> bool:
    """Whether a text has a fact as words of its own, in upper or lower case: "1" is not in "num_docs: 10"."""
    return re.search(rf"(?<!\w){re.escape(fact)}(?!\w)", text, re.IGNORECASE) is not None


def advises(error: str) -> bool:
    """Whether an error says more than its cause."""
    return REMEDY.search(error) is not None


def lost(case: Case, outcome: Outcome) -> list[str]:
    """What was there and is not, or not as it was; and what is new though nothing should be."""
    faults = []
    for name, content in outcome.before.items():
        now = outcome.after.get(name)
        filled = content == "folder" and any(other.startswith(f"{name}/") for other in outcome.after)
        if now is None and not filled:
            faults.append(f"lost: {name}")
        elif now not in (None, content) and not _may_be_left(name, case.leaves):
            faults.append(f"changed: {name}")
    for name in sorted(outcome.after.keys() - outcome.before.keys()):
        if _is_temporary(name) or not (outcome.after[name] == "folder" or _may_be_left(name, case.leaves)):
            faults.append(f"left behind: {name}")
    return faults


def half_written(place: Path, before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Files, new or changed, that cannot be read to their end: results, records, weights, tables."""
    wrong = []
    for name in sorted(name for name, content in after.items() if before.get(name) != content):
        file = place / name
        if not file.is_file() or any(part.endswith(".partial") for part in file.parts):
            continue
        try:
            if file.suffix == ".json":
                json.loads(file.read_text("utf-8"))
            elif file.suffix == ".safetensors":
                from safetensors import safe_open

                with safe_open(file, "pt"):
                    pass
            elif file.suffix == ".parquet":
                import pandas as pd

                pd.read_parquet(file)
            elif file.suffix in (".csv", ".md", ".tex", ".html", ".svg", ".png") and not file.stat().st_size:
                raise ValueError("empty")
        except Exception:  # whatever the readers raise
            wrong.append(name)
    return wrong


def _is_temporary(name: str) -> bool:
    return any(fnmatchcase(part, pattern) for part in name.split("/") for pattern in TEMPORARY)


def _may_be_left(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _interrupted(case: Case, place: Path, verdict: Verdict) -> list[str]:
    """Send the signal in mid-run, look at what is left, run again to the end."""
    told = case.interruption
    if told is None:
        raise ValueError("not a case with an interruption")
    before = snapshot(place)
    log = place.with_suffix(".stderr")
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            argv(case),
            cwd=place,
            env=environment(case),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        limit = time.monotonic() + SECONDS
        while process.poll() is None and time.monotonic() < limit:
            if next(place.glob(told.at), None) or told.at in log.read_text("utf-8", errors="replace"):
                break
            time.sleep(0.02)
        met = process.poll() is None
        # Ctrl-C reaches all processes of a terminal, SIGKILL one.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, told.signal) if told.signal == signal.SIGINT else process.send_signal(told.signal)
        try:
            process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            _end(process)
            return [f"no end within {SECONDS_TO_END:.0f} s of the signal"]
    faults = [] if met else ["it ended before the signal"]
    outcome = Outcome(process.returncode, "", log.read_text("utf-8", errors="replace"), before, snapshot(place))
    verdict.code = outcome.code
    errors, noise = error_lines(outcome)
    verdict.line, verdict.noise = " / ".join(errors), len(noise)
    if met and outcome.code not in INTERRUPTED[signal.Signals(told.signal)]:
        faults.append(f"exit code {outcome.code} after {signal.Signals(told.signal).name}")
    if "Traceback" in outcome.stderr:
        faults.append("a traceback")
    if told.signal == signal.SIGINT and len(errors) != 1:
        faults.append(f"{len(errors)} lines that tell of the interruption")
    faults += [f"lost: {name}" for name in before if outcome.after.get(name) != before[name]]
    faults += [f"half written: {name}" for name in half_written(place, before, outcome.after)]
    time.sleep(1)  # workers whose driver was killed end by themselves
    again = run(case, place)
    if again.code:
        faults.append(f"the rerun ends with {again.code}: {' / '.join(error_lines(again)[0])}")
    if "Traceback" in again.stderr:
        faults.append("the rerun has a traceback")
    faults += [f"the rerun leaves no {pattern}" for pattern in told.whole if not next(place.glob(pattern), None)]
    faults += [f"half written after the rerun: {name}" for name in half_written(place, before, again.after)]
    rest = [name for name in again.after if _is_temporary(name)]
    return faults + [f"left behind after the rerun: {name}" for name in rest[:3]]


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
