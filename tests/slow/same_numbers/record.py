"""Runs the commands of one source tree and keeps what they write, one folder per section."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.slow.same_numbers.inputs import make_inputs

RECORD = "record.json"
TRAINING = "--preset tiny --corpus builtin --steps 20 --eval-every 10 --eval-docs 2 --resume-every 0"
EVALUATION = "--corpus builtin --lengths 32,64,128 --train-length 64 --num-docs 3 --log-samples --device cpu"
GENERATION = (
    "--tasks longshort-longbench-e-trec,longshort-longbench-e-samsum --longbench-dir inputs/longbench/data "
    "--model-args max_length=400 --limit 3 --log-samples --device cpu"
)


@dataclass(frozen=True)
class Step:
    """One process, run in the output folder: Python's arguments, and the exit codes that are expected."""

    name: str
    arguments: tuple[str, ...]
    exit_codes: tuple[int, ...] = (0,)


def steps() -> Iterator[Step]:
    """What is run, in order: the evaluations need the trained checkpoints."""
    scoring = Path(__file__).with_name("scoring.py")
    yield Step("scoring", (str(scoring), "inputs/checkpoints", "scoring"))
    yield from _training()
    yield from _evaluations()
    sweep = "sweep inputs/manifest.yaml -o sweep --workers 1"
    yield _longshort("sweep", sweep, 1)  # one of the checkpoints is damaged
    yield _longshort("correlate-default", "correlate inputs/study -o correlate/default")
    selection = "--predictor sce --predictor jeffreys --outcome log_ppl@1024 --where \"family != 'alibi'\" --adjust bh"
    yield _longshort("correlate-selection", f"correlate inputs/study {selection} -o correlate/selection")
    first = "score-longbench inputs/longbench/predictions -o longbench/predictions"
    yield _longshort("longbench", first, 0, 1)  # rows are missing: older versions return 0
    samples = "eval/generation/inputs__checkpoints__dynamic-rope"
    partial = f"score-longbench {samples} -o longbench/samples"
    yield _longshort("longbench-samples", partial, 1)  # datasets are missing
    size = "--tasks mean,length --encodings none,rope --seeds 2 --steps 20 --train-length 6 --max-length 12"
    yield _longshort("synthetic", f"synthetic {size} --workers 1 -o synthetic")


def _training() -> Iterator[Step]:
    """CLEX starts from random weights and has no BOS, the others start from a base with BOS; EABF has a dense loss."""
    clex = "--config inputs/clex.json --tokenizer bytes --extension clex --factor 4 --alpha 0.1 --train-length 64"
    eabf = "--base inputs/checkpoints/bos --extension eabf --factor 2 --alpha 0.3 --train-length 128 --loss dense"
    lora = "--base inputs/checkpoints/bos --lora-rank 4 --alpha 0.1 --train-length 48 --dtype bfloat16"
    yarn = "--base inputs/checkpoints/bos --extension yarn --factor 2 --alpha 0 --windows 1 --train-length 128"
    for name, options in (
        ("clex", f"{clex} --eval-lengths 32,64,128 --global-batch-size 4 --batch-size 2 --seed 1"),
        ("eabf", f"{eabf} --eval-lengths 64,128 --divergence jeffreys --positions in_range --detach long"),
        ("lora", f"{lora} --eval-lengths 32 --global-batch-size 4 --batch-size 4"),
        ("yarn", f"{yarn} --eval-lengths 64,128 --cross-documents --save-at 10"),
    ):
        yield _longshort(f"train-{name}", f"train {TRAINING} {options} -o trained/{name}")


def _evaluations() -> Iterator[Step]:
    for name, options in (
        ("inputs/checkpoints/plain", ""),
        ("inputs/checkpoints/bos", ""),
        ("inputs/checkpoints/learned-positions", ""),
        ("inputs/checkpoints/dynamic-rope", ""),
        ("inputs/checkpoints/saved-bfloat16", ""),
        ("inputs/checkpoints/lora-merged", ""),
        ("trained/clex", "--trust-remote-code"),
        ("trained/eabf", "--trust-remote-code"),
        ("trained/lora", "--dtype float32"),
    ):
        yield _longshort(f"eval-{Path(name).name}", f"eval {name} {EVALUATION} {options} -o eval/{Path(name).name}")
    for name, options in (
        ("in-bfloat16", f"bos {EVALUATION} --dtype bfloat16"),
        ("adapter", f"bos {EVALUATION} --model-args peft=inputs/checkpoints/adapter"),
        ("files", f"bos {EVALUATION} --corpus inputs/corpus/*.jsonl --batch-size 2 --seed 3 --tail-tokens 9"),
        ("generation", f"dynamic-rope {GENERATION}"),
    ):
        yield _longshort(f"eval-{name}", f"eval inputs/checkpoints/{options} -o eval/{name}")


def _longshort(name: str, arguments: str, *exit_codes: int) -> Step:
    return Step(name, ("-m", "longshort", *shlex.split(arguments)), exit_codes or (0,))


def record(tree: Path, inputs: Path, study: Path, output: Path) -> None:
    """Run every step with the source of `tree` and keep the results in `output`.

    Args:
        tree: root of a checkout.
        inputs: folder of the inputs; made if it does not exist.
        study: sweep folder that new inputs get.
        output: a folder that does not exist yet.

    Raises:
        SystemExit: longshort would be imported from another tree, or a step ends with an unexpected exit code.
    """
    tree, inputs, output = tree.resolve(), inputs.resolve(), output.resolve()
    if not inputs.exists():
        make_inputs(inputs, study)
    output.mkdir(parents=True)
    (output / "logs").mkdir()
    (output / "inputs").symlink_to(inputs)
    environment = _environment(tree, output)
    _check_source(tree, output, environment)
    seconds = {}
    for step in steps():
        start = time.perf_counter()
        _run(step, output, environment)
        seconds[step.name] = round(time.perf_counter() - start, 1)
        print(f"{step.name:24}{seconds[step.name]:7.1f} s", flush=True)
    print(f"{'total':24}{sum(seconds.values()):7.1f} s")
    paths = {"OUTPUT": str(output), "INPUTS": str(inputs), "TREE": str(tree)}
    (output / RECORD).write_text(json.dumps({"paths": paths, "seconds": seconds}, indent=2) + "\n")


def _environment(tree: Path, output: Path) -> dict[str, str]:
    """One thread, no GPU, no network; code of checkpoints is not shared with other runs."""
    return os.environ | {
        "PYTHONPATH": str(tree / "harness"),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(output / "modules"),
        "COLUMNS": "120",
    }


def _check_source(tree: Path, output: Path, environment: dict[str, str]) -> None:
    """An installed longshort that came first would make the two sides the same code."""
    code = "import longshort; print(longshort.__file__)"
    found = subprocess.run([sys.executable, "-c", code], cwd=output, env=environment, capture_output=True, text=True)
    if not found.stdout.startswith(str(tree / "harness")):
        raise SystemExit(f"Cannot import longshort from {tree / 'harness'}: {found.stdout or found.stderr}")


def _run(step: Step, output: Path, environment: dict[str, str]) -> None:
    log = output / "logs" / f"{step.name}.log"
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, *step.arguments], cwd=output, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    if done.returncode not in step.exit_codes:
        end = "\n".join(log.read_text("utf-8", "replace").splitlines()[-20:])
        expected = " or ".join(map(str, step.exit_codes))
        raise SystemExit(f"Step {step.name} ended with exit code {done.returncode}, not {expected}: {log}\n{end}")
