"""`longshort score-longbench` against the official scorer of LongBench-E on the same predictions.

Made-up predictions of all 13 datasets in the official format and at the official number of rows. Each side is run as
a user runs it, a process from start to end, and then once more within a process for the scoring alone, files read
and imports done. Both `result.json` must be equal, or the benchmark fails.

    git clone https://github.com/THUDM/LongBench
    pip install rouge jieba fuzzywuzzy
    python scripts/benchmark.py longbench --official LongBench
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import random
import resource
import subprocess
import sys
import time
from functools import partial
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import parser, ratio, run_child, spread, take_turns, write
from longshort.longbench.scores import DATASETS

OFFICIAL, OURS = SIDES = ["official", "longshort"]
PACKAGES = ("rouge", "jieba", "fuzzywuzzy")
MODEL = "model"  # the name of the folder of predictions
MEASURES = {"process": "whole command", "scoring": "scoring alone"}


def main(arguments: list[str]) -> None:
    """Write predictions, measure both sides, print the table, write the JSON."""
    command = parser("longbench", __doc__, SIDES)
    command.add_argument("--official", type=Path, default=Path("LongBench"), help="a clone of THUDM/LongBench")
    command.add_argument("--rows", type=int, help="predictions per dataset  [default: as many as the official data]")
    command.add_argument("--predictions", type=Path, help=argparse.SUPPRESS)  # of the one measurement in a child
    options = command.parse_args(arguments)
    if options.side:
        print(json.dumps(measure(options)))
        return

    scorer = official_folder(options.official)
    with TemporaryDirectory() as folder:
        rows = write_predictions(Path(folder) / "pred_e" / MODEL, options.rows)
        paths = {"official": scorer, "predictions": folder}
        sides = take_turns(SIDES, options.runs, partial(run_child, "longbench", paths))
    row = summary(sides) | {"predictions": rows} | versions(scorer)
    show(row)
    write([row], options, ("rows", "runs"))
    if row["different"]:
        sys.exit(f"benchmark.py longbench: the two result.json differ in {', '.join(row['different'])}.")


def official_folder(clone: Path) -> Path:
    """The folder of the official `eval.py` in a clone; exits with what to do where it or a package is missing."""
    found = [folder for folder in (clone / "LongBench", clone) if (folder / "eval.py").is_file()]
    if not found:
        sys.exit(
            f"benchmark.py longbench: {clone} holds no LongBench/eval.py. "
            "Run 'git clone https://github.com/THUDM/LongBench' and give its folder as --official."
        )
    missing = [name for name in PACKAGES if not list(importlib.metadata.distributions(name=name))]
    if missing:
        sys.exit(f"benchmark.py longbench: the official scorer needs more: pip install {' '.join(missing)}")
    return found[0].resolve()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One side: seconds of the clock and of the processor for the whole command and for the scoring; the result."""
    predictions = options.predictions / "pred_e" / MODEL
    output = predictions if options.side == OFFICIAL else options.predictions / "ours"
    command = {
        OFFICIAL: [sys.executable, str(options.official / "eval.py"), "--e", "--model", MODEL],
        OURS: [sys.executable, "-m", "longshort", "score-longbench", str(predictions), "-o", str(output)],
    }[options.side]
    result = output / "result.json"
    result.unlink(missing_ok=True)
    start = time.perf_counter()
    done = subprocess.run(command, cwd=options.predictions, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if not result.is_file():  # with fewer rows than the official data, longshort scores them and returns 1
        sys.exit(done.stderr)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    score = {OFFICIAL: official_scoring, OURS: our_scoring}[options.side](options)
    start_of_scoring = time.perf_counter(), time.process_time()
    score()
    return {
        "process_seconds": seconds,
        "process_cpu_seconds": usage.ru_utime + usage.ru_stime,
        "scoring_seconds": time.perf_counter() - start_of_scoring[0],
        "scoring_cpu_seconds": time.process_time() - start_of_scoring[1],
        "result": json.loads(result.read_text("utf-8")),
    }


def official_scoring(options: argparse.Namespace) -> Any:
    """The official functions, imported, on rows that are read already."""
    sys.path.insert(0, str(options.official))
    import eval as official

    fields = ("pred", "answers", "length")
    columns = {}
    for file in (options.predictions / "pred_e" / MODEL).glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        columns[file.stem] = [*([row[name] for row in rows] for name in fields), rows[-1]["all_classes"]]
    return lambda: {dataset: official.scorer_e(dataset, *of_dataset) for dataset, of_dataset in columns.items()}


def our_scoring(options: argparse.Namespace) -> Any:
    """The same of ours."""
    from longshort.longbench.official import row_scores, summarize
    from longshort.longbench.predictions import read_predictions

    rows = read_predictions(options.predictions / "pred_e" / MODEL).rows
    return lambda: summarize(row_scores(rows))


class Writer:
    """Made-up English: words of syllables with the frequencies of words (Zipf), sentences, lines of code."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        syllables = [a + b for a in "bcdfghlmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "in", "on", "st")]
        common = ["the", "of", "and", "a", "to", "in", "is", "was", "an", "that", "for", "on", "with", "as", "by"]
        rare = ("".join(self.draw.choices(syllables, k=self.draw.choice((1, 2, 2, 3)))) for _ in range(20_000))
        self.vocabulary = list(dict.fromkeys([*common, *rare]))
        self.weights = list(accumulate(1 / (rank + 2) for rank in range(len(self.vocabulary))))

    def words(self, count: int) -> list[str]:
        """So many words."""
        return self.draw.choices(self.vocabulary, cum_weights=self.weights, k=count)

    def sentences(self, count: int) -> str:
        """So many words in sentences of 10 to 30."""
        parts = []
        while count > 0:
            words = self.words(min(count, self.draw.randint(10, 30)))
            count -= len(words)
            parts.append(" ".join(words).capitalize() + ".")
        return " ".join(parts)

    def about(self, text: str, count: int) -> str:
        """So many words in sentences, half of them copied in runs from a text."""
        source = text.split()
        parts: list[str] = []
        while len(parts) < count:
            start, run = self.draw.randrange(len(source)), self.draw.randint(3, 12)
            parts += [*source[start : start + run], *self.words(run)]
        return " ".join(parts[:count]) + "."

    def code(self, lines: int) -> str:
        """Lines of code with calls and assignments, a few of them comments."""
        forms = (
            "self.{0} = {1}({2}, {3})",
            "    return {0}.{1}({2})",
            "if {0} is None:",
            "# {0} {1}",
            "{0} = {1}[{2}]",
        )
        return "\n".join(self.draw.choice(forms).format(*self.words(4)) for _ in range(lines))


def write_predictions(folder: Path, rows: int | None = None, seed: int = 0) -> int:
    """Write official prediction files `DATASET.jsonl`, the official number of rows of each; returns how many in all."""
    writer = Writer(seed)
    classes = [" ".join(writer.words(writer.draw.randint(1, 4))).capitalize() for _ in range(50)]
    total = 0
    folder.mkdir(parents=True)
    for dataset in DATASETS.values():
        lines = []
        for index in range(rows or dataset.num_rows):
            prediction, answers = prediction_and_answers(writer, dataset.name, dataset.category, classes)
            line = {"pred": prediction, "answers": answers}
            line["all_classes"] = classes if dataset.name == "trec" else None
            line["length"] = (1000, 5000, 9000)[index % 3] + writer.draw.randrange(2500)
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        (folder / f"{dataset.name}.jsonl").write_text("".join(lines), "utf-8")
        total += len(lines)
    return total


def prediction_and_answers(writer: Writer, name: str, category: str, classes: list[str]) -> tuple[str, list[str]]:
    """What a model might write, and the right answers, in the length and form that the dataset has."""
    draw = writer.draw
    if name == "trec":
        return f"{draw.choice(classes)}\nQuestion: {writer.sentences(10)}\nType: ", [draw.choice(classes)]
    if category == "synthetic":
        paragraph = "Paragraph " * (name != "passage_count")
        return f"{paragraph}{draw.randint(1, 3)}", [f"{paragraph}{draw.randint(1, 3)}"]
    if category == "code":
        answer = writer.code(1)
        return f"{answer[: len(answer) // 2]}{writer.code(6)}", [answer]
    if category == "summarization":
        answer = writer.sentences(draw.randint(150, 700 if name == "gov_report" else 400))
        return writer.about(answer, draw.randint(100, 400)), [answer]
    if name == "samsum":
        answer = writer.sentences(draw.randint(10, 30))
        return f"{writer.about(answer, draw.randint(10, 30))}\n\nDialogue: {writer.sentences(60)}", [answer]
    answers = [
        " ".join(writer.words(draw.randint(1, 12))) for _ in range(10 if name == "triviaqa" else draw.randint(1, 3))
    ]
    shared = draw.choice(answers).split()[: draw.randint(0, 8)]
    return " ".join(["The", *shared, *writer.words(draw.randint(0, 20))]) + ".\n" * (name == "triviaqa"), answers


def summary(sides: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Median and spread of each side, ours over the official, and the numbers in which the results differ."""
    row: dict[str, Any] = {}
    for side, runs in sides.items():
        if "error" in runs[-1]:
            sys.exit(f"benchmark.py longbench: {side} {runs[-1]['error']}")
        row[side] = {}
        for key in (f"{measured}{kind}" for measured in MEASURES for kind in ("_seconds", "_cpu_seconds")):
            row[side] |= spread(runs, key)
            row[f"{key}_ratio"] = ratio(sides[OURS], sides[OFFICIAL], key)
    official, ours = (
        {
            (name, bucket): value
            for name, buckets in sides[side][-1]["result"].items()
            for bucket, value in buckets.items()
        }
        for side in SIDES
    )
    row["compared"] = len(official)
    row["different"] = [" ".join(key) for key in sorted({*official, *ours}) if official.get(key) != ours.get(key)]
    return row


def versions(scorer: Path) -> dict[str, Any]:
    """What the official side was."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=scorer, capture_output=True, text=True)
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"official_versions": {"LongBench": commit.stdout.strip() or "unknown", **packages}}


def show(row: dict[str, Any]) -> None:
    """The table."""
    different = f"{len(row['different'])} of {row['compared']} scores differ"
    table = Table(title=f"LongBench-E, {row['predictions']:,} predictions of {len(DATASETS)} datasets; {different}")
    for column in ("", *(f"{side}, seconds (min–max)" for side in SIDES), "time ×", "CPU ×"):
        table.add_column(column, justify="right" if column else "left")
    for key, label in MEASURES.items():
        times = [
            "{:.2f} ({:.2f}–{:.2f})".format(*(row[side][f"{key}_seconds_{kind}"] for kind in ("median", "min", "max")))
            for side in SIDES
        ]
        table.add_row(label, *times, *(f"{row[f'{key}_{kind}_ratio']:.3f}" for kind in ("seconds", "cpu_seconds")))
    Console().print(table)
