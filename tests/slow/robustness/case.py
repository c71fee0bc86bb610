"""A bad input: what is typed, in which folder, and what has to come of it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Step = Callable[[Path], Any]
Facts = str | tuple[str, ...]

# The reasons that the system gives.
DENIED, READ_ONLY, NO_SPACE, IS_FOLDER = (
    os.strerror(code) for code in (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EISDIR)
)


@dataclass(frozen=True)
class Interruption:
    """A signal in the middle of a run; the same command then has to end well.

    Attributes:
        signal: its number.
        at: the glob of a file, or text of stderr, at whose coming it is sent.
        whole: globs of what has to be there in the end.
    """

    signal: int
    at: str
    whole: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """One command line that has to fail well.

    Attributes:
        kind: of the input, as "files" or "options".
        name: what is wrong.
        command: the words after the program; split at blanks where it is text.
        facts: what the error line has to name, such as the file, the line, the field, the value or the command to
            run, in upper or lower case; never words of a sentence. Split at blanks if it is text.
        code: the exit code.
        inputs: of the shared folder, copied to where the command runs.
        steps: what is done to the folder before.
        program: "longshort", "lm_eval", "train.py" or "demo", the demo at a small scale.
        leaves: globs of new files that a failure may leave, as the results of what did not fail.
        lines: error lines there may be; more than one where several things are wrong.
        locked: without root's right to read and write what it may not.
        columns: of the terminal.
        pipe: stdout is a pipe that nobody reads.
        interruption: see there.
    """

    kind: str
    name: str
    command: str | tuple[str, ...]
    facts: Facts = ()
    code: int = 1
    inputs: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    program: str = "longshort"
    leaves: tuple[str, ...] = ()
    lines: int = 1
    locked: bool = False
    columns: int = 80
    pipe: bool = False
    interruption: Interruption | None = None

    @property
    def words(self) -> list[str]:
        """The command's words."""
        return self.command.split() if isinstance(self.command, str) else list(self.command)

    @property
    def expected_facts(self) -> list[str]:
        """The facts, one by one."""
        return self.facts.split() if isinstance(self.facts, str) else list(self.facts)


def write(name: str, content: str | bytes = "") -> Step:
    """Write a file, in folders that are made."""

    def step(folder: Path) -> None:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)

    return step


def make_folder(name: str) -> Step:
    """Make a folder, in folders that are made."""
    return lambda folder: (folder / name).mkdir(parents=True)


def remove(name: str) -> Step:
    """Remove a file or folder."""

    def step(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return step


def cut(name: str, size: int) -> Step:
    """Cut a file off after `size` bytes; before its end where that is negative."""

    def step(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:size])

    return step


def replace(name: str, old: str, new: str) -> Step:
    """Replace a text that a file has."""

    def step(folder: Path) -> None:
        text = (folder / name).read_text("utf-8")
        if old not in text:
            raise LookupError(f"{name} holds no {old!r}")
        (folder / name).write_text(text.replace(old, new), "utf-8")

    return step


def copy(name: str, to: str) -> Step:
    """Copy a file."""

    def step(folder: Path) -> None:
        (folder / to).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, folder / to)

    return step


def mode(name: str, bits: int) -> Step:
    """Set a file's or folder's permissions."""
    return lambda folder: (folder / name).chmod(bits)


def disk(name: str, options: str, full: bool = False) -> Step:
    """Mount a file system in memory at a folder, and fill it."""

    def step(folder: Path) -> None:
        (folder / name).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder / name)], check=True)
        if full:
            with (folder / name / "filler").open("wb", buffering=0) as filler:
                try:
                    while filler.write(bytes(1024)):
                        pass
                except OSError:
                    return

    return step


def unmount(folder: Path) -> None:
    """Take away what `disk` mounted below a folder."""
    for line in Path("/proc/mounts").read_text().splitlines():
        place = line.split()[1]
        if place.startswith(f"{folder}{os.sep}"):
            subprocess.run(["umount", place], check=True)
