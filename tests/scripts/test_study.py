"""The study: its plan, its manifest, and its questions put to checkpoints whose answers are known."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from studies import checkpoints, questions

from longshort.sweep.manifest.load import load_manifest
from tests.analysis.results_folder import measured, results_of

FAMILIES = ("rope", "rope-seed1", "alibi", "none", "learned")


def test_the_plan_is_what_the_study_says():
    plans = {
        family: checkpoints.training_plan(Path("w"), family, checkpoints.Scale()) for family in checkpoints.FAMILIES
    }
    assert len(plans) >= 8
    assert sum(1 + len(run.save_at) for plan in plans.values() for run in plan) >= 30
    runs = plans["rope"][1:]
    assert {run.alpha for run in runs} >= {0, 0.1, 0.3, 0.5}
    assert {run.divergence for run in runs} == {"sce", "jeffreys"}
    assert {run.extension for run in runs} == {"none", "linear", "yarn", "clex", "eabf"}
    # Equal tokens in equal order: runs of a family differ in nothing but what is asked.
    settings = [
        (run.base, run.steps, run.windows, run.global_batch_size, run.seed, run.learning_rate, run.max_extra)
        for run in runs
    ]
    assert len(set(settings)) == 1
    assert max(checkpoints.LENGTHS) >= 8 * checkpoints.TRAIN_LENGTH


def test_the_manifest_is_one_that_a_sweep_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = checkpoints.manifest(Path("w"), ["rope", "learned"], checkpoints.Scale())
    Path("manifest.yaml").write_text(text)
    listed = load_manifest("manifest.yaml")
    assert len({checkpoint.pretrained for checkpoint in listed}) == len(listed) == 2 * (1 + 9 + 4) + 8
    assert {checkpoint.family for checkpoint in listed} == {"rope", "learned"}
    trusted = {Path(checkpoint.pretrained).name for checkpoint in listed if checkpoint.trust_remote_code}
    assert trusted == {"rope-clex-a0", "rope-clex-a0.1", "rope-eabf-a0", "rope-eabf-a0.1"}


def test_a_run_starts_from_its_base_and_is_there_when_run_again(tmp_path):
    from longshort.training import train

    scale = checkpoints.Scale(base_steps=3, steps=8, base_batch=2, batch=2)
    checkpoints.write_config(tmp_path, "learned")
    for run in checkpoints.training_plan(tmp_path, "learned", scale)[:3]:
        train(run)
    made = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert made == {"learned-base", "learned-plain", "learned-plain-step2", "learned-plain-step4", "learned-sce0.1"}
    record = json.loads((tmp_path / "checkpoints" / "learned-sce0.1" / "longshort.json").read_text())
    assert record["alpha"] == 0.1


def wide_table() -> pd.DataFrame:
    """Five families of six checkpoints whose sce and outcome go together between families and against it within."""
    generator, rows = np.random.default_rng(0), []
    for level, family in enumerate(FAMILIES):
        for run, effect in (("plain", 0.0), ("sce0.1", -0.2), ("plain-step50", 0.3), ("sce0.1-step50", 0.2)):
            sce = 5 + level + effect + 0.01 * generator.normal()
            outcome = 2 + 3 * level - effect + 0.01 * generator.normal()
            rows.append({"checkpoint": f"w/{family}-{run}", "family": family, "sce": sce, "log_ppl@1024": outcome})
    for level, run in enumerate(("linear-a0", "linear-a0.1")):
        rows.append({"checkpoint": f"w/rope-{run}", "family": "rope", "sce": 4.0 - level, "log_ppl@1024": 1.0})
    return pd.DataFrame(rows)


def test_runs_are_told_from_names():
    wide = questions.with_runs(wide_table()).set_index("checkpoint")
    assert wide.loc["w/rope-seed1-sce0.1-step50", ["run", "step", "positions"]].tolist() == ["sce0.1", 50, "rope"]
    assert wide.loc["w/alibi-plain", "run"] == "plain"
    assert np.isnan(wide.loc["w/alibi-plain", "step"])


def test_effects_are_paired_differences_over_families():
    wide = questions.with_runs(wide_table())
    effects = questions.effects_of(wide, ["sce", "log_ppl@1024"]).set_index(["run", "step", "measure"])
    values = wide_table().set_index("checkpoint")["sce"]
    ours, plain = (np.array([values[f"w/{family}-{run}"] for family in FAMILIES]) for run in ("sce0.1", "plain"))
    row = effects.loc[("sce0.1", np.nan, "sce")]
    assert row["mean"] == pytest.approx((ours - plain).mean())
    assert row["p"] == pytest.approx(stats.ttest_rel(ours, plain).pvalue)
    margin = stats.t.ppf(0.975, 4) * (ours - plain).std(ddof=1) / np.sqrt(5)
    assert [row["lo"], row["hi"]] == pytest.approx([row["mean"] - margin, row["mean"] + margin])
    assert row["n_families"] == row["lower_in"] == 5
    p_values = effects["p"].dropna().sort_values()  # Holm's: times how many are as great or greater, never falling
    adjusted = np.minimum(np.maximum.accumulate(p_values.to_numpy() * range(len(p_values), 0, -1)), 1)
    assert effects.loc[p_values.index, "p_adjusted"].to_numpy() == pytest.approx(adjusted)
    # At step 50 the baseline is the plain run at step 50; an extended run's is the extended one.
    assert effects.loc[("sce0.1", 50.0, "sce"), "mean"] == pytest.approx(-0.1, abs=0.02)
    assert effects.loc[("linear-a0.1", np.nan, "sce"), "mean"] == pytest.approx(-1)
    assert not {"plain", "linear-a0"} & set(effects.index.get_level_values("run"))


def test_between_and_within_families_are_told_apart(tmp_path):
    wide = questions.with_runs(wide_table())
    scopes = questions.scopes_of(wide, ["sce", "log_ppl@1024"])
    from longshort.analysis import correlations

    found = {
        scope: correlations(rows, ["sce"], ["log_ppl@1024"], (), group=group)["pearson"][0]
        for scope, (rows, group) in scopes.items()
    }
    assert found["all"] > 0.9
    assert found["between"] > 0.9
    assert found["within, unextended"] < -0.9
    assert len(scopes["between"][0]) == 5
    assert set(scopes["all, by positions"][0]["positions"]) == {"rope", "alibi", "none", "learned"}
    questions.draw_scopes(scopes, "sce", "log_ppl@1024", tmp_path / "scopes.png")
    questions.draw_effects(questions.effects_of(wide, ["sce", "log_ppl@1024"]), tmp_path / "effects.png")
    assert (tmp_path / "scopes.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "effects.png").read_bytes().startswith(b"\x89PNG")


def test_all_answers_of_a_folder(tmp_path):
    generator = np.random.default_rng(0)
    for level, family in enumerate(FAMILIES):
        for run in ("base", "plain", "sce0.1", "jeffreys0.3"):
            data = results_of(f"w/{family}-{run}", measured(generator, level + generator.normal()), family=family)
            file = tmp_path / "sweep" / "results" / f"{family}-{run}" / "results_a.json"
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps(data))
    questions.write_answers(tmp_path)
    found = pd.read_csv(tmp_path / "correlations.csv")
    wide = questions.wide_table(questions.read_results(tmp_path / "sweep"))
    row = found[(found["scope"] == "all") & (found["predictor"] == "sce") & (found["outcome"] == "log_ppl@256")]
    assert row["spearman"].item() == pytest.approx(stats.spearmanr(wide["sce"], wide["log_ppl@256"]).statistic)
    assert row["n"].item() == 20
    assert set(pd.read_csv(tmp_path / "effects.csv")["run"]) == {"sce0.1", "jeffreys0.3"}
    text = (tmp_path / "answers.md").read_text()
    assert f"{row['spearman'].item():.2f} [{row['spearman_lo'].item():.2f}, " in text
    assert (tmp_path / "figures" / "effects.svg").is_file()
