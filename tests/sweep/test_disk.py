"""Disks that are full or read-only: small file systems in memory, mounted for a test."""

from __future__ import annotations

import base64
import json
import logging
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from longshort.cli import app
from longshort.errors import UserError
from longshort.results.tokens import TokenFile
from longshort.settings import Checkpoint
from longshort.sweep.manifest.load import load_manifest
from longshort.sweep.run.driver import run_plan
from longshort.sweep.run.events import Event, Log, Result, TokenPart, TokensSent
from longshort.sweep.run.progress import Progress
from longshort.sweep.store.folder import Folder, slug
from longshort.sweep.store.plan import Item, make_plan
from tests.sweep.conftest import events
from tests.sweep.run.test_driver import EXIT, Scripted, result

Mount = Callable[..., Path]
KIB = 1024
PAGE = 4096


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mounts a file system at a folder; with `again` changes the options of one that is."""
    mounted: list[Path] = []

    def mount(folder: Path, options: str, again: bool = False) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        options = f"remount,{options}" if again else options
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip("nothing may be mounted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in dict.fromkeys(mounted):
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """Write a file until the disk is full, but for some KiB."""
    file = folder / "filler"
    with suppress(OSError), file.open("wb", buffering=0) as filler:
        while filler.write(bytes(KIB)):
            pass
    with file.open("r+b") as filler:
        filler.truncate(max(0, file.stat().st_size - leave * KIB))
    return file


def save_manifest(tmp_path: Path) -> Path:
    """Of the folders m and n, with a task each."""
    for name in "mn":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text("checkpoints: [{folders: '[mn]', corpus: builtin, tasks: longshort_perplexity}]")
    return manifest


def planned(manifest: Path, folder: Folder) -> list[Item]:
    return make_plan(load_manifest(str(manifest)), folder)


def measured(size: int = 0) -> Result:
    """The result of a task, with `size` additional bytes."""
    event = result("longshort_perplexity")
    data = json.loads(event.text)
    data["results"] = {"longshort_perplexity": {"ppl@16,none": 7.0, "ppl@16_stderr,none": 0.5}}
    data["configs"]["longshort_perplexity"]["metadata"] = {"train_length": 4096}
    data |= {"padding": "x" * size}
    data["config"]["model_args"] = {"pretrained": "x"}
    return replace(event, text=json.dumps(data))


def play(items: list[Item], folder: Folder, *scripts: list[Event], watch: Any = None) -> Progress:
    missing = [item for item in items if item.missing]
    engine = Scripted({slug(i.checkpoint): [[*script, EXIT]] for i, script in zip(missing, scripts, strict=True)})
    with folder.locked():
        return run_plan(items, folder, engine, watch or (lambda progress, line: None))


def is_whole(folder: Path) -> bool:
    """Whether every result can be read, and nothing half-written lies about."""
    for file in folder.rglob("results_*.json"):
        json.loads(file.read_text())
    return not list(folder.rglob(".*.tmp"))


def test_what_does_not_fit_is_named_and_the_rest_completes(tmp_path: Path, mount: Mount) -> None:
    manifest, folder = save_manifest(tmp_path), Folder(mount(tmp_path / "disk", "size=256k"))
    progress = play(planned(manifest, folder), folder, [measured(300 * KIB)], [measured()])
    (failure,) = progress.failures.values()
    assert failure.kind == "unwritable"
    assert "No space left on device" in failure.message
    assert is_whole(folder.path)
    assert [event["checkpoint"] for event in events(folder.path, "done")] == ["n"]
    assert [event["kind"] for event in events(folder.path, "failed")] == ["unwritable"]

    mount(folder.path, "size=4m", again=True)
    items = planned(manifest, folder)
    assert [item.done for item in items] == [[], ["longshort_perplexity"]]
    assert not play(items, folder, [measured(300 * KIB)]).failures
    assert not any(item.missing for item in planned(manifest, folder))
    assert folder.write_table() == 1  # both say that they are x


def test_a_disk_that_fills_up_takes_the_record_and_the_log_too(
    tmp_path: Path, mount: Mount, caplog: pytest.LogCaptureFixture
) -> None:
    manifest, folder = save_manifest(tmp_path), Folder(mount(tmp_path / "disk", "size=256k"))

    def fill_after_the_first(progress: Progress, line: str | None) -> None:
        if line and line.startswith("m: longshort_perplexity done"):
            fill(folder.path)
            with (folder.path / "status.jsonl").open("r+b") as status:  # to the end of its last page
                end = status.seek(0, 2)
                status.write(b" " * (-end % PAGE - 1) + b"\n" if end % PAGE else b"")

    log = Log("x" * 9 * KIB)
    with caplog.at_level(logging.WARNING):
        progress = play(
            planned(manifest, folder), folder, [log, measured()], [log, measured()], watch=fill_after_the_first
        )
    assert [failure.kind for failure in progress.failures.values()] == ["unwritable"]
    assert not folder.is_complete
    assert caplog.text.count("status.jsonl: No space left on device") == 1
    assert is_whole(folder.path)
    assert not [event for event in folder.events() if event["event"] == "failed"]

    (folder.path / "filler").unlink()
    again = Folder(folder.path)
    items = planned(manifest, again)
    assert [item.done for item in items] == [["longshort_perplexity"], []]
    assert not play(items, again, [log, measured()]).failures
    assert [event["checkpoint"] for event in again.events() if event["event"] == "done"] == ["m", "n"]
    assert again.is_complete


def test_token_values_that_do_not_fit_are_named_and_the_results_kept(tmp_path: Path, mount: Mount) -> None:
    manifest, folder = save_manifest(tmp_path), Folder(mount(tmp_path / "disk", "size=256k"))
    manifest.write_text(manifest.read_text().replace("tasks:", "save_tokens: true, tasks:"))
    file = TokenFile(bytes(300 * KIB), 9)
    sent = [TokenPart(base64.b64encode(file.content).decode()), TokensSent(file.rows, file.sha256), measured()]
    progress = play(planned(manifest, folder), folder, sent, sent)
    assert [failure.kind for failure in progress.failures.values()] == ["unwritable"] * 2
    assert all("tokens_" in failure.message for failure in progress.failures.values())
    assert all("No space left on device" in failure.message for failure in progress.failures.values())
    assert is_whole(folder.path)
    assert not list(folder.path.rglob("*.parquet"))
    assert len(list(folder.path.rglob("results_*.json"))) == 2
    assert folder.write_table() == 1  # both say that they are x

    mount(folder.path, "size=4m", again=True)
    items = planned(manifest, folder)
    assert [len(item.missing) for item in items] == [1, 1]
    assert not play(items, folder, sent, sent).failures
    assert len(list(folder.path.rglob("tokens_*.parquet"))) == 2
    assert not any(item.missing for item in planned(manifest, folder))


def completed(tmp_path: Path, mount: Mount) -> tuple[Path, Folder]:
    """A sweep that has nothing left to do, on a disk of 256 KiB."""
    manifest, folder = save_manifest(tmp_path), Folder(mount(tmp_path / "disk", "size=256k"))
    items = planned(manifest, folder)
    folder.record(
        "plan", checkpoints=[[slug(i.checkpoint), i.checkpoint.name, ["longshort_perplexity"]] for i in items]
    )
    play(items, folder, [measured()], [measured()])
    return manifest, folder


def test_a_table_that_does_not_fit_is_told_with_what_makes_it(tmp_path: Path, mount: Mount) -> None:
    manifest, folder = completed(tmp_path, mount)
    filler = fill(folder.path)
    done = CliRunner().invoke(app, ["sweep", str(manifest), "-o", str(folder.path)])
    assert done.exit_code == 1
    assert "0 new results, 2 existing, 0 failed" in done.stdout
    assert isinstance(done.exception, UserError)
    assert done.exception.kind == "unwritable"
    assert f"{folder.path}/results.parquet" in str(done.exception)
    assert "No space left on device" in str(done.exception)
    assert str(done.exception).endswith(f": longshort status {folder.path} --table")
    assert is_whole(folder.path)
    filler.unlink()
    assert CliRunner().invoke(app, ["status", str(folder.path), "--table"]).exit_code == 0
    assert len(pd.read_parquet(folder.path / "results.parquet")) == 1


def test_failures_that_could_not_be_recorded_are_tried_by_the_same_command(
    tmp_path: Path, mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--failed would not find them."""
    from longshort.sweep import command

    manifest, folder = save_manifest(tmp_path), Folder(mount(tmp_path / "disk", "size=64k"))
    items = planned(manifest, folder)
    scripts = {slug(item.checkpoint): [[measured(), EXIT]] for item in items}
    monkeypatch.setattr(command, "_engine", lambda *_: Scripted(scripts))
    monkeypatch.setattr("sys.argv", ["longshort", "sweep", "m.yaml"])
    (folder.path / ".lock").touch()
    fill(folder.path)
    done = CliRunner().invoke(app, ["sweep", str(manifest), "-o", str(folder.path)])
    assert isinstance(done.exception, UserError)
    assert done.exception.kind == "incomplete"
    assert str(done.exception).startswith("2 results")
    assert str(done.exception).endswith(": longshort sweep m.yaml")
    assert "unwritable: " in done.output


def test_a_read_only_folder_of_one_checkpoint_is_named_and_the_rest_completes(tmp_path: Path, mount: Mount) -> None:
    manifest, folder = save_manifest(tmp_path), Folder(tmp_path / "out")
    items = planned(manifest, folder)
    mount(folder.path / "results" / slug(items[0].checkpoint), "ro")
    progress = play(items, folder, [measured()], [measured()])
    assert [(name, failure.kind) for (name, _), failure in progress.failures.items()] == [
        (slug(items[0].checkpoint), "unwritable")
    ]
    assert "Read-only file system" in str(progress.failures)
    assert [event["checkpoint"] for event in events(folder.path, "done")] == ["n"]


def test_on_a_read_only_disk_a_sweep_is_refused_and_its_status_told(tmp_path: Path, mount: Mount) -> None:
    manifest, folder = completed(tmp_path, mount)
    mount(folder.path, "ro", again=True)
    done = CliRunner().invoke(app, ["sweep", str(manifest), "-o", str(folder.path)])
    assert done.exit_code == 1
    assert isinstance(done.exception, UserError)
    assert done.exception.kind == "unwritable"
    assert f"{folder.path}: Read-only file system" in str(done.exception)
    status = CliRunner().invoke(app, ["status", str(folder.path)])
    assert status.exit_code == 0
    assert "No sweep is running" in status.stdout
    planned_ = CliRunner().invoke(app, ["sweep", str(manifest), "-o", str(folder.path), "--dry-run"])
    assert planned_.exit_code == 0
    assert "2 results exist, 0 to do" in " ".join(planned_.stdout.split())
    assert isinstance(load_manifest(str(manifest))[0], Checkpoint)
