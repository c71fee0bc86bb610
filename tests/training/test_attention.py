"""The implementation of attention is a setting."""

import pytest
import torch

from longshort.training import run, train
from tests.errors import user_error
from tests.training.test_train import distance, folder, scratch

__all__ = ["folder"]  # the fixture


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_it_is_that_of_training_and_evaluations(folder, tmp_path, monkeypatch, name):
    """And the results of one do not differ from those of the other."""
    seen, own = [], run.evaluate

    def evaluate(model, *arguments):
        seen.append(model.config._attn_implementation)
        return own(model, *arguments)

    monkeypatch.setattr(run, "evaluate", evaluate)
    changes = {"eval_every": 2, "eval_lengths": (8,), "eval_corpus": str(folder / "corpus.jsonl")}
    output = train(scratch(folder, tmp_path / "run", attn_implementation=name, **changes), progress=False)
    assert seen == [name] * 3
    assert distance(output, train(scratch(folder, tmp_path / "default"), progress=False)) < 1e-5


@pytest.mark.parametrize(
    ("changes", "kind", "facts"),
    [
        ({"attn_implementation": "flash_attention_2"}, "setting", ("'flash_attention_2'", "bfloat16")),
        (
            {"attn_implementation": "flash_attention_2", "dtype": "bfloat16"},
            "dependency",
            ("'flash_attention_2'", "GPU", "sdpa"),
        ),
        ({"attn_implementation": "flex_attention"}, "dependency", ("'flex_attention'", "GPU")),
        ({"attn_implementation": "eager", "extension": "longqlora"}, "setting", ("'longqlora'",)),
    ],
)
def test_what_cannot_run_is_refused(folder, tmp_path, monkeypatch, changes, kind, facts):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with user_error(kind, *facts, field="attn_implementation"):
        train(scratch(folder, tmp_path / "run", **changes), progress=False)
    assert not list(tmp_path.iterdir())


def test_an_implementation_that_the_model_does_not_have(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "transformers.models.llama.modeling_llama.LlamaPreTrainedModel._can_set_attn_implementation", lambda *_: False
    )
    with user_error("unsupported", "'llama'", "'eager'", field="attn_implementation"):
        train(scratch(folder, tmp_path / "run", attn_implementation="eager"), progress=False)
    assert not list(tmp_path.iterdir())
