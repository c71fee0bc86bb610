"""What the campaign scores: every architecture in its default configuration, and what configurations change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.slow.architectures.tiny import ARCHITECTURES


@dataclass(frozen=True)
class Case:
    """An architecture, and changes to its configuration."""

    architecture: str
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return " ".join([self.architecture, *(f"{key}={value}" for key, value in self.changes.items())])


ENCODERS = (
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
    "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
CASES = [
    *(Case(name) for name in ARCHITECTURES),
    *(Case(name, {"is_decoder": True}) for name in ENCODERS),
    *(Case(name, {"is_causal": False}) for name in ("llama", "mixtral", "gpt2", "qwen3_next", "bart")),
    *(Case(name, {"use_bidirectional_attention": True}) for name in ("gemma", "gemma3_text")),
    *(Case(name, {"use_bidirectional_attention": "all"}) for name in ("gemma4_text", "gemma4_unified_text")),
    Case("gemma4_text", {"use_bidirectional_attention": "vision"}),
    Case("xlm", {"causal": True}),
    Case("musicgen", {"num_codebooks": 1}),
    Case("musicgen_melody", {"num_codebooks": 1}),
    Case("reformer", {"attn_layers": ["local", "local"]}),
]
