"""Drives the command line with bad inputs and checks how it fails.

    python scripts/robustness.py -o results/robustness
    python scripts/robustness.py -o results/robustness --faulty    # only what had faults, once they are mended
    python scripts/robustness.py --only 'eval*' --only 'models: *' --work here

Every case is a command in a folder of its own, with something wrong: a file, a manifest, a checkpoint, a corpus,
results, an option, a folder that cannot be written, an interruption. It has to end with its exit code, 1 where
something failed and 2 where the command line is wrong, and one line that names cause and remedy; no traceback, nothing
lost, nothing left behind or half written. Interrupted commands have to end well when they are run again.

Linux, as root: cases of permissions give up root's right to pass over them, full disks are mounted. The hub is out of
reach in all of them. Exit code 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from glob import escape
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from robustness_cases import analyzing, evaluating, others, sweeping, training
from robustness_cases.case import Case
from robustness_cases.check import Verdict, try_case
from robustness_cases.inputs import ROOT, build

from longshort.errors import one_line_for_user_errors
from longshort.results import write_atomically

TABLE = "campaign.csv"
KEY = ["command", "kind", "case"]
LIBRARIES = ("longshort", "lm_eval", "torch", "transformers", "datasets", "typer")
CASES = [*others.CASES, *evaluating.CASES, *training.CASES, *sweeping.CASES, *analyzing.CASES]  # the longest first


def rows_of(verdicts: Sequence[Verdict], commit: str) -> pd.DataFrame:
    """The table of what was tried, with the commit that it was tried on."""
    return pd.DataFrame(
        {
            "program": verdict.case.program,
            "command": command_of(verdict.case),
            "kind": verdict.case.kind,
            "case": verdict.case.name,
            "expected": expected(verdict.case),
            "code": verdict.code,
            "line": verdict.line,
            "other_lines": verdict.noise,
            "seconds": round(verdict.seconds, 1),
            "faults": "; ".join(verdict.faults),
            "commit": commit,
        }
        for verdict in verdicts
    )


def command_of(case: Case) -> str:
    """The subcommand, or the program where it is none of longshort's."""
    return case.words[0] if case.program in ("longshort", "demo") else case.program


def expected(case: Case) -> str:
    """The exit code, as a person would say it."""
    if case.interruption:
        return "ends, the rerun with 0"
    return str(case.code)


def merged(table: pd.DataFrame, output: Path) -> pd.DataFrame:
    """The table that is in a folder, with rows of a newer one in place of its own."""
    before = pd.read_csv(output / TABLE, keep_default_na=False)
    again = {tuple(row) for row in table[KEY].itertuples(index=False)}
    kept = before[[tuple(row) not in again for row in before[KEY].itertuples(index=False)]]
    return pd.concat([kept, table], ignore_index=True)


def report(table: pd.DataFrame, output: Path) -> None:
    """Write the table, for programs and for people."""
    wrong = int((table["faults"] != "").sum())
    counts = Counter(zip(table["command"], table["kind"], strict=True))
    kinds = sorted(set(table["kind"]))
    lines = ["| command | " + " | ".join(kinds) + " | all |", "|---|" + "---|" * (len(kinds) + 1)]
    for command in sorted(set(table["command"])):
        cells = [counts[command, kind] for kind in kinds]
        lines.append("| " + " | ".join([f"`{command}`", *(str(cell or "") for cell in cells), str(sum(cells))]) + " |")
    columns = ["command", "kind", "case", "code", "line", "faults"]
    rows = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    rows += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in table[columns].itertuples(index=False)]
    versions = ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in LIBRARIES)])
    commits = "; ".join(f"{count} at commit {commit}" for commit, count in table["commit"].value_counts().items())
    head = (
        f"{len(table)} commands with something wrong, {wrong} of them with faults: {commits}. All took "
        f"{table['seconds'].sum() / 60:.0f} minutes of one process. {versions}."
    )
    text = ["# Robustness campaign", "", head, "", "`python scripts/robustness.py` runs it.", "", *lines, "", *rows, ""]
    write_atomically(output / TABLE, table.to_csv(index=False))
    write_atomically(output / "campaign.md", "\n".join(text))


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "\\<")[:300]


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def main() -> None:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", action="append", help="glob of 'KIND: NAME' or COMMAND; repeatable")
    parser.add_argument("--faulty", action="store_true", help="only what has faults in the table in --output")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("-o", "--output", type=Path, help="folder for the table")
    parser.add_argument(
        "--work", type=Path, help="folder for all that is made, which stays; by default a temporary one"
    )
    arguments = parser.parse_args()
    patterns = arguments.only or ["*"]
    if arguments.faulty:
        before = pd.read_csv(arguments.output / TABLE, keep_default_na=False)
        faulty = [escape(f"{row.kind}: {row.case}") for row in before[before["faults"] != ""].itertuples()]
        patterns = faulty + (arguments.only or [])
    cases = [
        case
        for case in CASES
        if any(fnmatchcase(name, p) for name in (f"{case.kind}: {case.name}", command_of(case)) for p in patterns)
    ]
    if arguments.list:
        print("\n".join(f"{command_of(case)}\t{case.kind}: {case.name}" for case in cases))
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as a background job it is ignored, also by children
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="robustness")))
        place = work.resolve()
        if not (place / "inputs").is_dir():
            build(place / "inputs")
        number = len(list(place.glob("run*")))

        def attempt(numbered: tuple[int, Case]) -> Verdict:
            index, case = numbered
            verdict = try_case(case, place / "inputs", place / f"run{number}" / f"{index:03}")
            mark = "FAULT" if verdict.faults else "ok"
            print(mark, index, command_of(case), f"{case.kind}: {case.name}", verdict.code, verdict.line, sep="\t")
            for fault in verdict.faults:
                print(f"\t{fault}", flush=True)
            return verdict

        with ThreadPoolExecutor(arguments.processes) as pool:
            verdicts = list(pool.map(attempt, enumerate(cases)))
    if arguments.output:
        table = rows_of(verdicts, _commit())
        is_part = (arguments.faulty or arguments.only) and (arguments.output / TABLE).exists()
        report(merged(table, arguments.output) if is_part else table, arguments.output)
    faulty = sum(bool(verdict.faults) for verdict in verdicts)
    print(f"{len(verdicts)} cases, {faulty} with faults")
    if faulty:
        sys.exit(1)


if __name__ == "__main__":
    one_line_for_user_errors()
    main()
