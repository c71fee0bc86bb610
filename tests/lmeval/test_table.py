"""What the terminal shows of results."""

from __future__ import annotations

import io

from rich.console import Console

from longshort.lmeval.table import results_table


def shown(results: dict[str, dict[str, object]]) -> str:
    screen = io.StringIO()
    results_table({"results": results}, Console(file=screen, width=80))
    return screen.getvalue()


def test_lengths_are_columns_in_order_and_gaps_are_dashes() -> None:
    values = {f"ppl@{length},none": 10.0 + length / 1000 for length in (2048, 128, 16384)}
    values |= {
        "ppl_stderr@128,none": 1.0,
        "ppl@128_stderr,none": 0.123,
        "bpb@128,none": 2.5,
        "bpb@128_stderr,none": "N/A",
    }
    text = shown({"longshort_perplexity": {"name": "x", "alias": "x", "sample_len": 3, **values}})
    header = next(line for line in text.splitlines() if "16384" in line)
    assert header.index("128 ") < header.index("2048") < header.index("16384")
    assert "10.13 ±0.12" in text
    assert next(line for line in text.splitlines() if line.startswith("│bpb")).count("–") == 2


def test_longbench_is_one_table() -> None:
    row = {"score,none": 50.0, "score_stderr,none": 5.0, "score@0-4k,none": 40.0, "score@8k+,none": 60.0}
    text = shown(
        {
            "longshort-longbench-e-qasper": {"alias": "qasper", **row},
            "longshort-longbench-e-few-shot": {"alias": "few-shot", **row},
            "longshort_longbench_e": {"alias": "longshort_longbench_e", **row, "score_datasets,none": 30.0},
        }
    )
    lines = text.splitlines()
    assert sum("value ±standard error" in line for line in lines) == 1
    header = next(line for line in lines if "0-4k" in line)
    assert header.index("all") < header.index("0-4k") < header.index("8k+")
    for name, value in (
        ("qasper", "50 ±5"),
        ("few-shot", "50 ±5"),
        ("mean of categories", "50 ±5"),
        ("mean of datasets", "30"),
    ):
        assert any(name in line and value in line for line in lines), name
