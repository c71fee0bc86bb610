"""Tokens and bytes of documents, as each tokenizer sees them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longshort.corpora import Document
from longshort.lmeval.documents import encode, special_prefix
from longshort.lmeval.offsets import draw_second_length
from longshort.testing import tiny_tokenizer
from longshort.training.byte_tokenizer import byte_tokenizer

MERGING, BYTES = tiny_tokenizer(), byte_tokenizer()
text = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


class Model:
    """What `encode` needs of an lm-eval model."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def tok_encode(self, string: str) -> list[int]:
        return list(self.tokenizer.encode(string))


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


def test_a_slow_tokenizer_counts_bytes_by_decoding() -> None:
    class Slow:
        is_fast = False

        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            return {"input_ids": list(text.encode())}

        def decode(self, ids: list[int]) -> str:
            return bytes(ids).decode()

    document = encode(Model(Slow()), Document("d", "plain text"), 5)
    assert document.byte_ends.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("tokenizer", [MERGING, BYTES])
def test_half_a_surrogate_pair_is_read_as_a_question_mark(tokenizer: Any) -> None:
    found, expected = (encode(Model(tokenizer), Document("d", text), 99) for text in ("a\ud800 the é", "a? the é"))
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert found.byte_ends.tolist() == expected.byte_ends.tolist()


@pytest.mark.parametrize(("bos", "expected"), [(False, []), (True, [1])])
def test_special_prefix_is_what_the_tokenizer_adds(bos: bool, expected: list[int]) -> None:
    assert special_prefix(Model(tiny_tokenizer(bos))) == expected


def test_special_prefix_of_several_tokens_and_none_after() -> None:
    tokenizer = SimpleNamespace(
        encode=lambda text, add_special_tokens=True: [8, 9, 5, 7] if add_special_tokens else [5]
    )
    assert special_prefix(Model(tokenizer)) == [8, 9]


@given(st.integers(0, 5), st.integers(0, 100), st.integers(8, 5000))
def test_second_length_is_half_to_one_less(seed: int, document: int, length: int) -> None:
    second = draw_second_length(seed, document, length)
    assert length / 2 <= second < length
    assert second == draw_second_length(seed, document, length)


def test_second_lengths_are_uniform() -> None:
    extras = [16 - draw_second_length(0, document, 16) for document in range(4000)]
    counts = [extras.count(extra) for extra in range(1, 9)]
    assert sum(counts) == 4000
    assert all(abs(count - 500) < 5 * 21 for count in counts)  # 5 standard deviations
