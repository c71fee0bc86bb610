"""How time and memory grow: with the length of a document, the vocabulary, the number of documents and of checkpoints.

Along the first three the perplexity and misalignment of a random Llama are measured, memory above the loaded model;
along the last a whole `longshort sweep` with one worker at a time, memory of its largest process. The exponent of
y ~ x^b is the slope of log y on log x over the upper half of the range, with its standard error.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.commands import run_timed
from benchmarks.common import parser, run_child, write
from longshort.testing import save_letters, save_sized_checkpoint
from longshort.training.byte_tokenizer import byte_tokenizer

AXES = {  # what grows, and along which values
    "tokens": (1024, 2048, 4096, 8192, 16384, 32768, 65536),
    "vocabulary": (4096, 16384, 32768, 65536, 131072, 262144),
    "documents": (1, 2, 4, 8, 16),
    "checkpoints": (1, 2, 4, 8),
}
USUAL = {"tokens": 2048, "vocabulary": 32768, "documents": 1}
MEASURES = {"seconds": "seconds", "bytes": "MiB"}


def main(arguments: list[str]) -> None:
    """Measure, fit, print the table, draw the figure, write the JSON."""
    command = parser("growth", __doc__, list(AXES), runs=2, of="processes per point; the fastest counts")
    command.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    command.add_argument("--most", type=int, help="leave out greater values, for a quick look")
    command.add_argument("--hidden", type=int, default=128)
    command.add_argument("--layers", type=int, default=2)
    command.add_argument("--value", type=int, help=argparse.SUPPRESS)  # of the one measurement in a child
    options = command.parse_args(arguments)
    if options.side:
        print(json.dumps(measure(options)))
        return
    shape = {"hidden": options.hidden, "layers": options.layers}
    rows = []
    for axis in options.axes:
        for value in (value for value in AXES[axis] if not options.most or value <= options.most):
            runs = [run_child("growth", {"value": value} | shape, axis) for _ in range(options.runs)]
            if "error" in runs[-1]:
                rows.append({"axis": axis, "value": value, "error": runs[-1]["error"]})
                continue
            rows.append({"axis": axis, "value": value} | {name: min(run[name] for run in runs) for name in MEASURES})
    exponents = {axis: {name: exponent(rows, axis, name) for name in MEASURES} for axis in options.axes}
    show(rows, exponents)
    draw(rows, exponents, options.output.with_suffix(".png"))
    write([*rows, {"exponents": exponents}], options, ("hidden", "layers", "runs"))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One point."""
    if options.side == "checkpoints":
        return sweep(options.value, options.hidden, options.layers)
    import numpy as np
    import torch

    from benchmarks.scoring import random_llama, timed
    from longshort.lmeval.documents import EncodedDocument
    from longshort.lmeval.measure import SINGLE_PASS
    from longshort.lmeval.reading import Wanted, measure_documents
    from longshort.settings import settings_from

    case = USUAL | {options.side: options.value}
    length = case["tokens"]
    shape = argparse.Namespace(
        vocabulary=case["vocabulary"],
        hidden=options.hidden,
        layers=options.layers,
        heads=8,
        intermediate=None,
        kv_heads=None,
        dtype="float32",
    )
    model = random_llama(shape, length)
    generator = torch.Generator().manual_seed(0)

    def score(count: int, size: int) -> float:
        total = 0.0
        for _ in range(count):
            tokens = torch.randint(case["vocabulary"], (size + 1,), generator=generator)
            document = EncodedDocument("text", tokens, np.arange(1.0, size + 2))
            settings = settings_from({"lengths": [size]})
            wanted = Wanted(settings, [size], seconds=[{size: [size * 3 // 4]}], passes=SINGLE_PASS)
            (measured,) = measure_documents(model, [document], [], wanted)
            total += measured.values[f"sce@{size}"] - measured.values[f"ppl@{size}"]
        return total

    score(1, 64)  # warm
    return timed(lambda: score(case["documents"], length), next(model.parameters()).device.type)


def sweep(count: int, hidden: int, layers: int) -> dict[str, Any]:
    """A sweep over so many checkpoints, from the start of its command to its end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(count):
            model = folder / "models" / f"m{seed}"
            save_sized_checkpoint(model, byte_tokenizer(), "llama", seed, hidden=hidden, layers=layers, positions=256)
        save_letters(folder / "text.jsonl", num_docs=4, num_bytes=2100)
        (folder / "manifest.yaml").write_text(
            "defaults: {corpus: text.jsonl, lengths: [64, 128, 256], num_docs: 4, dtype: float32}\n"
            "checkpoints:\n  - {folders: models/*}\n"
        )
        command = ["-m", "longshort", "sweep", "manifest.yaml", "-o", "out", "--workers", "1"]
        seconds = run_timed([command], folder)["seconds"]
    return {"seconds": seconds, "bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024}


def exponent(rows: list[dict[str, Any]], axis: str, measure: str) -> dict[str, float] | None:
    """Slope and standard error of log-log least squares over the upper half of an axis; None of fewer than 3 points."""
    import numpy as np
    from scipy.stats import linregress

    points = [(row["value"], row[measure]) for row in rows if row["axis"] == axis and row.get(measure, 0) > 0]
    points = points[-max(3, (len(points) + 1) // 2) :]
    if len(points) < 3:
        return None
    fit = linregress(*np.log(np.array(points, dtype=float)).T)
    return {"slope": float(fit.slope), "stderr": float(fit.stderr), "intercept": float(fit.intercept), "n": len(points)}


def show(rows: list[dict[str, Any]], exponents: dict[str, dict[str, Any]]) -> None:
    """The table, with an exponent at the end of each axis."""
    table = Table(title="growth; exponents of the upper half ± standard error")
    for column in ("along", "", *MEASURES.values()):
        table.add_column(column, justify="left" if column == "along" else "right")
    for axis, fits in exponents.items():
        for row in (row for row in rows if row["axis"] == axis):
            cells = [row["error"]] if "error" in row else [f"{row['seconds']:.2f}", f"{row['bytes'] / 2**20:,.0f}"]
            table.add_row(axis, f"{row['value']:,}", *cells)
        table.add_row(axis, "exponent", *(_text(fit) for fit in fits.values()), end_section=True)
    Console().print(table)


def draw(rows: list[dict[str, Any]], exponents: dict[str, dict[str, Any]], path: Path) -> None:
    """Time above, memory below, one column per axis; both scales logarithmic."""
    import numpy as np
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    from longshort.plotting import COLOURS, new_figure, save_figure, style

    with style():
        figure = new_figure(3.1 * len(exponents), 5.4)
        axes = figure.subplots(len(MEASURES), len(exponents), squeeze=False)
        for column, (axis, fits) in enumerate(exponents.items()):
            for line, (measure, unit) in enumerate(MEASURES.items()):
                plot, scale = axes[line, column], 2**20 if measure == "bytes" else 1
                points = [row for row in rows if row["axis"] == axis and measure in row]
                x = np.array([row["value"] for row in points], dtype=float)
                plot.plot(x, [row[measure] / scale for row in points], "o", color=COLOURS[line])
                if fits[measure]:
                    upper = x[-fits[measure]["n"] :]
                    fitted = np.exp(fits[measure]["intercept"]) * upper ** fits[measure]["slope"] / scale
                    plot.plot(upper, fitted, color=COLOURS[line], linewidth=1)
                plot.set(xscale="log", yscale="log", xlabel=axis if line else "", ylabel="" if column else unit)
                plot.set_title(f"exponent {_text(fits[measure])}", fontsize=10)
                for scale_of in (plot.xaxis, plot.yaxis):  # the style has no mathematics in its text
                    scale_of.set_major_locator(LogLocator(numticks=4))
                    scale_of.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
                    scale_of.set_minor_formatter(NullFormatter())
                if axis == "checkpoints":
                    plot.set_xticks(x, [f"{value:.0f}" for value in x])
                if measure == "bytes":  # what does not grow shall look so
                    low, high = plot.get_ylim()
                    plot.set_ylim(min(low, high / 100), high * 1.5)
                else:
                    low, high = plot.get_ylim()
                    plot.set_ylim(min(low, high / 30), high)
        save_figure(figure, path, dpi=130)


def _text(fit: dict[str, float] | None) -> str:
    return "–" if fit is None else f"{fit['slope']:.2f} ± {fit['stderr']:.2f}"
