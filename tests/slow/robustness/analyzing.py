"""`longshort correlate` and `longshort score-longbench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.slow.robustness.case import (
    DENIED,
    IS_FOLDER,
    NO_SPACE,
    READ_ONLY,
    Case,
    Facts,
    Step,
    cut,
    disk,
    make_folder,
    mode,
    remove,
    write,
)
from tests.slow.robustness.inputs import SAMPLES

HERE = "correlate results -o out"
NAME = "results_2025-01-01T00-00-00.000000.json"
FIRST = f"results/0-0-0/{NAME}"
SCORE = "score-longbench predictions -o out"
LEFT = ("out/*",)
QASPER = "predictions/qasper.jsonl"


def _correlate(kind: str, name: str, options: str, facts: Facts, *steps: Step, **more: Any) -> Case:
    return Case(kind, f"correlate: {name}", f"{HERE} {options}", facts, inputs=("results",), steps=steps, **more)


def _option(options: str, facts: Facts, **more: Any) -> Case:
    return Case("options", f"correlate {options}", f"{HERE} {options}", facts, code=2, inputs=("results",), **more)


def _where(condition: str, *facts: str) -> Case:
    command = ("correlate", "results", "-o", "out", "--where", condition)
    return Case("options", f"correlate --where {condition}", command, ("where", *(facts or (condition,))), code=2,
                inputs=("results",))  # fmt: skip


def _alone(name: str, content: str | bytes, facts: Facts, options: str = "", **more: Any) -> Case:
    """The only results file there is."""
    steps = (write(f"alone/{NAME}", content),)
    return Case("results", f"correlate: {name}", f"correlate alone -o out {options}", facts, steps=steps, **more)


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


def _old_format(data: dict[str, Any]) -> None:
    del data["configs"]
    for task, metrics in data["results"].items():
        data["results"][task] = {name.partition(",")[0]: value for name, value in metrics.items()}


def _malformed_lengths(data: dict[str, Any]) -> None:
    names = ("4096k", "-4096", "04096", "nan", "@", "acc@", "@4096", "acc@-4096")
    data["results"]["niah_single_1"].update({f"{name},none": 0.5 for name in names})


def _two_values(data: dict[str, Any]) -> None:
    data["results"]["niah_single_1"]["score@4096,none"] = 0.5


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


def _retrieval(*corpora: str) -> Step:
    """Retrieval for every results file, on these corpora in turn."""

    def step(folder: Path) -> None:
        for index, file in enumerate(sorted((folder / "results").rglob("results_*.json"))):
            data = json.loads(file.read_text("utf-8"))
            about = data["configs"]["longshort_perplexity"]["metadata"]
            corpus = {"corpus": corpora[index % len(corpora)]}
            data["configs"]["longshort_retrieval"] = {"metadata": about | corpus}
            data["results"]["longshort_retrieval"] = {"recall@256,none": 0.1 * index}
            file.write_text(json.dumps(data), "utf-8")

    return step


def _score(name: str, facts: Facts, *steps: Step, command: str = SCORE, **more: Any) -> Case:
    inputs = more.pop("inputs", ("predictions",))
    return Case("predictions", name, command, facts, inputs=inputs, steps=steps, lines=3, leaves=LEFT, **more)


def _row(name: str, *facts: str, **fields: Any) -> Case:
    """One row of two that is wrong: it is named and skipped, the rest is scored."""
    good = {"pred": "a", "answers": ["a"], "all_classes": None, "length": 1200}
    lines = [json.dumps(row) for row in (good, good | fields)]
    return _score(name, (QASPER, "line 2", *facts), write(QASPER, "\n".join(lines)))


OPTIONS = [
    _option("--predictor scee", "predictor 'scee' sce"),
    _option("--predictor jeffreys_floor", "predictor 'jeffreys_floor' jeffreys"),
    _option("--outcome longbench", "outcome 'longbench' longshort_longbench_e:score"),
    _option("--outcome ruler@8192", "outcome 'ruler@8192'"),
    _option("--outcome effective_length:ruler", "outcome 'effective_length:ruler'"),
    _option("--effective-threshold 0", "effective_threshold 0.0"),
    _option("--effective-threshold nan", "effective_threshold nan"),
    _option("--effective-threshold many", "--effective-threshold"),
    _option("--control nothing", "control 'nothing' params"),
    _option("--group-by nothing", "'nothing' family"),
    _option("--interval jackknife", "--interval"),
    _option("--adjust none", "--adjust 'none' 'holm'"),
    _option("--corpus nothing", "'nothing' builtin"),
    _where("params <"),
    _where("__import__('os').system('touch broken-in')"),
    _where("parms < 3", "'parms'", "params"),
    _where("family < 3"),
    _where("params"),
    _where("params < 0", "params < 0", "8"),
    Case("options", "correlate without a folder", "correlate -o out", "DIR", code=2),
]

DAMAGED = (f"alone/{NAME}", "longshort eval")
MEASURED = ("longshort_perplexity", "ppl@64", "longshort eval")
RESULTS = [
    Case("results", "correlate: missing", "correlate nowhere", "nowhere"),
    Case("results", "correlate: empty folder", "correlate a", ("a", "longshort eval"), steps=(make_folder("a"),)),
    _alone("empty file", "", DAMAGED),
    _alone("binary", bytes(range(256)), DAMAGED),
    _alone("cut off", '{"results": {"longshort_perplexity": {"ppl@64,none": 3', DAMAGED),
    _alone("cut off, strict", '{"results": {', f"alone/{NAME} JSON", "--strict"),
    _alone("foreign JSON", '{"accuracy": 0.9}', DAMAGED),
    _alone("foreign JSON, strict", '{"accuracy": 0.9}', f"alone/{NAME} lm-eval", "--strict"),
    _alone("other tasks alone", '{"results": {"hellaswag": {"acc,none": 0.5}}}', DAMAGED),
    _alone("deep nesting", "[" * 100_000, DAMAGED),
    _alone("values that are lists", '{"results": {"longshort_perplexity": {"ppl@64,none": [1]}}, "model_name": "m"}',
           (*MEASURED, "[1]")),
    _alone("no model", '{"results": {"longshort_perplexity": {"ppl@64,none": 1}}}', (*DAMAGED, "model_args")),
    _alone("results that are a list", '{"results": [1, 2]}', DAMAGED),
    _correlate("results", "no number at all", "", (*MEASURED, "nan"), _set_values(float("nan"))),
    _correlate("results", "infinite values", "", (*MEASURED, "inf"), _set_values(float("inf"))),
    _correlate("results", "text for values", "", (*MEASURED, "high"), _set_values("high")),
    _correlate("results", "two corpora", "", "builtin pg19 --corpus", _two_corpora),
    _correlate("results", "retrieval on a corpus of its own", "", "", _retrieval("novels"), code=0, leaves=LEFT),
    _correlate("results", "retrieval on two corpora", "", "longshort_retrieval novels plays --corpus",
               _retrieval("novels", "plays")),
    _correlate("results", "retrieval on two corpora, another chosen", "--corpus builtin",
               "longshort_retrieval novels plays", _retrieval("novels", "plays")),
    _correlate("results", "retrieval that no checkpoint passes", "", "",
               _retrieval("novels"), _edit(lambda data: data["results"]["longshort_retrieval"].update(
                   {"recall@256,none": 0.0})), code=0, leaves=LEFT),
    _correlate("results", "all locked", "", (FIRST, DENIED, "longshort eval"),
               *(mode(f"results/{f}-{m}-0/{NAME}", 0) for f in range(4) for m in range(2)), locked=True),
    _correlate("results", "one of eight is cut off", "", "", cut(FIRST, 99), code=0, leaves=LEFT),
    _correlate("results", "one of eight is cut off, strict", "--strict", f"{FIRST} JSON", cut(FIRST, 99)),
    _correlate("results", "one checkpoint alone", "", "", _only(1), code=0, leaves=LEFT),
    _correlate("results", "numbers given as text", "", (*MEASURED, "'7.5'", "text"), _set_values("7.5")),
    _correlate("results", "of lm-eval 0.3", "", (FIRST, "0.3"), _edit(_old_format)),
    _correlate("results", "other JSON next to them", "", "", write("results/config.json", "{}"), code=0, leaves=LEFT),
    _correlate("results", "malformed lengths of another task", "--outcome niah_single_1@4096", "",
               _edit(_malformed_lengths), code=0, leaves=LEFT),
    _correlate("results", "two values at a length", "--outcome niah_single_1@4096",
               ("outcome", "'niah_single_1@4096'"), _edit(_two_values), code=2),
    _correlate("results", "of lm-eval 0.5", "", "",
               _edit(lambda data: data.update(lm_eval_version="0.5.0")), code=0, leaves=LEFT),
    _correlate("results", "of another version", "", "",
               _edit(lambda data: [data.pop(name) for name in ("versions", "n-samples", "lm_eval_version", "date")]),
               code=0, leaves=LEFT),
]  # fmt: skip

OUTPUTS = [
    _correlate("output", "a file", "", "out/correlations.csv", write("out", "mine")),
    _correlate("output", "locked", "", ("out/correlations.csv", DENIED), make_folder("out"), mode("out", 0o500),
               locked=True),
    _correlate("output", "read-only disk", "", ("out/correlations.csv", READ_ONLY), disk("out", "ro")),
    _correlate("output", "full disk", "", ("out/correlations.csv", NO_SPACE), disk("out", "size=64k", full=True)),
    _correlate("output", "disk too small for the figures", "", ("out/figures", NO_SPACE), disk("out", "size=300k"),
               leaves=LEFT),
    _correlate("terminal", "20 columns", "", "", code=0, leaves=LEFT, columns=20),
    _correlate("terminal", "a pipe that is closed", "", "", leaves=LEFT, pipe=True),
]  # fmt: skip


def _predictions(rows: int, runs: int = 1, name: str = "qasper", **fields: Any) -> Step:
    """The first rows of qasper, of which one in three has another prediction in every run."""
    lines = [
        {"pred": f"run {run}" if index % 3 == 0 else "a", "answers": [f"a{index}"], "all_classes": None}
        | {"length": 3000 + 40 * index}
        | fields
        for run in range(runs)
        for index in range(rows)
    ]
    return write(f"predictions/{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


PREDICTIONS = [
    _score("missing", "nowhere DATASET.jsonl", command="score-longbench nowhere"),
    _score("a file", "a DATASET.jsonl", write("a", "mine"), command="score-longbench a"),
    _score("empty folder", "a DATASET.jsonl qasper", make_folder("a"), command="score-longbench a"),
    _score("unknown dataset alone", "a DATASET.jsonl qasper", write("a/mine.jsonl", "{}"),
           command="score-longbench a"),
    _score("in a subfolder", ". DATASET.jsonl predictions", command="score-longbench ."),
    _score("an empty file", QASPER, write(QASPER)),
    _score("binary", (QASPER, "line 1", "UTF-8"), write(QASPER, bytes(range(128, 256)) * 9)),
    _score("cut off", (QASPER, "line 3", "JSON"), cut(QASPER, -20)),
    _score("deep nesting", (QASPER, "line 1", "JSON"), write(QASPER, "[" * 100_000)),
    _score("number of 5000 digits", (QASPER, "line 1", "JSON"), write(QASPER, '{"length": 1' + "0" * 5000 + "}")),
    _score("a list per line", (QASPER, "line 1"), write(QASPER, "[1]\n")),
    _score("locked", (QASPER, DENIED), mode(QASPER, 0), locked=True),
    _score("a folder in place of a file", (QASPER, IS_FOLDER), remove(QASPER), make_folder(QASPER)),
    _row("no prediction", pred=None),
    _row("answers as text", "`answers`", answers="a"),
    _row("no answers", "`answers`", answers=[]),
    _row("length as text", "`length`", length="long"),
    _row("length that is no number", "`length`", length=float("nan")),
    _row("endless length", "`length`", length=float("inf")),
    _score("samples that are cut off", (f"samples/{SAMPLES}", "line 3", "JSON"), cut(f"samples/{SAMPLES}", -20),
           command="score-longbench samples -o out", inputs=("samples",)),
    _score("samples without a doc", (f"samples/{SAMPLES}", "line 1", "`doc`", "`filtered_resps`"),
           write(f"samples/{SAMPLES}", '{"doc": 1}\n'), command="score-longbench samples -o out",
           inputs=("samples",)),
    _score("two runs in a file", (QASPER, "80", "40"), _predictions(40, runs=2)),
    _score("more rows than the data", (QASPER, "225 rows", "224"), _predictions(225)),
    _score("less rows than the data", ("qasper", "20 of 224"), _predictions(20)),
    _score("two files of a dataset", (QASPER, "predictions/qasper_e.jsonl"), _predictions(20, name="qasper_e")),
    _score("of LongBench", "predictions LongBench narrativeqa --e", _predictions(200, name="narrativeqa")),
    _score("of LongBench by the number of rows", "predictions LongBench qasper 200 224", _predictions(200)),
    _score("without lengths", "predictions LongBench `length` qasper", _predictions(200, length=None),
           remove("predictions/hotpotqa.jsonl")),
    _score("unknown datasets", "mine.jsonl notes.jsonl", _predictions(1, name="mine"), _predictions(1, name="notes")),
    _score("convert onto itself", "predictions", command=f"{SCORE} --convert predictions"),
    _score("convert to a file", "a/qasper.jsonl", write("a", "mine"), command=f"{SCORE} --convert a"),
    _score("output is a file", "out/result.json", write("out", "mine")),
    _score("output is locked", ("out/result.json", DENIED), make_folder("out"), mode("out", 0o500), locked=True),
    _score("full disk", ("out/result.json", NO_SPACE), disk("out", "size=64k", full=True)),
    _score("score-longbench, 20 columns", "predictions multifieldqa_en", columns=20),
    _score("into a pipe that is closed", "", pipe=True),
    Case("options", "score-longbench --code-ratio jaro", "score-longbench predictions --code-ratio jaro",
         "--code-ratio jaro difflib", code=2, inputs=("predictions",)),
    Case("options", "score-longbench without a folder", "score-longbench -o out", "FOLDER", code=2),
]  # fmt: skip

TOKENS = "tokens.parquet"


def _show(kind: str, name: str, options: str, facts: Facts, *steps: Step, **more: Any) -> Case:
    return Case(kind, f"show-tokens {name}", f"show-tokens {TOKENS} {options}", facts, inputs=(TOKENS,), steps=steps,
                **more)  # fmt: skip


SHOWN = [
    _show("options", "of an unknown value", "--value loss", "'loss' nll gain entropy jeffreys", code=2),
    _show("options", "of an unknown length", "--length 64", f"{TOKENS} 64 16 32", code=2),
    _show("options", "of a length in words", "--length long", "--length", code=2),
    _show("options", "of an unknown document", "--document third", f"{TOKENS} 'third' 0 1", code=2),
    _show("options", "of a document beyond the last", "--document 2", f"{TOKENS} '2' 0 1", code=2),
    _show("options", "onto itself", f"-o {TOKENS}", TOKENS, code=2),
    Case("options", "show-tokens without a file", "show-tokens -o page.html", "FILE", code=2),
    Case("files", "show-tokens of a missing file", "show-tokens nowhere.parquet", "nowhere.parquet"),
    _show("files", "of an empty file", "", TOKENS, write(TOKENS)),
    _show("files", "of a file that is cut off", "", TOKENS, cut(TOKENS, -100)),
    _show("files", "of a file that is cut off early", "", TOKENS, cut(TOKENS, 1000)),
    _show("files", "of text", "", TOKENS, write(TOKENS, "text\n" * 100)),
    _show("files", "of a folder", "", TOKENS, remove(TOKENS), make_folder(TOKENS)),
    _show("files", "of a locked file", "", (TOKENS, DENIED), mode(TOKENS, 0), locked=True),
    _show("output", "into a folder", "-o out", ("out", IS_FOLDER), make_folder("out")),
    _show("output", "below a file", "-o out/page.html", "out/page.html", write("out", "mine")),
    _show("output", "into a locked folder", "-o out/page.html", ("out/page.html", DENIED), make_folder("out"),
          mode("out", 0o500), locked=True),
    _show("output", "onto a full disk", "-o out/page.html", ("out/page.html", NO_SPACE),
          disk("out", "size=64k", full=True)),
    _show("output", "onto a read-only disk", "-o out/page.html", ("out/page.html", READ_ONLY), disk("out", "ro")),
]  # fmt: skip

CASES = [*OPTIONS, *RESULTS, *OUTPUTS, *PREDICTIONS, *SHOWN]
