"""Results files of made-up worlds, through `longshort correlate`: is what was planted what the answer says?"""

import numpy as np
import pytest
from typer.testing import CliRunner

from longshort.cli import app
from tests.analysis.results_folder import results_of, save
from tests.errors import contains

FAMILIES, MEMBERS = 30, 3
OUTCOME = "retrieval recall at 256 tokens"


def save_world(folder, loadings, noise=0.4, families=FAMILIES, passed=True, exact="", seed=0):
    """Checkpoints with a latent ability, from which recall at 256 tokens comes; predictors follow it by `loadings`.

    Loadings are of ``sce``, ``longppl``, ``accuracy_tail``, ``context_gain`` and ``nll``; what is not named is noise.
    That named `exact` follows it without noise, and so does recall. Four fifths of the variance of everything is
    between families.
    """
    generator = np.random.default_rng(seed)

    def draw():
        between = np.repeat(generator.normal(size=families), MEMBERS)
        return np.sqrt(0.8) * between + np.sqrt(0.2) * generator.normal(size=families * MEMBERS)

    ability = draw()
    names = ("sce", "longppl", "accuracy_tail", "context_gain", "nll")
    values = {name: loadings.get(name, 0) * ability + noise * (name != exact) * draw() for name in names}
    recall = 1 / (1 + np.exp(-ability - 0.1 * (not exact) * draw()))
    for index in range(families * MEMBERS):
        sce, longppl, accuracy, gain, nll = (float(values[name][index]) for name in names)
        metrics = {
            "longshort_misalignment": {"sce@64": 5 - 0.3 * sce, "jeffreys@64": float(np.exp(generator.normal()))},
            "longshort_perplexity": {
                "ppl@64": float(np.exp(3 - 0.1 * nll)),
                "ppl@256": float(np.exp(4 + generator.normal())),
                "accuracy_tail@64": 0.5 + 0.05 * accuracy,
                "ppl_tail@16": float(np.exp(4)),
                "ppl_tail@64": float(np.exp(3.5 - 0.1 * gain)),
            },
            "longshort_longppl": {"longppl@64": float(np.exp(2 - 0.2 * longppl))},
            "longshort_retrieval": {"recall@256": passed * float(recall[index])},
        }
        name = f"{index // MEMBERS:02}-{index % MEMBERS}"
        save(folder, name, results_of(f"org/{name}", metrics, family=f"family{index // MEMBERS:02}"))


@pytest.fixture
def correlate(tmp_path, monkeypatch):
    """Makes a world and returns the text about its retrieval, and the leaderboard; no figures, which take seconds."""
    boards = []

    def keep(analysis, folder):
        boards.append(analysis.leaderboard.set_index(["outcome", "predictor"]))
        return [folder / "leaderboard.csv"]

    monkeypatch.setattr("longshort.analysis.write.write_analysis", keep)

    def run(loadings, outcome=OUTCOME, **options):
        save_world(tmp_path, loadings, **options)
        done = CliRunner().invoke(app, ["correlate", str(tmp_path)], env={"COLUMNS": "80"})
        assert done.exit_code == 0, done.output
        assert max(map(len, done.stdout.splitlines())) <= max(80, len(str(tmp_path)) + 11)
        answer, _, table = done.stdout.partition("\n\n")
        answer, run.text = " ".join(answer.split()), " ".join(done.stdout.split())
        assert outcome in answer
        return answer, table.partition("\n\n")[0].splitlines(), boards[-1].loc["recall@256"]

    return run


def others(text):
    return set(filter(None, text.split("; ")))


def test_a_rival_that_beats_misalignment_is_said_to(correlate):
    answer, table, board = correlate({"longppl": 2, "sce": 0.2, "nll": 0.2, "context_gain": 0.2})
    assert answer.startswith("Of 6 predictors, LongPPL correlates most strongly with ")
    row = board.loc["longppl"]
    assert f"ρ = −{-row['spearman']:.2f} [−{-row['spearman_lo']:.2f}, −{-row['spearman_hi']:.2f}]" in answer
    assert contains(answer, "better", "each of the other 5")
    assert others(row["better_than"]) == {"sce", "jeffreys", "context_gain", "accuracy_tail", "nll"}
    assert "longppl" in others(board.loc["sce", "worse_than"])
    first = next(line for line in table if line.split()[:1] == ["1"])
    assert contains(first, "LongPPL", "90 (30)")
    assert first.split()[-1] == "2–6"


def test_a_rival_in_perfect_order_is_said_to_be_the_best(correlate):
    answer, _, board = correlate({"longppl": 2}, exact="longppl")
    assert board.loc["longppl", "spearman"] == -1
    assert answer.startswith("Of 6 predictors, LongPPL correlates most strongly with ")
    assert contains(answer, "ρ = −1.00", "each of the other 5")


def test_a_world_in_which_nothing_predicts_has_no_winner(correlate):
    answer, _, board = correlate({}, seed=1)  # in 1 of 20 worlds something would seem to predict
    assert answer.startswith("No predictor is shown to correlate with ")
    assert not board["better_than"].any()


def test_rivals_of_equal_strength_are_not_told_apart(correlate):
    answer, _, board = correlate({"longppl": 2, "accuracy_tail": 2})
    first, second = board.index[:2]
    assert {first, second} == {"longppl", "accuracy_tail"}
    assert contains(answer, "lead", "not established", "better than 4 of the other 5")
    for one, other in ((first, second), (second, first)):
        assert others(board.loc[one, "better_than"]) == {"sce", "jeffreys", "context_gain", "nll"}
        assert other not in others(board.loc[one, "worse_than"])


def test_misalignment_that_predicts_best_is_said_to(correlate):
    answer, _, board = correlate({"sce": 2, "longppl": 0.2})
    assert answer.startswith("Of 6 predictors, SCE correlates most strongly with ")
    assert others(board.loc["sce", "better_than"]) == set(board.index) - {"sce"}


def test_fewer_than_four_families_show_nothing(correlate):
    answer, table, board = correlate({"longppl": 2}, families=3)
    assert contains(answer, "No predictor can be shown", "4 families", "LongPPL")
    assert set(board["interval"]) == {"naive"}
    assert not board["better_than"].any()
    assert board["spearman_p_adjusted"].isna().all()
    assert contains("\n".join(table), "9 (3†)")


def test_an_outcome_that_is_the_same_for_all_comes_last(correlate):
    """As with tiny models: no value is retrieved."""
    answer, _, board = correlate({"nll": 2}, passed=False, outcome="log-perplexity at 256 tokens")
    assert answer.startswith("No predictor is shown")
    assert board["spearman"].isna().all()
    assert board["rank"].isna().all()
    assert "Retrieval recall at 256 tokens is 0 for all 90 checkpoints" in correlate.text
