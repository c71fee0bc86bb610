"""What benchmarks of whole commands share: the stock command line, the clock, results compared."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from longshort.lmeval.task_folder import tasks_folder


def run_timed(commands: list[list[str]], folder: Path) -> dict[str, float]:
    """Run Python with each command's arguments, one after the other, in `folder`: seconds of the clock and CPU.

    Raises:
        RuntimeError: one failed.
    """
    start, before = time.perf_counter(), _cpu_of_children()
    for command in commands:
        done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-500:]}")
    return {"seconds": time.perf_counter() - start, "cpu_seconds": _cpu_of_children() - before}


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def stock(checkpoint: str, tasks: list[str], metadata: dict[str, Any], output: str) -> list[str]:
    """Arguments of the stock lm-eval command in float32."""
    return [
        *["-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={checkpoint},dtype=float32"],
        *["--include_path", str(tasks_folder()), "--tasks", ",".join(tasks)],
        *["--metadata", json.dumps(metadata), "--output_path", output],
    ]


def values_in(folder: Path) -> dict[str, float]:
    """Every number of every task's results below a folder, standard errors too: `checkpoint task metric` to value."""
    found = {}
    for file in folder.rglob("results_*.json"):
        data = json.loads(file.read_text())
        checkpoint = Path(data["config"]["model_args"]["pretrained"]).name
        for task, metrics in data["results"].items():
            numbers = {name: value for name, value in metrics.items() if "," in name and isinstance(value, float)}
            found |= {f"{checkpoint} {task} {name}": value for name, value in numbers.items()}
    return found


def greatest_difference(ours: dict[str, float], others: dict[str, float]) -> float:
    """Relative to the greater of the two, over what `others` holds.

    Raises:
        ValueError: `others` is empty, or holds what `ours` lacks.
    """
    if not others or not others.keys() <= ours.keys():
        raise ValueError(f"{len(others)} values, of which {len(others.keys() - ours.keys())} have no counterpart")
    pairs = [(ours[name], other) for name, other in others.items()]
    return max(abs(one - other) / max(abs(one), abs(other), 1e-300) for one, other in pairs)
