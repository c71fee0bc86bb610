"""Special tokens before a text, whatever its alphabet."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from longshort.scoring.special_tokens import special_tokens_before
from longshort.testing import tiny_tokenizer

SPECIAL = [("<s>", 0), ("</s>", 1)]
TEMPLATES = {"none": ("$A", []), "bos": ("<s> $A", [0]), "eos": ("$A </s>", []), "both": ("<s> $A </s>", [0])}


def nucleotides(processor: Any = None) -> PreTrainedTokenizerFast:
    """A tokenizer with tokens for A, C, G and T alone; other letters have none."""
    tokenizer = Tokenizer(models.WordLevel({token: id for id, token in enumerate(["<s>", "</s>", *"ACGT"])}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if processor is not None:
        tokenizer.post_processor = processor
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_of_a_template(name: str) -> None:
    single, expected = TEMPLATES[name]
    template = processors.TemplateProcessing(single, special_tokens=SPECIAL)
    sequence = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    for processor in (template, sequence):
        tokenizer = nucleotides(processor)
        assert tokenizer.encode("ACG")[: len(expected) + 1] == [*expected, 2]
        assert special_tokens_before(tokenizer) == expected


def test_other_post_processors() -> None:
    assert special_tokens_before(nucleotides()) == []
    assert special_tokens_before(nucleotides(processors.ByteLevel())) == []
    assert special_tokens_before(nucleotides(processors.BertProcessing(("</s>", 1), ("<s>", 0)))) == [0]
    two = processors.TemplateProcessing("</s> <s> $A", special_tokens=SPECIAL)
    assert special_tokens_before(nucleotides(two)) == [1, 0]
    assert special_tokens_before(tiny_tokenizer(bos=True)) == [1]


class Slow(PreTrainedTokenizer):
    """One token per byte, in Python."""

    def __init__(self, pattern: str) -> None:
        super().__init__(bos_token="<s>", eos_token="</s>", special_tokens_pattern=pattern)

    @property
    def vocab_size(self) -> int:
        return 300

    def get_vocab(self) -> dict[str, int]:
        return {str(id): id for id in range(298)} | {"<s>": 298, "</s>": 299}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [str(byte) for byte in text.encode()]

    def _convert_token_to_id(self, token: str) -> int:
        return self.get_vocab()[token]


@pytest.mark.parametrize(("pattern", "bos"), [("none", False), ("bos", True), ("bos_eos", True), ("eos", False)])
def test_a_tokenizer_in_python(pattern: str, bos: bool) -> None:
    tokenizer = Slow(pattern)
    expected = [tokenizer.bos_token_id] if bos else []
    assert tokenizer.encode("A")[: len(expected) + 1] == [*expected, 65]
    assert special_tokens_before(tokenizer) == expected
