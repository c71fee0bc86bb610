"""The text of retrieval probes, the same for every tokenizer, and its fit to a length in tokens."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from longshort.lmeval.measure import Gap
from longshort.lmeval.retrieval_keys import KEYS
from longshort.lmeval.retrieval_probes import Needle, Probe, Prompt, depth_shares, draw_probe, fit_prompt, longest_fit
from longshort.testing import tiny_tokenizer

WORDS = ["some", "words", "that", "stand", "in", "a", "row,", "and", "after", "them", "others", "again;"]
TEXT = " ".join(WORDS[i * i % len(WORDS)] for i in range(2000))
SENTENCE = re.compile(r"^The access code of the (\w+) office is (\d{7})\.$", re.MULTILINE)


def drawn(seed: int = 0, document: int = 0, depth: int = 0, num_depths: int = 5, num_needles: int = 8) -> Probe:
    probe = draw_probe(seed, document, depth, num_depths=num_depths, num_needles=num_needles, text=TEXT)
    assert probe is not None
    return probe


def words_and_digits() -> PreTrainedTokenizerFast:
    """One token for each word, digit and mark; line breaks are not tokens, as in WordPiece."""
    vocabulary = sorted({*"0123456789.,;", *KEYS, *re.findall(r"\w+", f"The access code of the office is {TEXT}")})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["?", *vocabulary])}, unk_token="?"))
    splits = [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")


TOKENIZERS = {"bytes": tiny_tokenizer(), "words": words_and_digits()}


def fitted(name: str, probe: Probe, length: int) -> Prompt | Gap:
    tokenizer = TOKENIZERS[name]
    ends = range(len(TEXT) + 1)
    return fit_prompt(probe, TEXT, length, lambda text: tokenizer.encode(text, add_special_tokens=False), ends)


@pytest.mark.parametrize(
    ("num_depths", "expected"), [(1, [0.5]), (2, [0, 1]), (3, [0, 0.5, 1]), (5, [0, 0.25, 0.5, 0.75, 1])]
)
def test_depths_are_spread_evenly(num_depths: int, expected: list[float]) -> None:
    assert depth_shares(num_depths) == expected


@settings(max_examples=50)
@given(st.integers(0, 1000), st.integers(0, 100), st.integers(0, 4), st.integers(1, len(KEYS)))
def test_needles_differ_and_lie_in_parts_of_their_own(seed: int, document: int, depth: int, num_needles: int) -> None:
    probe = drawn(seed, document, depth, num_needles=num_needles)
    assert probe == drawn(seed, document, depth, num_needles=num_needles)
    assert len({needle.key for needle in probe.needles}) == len({n.value for n in probe.needles}) == num_needles
    assert probe.asked in probe.needles
    assert probe.asked.depth == depth / 4
    assert all(re.fullmatch(r"[1-9]\d{6}", needle.value) for needle in probe.needles)
    others = [needle.depth for needle in probe.needles if needle is not probe.asked]
    assert [int(other * len(others)) for other in others] == list(range(len(others)))


def test_keys_values_and_depths_vary_over_probes() -> None:
    probes = [drawn(document=document, depth=depth) for document in range(20) for depth in range(5)]
    assert len({probe.asked.value for probe in probes}) == len(probes)
    assert len({probe.asked.key for probe in probes}) > 40
    places = Counter(probe.needles.index(probe.asked) for probe in probes)
    assert (places[0], places[7]) == (20, 20)  # at depths 0 and 1 it is the first and the last one
    assert drawn(seed=1) != drawn(seed=2)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("depth", range(5))
@pytest.mark.parametrize("length", [600, 601, 1500])
def test_a_prompt_has_exactly_the_tokens_of_its_text(name: str, depth: int, length: int) -> None:
    probe, tokenizer = drawn(depth=depth), TOKENIZERS[name]
    prompt = fitted(name, probe, length)
    assert isinstance(prompt, Prompt)
    assert prompt.continuation == f" {probe.asked.value}"
    whole = tokenizer.encode(prompt.context + prompt.continuation, add_special_tokens=False)
    assert prompt.tokens.tolist() == whole
    assert len(whole) == length
    values = tokenizer.encode(prompt.continuation, add_special_tokens=False)
    assert whole[-prompt.num_targets :] == values
    # Needles stand in their order on lines of their own, the question at the end; the rest is the text, in order.
    assert SENTENCE.findall(prompt.context) == [(needle.key, needle.value) for needle in probe.needles]
    body, question = prompt.context.rsplit("\n", 1)
    assert question == probe.asked.question
    rest = "".join(SENTENCE.sub("", body).split())
    assert rest
    assert "".join(TEXT.split()).startswith(rest)
    # The value asked for is at its depth, to the next word.
    before = body.split(probe.asked.sentence)[0]
    share = len("".join(SENTENCE.sub("", before).split())) / len(rest)
    assert share == pytest.approx(depth / 4, abs=20 / len(rest))


def test_the_text_of_needles_is_the_same_for_every_tokenizer() -> None:
    probe = drawn(depth=2)
    prompts = [fitted(name, probe, length) for name in TOKENIZERS for length in (600, 900)]
    assert len({tuple(SENTENCE.findall(prompt.context)) for prompt in prompts}) == 1
    assert len({prompt.context.rsplit("\n")[-1] + prompt.continuation for prompt in prompts}) == 1
    assert len({prompt.context for prompt in prompts}) == 4  # only where the haystack ends depends on the tokenizer


def test_a_needle_at_the_end_stays_there_where_the_others_have_their_places() -> None:
    first, last = Needle("Rome", "1111111", 0.5), Needle("Oslo", "2222222", 1.0)
    text = Probe((first, last), last).context("one two three four", [4, 14])  # places in a shorter haystack
    assert text.splitlines() == ["one", first.sentence, "two three four", last.sentence, last.question]


def test_needles_that_leave_no_room_and_texts_that_are_too_short() -> None:
    short = fitted("bytes", drawn(), 8 * 48)
    assert isinstance(short, Gap)
    assert short.kind == "setting"
    long = fitted("bytes", drawn(), len(TEXT) + 1000)
    assert isinstance(long, Gap)
    assert long.kind == "text"


@settings(max_examples=200)
@given(st.data())
def test_the_longest_fit_of_any_growing_count(data: st.DataObject) -> None:
    """Against trying every end."""
    steps = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=80))
    counts = [10 + sum(steps[:index]) for index in range(len(steps) + 1)]
    length = data.draw(st.integers(11, counts[-1] + 3))
    guess = data.draw(st.integers(-5, len(counts) + 5))
    found = longest_fit(lambda index: counts[index], length, range(len(counts)), guess)
    if max(counts) < length:
        assert found is None
    else:
        best = max(count for count in counts if count <= length)
        assert found is not None
        assert counts[found] == best
