"""The README.md of a checkpoint: metadata that the hub takes, and facts of the record."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard

from longshort.training import train
from longshort.training.extension.clex import export_clex
from longshort.training.model_card import model_card
from tests.training.test_train import folder, scratch

__all__ = ["folder"]  # the fixture


@pytest.fixture(scope="module")
def output(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("card")
    changes = {"extension": "clex", "factor": 4.0, "steps": 2, "save_at": (1,), "seed": 17}
    return train(scratch(folder, place / "clex-a0.5", **changes), progress=False)


def test_every_checkpoint_has_a_card_with_its_provenance(output):
    for place, step in ((output, 2), (output.with_name("clex-a0.5-step1"), 1)):
        card = ModelCard.load(place / "README.md")
        record = json.loads((place / "longshort.json").read_text())
        assert record["steps"] == step
        facts = [
            *(f"# {place.name}", "CLEX (Chen et al., 2024) (factor 4.0)", record["corpus"]["sha256"]),
            *(f"| Steps | {step}, each of 4 sequences |", "| Seed | 17 |", f"| Tokens | {record['tokens_seen']:,} |"),
            *(f"| L_train | {record['final']['L_train']:.4g} |", "float32, saved in float32", "α = 0.5"),
            *(f"torch {record['versions']['torch']}", "du2025longshort", "trust_remote_code=True"),
        ]
        for fact in facts:
            assert fact in card.text, fact
        assert card.data.library_name == "transformers"
        assert {"longshort", "clex"} <= set(card.data.tags)
        assert card.data.base_model is None  # a random initialization


def test_only_the_last_checkpoint_is_loaded_from_the_hub(output):
    record = json.loads((output / "longshort.json").read_text())
    record["config"]["push_to_hub"] = "owner/name"
    assert "from_pretrained('owner/name'" in model_card("run", record)
    assert "from_pretrained('run-step1'" in model_card("run-step1", record, is_pushed=False)


def test_an_exported_checkpoint_names_its_source_and_how_to_load_it(output, tmp_path, monkeypatch):
    card = ModelCard.load(export_clex(output, tmp_path / "t2", 2) / "README.md")
    for fact in ("# t2", str(output), "t = 2", "export-clex"):
        assert fact in card.text
    assert card.data.library_name == "transformers"
    values = {}
    monkeypatch.chdir(tmp_path)
    exec(card.text.split("```python\n")[1].split("```")[0], values)
    assert values["model"].config.rope_parameters["rope_type"] == "longrope"


def test_the_code_in_a_card_loads_the_checkpoint(output, monkeypatch):
    code = (output / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(output.parent)
    values = {}
    exec(code, values)
    assert values["model"].config.model_type == "longshort_clex_llama"
    assert values["tokenizer"]("é")["input_ids"] == [195, 169]


@pytest.mark.parametrize(
    ("base", "corpus", "adapter", "expected"),
    [
        (
            "owner/model",
            "hf:owner/text",
            False,
            {"base_model": "owner/model", "base_model_relation": "finetune", "datasets": ["owner/text"]},
        ),
        ("owner/model", "text.jsonl", True, {"base_model": "owner/model", "base_model_relation": "adapter"}),
        (".", "builtin", False, {}),
    ],
)
def test_metadata_names_what_is_on_the_hub(output, base, corpus, adapter, expected):
    record = json.loads((output / "longshort.json").read_text())
    record["config"] |= {"base": base, "corpus": corpus, "keep_adapter": adapter}
    metadata = yaml.safe_load(model_card("x", record | {"base": base}).split("---")[1])
    known = ("base_model", "base_model_relation", "datasets")
    assert {name: value for name, value in metadata.items() if name in known} == expected


def test_a_name_with_a_pipe_or_a_line_break_stays_in_its_cell(output):
    record = json.loads((output / "longshort.json").read_text())
    record["corpus"]["spec"] = "a|b\nc.txt"
    rows = [line for line in model_card("x", record).splitlines() if line.startswith("| Corpus ")]
    assert rows == ["| Corpus | a b c.txt |"]
