"""What every benchmark needs: processes of their own, memory above the loaded model, the JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

MEMORY_SHARE = 0.85  # of what is free now; a side that needs more fails instead of taking the machine down
SCRIPT = Path(__file__).parents[1] / "benchmark.py"


def memory_now(device: str) -> int:
    """Bytes held; starts the count of the peak anew."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def memory_peak(device: str) -> int:
    """The most bytes held since `memory_now`."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    return _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def limit_memory() -> None:
    """Let an allocation fail where it would push the machine out of memory."""
    import resource

    available = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable")
    )
    limit = _status("VmSize") + int(MEMORY_SHARE * available)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def out_of_memory(error: BaseException) -> dict[str, str]:
    """What a measurement returns that did not fit."""
    return {"error": "out of memory" if "memory" in str(error).lower() else str(error)[:200]}


def run_child(name: str, arguments: dict[str, Any], side: str) -> dict[str, Any]:
    """One measurement of a benchmark in a fresh process."""
    print(f"{side}, {arguments} …", file=sys.stderr)
    command = [sys.executable, str(SCRIPT), name, "--side", side]
    for key, value in arguments.items():
        command += [f"--{key}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        return {"error": f"ended with code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def take_turns(sides: list[str], runs: int, run: Callable[[str], dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """`runs` measurements of each side in alternation; a side that failed once is not tried again."""
    done: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(runs):
        for side, results in done.items():
            if not results or "error" not in results[-1]:
                results.append(run(side))
    return done


def spread(runs: list[dict[str, Any]], key: str) -> dict[str, float]:
    """Median, least and greatest of a measured number."""
    values = [run[key] for run in runs]
    return {f"{key}_median": statistics.median(values), f"{key}_min": min(values), f"{key}_max": max(values)}


def ratio(runs: list[dict[str, Any]], others: list[dict[str, Any]], key: str) -> float:
    """Median over pairs of neighbouring runs."""
    return statistics.median(run[key] / other[key] for run, other in zip(runs, others, strict=True))


def write(rows: list[dict[str, Any]], options: argparse.Namespace, settings: tuple[str, ...]) -> None:
    """The same as JSON, with what it was measured on."""
    import torch

    from longshort.results import write_atomically

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    report = {
        "command": " ".join(["python", "scripts/benchmark.py", *sys.argv[1:]]),
        "commit": commit,
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("longshort", "torch", "transformers", "lm-eval")},
        "settings": {name: getattr(options, name) for name in settings},
        "rows": rows,
    }
    write_atomically(options.output, json.dumps(report, indent=2) + "\n")
    print(f"written: {options.output}", file=sys.stderr)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
