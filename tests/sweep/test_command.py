"""What a person sees: plans, mistakes, progress, at the widths of usual terminals."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from longshort.cli import app
from longshort.errors import UserError
from longshort.testing import save_checkpoint, save_corpus
from tests.sweep.conftest import write_manifest

SMALL = "defaults: {corpus: builtin, lengths: [2048], num_docs: 4}\ncheckpoints:\n"


def dry_run(tmp_path: Path, manifest: str, *arguments: str, columns: int = 80) -> Any:
    (tmp_path / "m.yaml").write_text(manifest)
    command = ["sweep", str(tmp_path / "m.yaml"), "-o", str(tmp_path / "out"), "--dry-run", *arguments]
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(app, command)


@pytest.mark.parametrize("columns", [80, 100])
def test_a_plan_fits_the_terminal_and_tells_what_does_not_fit_a_gpu(tmp_path: Path, columns: int) -> None:
    entries = (
        "  - {pretrained: owner/model-7b}\n"
        "  - {pretrained: owner/model-70b, license: some, gated: true, revisions: [main, step1]}\n"
        "  - {pretrained: owner/other-70b, resources: {gpus: 4}, license: some}\n"
        "  - {pretrained: owner/another-1b, gated: true}\n"
    )
    done = dry_run(tmp_path, SMALL + entries, "--gpu", "a100", columns=columns)
    assert done.exit_code == 0
    *table, _ = done.stdout.split("5 checkpoints: 0 results there, 10 to do; ")
    assert max(len(line) for line in table[0].splitlines() if "│" in line) <= columns
    notes = re.findall(r"^(\S+): needs (\d+) GB, (\d) × a100 has (\d+) GB$", done.stdout, re.MULTILINE)
    too_great = [(name, "1", "80") for name in ("owner/model-70b", "owner/model-70b@step1")]
    assert [(name, gpus, there) for name, _, gpus, there in notes] == too_great
    assert 140 < int(notes[0][1]) < 160
    assert re.findall(r"^license .*", done.stdout, re.MULTILINE) == [
        "license some: owner/model-70b, owner/other-70b",
        "license on its page: owner/another-1b",
    ]
    assert re.findall(r"owner/\S+ \*", done.stdout) == [
        *("owner/model-70b *", "owner/model-70b@step1 *", "owner/another-1b *")
    ]


def test_a_mistake_is_one_line_with_its_line_and_field(tmp_path: Path) -> None:
    for entry, told in {
        "tasks: longshort_perplexty": "line 3, checkpoints[0].tasks: there is no such task of longshort; did you "
        "mean 'longshort_perplexity'?",
        "corpus: none.jsonl": "line 3 of the manifest, corpus 'none.jsonl' is no file, folder or glob that matches one",
        "length: [2]": "line 3, checkpoints[0].length: there is no such field; did you mean 'lengths'?",
    }.items():
        done = dry_run(tmp_path, SMALL + f"  - {{pretrained: owner/model-7b, {entry}}}\n")
        assert done.exit_code == 1
        assert isinstance(done.exception, UserError)
        assert told in str(done.exception)
        assert "\n" not in str(done.exception)


def test_the_list_of_the_demo_tells_what_to_run_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["sweep", "demo", "--dry-run"])
    assert str(done.exception).endswith("Run `longshort demo` in this folder first.")


def test_a_sweep_is_watched_on_a_terminal(tmp_path: Path) -> None:
    """Two checkpoints of one name, in a terminal that is real but for its screen."""
    save_corpus(tmp_path / "text.jsonl", num_docs=3, num_bytes=700)
    for run in "ab":
        save_checkpoint(tmp_path / run / "step50")
    entries = (
        f"  - {{folders: {run}/step50, family: {run}, tasks: longshort_misalignment, lengths: [16]}}\n" for run in "ab"
    )
    write_manifest(tmp_path, "".join(entries))
    mine, theirs = pty.openpty()
    command = [sys.executable, "-m", "longshort", "sweep", "manifest.yaml", "-o", "out"]
    environment = os.environ | {"COLUMNS": "80", "LINES": "30", "TERM": "xterm"}
    process = subprocess.Popen(command, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = bytearray()
    while select.select([mine], [], [], 120)[0]:
        try:
            seen += os.read(mine, 65536)
        except OSError:  # its other end is closed
            break
    assert process.wait(10) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    lines = [line.rstrip("\r") for line in text.split("\n")]
    assert max(len(line) for part in lines for line in part.split("\r")) <= 80
    for name in ("a/step50", "b/step50"):
        assert re.search(rf"{name} +│ *(·|loading|running)", text)
        assert re.search(rf"{name} +│ *done", text)
    assert "2 results new, 0 there before, 0 failed" in text
