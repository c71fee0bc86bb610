"""Failure categories, from what libraries raise and what results record."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from huggingface_hub import errors

from longshort.errors import Kind, UserError
from longshort.sweep.run.failures import classify, gap_reasons, why_empty

RESPONSE: Any = SimpleNamespace(headers={}, request=None, status_code=401)  # the client's HTTP library varies
TransportError = type("TransportError", (Exception,), {})  # the name of the base class of its ConnectError


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "out_of_memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (caused(OSError("x"), errors.GatedRepoError("no", response=RESPONSE)), "gated"),
        (caused(OSError("x"), errors.RepositoryNotFoundError("no", response=RESPONSE)), "not_found"),
        (caused(OSError("x"), errors.RevisionNotFoundError("no", response=RESPONSE)), "not_found"),
        (caused(OSError("x"), errors.LocalEntryNotFoundError("no")), "hub"),
        (caused(OSError("x"), TransportError("no")), "hub"),
        (errors.OfflineModeIsEnabled("offline"), "hub"),
        (ValueError("Please pass the argument `trust_remote_code=True` to allow custom code."), "no_trust_remote_code"),
        (ZeroDivisionError("division by zero"), "error"),
    ],
)
def test_kinds_of_other_libraries_exceptions(error: Exception, kind: str) -> None:
    failure = classify(error)
    assert failure.kind == kind
    assert failure.kind in get_args(Kind)
    assert "\n" not in failure.message
    assert failure.message


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_user_error_keeps_its_kind_whatever_its_words_and_cause(kind: Kind) -> None:
    words = "no such folder, cannot be loaded, of its weights, trust_remote_code, out of memory"
    error = caused(UserError(words, kind), errors.GatedRepoError("no", response=RESPONSE))
    failure = classify(error)
    assert (failure.kind, failure.message) == (kind, words)


def result_with(*gaps: object, **values: float) -> dict[str, Any]:
    scored = {"left_out": list(gaps)}
    return {"results": {"t": values | {"alias": "t"}}, "configs": {"t": {"metadata": {"scored": scored}}}}


def gap(kind: str | None, reason: str = "why") -> dict[str, str]:
    return {"metric": "ppl@8", "reason": reason} | ({"kind": kind} if kind else {})


@pytest.mark.parametrize(
    ("gaps", "kind"),
    [
        ([gap("length")], "length"),
        ([gap("length"), gap("length", "other words")], "length"),
        ([gap("text")], "text"),
        ([gap("non_finite")], "non_finite"),
        ([gap("data")], "data"),
        ([gap("text"), gap("non_finite")], "error"),
        ([gap(None, "beyond the 64 positions the model can address")], "error"),  # written by a version before
        (["one sentence, as LongBench records it"], "error"),
        ([gap("of another version")], "error"),
        ([], "error"),
    ],
)
def test_a_result_without_values_has_the_category_of_its_gaps(gaps: list[object], kind: str) -> None:
    failure = why_empty(result_with(*gaps), "t")
    assert failure is not None
    assert failure.kind == kind


def test_why_there_is_no_floor_is_not_why_there_is_no_value() -> None:
    floor = {"metric": "jeffreys_floor@8", "reason": "no position ids", "kind": "unsupported"}
    failure = why_empty(result_with(gap("non_finite"), floor), "t")
    assert failure is not None
    assert failure.kind == "non_finite"
    assert "no position ids" not in failure.message


def test_a_result_with_a_value_is_not_a_failure() -> None:
    assert why_empty(result_with(gap("non_finite"), **{"ppl@8,none": 1.0}), "t") is None
    assert why_empty(result_with(gap("non_finite"), **{"ppl@8_stderr,none": 1.0}), "t") is not None


def test_each_reason_is_named_once() -> None:
    assert gap_reasons(result_with(gap("text", "a"), "b", gap(None, "a"))) == ["a", "b"]
