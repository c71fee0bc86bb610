"""How far each architecture can address, and which ones change with the sequence length."""

from __future__ import annotations

import accelerate
import pytest
import torch
import transformers

from longshort.scoring import score_prefix
from longshort.scoring.positions import addressable_length, depends_on_length
from tests.models import CONFIGS, LLAMA_LIKE, TOKENS, dense_log_probabilities, random_tokens, tiny_model
from tests.slow.architectures.tiny import tiny_model as tiny_architecture

LIMITS = {"gpt2": 64, "gptj": 64, "opt": 64}


@pytest.mark.parametrize("name", CONFIGS)
def test_addressable_length_is_where_the_model_breaks(name: str) -> None:
    model = tiny_model(name)
    limit = addressable_length(model)
    assert limit == LIMITS.get(name)
    model(random_tokens(1, limit or 300))
    if limit:
        with pytest.raises((IndexError, RuntimeError)):
            model(random_tokens(1, limit + 1))


SIZE = {"vocab_size": 61, "bos_token_id": 1, "eos_token_id": 2}
BY_POSITION = {
    "bert": transformers.BertConfig(  # torch.gather(table, dim=1, index=positions)
        **SIZE, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, is_decoder=True,
    ),
    "ctrl": transformers.CTRLConfig(**SIZE, n_positions=64, n_embd=32, dff=48, n_layer=1, n_head=4),
    "codegen": transformers.CodeGenConfig(
        **SIZE, n_positions=64, n_ctx=64, n_embd=32, n_layer=1, n_head=4, rotary_dim=4
    ),
    "gpt_neo": transformers.GPTNeoConfig(
        **SIZE, max_position_embeddings=64, hidden_size=32, num_layers=2, num_heads=4, window_size=8,
        attention_types=[[["global", "local"], 1]],
    ),
    "whisper": transformers.WhisperConfig(
        **SIZE, max_target_positions=64, d_model=32, decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=48,
        encoder_layers=1, encoder_attention_heads=4, encoder_ffn_dim=48, pad_token_id=0,
    ),
    "mpt": transformers.MptConfig(**SIZE, max_seq_len=64, d_model=32, n_layers=1, n_heads=4),
    "xglm": transformers.XGLMConfig(  # a table of sinusoids as wide as it has rows, which grows
        **SIZE, max_position_embeddings=64, d_model=64, num_layers=1, attention_heads=4, ffn_dim=48, pad_token_id=0
    ),
}  # fmt: skip
GROWING = ("xglm",)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", BY_POSITION)
def test_the_end_of_positions_is_found_however_they_are_looked_up(name: str, dtype: torch.dtype) -> None:
    model = transformers.AutoModelForCausalLM.from_config(BY_POSITION[name]).eval().to(dtype)
    tables = [(tensor, tensor.clone()) for tensor in model.buffers()]
    assert addressable_length(model) == (None if name in GROWING else 64)
    assert all(torch.equal(now, before) for now, before in tables)
    assert longest_sequence(model, 70) == (70 if name in GROWING else 64)


@pytest.mark.parametrize("name", ["gpt2", "gptj"])
@pytest.mark.parametrize("in_place", [True, False])
def test_the_end_of_a_compiled_model_is_found(name: str, in_place: bool) -> None:
    model = tiny_model(name)
    if in_place:
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    assert addressable_length(model) == LIMITS[name]


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_the_end_is_found_where_weights_are_offloaded(name: str) -> None:
    model = accelerate.cpu_offload(tiny_model(name), execution_device=torch.device("cpu"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert addressable_length(model) == LIMITS[name]


@pytest.mark.parametrize(("local", "lsh", "expected"), [(8, 8, 64), (16, 24, 48), (None, 40, 40), (100, None, 64)])
@pytest.mark.parametrize("axial", [True, False])
def test_reformer_reads_whole_chunks(local: int | None, lsh: int | None, axial: bool, expected: int) -> None:
    config = transformers.ReformerConfig(
        vocab_size=61, is_decoder=True, max_position_embeddings=64, axial_pos_shape=(8, 8), axial_pos_embds=axial,
        hidden_size=32, axial_pos_embds_dim=(16, 16), attention_head_size=8, feed_forward_size=48,
        attn_layers=["local"] * bool(local) + ["lsh"] * bool(lsh), num_attention_heads=4,
        local_attn_chunk_length=local or 1, lsh_attn_chunk_length=lsh or 1, num_buckets=2,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert addressable_length(model) == longest_sequence(model, 70) == expected


class Slices(torch.nn.Module):
    """Position tables as remote code has them: the first T rows of a parameter, a buffer or a cache that grows."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embedding, self.lm_head = torch.nn.Embedding(61, 20), torch.nn.Linear(20, 61)
        self.kind, self.longest = kind, 20  # as many as the hidden size
        if kind == "parameter":
            self.table = torch.nn.Parameter(torch.randn(1, 20, 20))
        elif kind == "attribute":
            self.table = torch.randn(1, 20, 20)
        else:
            self.register_buffer("table", torch.randn(1, 20, 20))

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embedding

    def forward(self, input_ids: torch.Tensor, **_: object) -> object:
        length = input_ids.shape[1]
        if self.kind == "grows" and length > self.longest:
            self.table, self.longest = torch.randn(1, length, 20), length
        states = self.embedding(input_ids) + self.table[:, :length]
        return transformers.modeling_outputs.CausalLMOutput(logits=self.lm_head(states))


@pytest.mark.parametrize("kind", ["parameter", "buffer", "attribute", "grows"])
def test_a_table_that_is_sliced_ends_unless_it_grows(kind: str) -> None:
    model = Slices(kind)
    table = model.table
    assert addressable_length(model) == (None if kind == "grows" else 20)
    assert model.table is table
    assert model.longest == 20


@torch.no_grad()
def longest_sequence(model: torch.nn.Module, limit: int) -> int:
    """By trying every length from 30 on."""
    for length in range(30, limit + 1):
        try:
            model(random_tokens(1, length), use_cache=False)
        except (IndexError, RuntimeError, ValueError):
            return length - 1
    return limit


def rope_model(original: int, **rope: object) -> torch.nn.Module:
    torch.manual_seed(0)
    parameters = {"rope_theta": 10000.0} | rope
    config = transformers.LlamaConfig(
        **(LLAMA_LIKE | {"max_position_embeddings": original}), **TOKENS, rope_parameters=parameters
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.ndim == 2 else 1)
    return model


LONGROPE = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "default"}, False),
        ({"rope_type": "linear", "factor": 4.0}, False),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, False),
        ({"rope_type": "dynamic", "factor": 2.0}, True),
        ({"rope_type": "longrope", **LONGROPE}, True),
    ],
)
@pytest.mark.parametrize("declared", [True, False])
def test_dependence_on_length_by_config_and_by_probe(
    rope: dict[str, object], expected: bool, declared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not declared:  # as with remote code: only the probe can tell
        monkeypatch.setattr("longshort.scoring.positions._declares_dependence", lambda *args: False)
    model, tokens = rope_model(32, **rope), random_tokens(1, 96)
    assert depends_on_length(model, tokens, [24, 64, 96], score_prefix(model, tokens)) is expected


def test_dynamic_rope_within_its_original_length_needs_one_pass() -> None:
    model, tokens = rope_model(32, rope_type="dynamic", factor=2.0), random_tokens(1, 30)
    assert not depends_on_length(model, tokens, [12, 30], score_prefix(model, tokens))


@pytest.mark.parametrize("name", CONFIGS)
def test_no_other_architecture_depends_on_length(name: str) -> None:
    model, tokens = tiny_model(name), random_tokens(1, 60)
    assert not depends_on_length(model, tokens, [20, 60], score_prefix(model, tokens))


@pytest.mark.parametrize("name", ["doge", "deepseek_v32"])
def test_sparse_attention_is_tried_where_it_leaves_out_keys(name: str) -> None:
    """They keep 16 and 8 keys for each token; with so few tokens they attend to all."""
    model, tokens = tiny_architecture(name), random_tokens(1, 40)
    kept = 16 if name == "doge" else 8
    nll = score_prefix(model, tokens)
    assert not depends_on_length(model, tokens, [kept // 2, 40], nll)  # nothing else is read off the pass
    assert depends_on_length(model, tokens, [kept // 2, 25, 40], nll)
    with torch.no_grad():
        alone, longer = (dense_log_probabilities(model, tokens[:, :length])[0, :25] for length in (25, 40))
    assert (alone - longer).abs().max() > 0.01
