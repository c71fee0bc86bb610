"""Held-out values against whole logits."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from longshort.corpora import open_corpus
from longshort.scoring.offsets import draw_offsets
from longshort.training import windows
from longshort.training.byte_tokenizer import byte_tokenizer
from longshort.training.evaluation import evaluate, held_out, reachable
from tests.errors import assert_facts, user_error
from tests.models import CONFIGS, dense_log_probabilities, random_tokens, tiny_model

LENGTHS, T = [8, 16, 24], 16


def model_named(name):
    if name != "dynamic":
        return tiny_model(name)
    config = copy.deepcopy(CONFIGS["llama"])  # positions depend on the length from 16 tokens on
    config.max_position_embeddings = 16
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def log_probabilities(model, tokens):
    model(tokens[None, :1])  # transformers' dynamic RoPE remembers the longest sequence; one token resets it
    return dense_log_probabilities(model, tokens[None])[0]


def slow(model, documents, special):
    values = {}
    for length in LENGTHS:
        nll = []
        for tokens in documents:
            log_p = log_probabilities(model, tokens[:length])
            nll += [-log_p[t, tokens[t + 1]].item() for t in range(max(special - 1, 0), length - 1)]
        values[f"ppl@{length}"] = math.exp(sum(nll) / len(nll))
    terms = []
    for index, tokens in enumerate(documents):
        [extra] = draw_offsets(5, index, T)
        short = tokens[extra:T].clone()
        short[:special] = tokens[:special]
        long_p, short_p = log_probabilities(model, tokens[:T]), log_probabilities(model, short)
        pairs = [(long_p[j + extra], short_p[j]) for j in range(T - extra) if j + 1 >= T / 2]
        entropy = [-(p.exp() @ p) - (q.exp() @ q) for p, q in pairs]
        jeffreys = [(p.exp() - q.exp()) @ (p - q) for p, q in pairs]
        terms.append([np.mean(entropy) + np.mean(jeffreys), np.mean(entropy), np.mean(jeffreys)])
    return values | dict(zip(("sce", "entropy", "jeffreys"), np.mean(terms, axis=0), strict=True))


@pytest.mark.parametrize("special", [0, 1])
@pytest.mark.parametrize("name", ["llama", "dynamic"])
def test_agrees_with_whole_logits(name, special):
    model = model_named(name)
    documents = random_tokens(3, 24)
    actual = evaluate(model, documents, LENGTHS, T, special, seed=5)
    expected = slow(model, documents, special)
    assert list(actual) == list(expected)
    for key, value in expected.items():
        assert actual[key] == pytest.approx(value, rel=1e-4), key


def test_lengths_without_positions_are_left_out(caplog):
    model = tiny_model("gpt2")
    reach = model.config.n_positions
    assert reachable(model, [8, reach]) == (8, reach)
    assert not caplog.records
    assert reachable(model, [8, reach, reach + 1]) == (8, reach)
    (warning,) = caplog.messages
    assert_facts(warning, "eval_lengths", reach + 1, reach)
    with user_error("length", reach, "--eval-lengths", field="eval_lengths"):
        reachable(model, [reach + 1, reach + 2])
    assert reachable(tiny_model("llama"), [8, 10**6]) == (8, 10**6)


def test_documents_are_cut_and_short_ones_left_out(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("a" * 30, "b" * 5, "c" * 20)))
    tokens = held_out(open_corpus(str(path)), byte_tokenizer(), 8, 20, bos=256)
    assert tokens.tolist() == [[256] + [ord("a")] * 19, [256] + [ord("c")] * 19]
    with user_error("text", str(path), 40, 31, "--eval-lengths", field="eval_lengths"):
        held_out(open_corpus(str(path)), byte_tokenizer(), 8, 40, bos=256)


def test_half_a_surrogate_pair_does_not_stop_the_evaluation(tmp_path):
    path = tmp_path / "odd.jsonl"
    path.write_text('{"text": "abc\\ud800defghij"}')
    assert held_out(open_corpus(str(path)), byte_tokenizer(), 1, 10, bos=None).tolist() == [list(b"abc?defghi")]


def test_of_a_long_document_no_more_is_tokenized_than_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "SLICE_CHARACTERS", 8)
    path, calls = tmp_path / "long.txt", []
    path.write_text("abc def ghi " * 100)

    def tokenizer(text, **options):
        calls.append(text)
        return byte_tokenizer()(text, **options)

    assert held_out(open_corpus(str(path)), tokenizer, 1, 20, bos=256).tolist() == [[256, *b"abc def ghi abc def"]]
    assert len("".join(calls)) < 30
