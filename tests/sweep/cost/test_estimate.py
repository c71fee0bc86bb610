"""Costs: tokens as they are counted in real runs, sizes by hand, and nothing that a config can break."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.gptj.modeling_gptj import GPTJBlock
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from longshort.devices import GPUS
from longshort.lmeval.evaluate import evaluate_checkpoint
from longshort.longbench.scores import DATASETS
from longshort.scoring import causality, lm_head, positions
from longshort.settings import Checkpoint, Resources
from longshort.sweep.cost import estimate as cost
from longshort.sweep.cost.estimate import cost_of
from longshort.sweep.cost.shape import Shape, read_config, shape_of
from longshort.testing import save_checkpoint, save_corpus, save_letters

PERPLEXITY, MISALIGNMENT, RETRIEVAL = "longshort_perplexity", "longshort_misalignment", "longshort_retrieval"
A100 = GPUS["a100"]
LENGTHS = (16, 32, 64)

LLAMA_2_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}


def folder(path: Path, config: object) -> Checkpoint:
    path.mkdir(exist_ok=True, parents=True)
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return Checkpoint(str(path))


def shape_in(checkpoint: Checkpoint) -> Shape:
    return shape_of(checkpoint, read_config(checkpoint))


# ---- tokens


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return save_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


GPTJ = {"model_type": "gptj", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("model", "settings", "tasks", "resets"),
    [
        ({}, {}, (PERPLEXITY,), 0),
        ({}, {"seed": 3}, (MISALIGNMENT,), 0),
        ({}, {"seed": 3, "draws": 3}, (MISALIGNMENT,), 0),  # an offset that is drawn twice is read once
        ({}, {"limit": 2, "batch_size": 2, "tail_tokens": 4}, (PERPLEXITY, MISALIGNMENT), 0),
        ({"bos": True}, {"limit": 0.5}, (PERPLEXITY, MISALIGNMENT), 0),
        ({}, {"lengths": (32,)}, (PERPLEXITY, MISALIGNMENT), 0),
        ({}, {"model_args": {"max_length": 40}}, (PERPLEXITY, MISALIGNMENT), 0),
        ({"model_type": "gpt2", "n_positions": 32}, {}, (PERPLEXITY, MISALIGNMENT), 0),
        # Dynamic NTK: a pass per length, and one token before each: the document's 5 and the LM head's 1.
        (
            {"rope_parameters": DYNAMIC, "max_position_embeddings": 32},
            {"limit": 1},
            (PERPLEXITY,),
            6,
        ),
        # With the misalignment 3 more.
        (
            {"rope_parameters": DYNAMIC, "max_position_embeddings": 32},
            {"limit": 1},
            (PERPLEXITY, MISALIGNMENT),
            9,
        ),
        ({}, {"draws": 2, "batch_size": 4}, (PERPLEXITY, MISALIGNMENT), 0),
        # Half precision: the floor's documents are read once more, and its probe reads 32 tokens twice, or half
        # the length if that is shorter: learned positions at 32 and 16, dynamic NTK at 64 and 32. The latter has
        # 7 passes of one token as above, 2 for the floors and 4 for the probes.
        ({}, {"dtype": "bfloat16"}, (PERPLEXITY, MISALIGNMENT), 64),
        ({}, {"dtype": "bfloat16"}, (PERPLEXITY,), 0),
        ({}, {"dtype": "float16", "draws": 2, "limit": 2}, (MISALIGNMENT,), 64),
        (GPTJ, {"dtype": "bfloat16"}, (MISALIGNMENT,), 64),
        ({"model_type": "gpt2", "n_positions": 32}, {"dtype": "bfloat16"}, (MISALIGNMENT,), 32 + 16),
        (
            {"rope_parameters": DYNAMIC, "max_position_embeddings": 32},
            {"limit": 1, "dtype": "bfloat16"},
            (MISALIGNMENT,),
            64 + 32 + 7 + 2 + 4,
        ),
    ],
)
def test_tokens_are_those_that_the_model_reads(tmp_path, corpus, monkeypatch, model, settings, tasks, resets):
    """What is counted, and the probes of a loaded model.

    The end of the positions is probed once for all and once for the request, causality with two sequences, the LM head
    with three.
    """
    path = save_checkpoint(tmp_path / "model", **model)
    checkpoint = Checkpoint(str(path), corpus=str(corpus), num_docs=5, dtype="float32")
    checkpoint = replace(checkpoint, **{"lengths": LENGTHS} | settings)
    read = tokens_read(checkpoint, tasks, monkeypatch)
    assert read == cost_of(checkpoint, tasks, A100).forward_tokens + PROBES + resets


PROBES = 2 * positions.PROBE_TOKENS + 2 * causality.PROBE_TOKENS + 3 * lm_head.PROBE_TOKENS


def tokens_read(checkpoint, tasks, monkeypatch):
    """Tokens in all forward passes of an evaluation of a model with two layers."""
    seen = []
    # Below the LM head: a chunk of the LM head alone does not count as a forward.
    for layer in (LlamaDecoderLayer, GPT2Block, GPTJBlock):

        def forward(self, hidden_states, *args, original=layer.forward, **kwargs):
            seen.append(hidden_states.shape[0] * hidden_states.shape[1])
            return original(self, hidden_states, *args, **kwargs)

        monkeypatch.setattr(layer, "forward", forward)
    evaluate_checkpoint(
        {"pretrained": checkpoint.pretrained, "dtype": checkpoint.dtype, **checkpoint.model_args},
        tasks=tasks,
        metadata=checkpoint.metadata(),
        batch_size=checkpoint.batch_size,
        limit=checkpoint.limit,
        device="cpu",
    )
    return sum(seen) / 2


@pytest.mark.parametrize(
    ("model", "settings", "expected"),
    [
        ({}, {}, 3 * 5 * (199 + 299)),
        ({"bos": True}, {"depths": 2, "batch_size": 4}, 3 * 2 * (199 + 299)),
        ({}, {"depths": 2, "limit": 5}, 5 * (199 + 299)),
        ({"model_type": "gpt2", "n_positions": 250}, {"depths": 1}, 3 * 199),
    ],
)
def test_probes_of_retrieval_are_those_that_the_model_reads(tmp_path, monkeypatch, model, settings, expected):
    path = save_checkpoint(tmp_path / "model", **model)
    corpus = save_letters(tmp_path / "letters.jsonl", num_docs=3, num_bytes=1000)
    checkpoint = Checkpoint(str(path), corpus=str(corpus), num_docs=3, needles=2, dtype="float32", lengths=(200, 300))
    checkpoint = replace(checkpoint, **settings)
    assert cost_of(checkpoint, [RETRIEVAL], A100).forward_tokens == expected
    assert tokens_read(checkpoint, [RETRIEVAL], monkeypatch) == expected + PROBES


def test_tokens_by_hand(tmp_path):
    checkpoint = replace(folder(tmp_path, LLAMA_2_7B), lengths=(1024, 2048), num_docs=10)
    found = cost_of(checkpoint, [PERPLEXITY], A100)
    assert found.forward_tokens == 10 * (1024 + 2048) + 1024
    pairs = (10 * (1024**2 + 2048**2) + 1024**2) / 2
    scored = 10 * (2048 + 2 * 512) + 1023
    body = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert found.flops == pytest.approx(
        2 * body * found.forward_tokens + 4 * 32 * 4096 * pairs + 2 * 4096 * 32000 * scored, rel=1e-12
    )


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"batch_size": 1}, 2048),
        ({"batch_size": 3}, 3 * 2048),
        ({}, 8 * 2048),  # 16,384 tokens at once
        ({"num_docs": 5}, 5 * 2048),
        ({"batch_size": 9, "num_docs": 5}, 5 * 2048),
        ({"lengths": (1024, 20_000)}, 20_000),
    ],
)
def test_activations_are_those_of_all_documents_that_are_read_together(tmp_path, settings, tokens):
    checkpoint = replace(folder(tmp_path, LLAMA_2_7B), **{"lengths": (1024, 2048), "num_docs": 32} | settings)
    forward = tokens * max(13 * 4096, 2 * 4096 + 3 * 11008) * 2
    head = min(2**30, tokens * 32000 * 4) * 1.5
    assert cost_of(checkpoint, [PERPLEXITY], A100).activation_bytes == int(forward + head)


def test_a_task_named_twice_costs_once(tmp_path):
    checkpoint = folder(tmp_path, LLAMA_2_7B)
    assert cost_of(checkpoint, [PERPLEXITY] * 2, A100) == cost_of(checkpoint, [PERPLEXITY], A100)


def test_foreign_tasks_count_as_nothing_and_are_named(tmp_path):
    found = cost_of(folder(tmp_path, LLAMA_2_7B), ["hellaswag"], A100)
    assert found.forward_tokens == found.flops == 0
    assert any("hellaswag" in sentence for sentence in found.assumed)
    assert found.hours * 3600 == pytest.approx(30 + found.weight_bytes / 1e9)


def test_longppl_reads_the_longest_prefix_of_every_document(tmp_path):
    save_checkpoint(tmp_path / "model", max_position_embeddings=4096)
    given = {"tasks": ("longshort_longppl",), "lengths": (64, 256), "num_docs": 3}
    cost = cost_of(Checkpoint(str(tmp_path / "model"), key_spans="spans", **given), ["longshort_longppl"], A100)
    assert (cost.forward_tokens, cost.assumed) == (3 * 256, ())
    cost = cost_of(Checkpoint(str(tmp_path / "model"), key_spans="self", **given), ["longshort_longppl"], A100)
    assert "longshort_longppl" in cost.assumed[0]


def test_longbench_counts_every_row_within_its_window(tmp_path):
    checkpoint = folder(tmp_path, LLAMA_2_7B | {"max_position_embeddings": 4096})
    found = cost_of(checkpoint, ["longshort_longbench_e"], A100)
    assert found.forward_tokens == sum(entry.num_rows * (3500 + entry.max_new_tokens) for entry in DATASETS.values())
    whole = cost_of(replace(checkpoint, model_args={"max_length": 131072}), ["longshort_longbench_e"], A100)
    assert whole.forward_tokens == sum(
        entry.num_rows * (entry.row_bytes // 4 + entry.max_new_tokens) for entry in DATASETS.values()
    )
    assert cost_of(replace(checkpoint, limit=2), ["longshort-longbench-e-trec"], A100).forward_tokens == 2 * 3564
    category = cost_of(checkpoint, ["longshort-longbench-e-code"], A100).forward_tokens
    assert category == 2 * cost_of(checkpoint, ["longshort-longbench-e-lcc"], A100).forward_tokens
    assert any("LongBench-E" in sentence for sentence in found.assumed)
    # Every answer's token reads all weights, or launches all layers.
    steps = sum(entry.num_rows * entry.max_new_tokens for entry in DATASETS.values())
    assert found.hours > steps * max(found.weight_bytes / A100.bandwidth, 32 * cost.STEP_SECONDS_PER_LAYER) / 3600


# ---- hours and memory


def test_hours_by_hand(tmp_path):
    checkpoint = folder(tmp_path, LLAMA_2_7B)
    found = cost_of(checkpoint, [PERPLEXITY], A100)
    assert found.hours * 3600 == pytest.approx(30 + found.weight_bytes / 1e9 + found.flops / (0.4 * 312e12))
    single = cost_of(replace(checkpoint, dtype="float32"), [PERPLEXITY], A100)
    load = 30 + single.weight_bytes / 1e9
    assert single.hours * 3600 - load == pytest.approx(16 * found.flops / (0.4 * 312e12))


def test_more_gpus_hold_more_but_are_no_faster(tmp_path):
    checkpoint = folder(tmp_path, LLAMA_2_7B)
    two = replace(checkpoint, resources=Resources(gpus=2), model_args={"parallelize": True})
    assert cost_of(two, [PERPLEXITY], A100).hours == cost_of(checkpoint, [PERPLEXITY], A100).hours


@pytest.mark.parametrize(
    ("dtype", "own", "arguments", "size"),
    [
        ("auto", "float16", {}, 2),
        ("auto", "torch.float32", {}, 4),
        ("auto", None, {}, 2),
        ("bfloat16", "float32", {}, 2),
        ("float32", "bfloat16", {}, 4),
        ("bfloat16", "float16", {"load_in_8bit": True}, 1),
        ("bfloat16", "float16", {"load_in_4bit": True}, 0.5),
    ],
)
def test_weights_by_dtype(tmp_path, dtype, own, arguments, size):
    checkpoint = replace(folder(tmp_path, LLAMA_2_7B | {"torch_dtype": own}), dtype=dtype, model_args=arguments)
    assert cost_of(checkpoint, [], A100).weight_bytes == 6738149376 * size


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_activations_hold_what_a_forward_allocates(kind, tmp_path):
    """The greatest sum of what is allocated and not yet freed, by torch's profiler; the head's chunk left out.

    In float32: a CPU without bfloat16 instructions allocates copies in bfloat16 that no GPU needs.
    """
    sizes = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.AutoConfig.for_model(kind, vocab_size=16, max_position_embeddings=4096, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    tokens = torch.zeros(1, 2048, dtype=torch.long)
    head = lm_head.lm_head_of(model)
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        head.hidden_states(tokens, keep=2048)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    config.save_pretrained(tmp_path)
    checkpoint = Checkpoint(str(tmp_path), lengths=(2048,), dtype="float32", batch_size=1)
    estimate = cost_of(checkpoint, [PERPLEXITY], A100).activation_bytes - 2048 * 16 * 6
    assert peak < estimate < 1.5 * peak


# ---- shapes


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"num_key_value_heads": 2, "intermediate_size": 96}),
        ("llama", {"tie_word_embeddings": True, "head_dim": 32}),
        ("gpt2", {}),
        ("gptj", {"rotary_dim": 8}),
        ("gpt_neox", {"intermediate_size": 256}),
        ("opt", {"ffn_dim": 256, "word_embed_proj_dim": 64}),
        ("qwen3_moe", {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "head_dim": 16}),
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 96}),
    ],
)
def test_parameters_are_those_of_the_model(tmp_path, kind, settings):
    names = {"gpt2": ("n_embd", "n_layer", "n_head"), "gptj": ("n_embd", "n_layer", "n_head")}
    hidden, layers, heads = names.get(kind, ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    config = transformers.AutoConfig.for_model(kind, **{hidden: 64, layers: 3, heads: 4, "vocab_size": 500} | settings)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    positions = sum(p.numel() for name, p in model.named_parameters() if "wpe" in name or "embed_positions" in name)
    config.save_pretrained(tmp_path)
    shape = shape_in(Checkpoint(str(tmp_path)))
    assert shape.known
    assert (shape.hidden, shape.layers, shape.vocabulary) == (64, 3, 500)
    assert shape.parameters == pytest.approx(model.num_parameters() - positions, rel=0.03)  # biases and norms aside
    if "moe_intermediate_size" in settings:  # a token goes through two of the eight experts
        assert shape.backbone == 3 * (4 * 64 * 64 + 2 * 3 * 64 * 48)
        assert shape.intermediate == 2 * 48


def test_a_nested_text_config_counts(tmp_path):
    nested = {"model_type": "gemma3", "hidden_size": 1152, "text_config": LLAMA_2_7B}
    shape = shape_in(folder(tmp_path, nested))
    assert (shape.hidden, shape.layers, shape.parameters) == (4096, 32, 6738149376)


def test_given_parameters_win(tmp_path):
    shape = shape_in(replace(folder(tmp_path, LLAMA_2_7B), params=7_000_000_000))
    assert shape.parameters == 7_000_000_000
    assert shape.backbone == 7_000_000_000 - 2 * 32000 * 4096


def test_the_hub_cache_is_read_of_any_revision(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--name"
    folder(repository / "snapshots" / ("a" * 40), LLAMA_2_7B)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    for revision in ("main", "step1000"):
        shape = shape_in(Checkpoint("owner/name", revision=revision))
        assert shape.known
        assert shape.layers == 32
    assert not shape_in(Checkpoint("owner/other")).known


@pytest.mark.parametrize(
    ("name", "params", "parameters", "told"),
    [
        ("owner/a-model", 6_738_415_616, 6_738_415_616, "its `params`"),
        ("owner/model-1.4b-chat", None, 1_400_000_000, "its name"),
        ("owner/pythia-70m", None, 70_000_000, "its name"),
        ("owner/a-model-x7", None, 7_000_000_000, "7B parameters"),
        ("no name / of the hub", None, 7_000_000_000, "7B parameters"),
        ("/no/such/folder", None, 7_000_000_000, "7B parameters"),
    ],
)
def test_without_a_config_the_shape_is_the_usual_one(name, params, parameters, told):
    checkpoint = Checkpoint(name, params=params)
    shape = shape_in(checkpoint)
    assert not shape.known
    assert shape.parameters == parameters
    assert 12 * shape.layers * shape.hidden**2 == pytest.approx(parameters, rel=0.02)
    assert shape.hidden == pytest.approx(128 * shape.layers, rel=0.25)
    assert told in cost_of(checkpoint, [PERPLEXITY], A100).assumed[0]


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "[" * 100_000, "\udce9", '{"hidden_size": 64}'),
        '{"hidden_size": "many", "num_hidden_layers": 4}',
        '{"hidden_size": -1, "num_hidden_layers": true}',
        '{"hidden_size": 1e3, "num_hidden_layers": [3]}',
    ],
)
def test_a_damaged_config_is_none(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert not shape_in(Checkpoint(str(tmp_path))).known


VALUES = st.none() | st.booleans() | st.integers(-1, 10**20) | st.floats() | st.text(max_size=3) | st.just([1])
KEYS = [*LLAMA_2_7B, "num_key_value_heads", "head_dim", "n_positions", "num_experts", "rope_scaling", "rope_parameters"]
KEYS += ["max_position_embeddings", "num_experts_per_tok", "moe_intermediate_size", "dtype", "text_config"]
ROPE = st.dictionaries(st.sampled_from(["rope_type", "type", "factor", "full_attention"]), VALUES, max_size=3)


@given(st.dictionaries(st.sampled_from(KEYS), VALUES | ROPE, max_size=12), st.booleans())
def test_no_config_breaks_a_cost(tmp_path_factory, config, sensible):
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    checkpoint = folder(path, (LLAMA_2_7B if sensible else {}) | config)
    found = cost_of(checkpoint, [PERPLEXITY, MISALIGNMENT, "longshort_longbench_e"], A100)
    assert min(found.forward_tokens, found.flops, found.activation_bytes) >= 0
    assert found.weight_bytes > 0
    assert found.hours > 0


def test_nothing_heavy_is_imported():
    code = "import sys, longshort.sweep.cost.estimate; print({'torch', 'transformers', 'lm_eval'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
