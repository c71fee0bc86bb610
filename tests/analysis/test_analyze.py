"""From a folder of results to numbers, against the JSON files themselves."""

import hashlib
import json
import logging
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from longshort.analysis import analyze
from tests.analysis.results_folder import measured, results_of, save, save_folder
from tests.errors import assert_one, contains, user_error


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_folder(tmp_path_factory.mktemp("results"))


def column(folder, task, metric):
    """One metric of every file, in the order of checkpoints."""
    found = {}
    for file in folder.rglob("results_*.json"):
        data = json.loads(file.read_text())
        found[data["model_name"], data["config"]["model_revision"]] = data["results"][task][f"{metric},none"]
    return np.array([found[name] for name in sorted(found)])


def row(table, **where):
    return table[np.logical_and.reduce([table[name] == value for name, value in where.items()])].iloc[0]


def test_coefficients_are_those_of_the_files(folder):
    analysis = analyze(folder)
    sce = column(folder, "longshort_misalignment", "sce@64")
    js_beyond = column(folder, "longshort_misalignment", "js@128")
    nll = np.log(column(folder, "longshort_perplexity", "ppl@64"))
    log_ppl = np.log(column(folder, "longshort_perplexity", "ppl@256"))
    score = column(folder, "longshort_longbench_e", "score@8k+")
    for predictor, x, outcome, y in (
        ("sce", sce, "log_ppl@256", log_ppl),
        ("sce", sce, "log_ppl_increase@256", log_ppl - nll),
        ("js_beyond", js_beyond, "longshort_longbench_e:score@8k+", score),
        ("nll", nll, "log_ppl@256", log_ppl),
    ):
        found = row(analysis.correlations, predictor=predictor, outcome=outcome)
        assert found["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)
        assert found["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)
        assert (found["n"], found["n_families"]) == (15, 5)
    found = row(analysis.comparisons, predictor="sce", other="nll", outcome="log_ppl@256")
    expected = [abs(stats.pearsonr(x, log_ppl).statistic) for x in (sce, nll)]
    assert (found["abs_pearson"], found["abs_pearson_other"]) == pytest.approx(tuple(expected))


def test_what_is_correlated_by_default(folder):
    analysis = analyze(folder)
    parts = ["sce", "entropy", "jeffreys", "js"]
    assert analysis.settings["predictors"] == [*parts, *(f"{name}_beyond" for name in parts), "nll"]
    assert analysis.settings["outcomes"] == [
        *("longshort_longbench_e:score", "longshort_longbench_e:score@8k+"),
        *("log_ppl@128", "log_ppl_increase@128", "log_ppl@256", "log_ppl_increase@256", "effective_length"),
    ]
    assert len(analysis.correlations) == 9 * 7
    assert analysis.settings["controls"] == ["nll", "log_params"]
    assert row(analysis.correlations, predictor="sce", outcome="log_ppl@256")["controls"] == "nll, log_params"
    pairs = list(dict.fromkeys(zip(analysis.comparisons["predictor"], analysis.comparisons["other"], strict=True)))
    assert pairs == list(combinations(analysis.settings["predictors"], 2))
    assert list(dict.fromkeys(analysis.comparisons["outcome"])) == analysis.settings["outcomes"]
    assert len(analysis.leaderboard) == 9 * 7
    assert analysis.notes == []


def test_any_task_is_an_outcome_by_name(folder):
    names = ["babilong_qa1:acc", "niah_single_1:4096", "log_ppl_tail@128"]
    analysis = analyze(folder, predictors=["jeffreys"], outcomes=names)
    assert analysis.correlations["outcome"].tolist() == names
    jeffreys = column(folder, "longshort_misalignment", "jeffreys@64")
    expected = stats.pearsonr(jeffreys, column(folder, "babilong_qa1", "acc")).statistic
    assert analysis.correlations["pearson"].iloc[0] == pytest.approx(expected)
    assert set(analysis.comparisons["outcome"]) == set(names)


def test_where_keeps_the_same_checkpoints_everywhere(folder):
    analysis = analyze(folder, where="params < 3000 and family != 'family0'", predictors=["sce"])
    assert len(analysis.wide) == 8
    assert set(analysis.tidy["checkpoint"]) == set(analysis.wide["checkpoint"])
    assert analysis.wide["params"].max() == 2000
    assert (analysis.correlations["n"].max(), analysis.correlations["n_families"].max()) == (8, 4)
    sce = column(folder, "longshort_misalignment", "sce@64")
    log_ppl = np.log(column(folder, "longshort_perplexity", "ppl@256"))
    keep = [3 * family + member for family in range(1, 5) for member in range(2)]
    expected = stats.pearsonr(sce[keep], log_ppl[keep]).statistic
    found = row(analysis.correlations, predictor="sce", outcome="log_ppl@256")
    assert found["pearson"] == pytest.approx(expected)


def test_groups_make_the_interval_and_not_the_coefficient(folder):
    options = {"predictors": ["sce"], "outcomes": ["log_ppl@256"]}
    by_family, by_params = (analyze(folder, group_by=name, **options) for name in ("family", "params"))
    one, other = by_family.correlations.iloc[0], by_params.correlations.iloc[0]
    assert one["pearson"] == pytest.approx(other["pearson"])
    assert (one["n_families"], other["n_families"]) == (5, 3)
    assert (one["interval"], other["interval"]) == ("jackknife", "naive")


def test_revisions_of_families(tmp_path):
    folder = save_folder(tmp_path, families=4, members=1, revisions=3)
    analysis = analyze(folder, predictors=["sce"], outcomes=["log_ppl@256"])
    found = analysis.correlations.iloc[0]
    assert (len(analysis.wide), found["n"], found["n_families"]) == (12, 12, 4)
    kept = analyze(folder, where="revision == 'step2'")
    assert len(kept.wide) == 4
    assert kept.correlations["pearson"].isna().all()
    assert kept.correlations["note"].str.contains("fewer than 5").all()


def test_options_reach_the_statistics(folder):
    options = {"predictors": ["sce", "js", "nll"], "outcomes": ["log_ppl@256", "log_ppl@128"]}
    plain = analyze(folder, **options)
    again = analyze(folder, **options)
    pd.testing.assert_frame_equal(plain.correlations, again.correlations)
    pd.testing.assert_frame_equal(plain.comparisons, again.comparisons)
    bh = analyze(folder, adjust="bh", **options)
    p = plain.correlations["pearson_p"]
    assert bh.correlations["p_adjusted"].to_numpy() == pytest.approx(stats.false_discovery_control(p))
    assert not bh.correlations["p_adjusted"].equals(plain.correlations["p_adjusted"])
    controlled = analyze(folder, controls=["babilong_qa1:acc"], **options)
    assert controlled.settings["controls"] == ["nll", "log_params", "babilong_qa1:acc"]
    assert controlled.correlations["controls"].iloc[0] == "nll, log_params, babilong_qa1:acc"


def test_settings_say_what_it_was_made_from(folder):
    analysis = analyze(folder, where="params > 1000", adjust="bh")
    settings = analysis.settings
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("results_*.json")}
    assert settings["results files, SHA-256"] == {
        name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()
    }
    assert {origin["sha256"] for origin in settings["corpora"]["builtin"]} == {"a" * 64, "b" * 64}
    assert settings["versions of tasks and tools"]["lm_eval_version"] == ["0.4.13"]
    assert settings["versions of tasks and tools"]["longshort_perplexity"] == ["1.0"]
    assert settings["versions of the analysis"]["scipy"] == __import__("scipy").__version__
    assert (settings["where"], settings["adjust"], settings["checkpoints"]) == ("params > 1000", "bh", 10)
    assert json.loads(json.dumps(settings)) == settings


def test_equal_size_is_no_control_and_no_loss_is_none(tmp_path):
    generator = np.random.default_rng(0)
    for index in range(6):
        metrics = measured(generator, index / 3)
        save(tmp_path / "same", str(index), results_of(f"m{index}", metrics, family=f"f{index}"))
        del metrics["longshort_perplexity"]
        save(tmp_path / "lossless", str(index), results_of(f"m{index}", metrics | {"task": {"acc": index}}))
    assert analyze(tmp_path / "same").settings["controls"] == ["nll"]
    analysis = analyze(tmp_path / "lossless", predictors=["sce"], outcomes=["task:acc"])
    assert analysis.settings["controls"] == []
    assert analysis.comparisons.empty
    assert analysis.leaderboard["predictor"].tolist() == ["sce"]
    without = analyze(tmp_path / "lossless")
    assert without.correlations.empty
    assert_one(without.notes, "outcome", "training context lengths")


def test_damaged_files_and_repetitions_are_noted(tmp_path, caplog):
    save_folder(tmp_path)
    damaged = save(tmp_path, "damaged", '{"results"')
    save(
        tmp_path,
        "again",
        results_of("org/model-0-0", measured(np.random.default_rng(9), 1), revision="step0", date=1.0),
    )
    with caplog.at_level(logging.WARNING):
        analysis = analyze(tmp_path)
    assert_one(analysis.notes, str(damaged))
    assert_one(analysis.notes, 1, "org/model-0-0")
    assert not caplog.records  # told once, by whoever asked
    assert len(analysis.wide) == 15
    with user_error("data", str(damaged)):
        analyze(tmp_path, strict=True)


def test_each_task_keeps_to_its_corpus(tmp_path):
    """Retrieval has novels as haystack; perplexity was measured on these too, and the other corpus is chosen."""
    generator = np.random.default_rng(0)
    for index in range(6):
        family = {"family": f"f{index}"}
        save(tmp_path, f"{index}", results_of(f"m{index}", measured(generator, index / 3), **family))
        metrics = {"longshort_perplexity": {"ppl@64": 9.0}, "longshort_retrieval": {"recall@256": index / 6}}
        data = results_of(f"m{index}", metrics, corpus="novels", **family)
        data["configs"]["longshort_retrieval"]["metadata"] = data["configs"]["longshort_perplexity"]["metadata"]
        save(tmp_path, f"{index}-novels", data)
    with user_error("setting", "longshort_perplexity", "builtin", "novels", field="corpus"):
        analyze(tmp_path)
    analysis = analyze(tmp_path, corpus="builtin")
    assert "recall@256" in analysis.settings["outcomes"]
    used = set(zip(analysis.tidy["task"], analysis.tidy["corpus"], strict=True))
    assert ("longshort_retrieval", "novels") in used
    assert ("longshort_perplexity", "novels") not in used
    assert 9.0 not in set(np.exp(analysis.wide["nll"]).round(6))


def test_longppl_with_key_spans_of_several_evaluators_is_noted(tmp_path):
    generator = np.random.default_rng(0)
    for index in range(6):
        metrics = measured(generator, index / 3) | {"longshort_longppl": {"longppl@64": 5.0 + index}}
        data = results_of(f"m{index}", metrics, family=f"f{index}")
        spans = {"sha256": f"{index % 2}" * 64, "evaluator": {"pretrained": f"org/evaluator-{index % 2}"}}
        about = {"train_length": 64, "corpus": "builtin", "scored": {"sha256": "d" * 64, "key_spans": spans}}
        data["configs"]["longshort_longppl"]["metadata"] = about
        save(tmp_path, str(index), data)
    assert_one(analyze(tmp_path).notes, "longppl", "org/evaluator-0 (00000000)", "org/evaluator-1 (11111111)")
    assert not [note for note in analyze(tmp_path, predictors=["sce"]).notes if "longppl" in note]
    one = analyze([file for file in tmp_path.rglob("*.json") if int(file.parent.name) % 2])
    assert "longppl" in one.settings["predictors"]
    assert not [note for note in one.notes if "longppl" in note]


def test_recall_with_different_needles_is_noted(tmp_path):
    generator = np.random.default_rng(0)
    for index in range(6):
        metrics = measured(generator, index / 3) | {"longshort_retrieval": {"recall@128": index / 6}}
        data = results_of(f"m{index}", metrics, family=f"f{index}")
        about = {"train_length": 64, "corpus": "builtin", "needles": 8 - index % 2, "depths": 5, "seed": 0}
        data["configs"]["longshort_retrieval"]["metadata"] = about | {"scored": {"sha256": "d" * 64}}
        save(tmp_path, str(index), data)
    assert_one(analyze(tmp_path).notes, "longshort_retrieval", "recall@128", "needles=7", "needles=8")
    assert not [note for note in analyze(tmp_path, outcomes=["log_ppl@128"]).notes if "needles" in note]
    one = analyze([file for file in tmp_path.rglob("*.json") if int(file.parent.name) % 2])
    assert "recall@128" in one.settings["outcomes"]
    assert not [note for note in one.notes if "needles" in note]


def test_what_does_not_compare_is_noted(tmp_path):
    save_folder(tmp_path)
    generator = np.random.default_rng(1)
    elsewhere = results_of("org/elsewhere", measured(generator, 1))
    elsewhere["configs"]["longshort_perplexity"]["metadata"]["scored"]["sha256"] = "c" * 64
    del elsewhere["configs"]["longshort_perplexity"]["metadata"]["train_length"]
    del elsewhere["configs"]["longshort_misalignment"]["metadata"]["train_length"]
    save(tmp_path, "elsewhere", elsewhere)
    save(tmp_path, "only", results_of("org/only", {"babilong_qa1": {"acc": 0.5}}))
    notes = analyze(tmp_path).notes
    assert_one(notes, "'builtin'", 2)
    assert_one(notes, "org/elsewhere", "train_length")
    assert_one(notes, "org/only", "perplexity", "misalignment")


def test_targets_that_are_fixed_at_different_places_are_noted(tmp_path):
    save_folder(tmp_path)
    assert not any(contains(note, "'builtin'", 32) for note in analyze(tmp_path).notes)
    generator = np.random.default_rng(1)
    for index, lengths in enumerate(([64, 256], [64, 512])):
        about = {"lengths": lengths, "tail_tokens": 32}
        save(tmp_path, f"other-{index}", results_of(f"org/other-{index}", measured(generator, 1), **about))
    assert_one(analyze(tmp_path).notes, "'builtin'", "32 of 257", "32 of 513")


def test_tokenizers_that_differ_are_noted(tmp_path):
    """By the bytes that a token covers: NLL per token over bits per byte."""
    generator = np.random.default_rng(1)
    for index, bytes_per_token in enumerate((4.0, 4.1, 4.15, 4.0, 3.9, 3.0)):
        metrics = measured(generator, index / 3)
        nll = np.log(metrics["longshort_perplexity"]["ppl@128"])
        metrics["longshort_perplexity"]["bpb@128"] = nll / np.log(2) / bytes_per_token
        save(tmp_path, str(index), results_of(f"m{index}", metrics, params=index + 1))
    assert_one(analyze(tmp_path).notes, "tokenizers", "3.00", "4.15")
    notes = analyze(tmp_path, where="params < 5").notes
    assert not any(contains(note, "tokenizers") for note in notes)  # 4.00 to 4.15


def test_two_corpora_need_a_choice(tmp_path):
    save_folder(tmp_path)
    generator = np.random.default_rng(1)
    for index in range(6):
        save(tmp_path, f"other-{index}", results_of(f"org/model-{index % 5}-0", measured(generator, 1), corpus="pg19"))
    with user_error("setting", "builtin", "pg19", field="corpus"):
        analyze(tmp_path)
    analysis = analyze(tmp_path, corpus="pg19", outcomes=["log_ppl@128"])
    assert set(analysis.tidy["corpus"].dropna()) == {"pg19"}
    assert len(analysis.wide) == 5
    with user_error("usage", "'pg9'", field="corpus"):
        analyze(tmp_path, corpus="pg9")


@pytest.mark.parametrize(
    ("wrong", "field", "facts"),
    [
        ({"predictors": ["scee"]}, "predictor", ["'scee'", "sce, "]),
        ({"outcomes": ["babilong"]}, "outcome", ["'babilong'", "babilong_qa1:acc"]),
        ({"controls": ["loss"]}, "control", ["'loss'"]),
        ({"group_by": "famly"}, "group_by", ["'famly'", "family"]),
        ({"where": "prams < 3"}, "where", ["'prams'", "params"]),
    ],
)
def test_wrong_names(folder, wrong, field, facts):
    with user_error("usage", *facts, field=field):
        analyze(folder, **wrong)
