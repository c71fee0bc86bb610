"""Both tasks on one document: an earlier commit, version 0.1 by default, against the working tree.

The earlier commit is checked out as a worktree in a temporary folder. Each run is a process of its own, with one side's
code on its PYTHONPATH and the same installed libraries; the sides alternate. The evaluation at all lengths is
measured, including its probe of the position encoding, after the model has been loaded and a short text evaluated.
Tokens are counted at the input embedding. The offsets drawn from the seed make the shorter contexts of this document
longer or shorter than average, so the expected ratio of tokens is shown next to the measured one.

    python scripts/benchmark.py evaluate --checkpoint SmolLM2-135M-Instruct --corpus books.jsonl
    python scripts/benchmark.py evaluate --gpu

--gpu measures a random Llama of a billion parameters in bfloat16 on a GPU, against lm-eval's perplexity of the same
number of tokens. It has options of its own: --gpu --help lists them on a machine with a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.commands import greatest_difference
from benchmarks.common import commit, parser, ratio, run_child, spread, take_turns, write, written

BEFORE, AFTER = SIDES = ["before", "after"]
VERSION_0_1 = "77252e6b54aad9fc3264373e0ba2240b2cccdf82"
GIVEN = ("lengths", "corpus", "seed", "dtype")  # to the process of one measurement
SETTINGS = ("before", *GIVEN, "runs")
SHAPE = {"hidden": 512, "layers": 4, "vocabulary": 32000, "intermediate": None, "heads": 8, "kv_heads": None}
SAME = ("ppl", "bpb", "ppl_tail", "bpb_tail", "sce_between")  # without a sampled length, for models without BOS
ROOT = Path(__file__).parents[2]


def main(arguments: list[str]) -> None:
    """Measure both sides on each model, print the table, write the JSON."""
    if "--gpu" in arguments:
        from benchmarks import evaluate_gpu

        evaluate_gpu.main(arguments)
        return
    options = _options(arguments)
    if options.side:
        print(json.dumps(measure(options)))
        return
    rows, measured = written(options, SETTINGS), []
    with tempfile.TemporaryDirectory() as folder, worktree(options.before, Path(folder) / BEFORE) as before:
        roots = {BEFORE: before, AFTER: ROOT}
        for name, model in models(options, Path(folder)).items():
            sides = take_turns(SIDES, options.runs, partial(_run, options, model, roots))
            measured.append({"model": name, "commit": commit()} | summary(sides, _lengths(options)))
            rows = [*(row for row in rows if row["model"] != name), measured[-1]]
            write(rows, options, SETTINGS)  # what is measured is not lost if the rest is cut off
    show(measured)


def _options(arguments: list[str]) -> argparse.Namespace:
    command = parser("evaluate", __doc__, SIDES, of="processes per side and model")
    command.add_argument(
        "--before", default=VERSION_0_1, help="commit to compare with (default: the last one of version 0.1)"
    )
    command.add_argument(
        "--lengths",
        default="512,1024,2048,4096,8192",
        help="context lengths in tokens, comma-separated (default: %(default)s)",
    )
    command.add_argument(
        "--checkpoint", type=Path, nargs="+", help="folders of checkpoints  [default: a random Llama of hidden 512]"
    )
    command.add_argument(
        "--corpus",
        default="builtin",
        help="corpus; its first document that is long enough is evaluated (default: %(default)s)",
    )
    command.add_argument(
        "--seed", type=int, default=0, help="seed for sampling the shorter context lengths (default: %(default)s)"
    )
    command.add_argument("--dtype", default="float32", help="dtype of the model (default: %(default)s)")
    return command.parse_args(arguments)


def _lengths(options: argparse.Namespace) -> list[int]:
    return sorted(map(int, options.lengths.split(",")))


@contextlib.contextmanager
def worktree(revision: str, folder: Path) -> Iterator[Path]:
    """Check out a commit in `folder`; on leaving, remove it."""
    git = ["git", "-C", str(ROOT), "worktree"]
    done = subprocess.run([*git, "add", "--detach", str(folder), revision], capture_output=True, text=True)
    if done.returncode:
        reason = " ".join(done.stderr.strip().splitlines()[-1:])
        sys.exit(
            f"benchmark.py evaluate: cannot check out '{revision}' ({reason}). Give a commit of this repository as "
            "--before; a shallow clone needs 'git fetch --unshallow' first."
        )
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], capture_output=True)


def models(options: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """Name and folder of each checkpoint; of the random model, saved here, where none is given."""
    if not options.checkpoint:
        return {"random Llama {hidden}×{layers}, {vocabulary:,}".format(**SHAPE): save_random_llama(options, folder)}
    missing = [path for path in options.checkpoint if not (path / "config.json").is_file()]
    if missing:
        sys.exit(f"benchmark.py evaluate: --checkpoint {missing[0]} has no config.json. Give the folder of a model.")
    return {path.name: path.resolve() for path in options.checkpoint}


def save_random_llama(options: argparse.Namespace, folder: Path) -> Path:
    """Save a model of `SHAPE` with a tokenizer of bytes."""
    from benchmarks.scoring import random_llama
    from longshort.training.byte_tokenizer import byte_tokenizer

    model: Any = random_llama(argparse.Namespace(**SHAPE, dtype="float32"), _lengths(options)[-1])
    model.save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    return folder / "model"


def _run(options: argparse.Namespace, model: Path, roots: dict[str, Path], side: str) -> dict[str, Any]:
    """One measurement with that side's code."""
    given = {"checkpoint": str(model)} | {name: getattr(options, name) for name in GIVEN}
    done = run_child("evaluate", given, side, {"PYTHONPATH": str(roots[side] / "harness")})
    if "error" in done:
        sys.exit(f"benchmark.py evaluate: {side} {done['error']}")
    if not Path(done["code"]).resolve().is_relative_to(roots[side].resolve()):
        sys.exit(f"benchmark.py evaluate: {side} ran the code in {done['code']} instead of that in {roots[side]}.")
    return done


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one side: time, memory, tokens of each forward pass, values of the metrics."""
    import longshort
    from benchmarks.scoring import reading, timed
    from longshort.lmeval.evaluate import evaluate_loaded, load_checkpoint, prepare_tasks
    from longshort.settings import DEFAULT_TASKS

    (checkpoint,), lengths = options.checkpoint, _lengths(options)
    arguments = {"pretrained": str(checkpoint), "dtype": options.dtype}
    lm: Any = load_checkpoint(arguments)
    results: dict[str, Any] = {}
    metadata = {"corpus": options.corpus, "seed": options.seed, "num_docs": 1}
    short, whole = (prepare_tasks(DEFAULT_TASKS, metadata | {"lengths": these}) for these in ([32, 64], lengths))

    def evaluate(prepared: Any) -> float:
        results.update(evaluate_loaded(lm, arguments, prepared, batch_size=1))
        return results["results"][DEFAULT_TASKS[0]][f"ppl@{lengths[-1]},none"]

    evaluate_loaded(lm, arguments, short, batch_size=1)  # probes the LM head, collects records of the environment
    with reading(lm.model) as reads:
        done = timed(lambda: evaluate(whole), lm.model.device.type)
    if "error" in done:
        return done
    scored = results["configs"][DEFAULT_TASKS[0]]["metadata"]["scored"]
    return done | {
        "code": str(Path(str(longshort.__file__)).parent),
        "tokens": sum(reads),
        "reads": reads,
        "values": _values(results["results"]),
        "document": {"names": scored["names"], "sha256": scored["sha256"]},
        "window_bytes": lengths[-1] * lm.model.config.hidden_size * lm.model.dtype.itemsize,
    }


def _values(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The values that both sides must agree on."""
    return {
        name: value
        for metrics in results.values()
        for name, value in metrics.items()
        if name.partition("@")[0] in SAME and name.endswith(",none") and "_stderr" not in name
    }


def summary(sides: dict[str, list[dict[str, Any]]], lengths: list[int]) -> dict[str, Any]:
    """Median and spread of each side, their ratios, and how far the values differ."""
    row: dict[str, Any] = {}
    for side, runs in sides.items():
        row[side] = {"tokens": runs[-1]["tokens"], "reads": runs[-1]["reads"], "runs": len(runs)}
        for key in ("seconds", "cpu_seconds", "others_cpu_seconds", "bytes"):
            row[side] |= spread(runs, key)
    before, after = sides[BEFORE], sides[AFTER]
    expected = expected_tokens(lengths)
    return row | {
        "document": after[-1]["document"],
        "tokens_ratio": after[-1]["tokens"] / before[-1]["tokens"],
        "tokens_ratio_expected": expected[AFTER] / expected[BEFORE],
        "seconds_ratio": ratio(after, before, "seconds"),
        "cpu_seconds_ratio": ratio(after, before, "cpu_seconds"),
        "bytes_more": row[AFTER]["bytes_median"] - row[BEFORE]["bytes_median"],
        "window_bytes": after[-1]["window_bytes"],  # hidden states of the longest window
        "greatest_relative_difference": greatest_difference(after[-1]["values"], before[-1]["values"]),
    }


def expected_tokens(lengths: list[int]) -> dict[str, float]:
    """Tokens of the windows of a document, without probes, in expectation over the offsets.

    With h = ⌊L/2⌋, version 0.1 drew offsets e of 1 to h with equal probabilities, mean (h + 1) / 2. It read the prefix
    once, and each length once for the fixed targets and once more in a pair with the shorter context. Now the
    probability is proportional to h - e + 1, mean (h + 2) / 3, and each length is read once, with one shorter context.
    """
    return {
        BEFORE: max(lengths) + sum(3 * length - (length // 2 + 1) / 2 for length in lengths),
        AFTER: sum(2 * length - (length // 2 + 2) / 3 for length in lengths),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print a table per model, no wider than 80 columns."""
    console = Console()
    for row in rows:
        sides = [row[side] for side in SIDES]
        table = Table(title=f"both tasks, one document; {row['model']}", title_justify="left")
        for column in ("", BEFORE, AFTER, "ratio"):
            table.add_column(column, justify="right" if column else "left", no_wrap=True)
        table.add_row("tokens read", *(f"{side['tokens']:,}" for side in sides), f"{row['tokens_ratio']:.3f}")
        table.add_row("expected, all offsets", "", "", f"{row['tokens_ratio_expected']:.3f}")
        for key, label in (("seconds", "seconds"), ("cpu_seconds", "CPU seconds")):
            numbers = ([_seconds(side[f"{key}_{of}"]) for of in ("median", "min", "max")] for side in sides)
            cells = ("{} ({}–{})".format(*three) for three in numbers)
            table.add_row(label, *cells, f"{row[f'{key}_ratio']:.3f}")
        table.add_row("MiB above the weights", *(f"{side['bytes_median'] / 2**20:,.0f}" for side in sides), "")
        console.print(table)
        more, window = (row[key] / 2**20 for key in ("bytes_more", "window_bytes"))
        taken = max(side["others_cpu_seconds_max"] / side["seconds_max"] for side in sides)
        console.print(
            f"MiB more than before: {more:,.0f}; hidden states of the longest window: {window:,.0f}",
            f"greatest relative difference of a value: {row['greatest_relative_difference']:.1e}",
            f"other processes: at most {taken:.2f} processors during any run",
            sep="\n",
            highlight=False,
        )


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
