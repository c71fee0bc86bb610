"""Command line: `record` runs one source tree, `compare` compares two recorded folders."""

from __future__ import annotations

import argparse
from pathlib import Path

import tests.slow.same_numbers as package
from tests.slow.same_numbers.compare import compare, report
from tests.slow.same_numbers.record import record

ROOT = Path(__file__).resolve().parents[3]


def main() -> int:
    """Return the exit code: 1 if `compare` finds a difference."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.slow.same_numbers",
        description=package.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="Run every step with one source tree.")
    recording.add_argument("tree", type=Path, help="Root of a checkout, the folder that contains harness/.")
    recording.add_argument(
        "--inputs", type=Path, required=True, help="Folder of the inputs of both sides; made if it does not exist."
    )
    recording.add_argument("-o", "--output", type=Path, required=True, help="Folder to write to; must not exist.")
    recording.add_argument(
        "--study",
        type=Path,
        default=ROOT / "results" / "study" / "sweep",
        help="Sweep folder that is copied into new inputs and correlated. [default: the committed study]",
    )
    comparing = commands.add_parser("compare", help="Compare two recorded folders; exit code 1 on a difference.")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.add_argument("--show", type=int, default=5, help="Differences to print per section. [default: 5]")
    arguments = parser.parse_args()
    if arguments.command == "record":
        record(arguments.tree, arguments.inputs, arguments.study, arguments.output)
        return 0
    sections = compare(arguments.before, arguments.after)
    print(report(sections, arguments.show))
    return int(any(section.differences for section in sections))


if __name__ == "__main__":
    raise SystemExit(main())
