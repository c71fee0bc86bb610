"""Tokens and bytes of documents, as each tokenizer sees them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, ByT5Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from longshort.corpora import Document
from longshort.lmeval import documents
from longshort.lmeval.documents import _decoded_bytes, encode, pieces, special_tokens
from longshort.testing import save_checkpoint, tiny_tokenizer
from longshort.training.byte_tokenizer import byte_tokenizer
from tests.errors import user_error
from tests.lmeval.conftest import run, values
from tests.scoring.test_special_tokens import nucleotides

MERGING, BYTES = tiny_tokenizer(), byte_tokenizer()
text = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


class Model:
    """What `encode` needs of an lm-eval model."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer


@settings(deadline=None)
@given(text)
def test_every_byte_belongs_to_one_token_of_a_byte_vocabulary(text: str) -> None:
    document = encode(Model(BYTES), Document("d", text), 10_000)
    assert len(document.tokens) == len(text.encode())
    assert [document.num_bytes(i, i + 1) for i in range(len(document.tokens))] == pytest.approx(
        [1] * len(text.encode())
    )


@settings(deadline=None)
@given(text, st.data())
def test_bytes_of_a_slice_with_merges(text: str, data: st.DataObject) -> None:
    document = encode(Model(MERGING), Document("d", text), 10_000)
    names = MERGING.convert_ids_to_tokens(document.tokens.tolist())  # one character of a name is one byte
    stop = data.draw(st.integers(1, len(names)))
    start = data.draw(st.integers(0, stop - 1))
    # Characters cut by the slice's ends count in equal shares of their tokens: less than one character off.
    assert document.num_bytes(start, stop) == pytest.approx(sum(map(len, names[start:stop])), abs=3)
    assert document.num_bytes(0, len(names)) == len(text.encode())


def test_documents_are_cut_and_cached() -> None:
    model, document = Model(BYTES), Document("d", "abc" * 10)
    assert encode(model, document, 7).tokens.tolist() == list(b"abcabca")
    assert encode(model, document, 7) is encode(model, document, 7)
    assert encode(model, Document("d", "other text"), 7).tokens.tolist() == list(b"other t")


class Slow:
    """A tokenizer without a fast version: what it needs is a text for every list of ids."""

    is_fast = False

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self.decode = decode

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}


PIECES = [*"ab ,.", " ", "th", " the", "ing ", "é", "日", "🙂", " n't", "'", '"', "``", " ."]


def sentencepiece(ids: list[int]) -> str:
    """Pieces of text or of a byte; one leading space is not text."""
    data = b"".join(PIECES[i // 2 % len(PIECES)].encode() if i % 2 else bytes([i]) for i in ids)
    return data.decode("utf-8", "replace").removeprefix(" ")


def word_pieces(ids: list[int]) -> str:
    """Words and their ends, spaces before punctuation removed, stripped."""
    text = " ".join(("##" if i % 3 == 0 else "") + PIECES[i % len(PIECES)] for i in ids)
    for old, new in ((" ##", ""), (" .", "."), (" n't", "n't"), (" ,", ",")):
        text = text.replace(old, new)
    return text.strip()


def quotes(ids: list[int]) -> str:
    """Every second quotation mark of the whole text takes the space before it: no window of it shows that."""
    parts = "".join(PIECES[i % len(PIECES)] for i in ids).split('"')
    return '"'.join(part.strip() if index % 2 else part for index, part in enumerate(parts))


DECODERS = {
    "byte-level BPE": lambda ids: b"".join(bytes([i, i // 2][: 1 + i % 2]) for i in ids).decode("utf-8", "replace"),
    "bytes": lambda ids: bytes(ids).decode("utf-8", "ignore"),
    "characters": lambda ids: "".join(PIECES[i % len(PIECES)][-1] for i in ids),
    "sentencepiece": sentencepiece,
    "word pieces": word_pieces,
    "ByT5": ByT5Tokenizer().decode,
}


@pytest.mark.parametrize("name", DECODERS)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.tuples(st.lists(st.integers(0, 255), max_size=9), st.integers(1, 9)), max_size=12))
def test_bytes_of_a_slow_tokenizer_are_those_of_every_prefix(
    name: str, parts: list[tuple[list[int], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [i for part, times in parts for i in part * times]
    decode = DECODERS[name]
    monkeypatch.setattr(documents, "DECODED_EXACTLY", 4)
    expected = [len(decode(ids[: count + 1]).encode("utf-8", "replace")) for count in range(len(ids))]
    assert _decoded_bytes(Slow(decode), ids).tolist() == expected


def test_bytes_of_a_slow_tokenizer_that_decodes_by_pairs_of_quotes() -> None:
    ids = [PIECES.index(piece) for piece in [*"a b", " ", '"', "b", " ", '"', " ", "a"] * 60]
    expected = [len(quotes(ids[: count + 1]).encode()) for count in range(len(ids))]
    assert _decoded_bytes(Slow(quotes), ids).tolist() == expected


def test_bytes_of_a_slow_tokenizer_after_a_long_run_of_spaces() -> None:
    text = "a" + " " * 500 + "b" + " " * 50 + "é."
    expected = [len(text[: count + 1].strip().encode()) for count in range(len(text))]
    assert _decoded_bytes(Slow(lambda ids: "".join(map(chr, ids)).strip()), [*map(ord, text)]).tolist() == expected


def test_a_slow_tokenizer_decodes_in_linear_time() -> None:
    decoded = 0

    def decode(ids: list[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return bytes(ids).decode("utf-8", "replace")

    text = "Straße, 日本 🙂 " * 300
    document = encode(Model(Slow(decode)), Document("d", text), 6000)
    assert document.num_bytes(0, 6000) == 6000
    assert decoded < 50 * 6000


@pytest.mark.parametrize("tokenizer", [MERGING, BYTES])
def test_half_a_surrogate_pair_is_read_as_a_question_mark(tokenizer: Any) -> None:
    found, expected = (encode(Model(tokenizer), Document("d", text), 99) for text in ("a\ud800 the é", "a? the é"))
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert found.byte_ends.tolist() == expected.byte_ends.tolist()


@pytest.mark.parametrize(
    ("wanted", "bos", "expected"), [(None, False, []), (None, True, [1]), (True, True, [1]), (False, True, [])]
)
def test_special_tokens_are_those_that_the_tokenizer_adds(wanted: bool | None, bos: bool, expected: list[int]) -> None:
    model: Any = Model(tiny_tokenizer(bos))
    model.add_bos_token = wanted  # as lm-eval's argument
    assert special_tokens(model) == expected


def test_a_bos_that_does_not_exist_cannot_be_added() -> None:
    model: Any = Model(tiny_tokenizer())
    model.add_bos_token = True
    with user_error("setting", "add_bos_token", field="add_bos_token"):
        special_tokens(model)


def test_bos_is_read_where_no_letter_has_a_token(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "model", vocab_size=6, bos_token_id=0)
    nucleotides(TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])).save_pretrained(folder)
    letters = "".join(random.Random(0).choices("ACGT", k=40))
    (tmp_path / "corpus.txt").write_text(letters)
    metadata = {"corpus": str(tmp_path / "corpus.txt"), "lengths": [16, 32], "num_docs": 1}
    found = values(run(folder, ["longshort_perplexity"], metadata), "longshort_perplexity")
    tokens = torch.tensor([[0] + ["ACGT".index(letter) + 2 for letter in letters]])
    with torch.no_grad():
        log_p = AutoModelForCausalLM.from_pretrained(folder)(tokens).logits[0].double().log_softmax(-1)
    for length in (16, 32):
        nll = [-float(log_p[t - 1, tokens[0, t]]) for t in range(1, length)]
        assert found[f"ppl@{length}"] == pytest.approx(math.exp(sum(nll) / len(nll)), rel=1e-4)


# ---- the text of each token


def bytes_up_to_each(tokenizer: Any, text: str) -> list[bytes]:
    """The bytes of a byte-level tokenizer's tokens, added up: in a token's name, one character is one byte."""
    names = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
    alphabet = {character: byte for byte, character in bytes_to_unicode().items()}
    content = [bytes(alphabet[character] for character in name) for name in names]
    return [b"".join(content[: index + 1]) for index in range(len(content))]


@settings(deadline=None)
@given(text, st.integers(1, 60))
def test_each_token_has_the_characters_that_it_completes(text: str, num_tokens: int) -> None:
    """The last token may also have a character that it only begins."""
    read = bytes_up_to_each(MERGING, text)
    found = pieces(MERGING, Document("d", text), num_tokens)
    assert len(found) == min(num_tokens, len(read))
    for index, content in enumerate(read[: len(found) - 1]):
        assert "".join(found[: index + 1]) == content.decode(errors="ignore")
    assert text.startswith("".join(found))
    if num_tokens >= len(read):
        assert "".join(found) == text


def test_of_a_character_in_several_tokens_the_last_one_has_the_text() -> None:
    assert pieces(MERGING, Document("d", "the 日🙂in"), 99) == ["the", " ", "", "", "日", "", "", "", "🙂", "in"]
    assert pieces(MERGING, Document("d", "the 日🙂in"), 4) == ["the", " ", "", "日"]
    assert pieces(MERGING, Document("d", ""), 4) == []


@pytest.mark.parametrize("name", DECODERS)
@settings(deadline=None, max_examples=60)
@given(text=text)
def test_pieces_of_a_slow_tokenizer_make_what_it_decodes(name: str, text: str) -> None:
    found = pieces(Slow(DECODERS[name]), Document("d", text), 10_000)
    assert len(found) == len(text.encode())
    assert "".join(found) == DECODERS[name](list(text.encode()))


def test_pieces_of_a_slow_byte_tokenizer_end_with_their_characters() -> None:
    tokenizer = ByT5Tokenizer()
    assert pieces(tokenizer, Document("d", "a日b"), 9) == ["a", "", "", "日", "b"]
    long = "日本 père " * 100
    found = pieces(tokenizer, Document("d", long), 10_000)
    assert "".join(found) == long
    assert len(found) == len(long.encode())
    assert found[:4] == ["", "", "日", ""]
