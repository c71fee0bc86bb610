"""The driver's decisions, with an engine that plays out what a test says."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from longshort.errors import Kind
from longshort.results.tokens import RECORD, TokenFile, sha256_of, token_file_of
from longshort.settings import Checkpoint
from longshort.sweep.run.driver import run_plan
from longshort.sweep.run.engines import Request
from longshort.sweep.run.events import Event, Exit, Failed, Loaded, Result, Started, Starting, TokenPart, TokensSent
from longshort.sweep.run.job import Job, job_from
from longshort.sweep.run.progress import Progress
from longshort.sweep.store.folder import Folder, slug
from longshort.sweep.store.plan import Item, to_run
from longshort.sweep.store.status import states
from tests.sweep.conftest import events

EXIT = Exit(0)
KILLED = Exit(-9)


class Scripted:
    """Answers the n-th submission of a checkpoint with its n-th script."""

    def __init__(self, scripts: dict[str, list[list[Event]]]) -> None:
        self.scripts, self.jobs, self.stopped = scripts, list[tuple[str, Job]](), False
        self.queue: list[tuple[str, Event]] = []

    def describe(self) -> str:
        return "a script"

    def submit(self, request: Request) -> None:
        self.jobs.append((request.name, job_from(request.line)))
        self.queue += [(request.name, event) for event in self.scripts[request.name].pop(0)]

    def events(self, seconds: float) -> Iterator[tuple[str, Event]]:
        while self.queue:
            yield self.queue.pop(0)

    def stop(self) -> None:
        self.stopped = True


def item(name: str, *tasks: str, **settings: object) -> Item:
    checkpoint = Checkpoint(f"/models/{name}", tasks=tasks, batch_size=4, **settings)  # type: ignore[arg-type]  # by name
    return Item(checkpoint, {t: {"identity": "x", "task": t} for t in tasks}, missing=dict.fromkeys(tasks))


def result(task: str) -> Result:
    text = json.dumps({"results": {task: {"m,none": 1.0}}, "configs": {task: {"metadata": {}}}, "config": {}})
    return Result(task, 1.0, text)


def failed(kind: Kind, task: str | None = None) -> Failed:
    return Failed(kind, "why", task)


def play(tmp_path: Path, items: list[Item], scripts: list[list[list[Event]]]) -> tuple[Progress, Scripted]:
    engine = Scripted({slug(item.checkpoint): script for item, script in zip(items, scripts, strict=True)})
    progress = run_plan(items, Folder(tmp_path), engine, lambda progress, line: None)
    assert engine.stopped
    assert not any(engine.scripts.values())
    return progress, engine


def kinds(progress: Progress) -> dict[str, str]:
    return {task: failure.kind for (_, task), failure in progress.failures.items()}


def test_out_of_memory_is_tried_with_less_and_only_what_is_missing(tmp_path: Path) -> None:
    script = [[result("a"), failed("out_of_memory", "b"), EXIT], [result("b"), EXIT]]
    progress, engine = play(tmp_path, [item("m", "a", "b")], [script])
    assert not progress.failures
    assert [(job.memory, job.tasks) for _, job in engine.jobs] == [("usual", ("a", "b")), ("small", ("b",))]
    assert [event["kind"] for event in events(tmp_path, "retry")] == ["out_of_memory"]


def test_offload_is_the_last_resort_and_only_where_asked_for(tmp_path: Path) -> None:
    oom = [failed("out_of_memory"), EXIT]
    progress, engine = play(tmp_path / "no", [item("m", "a")], [[oom, oom]])
    assert kinds(progress) == {"a": "out_of_memory"}
    progress, engine = play(tmp_path / "yes", [item("m", "a", cpu_offload=True)], [[oom, oom, [result("a"), EXIT]]])
    assert not progress.failures
    assert [job.memory for _, job in engine.jobs] == ["usual", "small", "offload"]


def test_a_task_that_never_fits_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    oom = [failed("out_of_memory", "a"), EXIT]
    progress, engine = play(tmp_path, [item("m", "a", "b")], [[oom, oom, [result("b"), EXIT]]])
    assert kinds(progress) == {"a": "out_of_memory"}
    assert engine.jobs[-1][1].tasks == ("b",)


@pytest.mark.parametrize(("event", "kind"), [([KILLED], "killed"), ([failed("hub"), EXIT], "hub")])
def test_what_may_pass_is_tried_once_more(
    tmp_path: Path, event: list[Event], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    progress, _ = play(tmp_path / "again", [item("m", "a")], [[event, [result("a"), EXIT]]])
    assert not progress.failures
    progress, _ = play(tmp_path / "twice", [item("m", "a")], [[event, event]])
    assert kinds(progress) == {"a": kind}


def test_what_is_not_there_offline_is_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    progress, engine = play(tmp_path, [item("m", "a")], [[[failed("hub"), EXIT]]])
    assert kinds(progress) == {"a": "hub"}
    assert len(engine.jobs) == 1


@pytest.mark.parametrize("kind", ["broken", "gated", "not_found", "no_trust_remote_code", "versions"])
def test_what_will_not_pass_is_not_tried_again(tmp_path: Path, kind: Kind) -> None:
    progress, _ = play(tmp_path, [item("m", "a", "b")], [[[failed(kind), EXIT]]])
    assert kinds(progress) == {"a": kind, "b": kind}


def test_a_timeout_is_told_and_keeps_what_was_saved(tmp_path: Path) -> None:
    script = [[result("a"), Exit(-15, "timeout")]]
    progress, _ = play(tmp_path, [item("m", "a", "b")], [script])
    assert kinds(progress) == {"b": "timeout"}
    assert len(list(tmp_path.rglob("results_*.json"))) == 1


def test_one_failing_task_leaves_the_others(tmp_path: Path) -> None:
    items = [item("m", "a", "b"), item("n", "a")]
    script = [[[failed("setting", "a"), result("b"), EXIT]], [[result("a"), EXIT]]]
    progress, _ = play(tmp_path, items, script)
    assert kinds(progress) == {"a": "setting"}
    assert sorted(progress.states.values()) == ["done", "done", "failed"]


def test_a_result_that_no_longer_holds_does_not_hide_that_the_new_one_failed(tmp_path: Path) -> None:
    """So that --failed finds it; what was measured before stays."""
    one, folder = item("m", "a", "b"), Folder(tmp_path)

    def told() -> list[tuple[str, str]]:
        return [(state.task, state.state) for state in states(tmp_path)]

    folder.record("plan", checkpoints=[[slug(one.checkpoint), "m", ["a", "b"]]])
    play(tmp_path, [one], [[[result("a"), result("b"), EXIT]]])
    assert told() == [("a", "done"), ("b", "done")]
    for file in tmp_path.rglob("results_*.json"):
        os.utime(file, (file.stat().st_mtime - 100,) * 2)
    other = Item(one.checkpoint, {t: {"identity": "y", "task": t} for t in "ab"}, missing={"a": "identity", "b": "x"})
    with folder.locked():
        play(tmp_path, [other], [[[Started("a"), failed("broken", "a"), result("b"), EXIT]]])
        assert told() == [("a", "failed"), ("b", "done")]
        assert states(tmp_path)[0].message.startswith("why (")
        folder.record("started", id=slug(one.checkpoint), task="a")
        assert told() == [("a", "running"), ("b", "done")]
    assert told() == [("a", "done"), ("b", "done")]  # interrupted: what is there is what it was
    play(tmp_path, [item("m", "a")], [[[result("a"), EXIT]]])
    assert told() == [("a", "done"), ("b", "done")]


def test_two_entries_of_one_checkpoint_both_run(tmp_path: Path) -> None:
    """As a benchmark with a limit of its own beside the perplexity."""
    items = [item("m", "a"), item("m", "b", limit=2), item("n", "a")]
    assert list(to_run(items)) == [
        slug(items[0].checkpoint),
        f"{slug(items[0].checkpoint)}+2",
        slug(items[2].checkpoint),
    ]
    engine = Scripted({name: [[result(task), EXIT]] for name, task in zip(to_run(items), "aba", strict=True)})
    progress = run_plan(items, Folder(tmp_path), engine, lambda progress, line: None)
    assert list(progress.states.values()) == ["done"] * 3
    assert len(list(tmp_path.rglob("results_*.json"))) == 3
    assert {event["id"] for event in events(tmp_path, "done")} == {slug(one.checkpoint) for one in items}


def test_the_time_of_every_worker_is_recorded(tmp_path: Path) -> None:
    start = Starting()
    loaded = Loaded(3.5, 2.25)
    scripts = [[[start, KILLED], [start, loaded, result("a"), EXIT]], [[start, result("a"), EXIT]]]
    play(tmp_path, [item("m", "a"), item("n", "a")], scripts)
    (told,) = events(tmp_path, "loaded")
    assert (told["checkpoint"], told["seconds"], told["imports"]) == ("m", 3.5, 2.25)
    ended = events(tmp_path, "ended")
    assert [event["checkpoint"] for event in ended] == ["m", "n", "m"]
    assert all(event["seconds"] >= 0 for event in ended)
    (finished,) = events(tmp_path, "finished")
    assert finished["workers"] == 1
    assert finished["seconds"] >= max(event["seconds"] for event in ended)


def test_a_process_that_ends_without_a_word(tmp_path: Path) -> None:
    progress, _ = play(tmp_path, [item("m", "a")], [[[Exit(3)]]])
    assert kinds(progress) == {"a": "error"}


def test_an_unwritable_result_does_not_stop_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [item("m", "a"), item("n", "a")]
    blocked = tmp_path / "results" / slug(items[0].checkpoint)
    blocked.parent.mkdir()
    blocked.write_text("a file where a folder has to be")
    progress, _ = play(tmp_path, items, [[[result("a"), EXIT]], [[result("a"), EXIT]]])
    assert [failure.kind for failure in progress.failures.values()] == ["unwritable"]
    assert len(list(tmp_path.rglob("results_*.json"))) == 1


# ---- files of per-token values


def parts_of(file: TokenFile, size: int = 7) -> list[Event]:
    return [
        TokenPart(base64.b64encode(file.content[start : start + size]).decode())
        for start in range(0, len(file.content), size)
    ]


def with_tokens(task: str, file: TokenFile) -> list[Event]:
    """What a worker reports of a task."""
    return [Started(task), *parts_of(file), TokensSent(file.rows, file.sha256), result(task)]


def token_files(folder: Path) -> dict[str, bytes]:
    """By task, with the record in its results checked."""
    found = {}
    for results in folder.rglob("results_*.json"):
        file = token_file_of(results)
        assert json.loads(results.read_text())[RECORD]["sha256"] == sha256_of(file)
        found[results.parent.name] = file.read_bytes()
    return found


def test_a_token_file_comes_in_parts_to_its_results(tmp_path: Path) -> None:
    one, two = TokenFile(bytes(range(256)) * 3, 11), TokenFile(b"two", 12)
    script = [Loaded(1.0), *with_tokens("a", one), *with_tokens("b", two), EXIT]
    progress, _ = play(tmp_path, [item("m", "a", "b")], [[script]])
    assert not progress.failures
    assert token_files(tmp_path) == {"a": one.content, "b": two.content}
    rows = [json.loads(file.read_text())[RECORD]["rows"] for file in sorted(tmp_path.rglob("results_*.json"))]
    assert sorted(rows) == [11, 12]


def test_tasks_that_ran_together_share_a_file_that_is_sent_once(tmp_path: Path) -> None:
    file = TokenFile(bytes(100), 5)
    sent = TokensSent(file.rows, file.sha256)
    together = [Started("a"), Started("b"), *parts_of(file), sent, result("a"), sent, result("b")]
    progress, _ = play(tmp_path, [item("m", "a", "b", "c")], [[[*together, Started("c"), result("c"), EXIT]]])
    assert not progress.failures
    (without,) = [path for path in tmp_path.rglob("results_*.json") if path.parent.name == "c"]
    assert RECORD not in json.loads(without.read_text())
    without.unlink()
    assert token_files(tmp_path) == {"a": file.content, "b": file.content}


def test_parts_of_a_killed_worker_are_dropped(tmp_path: Path) -> None:
    file = TokenFile(bytes(100), 5)
    script = [[*with_tokens("a", file)[:4], KILLED], [*with_tokens("a", file), EXIT]]
    progress, _ = play(tmp_path, [item("m", "a")], [script])
    assert not progress.failures
    assert token_files(tmp_path) == {"a": file.content}


def test_results_without_token_file_name_none(tmp_path: Path) -> None:
    progress, _ = play(tmp_path, [item("m", "a")], [[[Started("a"), result("a"), EXIT]]])
    assert not progress.failures
    (file,) = tmp_path.rglob("results_*.json")
    assert RECORD not in json.loads(file.read_text())
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_token_file_that_lost_a_part_is_not_saved_but_its_results_are(tmp_path: Path) -> None:
    script = with_tokens("a", TokenFile(bytes(100), 5))
    del script[3]
    progress, _ = play(tmp_path, [item("m", "a")], [[[*script, EXIT]]])
    assert kinds(progress) == {"a": "data"}
    assert not list(tmp_path.rglob("*.parquet"))
    (file,) = tmp_path.rglob("results_*.json")
    assert RECORD not in json.loads(file.read_text())
