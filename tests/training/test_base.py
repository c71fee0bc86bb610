"""What a run may start from."""

import json
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from longshort.lmeval.evaluate import load_checkpoint
from longshort.testing import save_checkpoint, tiny_tokenizer
from longshort.training import train
from longshort.training.base import load_base, load_model
from longshort.training.config import TrainConfig
from tests.errors import user_error
from tests.training.extension.build import LENGTH, base_config


def test_an_encoder_is_no_base(tmp_path):
    base = save_checkpoint(tmp_path / "bert", model_type="bert")
    config = TrainConfig(output=str(tmp_path / "out"), base=str(base), train_length=16)
    with user_error("unsupported", "'bert'", "is_decoder"):
        load_model(config, load_base(config))


@pytest.fixture
def base_with_a_token_more(tmp_path: Path) -> Path:
    """A checkpoint whose tokenizer has a token that its embedding lacks, as CodeLlama-34b and Gemma 3 have."""
    base = save_checkpoint(tmp_path / "base")
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(base)
    return base


def trained_on(text: str, base: Path, **settings: object) -> Path:
    corpus = base.parent / "corpus.txt"
    corpus.write_text(text)
    sizes = {"train_length": 16, "steps": 1, "batch_size": 2, "global_batch_size": 2, "alpha": 0.0}
    config = TrainConfig(output=str(base.parent / "out"), base=str(base), corpus=str(corpus), **(sizes | settings))
    train(config, progress=False)
    return base.parent / "out"


def test_a_token_that_the_base_lacks_is_no_obstacle_where_it_does_not_occur(base_with_a_token_more: Path) -> None:
    rows = AutoModelForCausalLM.from_pretrained(base_with_a_token_more).get_input_embeddings().num_embeddings
    text = "the river was high that spring " * 20
    trained = trained_on(text, base_with_a_token_more)
    assert AutoModelForCausalLM.from_pretrained(trained).get_input_embeddings().num_embeddings == rows
    assert len(AutoTokenizer.from_pretrained(trained)) == rows + 1


@pytest.mark.parametrize("place", ["text", "eval_text", "eos"])
def test_a_token_that_the_base_lacks_is_refused_where_it_occurs(base_with_a_token_more: Path, place: str) -> None:
    text = "the river was high that spring " * 20
    settings: dict[str, object] = {}
    if place == "text":
        text += "<image>"
    elif place == "eval_text":
        held_out = base_with_a_token_more.parent / "held-out.txt"
        held_out.write_text("<image>" + text)
        settings = {"eval_corpus": str(held_out), "eval_every": 1, "eval_lengths": (16,)}
    else:
        tokenizer = AutoTokenizer.from_pretrained(base_with_a_token_more)
        tokenizer.eos_token = "<image>"
        tokenizer.save_pretrained(base_with_a_token_more)
        text, settings = "the river", {"cross_documents": True}
    rows = AutoModelForCausalLM.from_pretrained(base_with_a_token_more).get_input_embeddings().num_embeddings
    with user_error("setting", rows, "<image>", field="tokenizer"):
        trained_on(text, base_with_a_token_more, **settings)


def test_a_bos_that_the_base_lacks_is_refused(base_with_a_token_more: Path) -> None:
    tokenizer = tiny_tokenizer(bos=True)
    vocabulary = len(tokenizer)
    backend = tokenizer.backend_tokenizer
    backend.add_special_tokens(["<image>"])
    backend.post_processor = TemplateProcessing("<image> $A", special_tokens=[("<image>", vocabulary)])
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<image>").save_pretrained(base_with_a_token_more)
    with user_error("setting", vocabulary, "<image>", field="tokenizer"):
        trained_on("the river was high " * 20, base_with_a_token_more)


def test_a_base_that_cannot_be_loaded_is_refused_as_in_an_evaluation(tmp_path):
    base = save_checkpoint(tmp_path / "model")
    for name, remedy in (("su", "longrope"), ("clex", "trust_remote_code")):
        config = json.loads((base / "config.json").read_text())
        config["rope_parameters"] = {"rope_type": name, "rope_theta": 1e4, "factor": 1.0}
        (base / "config.json").write_text(json.dumps(config))
        for start in ({"base": str(base)}, {"model_config": str(base), "tokenizer": str(base)}):
            settings = TrainConfig(output=str(tmp_path / "out"), train_length=16, **start)
            with user_error("broken", f"'{name}'", "rope_parameters", remedy):
                load_model(settings, load_base(settings))
        with user_error("broken", f"'{name}'", "rope_parameters", remedy):
            load_checkpoint({"pretrained": str(base)}, device="cpu")


@pytest.mark.parametrize("extension", ["linear", "dynamic", "yarn", "eabf", "clex"])
def test_limits_of_the_base_become_the_extended_length(tmp_path, extension):
    model = AutoModelForCausalLM.from_config(base_config(vocab_size=len(tiny_tokenizer())))
    model.generation_config.max_length = LENGTH
    model.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = LENGTH
    tokenizer.save_pretrained(tmp_path)
    for name, expected in (("none", LENGTH), (extension, 4 * LENGTH)):
        factor = None if name == "none" else 4
        config = TrainConfig(output="out", base=str(tmp_path), train_length=LENGTH, extension=name, factor=factor)
        base = load_base(config)
        base.tokenizer.save_pretrained(tmp_path / name)
        load_model(config, base).save_pretrained(tmp_path / name)
        assert AutoTokenizer.from_pretrained(tmp_path / name).model_max_length == expected
        assert GenerationConfig.from_pretrained(tmp_path / name).max_length == expected


def test_a_length_of_generated_text_is_no_limit_of_the_base(tmp_path):
    model = AutoModelForCausalLM.from_config(base_config(vocab_size=len(tiny_tokenizer())))
    model.generation_config.max_length = LENGTH // 2
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    config = TrainConfig(output="out", base=str(tmp_path), train_length=LENGTH, extension="linear", factor=4)
    base = load_base(config)
    assert load_model(config, base).generation_config.max_length == LENGTH // 2
    assert base.tokenizer.model_max_length == tiny_tokenizer().model_max_length
