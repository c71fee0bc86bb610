"""`longshort synthetic`, `demo` and `tasks`; runs that are interrupted."""

from __future__ import annotations

import signal
from typing import Any

from tests.slow.robustness.case import (
    DENIED,
    NO_SPACE,
    READ_ONLY,
    Case,
    Facts,
    Interruption,
    Step,
    disk,
    make_folder,
    mode,
    write,
)

QUICK = "synthetic --quick --tasks mean --encodings none,rope --seeds 2 --steps 20 --workers 1 -o out"


def _synthetic(kind: str, name: str, options: str, facts: Facts, *steps: Step, **more: Any) -> Case:
    return Case(kind, f"synthetic {name}".strip(), f"{QUICK} {options}", facts, steps=steps, **more)


def _option(options: str, facts: Facts, code: int = 2) -> Case:
    return _synthetic("options", options, options, facts, code=code)


def _demo(name: str, facts: Facts, *steps: Step, **more: Any) -> Case:
    return Case("output", f"demo: {name}", "demo --out out", facts, steps=steps, **more)


def _interrupted(
    name: str, command: str, at: str, *whole: str, inputs: tuple[str, ...] = (), steps: tuple[Step, ...] = (),
    program: str = "longshort",
) -> list[Case]:  # fmt: skip
    return [
        Case("interrupted", f"{name}, {each.name}", command, inputs=inputs, steps=steps, program=program,
             interruption=Interruption(each, at, whole))
        for each in (signal.SIGINT, signal.SIGKILL)
    ]  # fmt: skip


SETTING = "out/settings/mean_none.json"
SYNTHETIC = [
    _option("--tasks median", "--tasks 'median' length-sqrt"),
    _option("--encodings xpos", "--encodings 'xpos' alibi"),
    _option("--tasks ,", "--tasks '' mean"),
    _option("--seeds 0", "--seeds 1"),
    _option("--seed -1", "--seed 0"),
    _option("--steps 0", "--steps 1"),
    _option("--train-length 1", "--train-length 2"),
    _option("--max-length 10", "--max-length --train-length 10"),
    _option("--max-length far", "--max-length"),
    _option("--workers 0", "--workers 1"),
    _option("--device nonsense", "--device 'nonsense' cpu", 1),
    _option("--device cuda", "--device 'cuda' cpu", 1),
    _synthetic("output", "a file", "", SETTING, write("out", "mine")),
    _synthetic("output", "locked", "", (SETTING, DENIED), make_folder("out"), mode("out", 0o500), locked=True),
    _synthetic("output", "full disk", "", (SETTING, NO_SPACE), disk("out", "size=64k", full=True)),
    _synthetic("results", "a damaged setting", "", SETTING, write(SETTING, '{"config":')),
    _synthetic("results", "a setting without its numbers", "", SETTING, write(SETTING, "[]")),
    _synthetic("results", "a setting whose configuration is a list", "", SETTING, write(SETTING, '{"config": [1]}')),
    _synthetic("results", "a setting of another study", "", f"{SETTING} steps",
               write(SETTING, '{"config": {"steps": 3}}')),
]  # fmt: skip

DEMO = [
    _demo("a file", "out", write("out", "mine")),
    _demo("locked", ("out", DENIED), make_folder("out"), mode("out", 0o500), locked=True),
    _demo("read-only disk", ("out", READ_ONLY), disk("out", "ro")),
    _demo("a base of something else", "out/checkpoints/base", write("out/checkpoints/base/config.json", "{}")),
    Case("options", "demo with a word too many", "demo here", "here", code=2),
    Case("options", "demo without its folder", "demo --out", "--out", code=2),
]

TASKS = [
    Case("options", "tasks with a word too many", "tasks here", "here", code=2),
    Case("options", "tasks --all", "tasks --all", "--all", code=2),
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
                  "out/figures/leaderboard.svg", inputs=("results",)),
    *_interrupted("demo", "demo --out out", "out/checkpoints/base.partial/checkpoint-*", "out/report.html",
                  "out/checkpoints/clex-a0.1/longshort.json", program="demo"),
    *_interrupted("demo, evaluating", "demo --out out", "out/sweep/results/*/*/results_*.json",
                  "out/report.html", program="demo"),
    *_interrupted("synthetic", QUICK.replace("--steps 20", "--steps 150"), "out/settings/*.json", "out/tables.md",
                  "out/settings/mean_rope.json"),
    *_interrupted("export-clex", "export-clex clex --t 2 -o out", "Loading weights", "out/model.safetensors",
                  inputs=("clex",)),
]  # fmt: skip

CASES = [*INTERRUPTED, *DEMO, *SYNTHETIC, *TASKS]
