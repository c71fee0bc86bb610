"""The first tokens of a long text are those of the whole text, for every kind of tokenizer."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from longshort.lmeval import first_tokens as module
from longshort.lmeval.first_tokens import first_tokens

TEXT = (
    "the river was high that spring and thin bridges below the mill had been closed since Sunday it's they're naïve "
    "père x² 日本語 東京都 Straße 🙂🙂 1234567 3.14159 foo_bar() <html> `` '' ... – ﬁne é e\u0301 ПриветМир"
)
WORDS = TEXT.split()
SPACES = [" ", "  ", "\n", "\n\n", " \n ", "\t", "\u3000", "\u00a0", "\r\n", "    "]
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
DIGITS_FROM_THE_RIGHT = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))|[^\p{N}]+?(?=\p{N}|\s|$)|\s+"


def made(backend: Tokenizer, trainer: Any = None, vocabulary: int = 400) -> PreTrainedTokenizerFast:
    if trainer is not None:
        generator = random.Random(0)
        texts = ["".join(generator.choice(WORDS) + generator.choice(SPACES) for _ in range(200)) for _ in range(20)]
        backend.train_from_iterator(texts, trainer(vocab_size=vocabulary, show_progress=False, special_tokens=["<s>"]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=getattr(backend.model, "unk_token", None))


def byte_level(*before: Any, use_regex: bool = False) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([*before, pre_tokenizers.ByteLevel(False, use_regex=use_regex)])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return made(backend, lambda **options: trainers.BpeTrainer(initial_alphabet=alphabet, **options))


def pieces(model: Any, normalizer: Any, pre_tokenizer: Any, trainer: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    backend.normalizer, backend.pre_tokenizer = normalizer, pre_tokenizer
    return made(backend, trainer)


def llama_2() -> PreTrainedTokenizerFast:
    """Without pre-tokenizer; its vocabulary comes from words."""
    words = pieces(models.BPE(), None, pre_tokenizers.Metaspace(), trainers.BpeTrainer)
    state = words.backend_tokenizer
    vocabulary = state.get_vocab()
    merges = [tuple(pair) for pair in json.loads(state.to_str())["model"]["merges"]]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    vocabulary.setdefault("▁", len(vocabulary))
    backend = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return made(backend)


def unigram(vocabulary: list[tuple[str, float]], pre_tokenizer: Any = None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.Unigram([("<unk>", -20.0), *vocabulary], unk_id=0))
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    return made(backend)


def bpe_trainer(**options: Any) -> Any:
    return trainers.BpeTrainer(**options | {"special_tokens": ["<s>", "<unk>"]})


def unigram_trainer(**options: Any) -> Any:
    return trainers.UnigramTrainer(unk_token="<unk>", **options | {"special_tokens": ["<s>", "<unk>"]})


def word_piece_trainer(**options: Any) -> Any:
    return trainers.WordPieceTrainer(**options | {"special_tokens": ["<s>", "[UNK]"]})


def with_added_tokens() -> PreTrainedTokenizerFast:
    tokenizer = byte_level(use_regex=True)
    tokenizer.add_tokens(
        [
            AddedToken("<|endoftext|>", special=True),
            AddedToken("spring and thin bridges below the mill"),
            AddedToken("<mask>", lstrip=True, rstrip=True),
            AddedToken("high", single_word=True),
        ]
    )
    return tokenizer


METASPACE, BERT = pre_tokenizers.Metaspace(), pre_tokenizers.BertPreTokenizer()
LETTERS = [(letter, -5.0) for letter in sorted({*"".join(WORDS), " ", "▁", "\n"})]
TOKENIZERS = {
    "GPT-2": byte_level(use_regex=True),
    "Llama 3": byte_level(pre_tokenizers.Split(Regex(LLAMA_3), "isolated")),
    "digits from the right": byte_level(pre_tokenizers.Split(Regex(DIGITS_FROM_THE_RIGHT), "isolated")),
    "added tokens": with_added_tokens(),
    "BPE of bytes over spaces": byte_level(),
    "Llama 2": llama_2(),
    "BPE with metaspace": pieces(models.BPE(unk_token="<unk>", fuse_unk=True), None, METASPACE, bpe_trainer),
    "BPE over spaces": pieces(models.BPE(unk_token="<unk>", fuse_unk=True), normalizers.NFC(), None, bpe_trainer),
    "Unigram with metaspace": pieces(
        models.Unigram(),
        normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]),
        METASPACE,
        unigram_trainer,
    ),
    "Unigram over spaces": unigram([*LETTERS, ("the river", -1.0), ("r w", -1.5), (" th", -2.0), ("in ", -2.5)]),
    "Unigram of words, no pre-tokenizer": unigram([*LETTERS, (" the", -1.0), (" river", -1.5), (" th", -2.0)]),
    "WordPiece": pieces(
        models.WordPiece(unk_token="[UNK]"), normalizers.BertNormalizer(), BERT, word_piece_trainer
    ),
    "characters": unigram(LETTERS),
}  # fmt: skip


def whole(tokenizer: Any, text: str, num_tokens: int) -> tuple[list[int], list[tuple[int, int]]]:
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoding["input_ids"][:num_tokens], encoding["offset_mapping"][:num_tokens]


class Counting:
    """A tokenizer that notes how many characters it is given at most."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.longest = 0

    def __call__(self, text: str, **options: Any) -> Any:
        self.longest = max(self.longest, len(text))
        return self.tokenizer(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Words, runs of spaces, of digits and of one word, in an order of their own, and cut anywhere."""
    generator = random.Random(draw(st.integers(0, 10_000)))
    spaces = draw(st.sampled_from([SPACES, [" "], ["\n"], [""], [" ", ""]]))
    extra = draw(st.sampled_from(["", "<|endoftext|>", "<mask>", "spring and thin bridges below the mill", " " * 300]))
    parts = []
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["words", "digits", "run", "word", "extra"]))
        count = draw(st.integers(1, 120))
        if kind == "words":
            parts += [generator.choice(WORDS) + generator.choice(spaces) for _ in range(count)]
        elif kind == "digits":
            parts.append("".join(generator.choices("0123456789", k=count)))
        elif kind == "run":
            parts.append(generator.choice(SPACES) * count)
        elif kind == "word":
            parts.append(generator.choice(WORDS) * count)
        else:
            parts.append(extra)
    return "".join(parts)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=texts(), num_tokens=st.integers(1, 200), margin=st.sampled_from([16, 64]))
def test_first_tokens_are_those_of_the_whole_text(
    name: str, text: str, num_tokens: int, margin: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a small margin, so that short texts are cut too."""
    monkeypatch.setattr(module, "MARGIN", margin)
    monkeypatch.setattr(module, "CHARACTERS_PER_TOKEN", 1)
    tokenizer = TOKENIZERS[name]
    assert first_tokens(tokenizer, text, num_tokens) == whole(tokenizer, text, num_tokens)


@pytest.mark.parametrize("name", sorted(TOKENIZERS.keys() - {"BPE of bytes over spaces", "BPE over spaces"}))
def test_only_the_beginning_of_a_long_text_is_tokenized(name: str) -> None:
    generator = random.Random(1)
    text = "".join(generator.choice(WORDS[:16]) + " " for _ in range(10_000))
    counting = Counting(TOKENIZERS[name])
    found = first_tokens(counting, text, 500)
    assert found == whole(TOKENIZERS[name], text, 500)
    assert counting.longest == (len(text) if name == "Unigram over spaces" else 500 * 6 + 4096)


PARITY = unigram([("a", -5.0), ("b", -5.0), ("ab", -2.0), ("ba", -1.999)])


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [
        pytest.param(PARITY, "ab" * 20_000, id="the end decides about the beginning"),
        pytest.param(TOKENIZERS["digits from the right"], "234567" * 1000, id="digits"),
        pytest.param(TOKENIZERS["digits from the right"], "234567" * 1000 + " and then more", id="digits, words"),
        pytest.param(TOKENIZERS["GPT-2"], " " * 40_000 + "a", id="spaces"),
        pytest.param(TOKENIZERS["WordPiece"], "a" * 40_000, id="one unknown word"),
        pytest.param(TOKENIZERS["WordPiece"], "the river " + "日" * 10_000, id="no spaces"),
        pytest.param(TOKENIZERS["Llama 2"], "ab" * 20_000, id="no spaces, no pre-tokenizer"),
        pytest.param(TOKENIZERS["Unigram with metaspace"], "a" + " " * 40_000 + "b c", id="spaces that are collapsed"),
    ],
)
def test_texts_whose_end_may_change_their_first_tokens(tokenizer: Any, text: str) -> None:
    for stop in range(len(text) - 4, len(text) + 1):
        assert first_tokens(tokenizer, text[:stop], 40) == whole(tokenizer, text[:stop], 40)


def test_the_end_can_change_the_first_tokens() -> None:
    """What the tests above rely on: the same beginning, other first tokens."""
    assert whole(PARITY, "ab" * 5_000, 1) != whole(PARITY, "ab" * 20_000, 1)
    digits = TOKENIZERS["digits from the right"]
    assert whole(digits, "234567", 1) != whole(digits, "2345672", 1)
