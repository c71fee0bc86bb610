import numpy as np
import pandas as pd
import pytest

from longshort.analysis import outcomes, predictors, wide_table
from longshort.analysis.labels import axis_label
from longshort.analysis.tables import PREDICTORS, of_corpus
from longshort.results import COLUMNS
from tests.errors import user_error


def tidy_of(*rows, **about):
    """Rows are (checkpoint, metric, length, value)."""
    defaults = {"revision": "main", "family": "f", "train_length": 64, "corpus": "builtin", "stderr": 0.1}
    table = pd.DataFrame(
        [
            defaults
            | {
                "checkpoint": checkpoint,
                "metric": metric,
                "length": length,
                "value": value,
                "task": "longshort_perplexity" if metric.startswith("ppl") else "longshort_misalignment",
            }
            | about
            for checkpoint, metric, length, value in rows
        ]
    )
    return table.reindex(columns=list(COLUMNS)).astype(COLUMNS)


def curve(checkpoint, metric, log_ppl):
    return [(checkpoint, metric, length, np.exp(value)) for length, value in log_ppl.items()]


def test_one_row_per_checkpoint(tidy):
    wide = wide_table(tidy)
    assert len(wide) == 9
    # Neither numerical floors nor LongPPL were measured.
    missing = ("_excess", "longppl", "accuracy")
    assert predictors(wide) == [name for name in PREDICTORS if not any(part in name for part in missing)]
    assert outcomes(wide) == [
        "log_ppl@8192",
        "log_ppl_increase@8192",
        "log_ppl@16384",
        "log_ppl_increase@16384",
        "effective_length",
        "log_ppl_tail@8192",
        "log_ppl_tail_increase@8192",
        "log_ppl_tail@16384",
        "log_ppl_tail_increase@16384",
        "effective_length_tail",
    ]
    row = wide.set_index("checkpoint").loc["checkpoints/yarn-alpha0.1"]
    ours = tidy[tidy["checkpoint"] == "checkpoints/yarn-alpha0.1"].set_index(["metric", "length"])["value"]
    assert row["sce"] == ours["sce", 4096]
    assert row["js_beyond"] == ours["js", 8192]
    assert row["nll"] == pytest.approx(np.log(ours["ppl", 4096]))
    assert row["log_ppl_tail@16384"] == pytest.approx(np.log(ours["ppl_tail", 16384]))
    assert row["log_ppl_increase@8192"] == pytest.approx(np.log(ours["ppl", 8192] / ours["ppl", 4096]))
    assert row["nll_stderr"] == pytest.approx(0.02)  # relative error of the perplexity
    assert row["sce_stderr"] == 0.02
    assert row["log_params"] == pytest.approx(np.log(1e6))


def other_task(checkpoint, task, metric, value, **about):
    return tidy_of((checkpoint, metric, None, value), task=task, corpus=None, **about)


def test_any_task_gives_columns():
    ours = tidy_of(*curve("a", "ppl", {64: 3.0, 128: 3.5}), *curve("b", "ppl", {64: 3.0, 128: 3.5}))
    longbench = "longshort_longbench_e"
    others = [
        other_task("a", longbench, "score@8k+", 20.0),
        other_task("a", longbench, "score", 25.0),
        other_task("a", "babilong_qa1", "acc", 0.5, stderr=0.05, family="a", params=7),  # was not told the family
        other_task("c", "babilong_qa1", "acc", 0.7),  # nothing else is known of this checkpoint
        tidy_of(("b", "score", 128, 3.0), task="longshort_other"),
        other_task("b", "babilong_qa1", "acc", 0.25, revision="step1"),  # nor of this revision
    ]
    wide = wide_table(pd.concat([*others, ours]))
    assert wide["checkpoint"].tolist() == ["a", "b"]
    assert wide["family"].tolist() == ["f", "f"]
    assert outcomes(wide)[:2] == [f"{longbench}:score", f"{longbench}:score@8k+"]
    row = wide.set_index("checkpoint").loc["a"]
    assert (row[f"{longbench}:score"], row[f"{longbench}:score@8k+"], row["babilong_qa1:acc"]) == (25.0, 20.0, 0.5)
    assert row["babilong_qa1:acc_stderr"] == 0.05
    assert wide["babilong_qa1:acc"].isna().tolist() == [False, True]
    assert wide["longshort_other:score@128"].tolist()[1] == 3.0
    assert predictors(wide) == ["nll"]


@pytest.mark.parametrize("name", ["model", "model+lora"], ids=["with an adapter", "of that name"])
def test_a_family_that_was_given_counts_before_the_name_of_the_checkpoint(name):
    told = tidy_of(*curve("org/model+lora", "ppl", {64: 3.0, 128: 3.5}), family="llama", params=5)
    untold = tidy_of(("org/model+lora", "sce", 64, 5.0), family=name)
    wide = wide_table(pd.concat([untold, told]))
    assert wide[["family", "params", "sce"]].to_dict("records") == [{"family": "llama", "params": 5, "sce": 5.0}]
    assert wide["log_params"].tolist() == [pytest.approx(np.log(5))]
    assert wide_table(untold)["family"].tolist() == [name]
    assert wide_table(untold)["log_params"].isna().all()


@pytest.mark.parametrize(
    ("log_ppl", "expected"),
    [
        ({32: 3.2, 64: 3.0, 128: 3.04, 256: 3.2}, 128),
        ({32: 3.0, 64: 3.01, 128: 2.99, 256: 3.03}, 256),
        ({32: 3.0, 64: 3.2, 128: 3.04}, 128),  # the largest, though a shorter one is worse
        ({32: 3.0, 64: 3.2, 128: 3.3}, 32),
        ({64: 3.0, 128: 3.0499, 256: 3.0501}, 128),
        ({64: 5.0}, 64),
    ],
)
def test_effective_length(log_ppl, expected):
    wide = wide_table(tidy_of(*curve("a", "ppl", log_ppl), *curve("a", "ppl_tail", {64: 3.0, 128: 3.1})))
    assert wide.loc[0, "effective_length"] == expected
    assert wide.loc[0, "effective_length_tail"] == 64


def test_what_was_not_measured_is_missing():
    a = [*curve("a", "ppl", {64: 3.0, 128: 3.5, 256: 4.0}), ("a", "sce", 64, 5.0), ("a", "sce", 128, 6.0)]
    b = [*curve("b", "ppl", {128: 3.5}), ("b", "sce", 64, 5.0), ("b", "sce", 256, 7.0)]
    wide = wide_table(tidy_of(*a, *b)).set_index("checkpoint")
    assert wide.loc["a", "sce_beyond"] == 6.0
    assert np.isnan(wide.loc["b", "sce_beyond"])  # not 7.0, which was measured further out
    assert np.isnan(wide.loc["b", "nll"])
    assert wide.loc["b", "log_ppl@128"] == pytest.approx(3.5)
    assert np.isnan(wide.loc["b", "log_ppl_increase@128"])
    assert np.isnan(wide.loc["b", "log_ppl@256"])
    assert predictors(wide) == ["sce", "sce_beyond", "nll"]
    assert not any("tail" in name for name in outcomes(wide))


def test_without_a_train_length_only_the_effective_length_is_known():
    rows = [*curve("a", "ppl", {64: 3.0, 128: 3.5}), ("a", "sce", 64, 5.0)]
    wide = wide_table(tidy_of(*rows, train_length=None))
    assert predictors(wide) == []
    assert outcomes(wide) == ["effective_length"]


def test_each_checkpoint_has_its_own_train_length():
    short = tidy_of(*curve("short", "ppl", {64: 3.0, 128: 3.5, 256: 4.0}))
    long = tidy_of(*curve("long", "ppl", {64: 3.1, 128: 3.0, 256: 3.4}), train_length=128)
    wide = wide_table(pd.concat([short, long])).set_index("checkpoint")
    assert wide["nll"].to_dict() == pytest.approx({"short": 3.0, "long": 3.0})
    assert wide.loc["short", "log_ppl_increase@256"] == pytest.approx(1.0)
    assert wide.loc["long", "log_ppl_increase@256"] == pytest.approx(0.4)
    assert np.isnan(wide.loc["long", "log_ppl@128"])  # not beyond its training


def test_one_checkpoint_with_two_train_lengths():
    table = pd.concat([tidy_of(("a", "sce", 64, 5.0)), tidy_of(("a", "js", 64, 0.1), train_length=128)])
    with user_error("data", "a", "train_length", 64, 128):
        wide_table(table)


def test_revisions_are_rows_of_their_own():
    table = pd.concat([tidy_of(("a", "sce", 64, 5.0), revision=name) for name in ("step1", "step2", None)])
    assert len(wide_table(table)) == 3


def test_corpora_are_not_mixed():
    table = pd.concat([tidy_of(("a", "sce", 64, value), corpus=name) for name, value in (("x", 1), ("y", 2))])
    with user_error("setting", "x", "y", field="corpus"):
        wide_table(table)
    assert wide_table(table, "y")["sce"].tolist() == [2.0]
    with user_error("usage", "'z'", "x", "y", field="corpus"):
        wide_table(table, "z")
    with user_error("data", "none", field="corpus"):
        of_corpus(table.iloc[:0])


TASKS = {"longppl": "longshort_longppl", "recall": "longshort_retrieval", "accuracy": "longshort_perplexity"}


def of_task(checkpoint, metric, length, value, **about):
    return tidy_of((checkpoint, metric, length, value), task=TASKS[metric.partition("_")[0]], **about)


def test_predictors_and_outcomes_of_longppl_retrieval_and_the_fixed_targets():
    tails = curve("a", "ppl_tail", {32: 3.5, 64: 3.1, 128: 3.3})
    parts = [tidy_of(*curve("a", "ppl", {64: 3.0, 128: 3.5}), *tails)]
    parts += [of_task("a", "longppl", length, value, stderr=0.5) for length, value in ((64, 5.0), (128, 9.0))]
    parts += [of_task("a", "longppl_self", 64, 2.0), of_task("a", "accuracy_tail", 64, 0.4)]
    for length, recall in ((64, 1.0), (128, 0.5), (256, 0.0)):
        parts += [of_task("a", "recall", length, recall), of_task("a", "recall_nll", length, 3 - recall)]
    wide = wide_table(pd.concat(parts))
    row = wide.loc[0]
    assert (row["longppl"], row["longppl_stderr"]) == pytest.approx((np.log(5), 0.1))
    assert (row["longppl_self"], row["longppl_self_stderr"]) == pytest.approx((np.log(2), 0.05))
    assert (row["accuracy_tail"], row["accuracy_tail_stderr"]) == (0.4, 0.1)
    assert row["context_gain"] == pytest.approx(0.4)  # 3.5 at 32 tokens minus 3.1 at 64
    assert "context_gain_stderr" not in wide  # both ends share their documents
    assert predictors(wide) == ["longppl", "longppl_self", "context_gain", "accuracy_tail", "nll"]
    assert (row["recall@128"], row["recall@256"], row["recall_nll@256"]) == (0.5, 0.0, 3.0)
    assert row["recall@256_stderr"] == 0.1
    assert "recall@64" not in wide  # not beyond the training context length
    assert outcomes(wide)[:4] == ["recall@128", "recall@256", "recall_nll@128", "recall_nll@256"]
    assert "log_ppl@256" not in wide


def test_the_context_gain_starts_from_one_context_for_all():
    """32 tokens, which two checkpoints have below their training context length; 16 has one, and c starts at 64."""
    parts = [
        tidy_of(*curve("a", "ppl_tail", {16: 4.0, 32: 3.5, 64: 3.0})),
        tidy_of(*curve("b", "ppl_tail", {32: 3.25, 64: 3.5})),
        tidy_of(*curve("c", "ppl_tail", {64: 3.0, 128: 2.0})),
        tidy_of(*curve("d", "ppl_tail", {8: 3.0, 32: 2.0})),  # not at its training context length
        tidy_of(*curve("e", "ppl_tail", {32: 2.0, 64: 1.0}), train_length=32),  # trained at the shortest
    ]
    gains = wide_table(pd.concat(parts)).set_index("checkpoint")["context_gain"]
    assert gains.dropna().to_dict() == pytest.approx({"a": 0.5, "b": -0.25})


def test_of_several_smallest_contexts_the_shortest():
    wide = wide_table(tidy_of(*curve("a", "ppl_tail", {16: 4.0, 32: 3.5, 64: 3.0})))
    assert wide.loc[0, "context_gain"] == pytest.approx(1.0)
    assert "context_gain" not in wide_table(tidy_of(*curve("a", "ppl_tail", {64: 3.0, 128: 3.0})))


def test_an_excess_is_the_value_minus_its_floor_where_there_is_one():
    a = [("a", "jeffreys", 64, 0.5), ("a", "jeffreys_floor", 64, 0.125), ("a", "js", 64, 0.25)]
    a += [("a", "jeffreys", 128, 0.5), ("a", "jeffreys_floor", 128, 0.75)]
    b = [("b", "jeffreys", 64, 0.5), ("b", "js", 64, 0.5)]
    wide = wide_table(tidy_of(*a, *b)).set_index("checkpoint")
    assert (wide.loc["a", "jeffreys_excess"], wide.loc["a", "jeffreys_excess_beyond"]) == (0.375, -0.25)
    assert np.isnan(wide.loc["b", "jeffreys_excess"])
    assert not {"js_excess", "js_excess_beyond", "jeffreys_excess_stderr"} & set(wide)
    assert predictors(wide) == ["jeffreys", "js", "jeffreys_beyond", "jeffreys_excess", "jeffreys_excess_beyond"]


def test_each_task_has_one_corpus():
    parts = [
        tidy_of(*curve("a", "ppl", {64: 3.0}), corpus="x"),
        of_task("a", "recall", 128, 0.5, corpus="y"),
        of_task("a", "longppl", 64, 5.0, corpus="z"),
    ]
    for corpus in (None, "x"):
        row = wide_table(pd.concat(parts), corpus).loc[0]
        assert (row["nll"], row["recall@128"]) == pytest.approx((3.0, 0.5))
        assert row["longppl"] == pytest.approx(np.log(5))
    two = pd.concat([*parts, of_task("a", "recall", 128, 0.75, corpus="x")])
    with user_error("setting", "longshort_retrieval", "x", "y", field="corpus"):
        wide_table(two)
    assert wide_table(two, "x").loc[0, "recall@128"] == 0.75
    assert "recall@128" in wide_table(two, "y")
    assert wide_table(two, "y").loc[0, "nll"] != wide_table(two, "y").loc[0, "nll"]  # not that of another corpus
    with user_error("setting", "longshort_retrieval", "x", "y", field="corpus"):
        wide_table(two, "z")


def test_every_new_column_has_a_label_with_its_unit():
    names = [*PREDICTORS, "recall@128", "recall_nll@128"]
    labels = [axis_label(name) for name in names]
    assert len(set(labels)) == len(labels)
    assert all(label.endswith(("(nats)", "token)", "(share)")) for label in labels)
    assert [name for name in names if "self-evaluated" in axis_label(name)] == ["longppl_self"]
    assert axis_label("longppl_self_beyond") == "longppl_self_beyond"  # no such column


def test_every_column_has_a_label_with_its_unit(tidy):
    wide = wide_table(tidy)
    labels = [axis_label(name) for name in predictors(wide) + outcomes(wide)]
    assert all(label.endswith(("(nats)", "(nats per token)", "(share)", "(tokens)")) for label in labels)
    assert len(set(labels)) == len(labels)
    assert axis_label("score") == "score"
    assert axis_label("longshort_longbench_e:score@8k+") == "LongBench-E score, 8k words and more (percent)"
