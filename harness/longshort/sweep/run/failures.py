"""What can go wrong with a checkpoint, told apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from longshort.errors import UserError

# What each kind means and what helps.
KINDS = {
    "not_found": "no such model, revision or file: correct the manifest",
    "gated": "ask for access on the model's page, then set HF_TOKEN",
    "no_trust_remote_code": "the checkpoint brings code: read it, then set trust_remote_code: true for it",
    "broken": "weights missing, damaged or unknown to transformers: download or save it again",
    "out_of_memory": "smaller lengths or dtype, more GPUs (model_args: {parallelize: true}) or cpu_offload: true",
    "length": "the architecture cannot reach the lengths: give smaller ones",
    "text": "no document is long enough: another corpus or smaller lengths",
    "non_finite": "its logits are not finite: try dtype: float32; else the weights are at fault",
    "setting": "a task, corpus or setting is wrong: correct the manifest",
    "hub": "the hub did not answer, or offline mode lacks a file: run the same command again, online",
    "versions": "the worker has other library versions: install the same everywhere",
    "timeout": "a longer timeout, or fewer documents and lengths",
    "killed": "its process was killed, often for want of main memory: set resources: {memory: …}",
    "unwritable": "the results could not be written: free some space, or choose another folder",
    "error": "see the log",
}


@dataclass(frozen=True)
class Failure:
    """Why a checkpoint or one of its tasks has no result.

    Attributes:
        kind: one of `KINDS`.
        message: one line.
    """

    kind: str
    message: str


# Of the hub's client and what it is built on.
UNREACHABLE = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "TransportError", "ConnectionError", "HfHubHTTPError"}


def classify(error: BaseException) -> Failure:
    """The kind of an exception, by the first of its causes that tells."""
    message = " ".join(str(error).split()) or type(error).__name__
    kind = next((found for cause in _causes(error) if (found := _kind(cause))), None)
    if kind is None:
        kind = "setting" if isinstance(error, UserError) else "error"
        message = message if isinstance(error, UserError) else f"{type(error).__name__}: {message}"
    return Failure(kind, message[:500])


def lacking(results: Mapping[str, Any], task: str) -> Failure | None:
    """Why a task that ran to its end has no value at all, or None if it has one."""
    if any("," in name and not name.endswith("_stderr,none") for name in results["results"].get(task, {})):
        return None
    reasons = gaps(results)
    kinds = {_kind_of_gap(reason) for reason in reasons}
    kind = kinds.pop() if len(kinds) == 1 else "error"
    return Failure(kind, f"nothing could be measured for {task}: {'; '.join(reasons) or 'see the log'}")


def gaps(results: Mapping[str, Any]) -> list[str]:
    """Why values were left out of a result, each reason once."""
    reasons: dict[str, None] = {}
    for config in results["configs"].values():
        for gap in ((config.get("metadata") or {}).get("scored") or {}).get("left_out") or ():
            reasons.setdefault(str(gap["reason"] if isinstance(gap, Mapping) else gap))
    return list(reasons)


def _kind_of_gap(reason: str) -> str:
    if reason.startswith("beyond"):
        return "length"
    return {"non-finite logits": "non_finite", "document too short": "text"}.get(reason, "error")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and what it came from, the origin first: outer messages only guess at it."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return reversed(chain)


def _kind(error: BaseException) -> str | None:
    names = {cls.__name__ for cls in type(error).__mro__}  # of libraries that need not be imported to tell
    text = str(error)
    if (
        isinstance(error, MemoryError)
        or (isinstance(error, UserError) and error.kind == "out_of_memory")
        or "OutOfMemoryError" in names
    ):
        return "out_of_memory"
    if isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text):
        return "out_of_memory"
    if "GatedRepoError" in names:
        return "gated"
    if names & {"RepositoryNotFoundError", "RevisionNotFoundError", "RemoteEntryNotFoundError"}:
        return "not_found"
    if names & UNREACHABLE:
        return "hub"
    if "trust_remote_code" in text:
        return "no_trust_remote_code"
    if isinstance(error, UserError) and "no such folder" in text:
        return "not_found"
    if isinstance(error, UserError) and ("cannot be loaded" in text or "of its weights" in text):
        return "broken"
    return None
