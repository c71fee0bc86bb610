"""Why there is no result: a failure category, what helps against it, and failures grouped by category."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from longshort.errors import Kind

# What helps, for every category.
ADVICE: dict[Kind, str] = {
    "usage": "correct the command line",
    "setting": "a task, corpus or setting is wrong: correct the manifest",
    "not_found": "no such model, revision or file: correct the manifest",
    "data": "a corpus or data file is damaged or has another format: correct it",
    "text": "no document is long enough: another corpus or smaller lengths",
    "broken": "weights missing, damaged or unknown to transformers: download or save it again",
    "unsupported": "the architecture cannot be measured this way: remove the task or the checkpoint",
    "length": "the architecture cannot address the lengths: use smaller ones",
    "non_finite": "its logits are not finite: try dtype: float32; otherwise its weights are damaged",
    "gated": "ask for access on the model's page, then set HF_TOKEN",
    "no_trust_remote_code": "the checkpoint brings code: read it, then set trust_remote_code: true for it",
    "hub": "the hub did not answer, or offline mode lacks a file: run the same command again, online",
    "out_of_memory": "smaller lengths or dtype, more GPUs (model_args: {parallelize: true}) or cpu_offload: true",
    "device": "the device is not available: choose another one",
    "dependency": "a library is missing or has an unsuitable version: install it",
    "versions": "the worker has other library versions: install the same everywhere",
    "timeout": "a longer timeout, or fewer documents and lengths",
    "killed": "its process was killed, often because main memory ran out: set resources: {memory: …}",
    "unwritable": "the results could not be written: free some space, or choose another folder",
    "conflict": "the folder holds another run: choose another folder",
    "cluster": "the Ray cluster cannot be reached: start it again, then run the same command",
    "incomplete": "some values are missing: run the same command again",
    "error": "see the log",
}


@dataclass(frozen=True)
class Failure:
    """Why a checkpoint or one of its tasks has no result."""

    kind: Kind
    message: str  # one line


def failure_lines(failures: Iterable[tuple[str, str, str, str]]) -> list[str]:
    """Group failures by category: a line with what helps, then the checkpoints.

    Args:
        failures: checkpoint, task, category and message of each. A category that another version recorded is shown
            with the advice for "error".
    """
    by_kind: dict[str, dict[tuple[str, str], list[str]]] = {}
    for checkpoint, task, kind, message in failures:
        by_kind.setdefault(kind, {}).setdefault((checkpoint, message), []).append(task)
    advice = {str(kind): text for kind, text in ADVICE.items()}
    lines = []
    for kind, of_kind in by_kind.items():
        lines.append(f"{kind}: {advice.get(kind, ADVICE['error'])}")
        lines += [f"  {checkpoint} ({', '.join(tasks)}): {message}" for (checkpoint, message), tasks in of_kind.items()]
    return lines
