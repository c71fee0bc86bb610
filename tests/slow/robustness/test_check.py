"""The robustness campaign: its checker catches what it is there for, and a few of its cases are tried."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.slow import tables
from tests.slow.robustness import check, inputs
from tests.slow.robustness.case import Case, Interruption, write
from tests.slow.robustness.cases import CASES, command_of, id_of

LINE = "longshort: Cannot read a.txt: line 1 is empty. Remove it."


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a Python program as if it were longshort and gives the faults that are found."""

    def judge(program: str, **more: Any) -> list[str]:
        monkeypatch.setattr(check, "argv", lambda case: [sys.executable, "-c", program])
        case = Case("files", "a case", "eval", **{"facts": ("a.txt", "line 1")} | more)
        place = tmp_path / f"place{len(list(tmp_path.iterdir()))}"
        return list(check.try_case(case, tmp_path / "inputs", place).faults)

    return judge


def fails(line: str = LINE, code: int = 1, before: str = "") -> str:
    return f"import sys, pathlib, json\n{before}\nprint({line!r}, file=sys.stderr)\nsys.exit({code})"


def test_a_failure_that_is_told_well_has_no_fault(judge: Any) -> None:
    assert judge(fails()) == []
    box = "╭─ Error ───╮\n│ A.txt is empty in line │\n│ 1 │\n╰───╯"
    assert judge(fails("Usage: x\n" + box, 2), code=2) == []
    assert judge(fails("a warning of another library\n" + LINE)) == []


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        ("raise ValueError", "a traceback"),
        (fails(code=0), "exit code 0, not 1"),
        (fails(code=2), "exit code 2, not 1"),
        (fails(""), "no line that tells the error"),
        (fails("longshort: Cannot read data.txt: line 1 is empty. Remove it."), "not named: a.txt"),
        (fails("longshort: Cannot read a.txt: line 12 is empty. Remove it."), "not named: line 1"),
        (fails("longshort: a.txt is empty in line 1."), "no remedy"),
        (fails(LINE + "\n" + LINE), "2 error lines, not 1"),
        (fails(LINE + "!" * 1000), f"a line of {len(LINE) - len('longshort: ') + 1000} characters"),
    ],
)
def test_what_is_told_badly_is_a_fault(judge: Any, program: str, fault: str) -> None:
    assert fault in judge(program)


def test_what_is_lost_changed_or_left_is_a_fault(judge: Any) -> None:
    steps = (write("mine.txt", "mine"),)
    assert judge(fails(), steps=steps) == []
    assert judge(fails(before="pathlib.Path('mine.txt').unlink()"), steps=steps) == ["lost: mine.txt"]
    assert judge(fails(before="pathlib.Path('mine.txt').write_text('')"), steps=steps) == ["changed: mine.txt"]
    assert judge(fails(before="pathlib.Path('a.txt').touch()")) == ["left behind: a.txt"]
    assert judge(fails(before="pathlib.Path('a.txt').touch()"), leaves=("a.*",)) == []
    assert judge(fails(before="pathlib.Path('.1.tmp').touch()"), leaves=("*",)) == ["left behind: .1.tmp"]


@pytest.mark.parametrize(
    ("name", "good", "cut"),
    [("a.json", '{"a": 1}', '{"a":'), ("a.csv", "a", ""), ("a.safetensors", "", "x"), ("a.parquet", "", "PAR1")],
)
def test_what_is_half_written_is_a_fault(judge: Any, name: str, good: str, cut: str) -> None:
    make = "folder = pathlib.Path('out'); folder.mkdir()\nfile = folder / {!r}; file.write_text({!r})"
    assert judge(fails(before=make.format(name, cut)), leaves=("out/*",)) == [f"half written: out/{name}"]
    if good:
        assert judge(fails(before=make.format(name, good)), leaves=("out/*",)) == []


RESUMES = """
import pathlib, sys, time
out = pathlib.Path("out")
if out.exists():
    {again}
try:
    out.mkdir(); pathlib.Path("first").write_text({first!r})
    pathlib.Path("first").rename(out / "first.json")  # whole when it is seen: the signal comes at once
    time.sleep(60)
except KeyboardInterrupt:
    print("longshort: interrupted", file=sys.stderr); sys.exit(130)
"""


@pytest.mark.parametrize(
    ("signal", "again", "first", "faults"),
    [
        (2, "(out / 'whole.json').write_text('1'); sys.exit()", "1", []),
        (9, "(out / 'whole.json').write_text('1'); sys.exit()", "1", []),
        (9, "sys.exit()", "1", ["the rerun leaves no out/whole.json"]),
        (9, "(out / 'whole.json').write_text('1'); sys.exit(1)", "1", ["the rerun ends with 1: "]),
        (9, "(out / 'whole.json').write_text('{'); sys.exit()", "1", ["half written after the rerun: out/whole.json"]),
        (2, "(out / 'whole.json').write_text('1'); (out / '.a.tmp').touch(); sys.exit()", "1",
         ["left behind after the rerun: out/.a.tmp"]),
    ],
)  # fmt: skip
def test_interruptions(judge: Any, signal: int, again: str, first: str, faults: list[str]) -> None:
    interruption = Interruption(signal, "out/first.json", ("out/whole.json",))
    assert judge(RESUMES.format(again=again, first=first), interruption=interruption) == faults


def test_a_run_that_ends_before_its_signal_or_half_writes_is_a_fault(judge: Any) -> None:
    interruption = Interruption(9, "out/first.json", ())
    assert "it ended before the signal" in judge("pass", interruption=interruption)
    program = RESUMES.format(again="sys.exit()", first="{")
    assert judge(program, interruption=interruption)[0] == "half written: out/first.json"


FEW = [
    "manifests: lenghts: [16]",
    "manifests: empty",
    "results: status: a plan of numbers",
    "results: correlate: cut off, strict",
    "predictions: cut off",
    "options: --num-docs 0",
    "options: --alpha nan",
    "options: tasks --all",
]


def test_a_few_cases(tmp_path: Path) -> None:
    """Those that need neither torch nor a checkpoint's weights."""
    folder = tmp_path / "inputs"
    (folder / "model").mkdir(parents=True)
    (folder / "text.jsonl").write_text('{"text": "a"}\n')
    inputs.save_predictions(folder)
    cases = {f"{case.kind}: {case.name}": case for case in CASES}
    for number, name in enumerate(FEW):
        verdict = check.try_case(cases[name], folder, tmp_path / str(number))
        assert verdict.faults == [], name
        assert verdict.line


def row(case: Case, faults: str = "", commit: str = "abc") -> dict[str, Any]:
    about = {"command": command_of(case), "kind": case.kind, "case": case.name}
    return about | {"code": 1, "line": "a | b\nc", "seconds": 0.5, "faults": faults, "commit": commit}


def test_the_table_has_a_row_per_case(tmp_path: Path) -> None:
    rows = [row(case) for case in CASES]
    rows[0]["faults"] = "a traceback"
    tables.write_robustness(rows, tmp_path)
    text = (tmp_path / "campaign.md").read_text("utf-8")
    assert f"{len(CASES)} commands with bad input, 1 of them with faults: {len(CASES)} at commit abc." in text
    assert sum(line.endswith((" |  |", "a traceback |")) for line in text.splitlines()) == len(CASES)


def test_rows_of_a_part_replace_their_own(tmp_path: Path) -> None:
    first = [row(CASES[0], "a traceback"), *map(row, CASES[1:])]
    tables.write_robustness([one | {"commit": "123e45"} for one in first], tmp_path)  # not a number
    tables.write_robustness([row(CASES[0], commit="def")], tmp_path)
    again = pd.read_csv(tmp_path / "campaign.csv", keep_default_na=False, dtype=str)
    assert (again["faults"] == "").all()
    assert again["commit"].value_counts().to_dict() == {"123e45": len(CASES) - 1, "def": 1}


def test_cases_have_names_of_their_own_and_cover_every_command() -> None:
    names = [id_of(case) for case in CASES]
    assert len(set(names)) == len(names)
    assert json.dumps(names)
    assert {case.words[0] for case in CASES if case.program == "longshort"} > {
        "tasks", "eval", "score-longbench", "train", "export-clex", "import-clex", "sweep", "status", "correlate",
        "synthetic", "demo",
    }  # fmt: skip
