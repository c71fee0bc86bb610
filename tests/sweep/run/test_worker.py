"""Which tasks a worker evaluates at once, and what it reports of them."""

from __future__ import annotations

from typing import Any

import pytest

from longshort.errors import UserError
from longshort.settings import DEFAULT_TASKS
from longshort.sweep.run import worker
from longshort.sweep.run.events import Event, Failed, Result, Started
from longshort.sweep.run.job import Job
from longshort.sweep.store.fingerprint import versions

OTHER = "longshort_longbench_e"
TASKS = (DEFAULT_TASKS[1], OTHER, DEFAULT_TASKS[0])


def results_with(tasks: tuple[str, ...]) -> dict[str, Any]:
    return {
        "results": {task: {"metric,none": float(len(task))} for task in tasks},
        "configs": {task: {"metadata": {}} for task in tasks},
        "config": {"model": "hf", "model_args": {}},
    }


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The tasks of each evaluation, of which none loads or measures anything."""
    found: list[tuple[str, ...]] = []

    def measure(lm: Any, arguments: Any, job: Job, tasks: tuple[str, ...]) -> dict[str, Any]:
        found.append(tasks)
        return results_with(tasks)

    monkeypatch.setattr(worker, "_load", lambda job: (None, {}))
    monkeypatch.setattr(worker, "_measure", measure)
    return found


def events_of(tasks: tuple[str, ...]) -> list[Event]:
    events: list[Event] = []
    worker.evaluate(Job({}, tasks, versions=versions()), events.append)
    return events


def test_tasks_of_documents_are_evaluated_at_once_and_have_a_result_each(evaluated: list[tuple[str, ...]]) -> None:
    events = events_of(TASKS)
    assert evaluated == [(DEFAULT_TASKS[1], DEFAULT_TASKS[0]), (OTHER,)]
    assert [event.task for event in events if isinstance(event, Started)] == [*evaluated[0], OTHER]
    results = {event.task: event.text for event in events if isinstance(event, Result)}
    assert results.keys() == set(TASKS)
    for task, text in results.items():
        assert task in text
        assert not any(other in text for other in TASKS if other != task)


def test_one_task_alone(evaluated: list[tuple[str, ...]]) -> None:
    events_of((DEFAULT_TASKS[0],))
    assert evaluated == [(DEFAULT_TASKS[0],)]


@pytest.mark.parametrize(("kind", "rest"), [("error", [OTHER]), ("out_of_memory", [])])
def test_a_failure_is_that_of_each_task_evaluated_at_once(
    kind: Any, rest: list[str], evaluated: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without memory no other task follows in this process; a new one continues, with less."""
    measure = worker._measure

    def fail(lm: Any, arguments: Any, job: Job, tasks: tuple[str, ...]) -> dict[str, Any]:
        if OTHER not in tasks:
            raise UserError("it fails", kind)
        return measure(lm, arguments, job, tasks)

    monkeypatch.setattr(worker, "_measure", fail)
    events = events_of(TASKS)
    failed = [(event.task, event.kind) for event in events if isinstance(event, Failed)]
    assert failed == [(DEFAULT_TASKS[1], kind), (DEFAULT_TASKS[0], kind)]
    assert [event.task for event in events if isinstance(event, Result)] == rest


def test_metadata_of_other_tasks_reaches_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from longshort.lmeval import evaluate

    seen: list[Any] = []
    monkeypatch.setattr(evaluate, "prepare_tasks", lambda *arguments: seen.extend(arguments))
    monkeypatch.setattr(evaluate, "evaluate_loaded", lambda *_, **__: {})
    job = Job({}, ("a",), metadata={"lengths": [64]}, task_args={"max_seq_lengths": [4096]})
    worker._measure(None, {"pretrained": "x"}, job, ("a",))
    assert seen == [("a",), {"pretrained": "x", "lengths": [64]}, {"max_seq_lengths": [4096]}]
