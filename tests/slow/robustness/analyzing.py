"""`longshort correlate` and `longshort score-longbench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.slow.robustness.case import Case, Step, cut, disk, make_folder, mode, remove, write
from tests.slow.robustness.inputs import SAMPLES

HERE = "correlate results -o out"
NAME = "results_2025-01-01T00-00-00.000000.json"
FIRST = f"results/0-0-0/{NAME}"
SCORE = "score-longbench predictions -o out"
LEFT = ("out/*",)


def _correlate(kind: str, name: str, options: str, cause: str, remedy: str, *steps: Step, **more: Any) -> Case:
    return Case(
        kind, f"correlate: {name}", f"{HERE} {options}", cause, remedy, inputs=("results",), steps=steps, **more
    )


def _option(options: str, cause: str, remedy: str, **more: Any) -> Case:
    return Case(
        "options", f"correlate {options}", f"{HERE} {options}", cause, remedy, code=2, inputs=("results",), **more
    )


def _where(condition: str, cause: str, remedy: str = "where:") -> Case:
    command = ("correlate", "results", "-o", "out", "--where", condition)
    return Case("options", f"correlate --where {condition}", command, cause, remedy, code=2, inputs=("results",))


def _alone(name: str, content: str | bytes, cause: str, remedy: str, options: str = "", **more: Any) -> Case:
    """The only results file there is."""
    steps = (write(f"alone/{NAME}", content),)
    return Case(
        "results", f"correlate: {name}", f"correlate alone -o out {options}", cause, remedy, steps=steps, **more
    )


def _edit(change: Any) -> Step:
    """Change every results file, as JSON."""

    def step(folder: Path) -> None:
        for file in sorted((folder / "results").rglob("results_*.json")):
            data = json.loads(file.read_text("utf-8"))
            change(data)
            file.write_text(json.dumps(data), "utf-8")

    return step


def _set_values(value: Any) -> Step:
    def change(data: dict[str, Any]) -> None:
        for metrics in data["results"].values():
            metrics.update({name: value for name in metrics if "," in name})

    return _edit(change)


def _only(count: int) -> Step:
    def step(folder: Path) -> None:
        import shutil

        for extra in sorted((folder / "results").iterdir())[count:]:
            shutil.rmtree(extra)

    return step


def _two_corpora(folder: Path) -> None:
    for index, file in enumerate(sorted((folder / "results").rglob("results_*.json"))):
        text = file.read_text("utf-8")
        file.write_text(text.replace('"corpus": "builtin"', '"corpus": "pg19"') if index % 2 else text, "utf-8")


def _score(name: str, cause: str, remedy: str, *steps: Step, command: str = SCORE, **more: Any) -> Case:
    inputs = more.pop("inputs", ("predictions",))
    return Case("predictions", name, command, cause, remedy, inputs=inputs, steps=steps, lines=3, leaves=LEFT, **more)


def _row(name: str, cause: str, **fields: Any) -> Case:
    """One row of two that is wrong: it is named and left out, the rest is scored."""
    good = {"pred": "a", "answers": ["a"], "all_classes": None, "length": 1200}
    lines = [json.dumps(row) for row in (good, good | fields)]
    return _score(name, cause, "mend or write again", write("predictions/qasper.jsonl", "\n".join(lines)))


OPTIONS = [
    _option("--predictor scee", "predictor 'scee'", "sce"),
    _option("--outcome longbench", "outcome 'longbench'", "longbench"),
    _option("--control nothing", "control 'nothing'", "not among what was measured"),
    _option("--group-by nothing", "no column to group by", "nothing"),
    _option("--interval jackknife", "no such option", "--interval"),
    _option("--adjust none", "'none' is not one of", "holm"),
    _option("--corpus nothing", "corpus 'nothing'", "builtin"),
    _where("params <", "cannot be understood"),
    _where("__import__('os').system('touch broken-in')", "more than comparisons"),
    _where("parms < 3", "'parms' is no column", "params"),
    _where("family < 3", "cannot be evaluated"),
    _where("params", "no condition"),
    _where("params < 0", "true of none", "8 checkpoints"),
    Case("options", "correlate without a folder", "correlate -o out", "missing argument", "DIR", code=2),
]

RESULTS = [
    Case("results", "correlate: missing", "correlate nowhere", "nowhere does not exist", "name a folder"),
    Case("results", "correlate: empty folder", "correlate a", "no result", "longshort eval", steps=(make_folder("a"),)),
    _alone("empty file", "", "1 of them damaged", "longshort eval"),
    _alone("binary", bytes(range(256)), "1 of them damaged", "longshort eval"),
    _alone("cut off", '{"results": {"longshort_perplexity": {"ppl@64,none": 3', "1 of them damaged", "longshort eval"),
    _alone("cut off, strict", '{"results": {', NAME, "json", "--strict"),
    _alone("foreign JSON", '{"accuracy": 0.9}', "1 of them damaged", "longshort eval"),
    _alone("foreign JSON, strict", '{"accuracy": 0.9}', "not a results file of lm-eval", "lm-eval", "--strict"),
    _alone("other tasks alone", '{"results": {"hellaswag": {"acc,none": 0.5}}}', "no result", "longshort eval"),
    _alone("deep nesting", "[" * 100_000, "1 of them damaged", "longshort eval"),
    _alone("values that are lists", '{"results": {"longshort_perplexity": {"ppl@64,none": [1]}}, "configs": {}}',
           "no result", "longshort eval"),
    _alone("results that are a list", '{"results": [1, 2]}', "1 of them damaged", "longshort eval"),
    _correlate("results", "no number at all", "", "is nan", "longshort eval", _set_values(float("nan"))),
    _correlate("results", "infinite values", "", "is inf", "longshort eval", _set_values(float("inf"))),
    _correlate("results", "text for values", "", "is high", "longshort eval", _set_values("high")),
    _correlate("results", "two corpora", "", "corpora", "--corpus", _two_corpora),
    _correlate("results", "all locked", "", "permission denied", "longshort eval",
               *(mode(f"results/{f}-{m}-0/{NAME}", 0) for f in range(4) for m in range(2)), locked=True),
    _correlate("results", "one of eight is cut off", "", "", "", cut(FIRST, 99), code=0, leaves=LEFT),
    _correlate("results", "one of eight is cut off, strict", "--strict", FIRST, "json", cut(FIRST, 99)),
    _correlate("results", "one checkpoint alone", "", "", "", _only(1), code=0, leaves=LEFT),
    _correlate("results", "of another version", "", "", "",
               _edit(lambda data: [data.pop(name) for name in ("versions", "n-samples", "lm_eval_version", "date")]),
               code=0, leaves=LEFT),
]  # fmt: skip

OUTPUTS = [
    _correlate("output", "a file", "", "cannot be written", "choose a folder", write("out", "mine")),
    _correlate("output", "locked", "", "permission denied", "choose a folder", make_folder("out"), mode("out", 0o500),
               locked=True),
    _correlate("output", "read-only disk", "", "read-only", "choose a folder", disk("out", "ro")),
    _correlate("output", "full disk", "", "no space left", "free some space", disk("out", "size=64k", full=True)),
    _correlate("output", "disk too small for the figures", "", "no space left", "free some space",
               disk("out", "size=300k"), leaves=LEFT),
    _correlate("terminal", "20 columns", "", "", "", code=0, leaves=LEFT, columns=20),
    _correlate("terminal", "a pipe that is closed", "", "", "", leaves=LEFT, pipe=True),
]  # fmt: skip

PREDICTIONS = [
    _score("missing", "nowhere", "folder", command="score-longbench nowhere"),
    _score("a file", "a", "folder", write("a", "mine"), command="score-longbench a"),
    _score("empty folder", "no predictions", "datasets: ", make_folder("a"), command="score-longbench a"),
    _score("unknown dataset alone", "no predictions", "datasets: ", write("a/mine.jsonl", "{}"),
           command="score-longbench a"),
    _score("in a subfolder", "no predictions", "its subfolders predictions", command="score-longbench ."),
    _score("an empty file", "qasper.jsonl is empty", "write its predictions again", write("predictions/qasper.jsonl")),
    _score("binary", "not UTF-8", "mend", write("predictions/qasper.jsonl", bytes(range(128, 256)) * 9)),
    _score("cut off", "line 3: not JSON", "mend", cut("predictions/qasper.jsonl", -20)),
    _score("deep nesting", "line 1: not JSON", "mend", write("predictions/qasper.jsonl", "[" * 100_000)),
    _score("number of 5000 digits", "line 1: not JSON", "mend",
           write("predictions/qasper.jsonl", '{"length": 1' + "0" * 5000 + "}")),
    _score("a list per line", "not a JSON object", "mend", write("predictions/qasper.jsonl", "[1]\n")),
    _score("locked", "permission denied", "make it readable", mode("predictions/qasper.jsonl", 0), locked=True),
    _score("a folder in place of a file", "qasper.jsonl", "readable", remove("predictions/qasper.jsonl"),
           make_folder("predictions/qasper.jsonl")),
    _row("no prediction", "line 2: the prediction is missing", pred=None),
    _row("answers as text", "line 2: ", answers="a"),
    _row("no answers", "line 2: ", answers=[]),
    _row("length as text", "line 2: ", length="long"),
    _row("length that is no number", "line 2: ", length=float("nan")),
    _row("endless length", "line 2: ", length=float("inf")),
    _score("samples that are cut off", "line 3: not JSON", "mend", cut(f"samples/{SAMPLES}", -20),
           command="score-longbench samples -o out", inputs=("samples",)),
    _score("samples without a doc", "`doc` or `filtered_resps`", "mend", write(f"samples/{SAMPLES}", '{"doc": 1}\n'),
           command="score-longbench samples -o out", inputs=("samples",)),
    _score("convert onto itself", "holds the predictions themselves", "choose another",
           command=f"{SCORE} --convert predictions"),
    _score("convert to a file", "cannot be written", "choose", write("a", "mine"), command=f"{SCORE} --convert a"),
    _score("output is a file", "cannot be written", "choose", write("out", "mine")),
    _score("output is locked", "permission denied", "choose", make_folder("out"), mode("out", 0o500), locked=True),
    _score("full disk", "no space left", "free some space", disk("out", "size=64k", full=True)),
    _score("score-longbench, 20 columns", "no predictions of", "longshort", columns=20),
    _score("into a pipe that is closed", "", "", pipe=True),
    Case("options", "score-longbench without a folder", "score-longbench -o out", "missing argument", "FOLDER", code=2),
]  # fmt: skip

CASES = [*OPTIONS, *RESULTS, *OUTPUTS, *PREDICTIONS]
