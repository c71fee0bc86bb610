"""Scores of other tasks by context length: columns, short names, effective lengths."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from longshort.analysis import analyze, wide_table
from longshort.analysis.labels import axis_label
from longshort.analysis.other_tasks import effective_length, effective_length_columns, with_short_names
from longshort.cli import app
from longshort.results import read
from tests.analysis.results_folder import measured, results_of, save
from tests.errors import assert_one, contains, user_error

# Scores at 4096, 8192, 16384 and 32768 tokens, and what 85 % of the first leaves of them.
CURVES = [
    ((0.9, 0.9, 0.8, 0.7), 16384),  # 0.765 is needed
    ((1.0, 0.85, 0.84, 0.1), 8192),
    ((0.7, 0.595, 0.5, 0.4), 8192),  # 0.595 exactly
    ((0.5, 0.1, 0.45, 0.2), 16384),  # the largest, whatever lies below it
    ((0.4, 0.1, 0.0, 0.0), 4096),
    ((0.2, 0.3, 0.4, 0.5), 32768),
    ((0.0, 0.0, 0.0, 0.0), 0),
    ((0.0, 0.5, 0.5, 0.5), 0),
]
LENGTHS = (4096, 8192, 16384, 32768)
# The largest length of each with at least this score.
ABOVE = {
    0.856: [8192, 4096, 0, 0, 0, 0, 0, 0],
    0.3: [32768, 16384, 32768, 16384, 4096, 32768, 0, 32768],
}


@pytest.mark.parametrize(("scores", "length"), CURVES)
def test_the_largest_length_with_85_percent_of_the_score_at_the_shortest(
    scores: tuple[float, ...], length: int
) -> None:
    curve = dict(zip(LENGTHS, scores, strict=True))
    assert effective_length(curve) == length
    assert effective_length(dict(reversed(curve.items()))) == length


@pytest.mark.parametrize(("threshold", "expected"), ABOVE.items())
def test_a_fixed_score(threshold: float, expected: list[int]) -> None:
    found = [effective_length(dict(zip(LENGTHS, scores, strict=True)), threshold) for scores, _ in CURVES]
    assert found == expected


def test_too_few_scores() -> None:
    assert math.isnan(effective_length({}))
    assert math.isnan(effective_length({4096: 0.5}))  # any single score is 85 % of itself
    assert math.isnan(effective_length({}, 0.5))
    assert effective_length({4096: 0.5}, 0.5) == 4096
    assert effective_length({4096: -0.5, 8192: -1.0}) == 0


# ---- of results


def ruler(scores: tuple[float, ...]) -> dict[str, dict[str, float]]:
    by_length = {str(length): score for length, score in zip(LENGTHS, scores, strict=True)}
    return {
        "niah_single_1": by_length,
        "needles": {f"{metric}@{length}": by_length[str(length)] for metric in ("acc", "f1") for length in LENGTHS},
        "longshort_retrieval": {f"recall@{length}": by_length[str(length)] for length in LENGTHS}
        | {f"recall_nll@{length}": 5.0 for length in LENGTHS},
        "slow": {"seconds@4096": 1.0, "seconds@8192": 2.0},
        "longshort_longbench_e": {"score": 40.0, "score@0-4k": 42.0, "score@4-8k": 40.0, "score@8k+": 30.0},
        "babilong_qa1": {"acc": by_length["8192"]},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight checkpoints of four families, with the scores of `CURVES` in several tasks."""
    folder = tmp_path_factory.mktemp("results")
    generator = np.random.default_rng(0)
    for index, (scores, _) in enumerate(CURVES):
        metrics = measured(generator, 0.1 * index) | ruler(scores)
        data = results_of(f"org/model-{index}", metrics, family=f"family{index // 2}", params=1000)
        data["configs"]["longshort_retrieval"]["metadata"] |= {"corpus": "builtin", "train_length": 64}
        data["configs"]["babilong_qa1"]["metadata"] |= {"max_seq_lengths": "8k"}
        data["results"]["niah_single_1"] |= {f"{length}_stderr,none": "N/A" for length in LENGTHS}  # as RULER's
        data["higher_is_better"] = {"slow": {"seconds@4096": False, "seconds@8192": False}}
        save(folder, str(index), data)
    return folder


@pytest.fixture(scope="module")
def wide(folder: Path) -> pd.DataFrame:
    reading = read(folder, every_task=True)
    return wide_table(reading.table, lower_is_better=reading.lower_is_better)


def test_a_column_for_each_metric_and_length(wide: pd.DataFrame) -> None:
    for index, length in enumerate(LENGTHS):
        expected = [scores[index] for scores, _ in CURVES]
        assert wide[f"niah_single_1:score@{length}"].tolist() == expected
        assert wide[f"needles:f1@{length}"].tolist() == expected
    assert wide["babilong_qa1:acc@8192"].tolist() == [scores[1] for scores, _ in CURVES]
    assert wide["longshort_longbench_e:score@8k+"].tolist() == [30.0] * 8  # its name is that of its bucket
    assert set(wide["needles:f1@4096_stderr"]) == {0.01}
    assert "niah_single_1:score@4096_stderr" not in wide


def test_a_column_for_each_effective_length(wide: pd.DataFrame) -> None:
    expected = [length for _, length in CURVES]
    columns = [name for name in wide if name.startswith("effective_length:")]
    assert sorted(columns) == [
        "effective_length:longshort_retrieval",
        "effective_length:needles:acc",
        "effective_length:needles:f1",
        "effective_length:niah_single_1",
    ]
    for name in columns:
        assert wide[name].tolist() == expected, name


def test_metrics_of_which_less_is_better_have_none(folder: Path) -> None:
    reading = read(folder, every_task=True)
    assert reading.lower_is_better == {("slow", "seconds")}
    columns = effective_length_columns(reading.table, reading.lower_is_better)
    assert ("slow", "seconds") not in columns
    assert ("slow", "seconds") in effective_length_columns(reading.table)


def test_outcomes_by_their_short_name(folder: Path, wide: pd.DataFrame) -> None:
    names = ["niah_single_1@8192", "niah_single_1:4096", "babilong_qa1@8192", "babilong_qa1:acc", "needles:acc@4096"]
    analysis = analyze(folder, predictors=["jeffreys"], outcomes=names)
    assert analysis.correlations["outcome"].tolist() == names
    assert set(analysis.wide["babilong_qa1@8192_stderr"]) == {0.01}
    jeffreys = wide["jeffreys"].tolist()
    for name, index in zip(names, (1, 0, 1, 1, 0), strict=True):
        expected = stats.spearmanr(jeffreys, [scores[index] for scores, _ in CURVES]).statistic
        found = analysis.correlations.set_index("outcome").loc[name, "spearman"]
        assert found == pytest.approx(expected), name


def test_a_short_name_of_several_columns(folder: Path, wide: pd.DataFrame) -> None:
    with user_error("usage", "'needles@4096'", "needles:acc@4096", "needles:f1@4096", field="outcome"):
        analyze(folder, outcomes=["needles@4096"])
    with user_error("usage", "'needles:acc'", "needles:acc@4096", "needles:acc@8192", field="predictor"):
        with_short_names(wide, ["needles:acc"], "predictor")
    with user_error("usage", "'niah_single_1@2048'", "niah_single_1:score@4096", field="outcome"):
        analyze(folder, outcomes=["niah_single_1@2048"])


def test_an_effective_length_as_outcome_by_either_rule(folder: Path, tmp_path: Path, wide: pd.DataFrame) -> None:
    name = "effective_length:niah_single_1"
    for threshold, lengths in ((None, [length for _, length in CURVES]), (0.3, ABOVE[0.3])):
        analysis = analyze(folder, predictors=["jeffreys"], outcomes=[name], effective_threshold=threshold)
        assert analysis.wide[name].tolist() == lengths
        assert analysis.settings["effective_threshold"] == threshold
        expected = stats.spearmanr(wide["jeffreys"].tolist(), lengths).statistic
        assert analysis.correlations["spearman"].tolist() == [pytest.approx(expected)]
    options = ["--outcome", name, "--effective-threshold", "0.3", "-o", str(tmp_path)]
    result = CliRunner().invoke(app, ["correlate", str(folder), *options])
    assert result.exit_code == 0, result.output
    assert pd.read_csv(tmp_path / "checkpoints.csv")[name].tolist() == lengths


@pytest.mark.parametrize("threshold", [0.0, -1.0, math.nan, math.inf])
def test_a_threshold_that_is_no_score(folder: Path, threshold: float) -> None:
    with user_error("usage", str(threshold), field="effective_threshold"):
        analyze(folder, effective_threshold=threshold)


def test_a_threshold_in_percent_is_noted(folder: Path) -> None:
    name = "effective_length:niah_single_1"
    notes = analyze(folder, outcomes=[name], effective_threshold=85.6).notes
    assert_one(notes, name, 85.6, 1)  # the largest score is 1


def test_checkpoints_of_other_lengths_are_noted(folder: Path, tmp_path: Path) -> None:
    name = "effective_length:niah_single_1"
    assert not any(contains(note, name) for note in analyze(folder, outcomes=[name]).notes)
    metrics = measured(np.random.default_rng(1), 0.5) | {"niah_single_1": {"8192": 0.5, "16384": 0.5}}
    extra = save(tmp_path, "extra", results_of("org/extra", metrics, family="x", params=1000))
    analysis = analyze([*folder.rglob("*.json"), extra], outcomes=[name])
    assert_one(analysis.notes, name, "shortest", 4096, 8192)
    assert_one(analysis.notes, name, "largest", 16384, 32768)


def test_labels() -> None:
    assert axis_label("effective_length:ruler") == "effective length, ruler (tokens)"
    assert axis_label("ruler:score@8192") == "ruler:score at 8192 tokens"
    assert axis_label("ruler@8192") == "ruler at 8192 tokens"
    assert axis_label("babilong_qa1:acc") == "babilong_qa1:acc"
    assert axis_label("effective_length_tail") == "effective length, fixed targets (tokens)"
    assert axis_label("log_ppl@8192") == "log-perplexity at 8192 tokens (nats per token)"
