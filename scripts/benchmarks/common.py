"""What every benchmark needs: processes of their own, memory above the loaded model, the JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

MEMORY_SHARE = 0.85  # of what is free now; a side that needs more fails instead of taking the machine down
SCRIPT = Path(__file__).parents[1] / "benchmark.py"
SAME = ("machine", "python", "versions", "settings")  # where these differ, measurements do not belong together


def parser(
    name: str, about: str | None, sides: Sequence[str] = (), *, runs: int = 3, of: str = "processes per side"
) -> argparse.ArgumentParser:
    """What the command line of every benchmark has; `--side` is given to the process of one measurement."""
    made = argparse.ArgumentParser(
        prog=f"benchmark.py {name}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--runs", type=int, default=runs, help=of)
    made.add_argument("--output", type=Path, default=Path(f"results/benchmarks/{name}.json"))
    if sides:
        made.add_argument("--side", choices=sides, help=argparse.SUPPRESS)
    return made


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


def machine_cpu_seconds() -> float:
    """CPU time that all processes of the machine have taken since it started."""
    user, nice, system, _, _, *interrupts = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    return sum(map(int, (user, nice, system, *interrupts))) / os.sysconf("SC_CLK_TCK")


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


def run_child(
    name: str, arguments: dict[str, Any], side: str, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """One measurement of a benchmark in a fresh process, with more environment variables if given."""
    print(f"{side}, {arguments} …", file=sys.stderr)
    command = [sys.executable, str(SCRIPT), name, "--side", side]
    for key, value in arguments.items():
        command += [f"--{key}", str(value)]
    variables = os.environ | {"HF_HUB_OFFLINE": "1"} | dict(environment or {})
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
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
    from longshort.results import write_atomically

    report = {
        "command": " ".join(["python", "scripts/benchmark.py", *sys.argv[1:]]),
        "commit": commit(),
        **_circumstances(options, settings),
        "rows": rows,
    }
    write_atomically(options.output, json.dumps(report, indent=2) + "\n")
    print(f"written: {options.output}", file=sys.stderr)


def written(options: argparse.Namespace, settings: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of an earlier run on the same machine with the same versions and settings, each with its commit."""
    if not options.output.exists():
        return []
    report = json.loads(options.output.read_text())
    now = _circumstances(options, settings)
    if any(report[key] != now[key] for key in SAME):
        return []
    return [{"commit": report["commit"]} | row for row in report["rows"]]


def commit() -> str:
    """Of the code that is measured."""
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()


def _circumstances(options: argparse.Namespace, settings: tuple[str, ...]) -> dict[str, Any]:
    import torch

    return {
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("longshort", "torch", "transformers", "lm-eval")},
        "settings": {name: getattr(options, name) for name in settings},
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
