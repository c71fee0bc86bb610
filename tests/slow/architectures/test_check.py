"""The campaign finds what it must find, and its table keeps the rows of other runs."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from longshort.errors import UserError
from tests.slow.architectures import score as campaign
from tests.slow.architectures.cases import CASES, Case
from tests.slow.architectures.tiny import ARCHITECTURES, tiny_config, tiny_model
from tests.slow.tables import write_architectures

LLAMA = Case("llama")


def test_every_architecture_is_a_case_and_names_are_unique():
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.architecture for case in CASES if not case.changes} == set(ARCHITECTURES)


def test_a_causal_model_is_scored_without_faults():
    row = campaign.score(LLAMA)
    assert (row["outcome"], row["positions"], row["passes"], row["faults"]) == ("scored", "no end", "one", "")
    assert max(float(row["nll"]), float(row["misalignment"])) < campaign.TOLERANCE


def test_a_model_that_cannot_be_built_is_a_row():
    row = campaign.score(Case("llama", {"num_attention_heads": 5}))
    assert row["outcome"] == "not built"
    assert row["reason"]


def test_a_wrong_score_is_a_fault(monkeypatch):
    right = campaign.score_prefix
    monkeypatch.setattr(campaign, "score_prefix", lambda *args: right(*args) * (1 + 3e-4))
    assert "nll" in campaign.score(LLAMA)["faults"]


@pytest.mark.parametrize("name", ["entropy", "jeffreys", "js", "agreement"])
def test_a_wrong_field_is_a_fault(name, monkeypatch):
    right = campaign.score_suffixes

    def wrong(*args, **kwargs):
        scores = right(*args, **kwargs)
        getattr(scores, name)[:, 0, 0] += 1e-3
        return scores

    monkeypatch.setattr(campaign, "score_suffixes", wrong)
    assert "misalignment" in campaign.score(LLAMA)["faults"]


def test_a_wrong_end_is_a_fault(monkeypatch):
    monkeypatch.setattr(campaign, "addressable_length", lambda model: None)
    assert "positions" in campaign.score(Case("gpt2"))["faults"]


def test_an_encoder_that_passes_and_a_causal_model_that_is_refused_are_faults(monkeypatch):
    monkeypatch.setattr(campaign, "require_causal", lambda model: None)
    assert "not causal" in campaign.score(Case("bert"))["faults"]

    def refuse(model):
        raise UserError("no", "unsupported")

    monkeypatch.setattr(campaign, "require_causal", refuse)
    assert "refused" in campaign.score(LLAMA)["faults"]
    assert not campaign.score(Case("bert"))["faults"]


def test_a_crash_in_a_case_is_its_fault(monkeypatch):
    def broken(*args):
        raise KeyError("broken")

    monkeypatch.setattr(campaign, "score_prefix", broken)
    assert "KeyError" in campaign.score(LLAMA)["faults"]


def test_the_reference_has_the_same_weights_in_double_precision():
    model, reference = tiny_model("mixtral"), tiny_model("mixtral", torch.float64)
    model.load_state_dict(reference.state_dict())
    assert all(torch.equal(a, b.float()) for a, b in zip(model.parameters(), reference.parameters(), strict=True))
    assert {parameter.dtype for parameter in reference.parameters()} == {torch.float64}


def test_every_kind_of_layer_is_in_the_tiny_model():
    assert set(tiny_config("gemma3_text").layer_types) == {"sliding_attention", "full_attention"}
    assert set(tiny_config("qwen3_next").layer_types) == {"linear_attention", "full_attention"}


def test_rows_of_other_cases_stay_in_the_table(tmp_path):
    row = dict.fromkeys(campaign.COLUMNS, "") | {"outcome": "scored", "seconds": 1.0}
    write_architectures([row | {"case": "llama", "nll": "1e-06"}, row | {"case": "gpt2"}], tmp_path)
    write_architectures([row | {"case": "gpt2", "faults": "new"}], tmp_path)
    table = pd.read_csv(tmp_path / "campaign.csv", keep_default_na=False, dtype=str)
    assert table[["case", "nll", "faults"]].to_numpy().tolist() == [["gpt2", "", "new"], ["llama", "1e-06", ""]]
    assert "2 scored" in (tmp_path / "campaign.md").read_text()
