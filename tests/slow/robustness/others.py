"""`longshort synthetic`, `demo` and `tasks`; runs that are interrupted."""

from __future__ import annotations

import signal
from typing import Any

from tests.slow.robustness.case import Case, Interruption, Step, disk, make_folder, mode, write

QUICK = "synthetic --quick --tasks mean --encodings none,rope --seeds 2 --steps 20 --workers 1 -o out"


def _synthetic(kind: str, name: str, options: str, cause: str, remedy: str, *steps: Step, **more: Any) -> Case:
    return Case(kind, f"synthetic {name}".strip(), f"{QUICK} {options}", cause, remedy, steps=steps, **more)


def _option(options: str, cause: str, remedy: str, code: int = 2) -> Case:
    return _synthetic("options", options, options, cause, remedy, code=code)


def _demo(name: str, cause: str, remedy: str, *steps: Step, **more: Any) -> Case:
    return Case("output", f"demo: {name}", "demo --out out", cause, remedy, steps=steps, **more)


def _interrupted(
    name: str, command: str, at: str, *whole: str, inputs: tuple[str, ...] = (), steps: tuple[Step, ...] = (),
    program: str = "longshort",
) -> list[Case]:  # fmt: skip
    return [
        Case("interrupted", f"{name}, {each.name}", command, inputs=inputs, steps=steps, program=program,
             interruption=Interruption(each, at, whole))
        for each in (signal.SIGINT, signal.SIGKILL)
    ]  # fmt: skip


SYNTHETIC = [
    _option("--tasks median", "'median' is none of", "length-sqrt"),
    _option("--encodings xpos", "'xpos' is none of", "alibi"),
    _option("--tasks ,", "'' is none of", "mean"),
    _option("--seeds 0", "--seeds", "greater than or equal to 1"),
    _option("--seed -1", "--seed", "greater than or equal to 0"),
    _option("--steps 0", "--steps", "greater than or equal to 1"),
    _option("--train-length 1", "--train-length", "greater than or equal to 2"),
    _option("--max-length 10", "--max-length", "above --train-length"),
    _option("--max-length far", "--max-length", "valid integer"),
    _option("--workers 0", "--workers", "greater than or equal to 1"),
    _option("--device nonsense", "device 'nonsense' is not there", "cpu", 1),
    _option("--device cuda", "device 'cuda' is not there", "cpu", 1),
    _synthetic("output", "a file", "", "cannot be written", "choose", write("out", "mine")),
    _synthetic("output", "locked", "", "permission denied", "choose", make_folder("out"), mode("out", 0o500),
               locked=True),
    _synthetic("output", "full disk", "", "no space left", "free some space", disk("out", "size=64k", full=True)),
    _synthetic("results", "a damaged setting", "", "not a finished setting", "remove it",
               write("out/settings/mean_none.json", '{"config":')),
    _synthetic("results", "a setting without its numbers", "", "not a finished setting", "remove it",
               write("out/settings/mean_none.json", "[]")),
    _synthetic("results", "a setting whose configuration is a list", "", "not a finished setting", "remove it",
               write("out/settings/mean_none.json", '{"config": [1]}')),
    _synthetic("results", "a setting of another study", "", "made with other settings", "remove it",
               write("out/settings/mean_none.json", '{"config": {"steps": 3}}')),
]  # fmt: skip

DEMO = [
    _demo("a file", "cannot be written", "choose", write("out", "mine")),
    _demo("locked", "permission denied", "choose", make_folder("out"), mode("out", 0o500), locked=True),
    _demo("read-only disk", "read-only", "choose", disk("out", "ro")),
    _demo("a base of something else", "base exists", "remove it", write("out/checkpoints/base/config.json", "{}")),
    Case("options", "demo with a word too many", "demo here", "unexpected extra argument", "here", code=2),
    Case("options", "demo without its folder", "demo --out", "requires an argument", "--out", code=2),
]

TASKS = [
    Case("options", "tasks with a word too many", "tasks here", "unexpected extra argument", "here", code=2),
    Case("options", "tasks --all", "tasks --all", "no such option", "--all", code=2),
    Case("terminal", "tasks into a pipe that is closed", "tasks", pipe=True),
    Case("terminal", "help, 20 columns", "--help", columns=20, code=0),
    Case("terminal", "help into a pipe that is closed", "train --help", pipe=True),
]

EVALUATION = "eval model --corpus large.jsonl --lengths 16,24,32,40,48,56,64 --train-length 32 --num-docs 60 -o out"
TRAINING = (
    "train --base model --corpus text.jsonl --train-length 16 --steps 300 --global-batch-size 2 "
    "--resume-every 20 -o out"
)

INTERRUPTED = [
    *_interrupted("eval", EVALUATION, "longshort_perplexity:", "out/model/results_*.json",
                  inputs=("model", "large.jsonl")),
    *_interrupted("eval, loading", EVALUATION, "Loading weights", "out/model/results_*.json",
                  inputs=("model", "large.jsonl")),
    *_interrupted("train", TRAINING, "out.partial/checkpoint-*", "out/longshort.json", "out/model.safetensors",
                  inputs=("model", "text.jsonl")),
    *_interrupted("sweep", "sweep manifest.yaml -o out --workers 1", "out/results/*/*/results_*.json",
                  "out/results/model-*/longshort_misalignment/results_*.json", "out/results.parquet",
                  inputs=("model", "text.jsonl", "manifest.yaml")),
    *_interrupted("sweep, loading", "sweep manifest.yaml -o out --workers 1", "out/status.jsonl",
                  "out/results/model-*/longshort_misalignment/results_*.json", "out/results.parquet",
                  inputs=("model", "text.jsonl", "manifest.yaml")),
    *_interrupted("correlate", "correlate results -o out", "out/correlations.csv", "out/report.html",
                  "out/figures/forest.png", inputs=("results",)),
    *_interrupted("demo", "demo --out out", "out/checkpoints/base.partial/checkpoint-*", "out/report.html",
                  "out/checkpoints/clex-a0.1/longshort.json", program="demo"),
    *_interrupted("demo, evaluating", "demo --out out", "out/results/plain-a0", "out/report.html", program="demo"),
    *_interrupted("synthetic", QUICK.replace("--steps 20", "--steps 150"), "out/settings/*.json", "out/tables.md",
                  "out/settings/mean_rope.json"),
    *_interrupted("export-clex", "export-clex clex --t 2 -o out", "Loading weights", "out/model.safetensors",
                  inputs=("clex",)),
]  # fmt: skip

CASES = [*INTERRUPTED, *DEMO, *SYNTHETIC, *TASKS]
