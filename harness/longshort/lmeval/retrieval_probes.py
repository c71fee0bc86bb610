"""Retrieval probes: key-value sentences in a haystack, the question for one of them, and their fit to a length.

Keys, values and depths are drawn from the seed alone, so they are the same for every model and tokenizer. Only where
the haystack ends depends on the tokenizer, since lengths are in tokens.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longshort.lmeval.measure import TOO_SHORT, Gap
from longshort.lmeval.retrieval_keys import KEYS

QUESTION = "The access code of the {key} office is"
DIGITS = 7
GUESSES = 6  # ends that are tried before bisecting between those that are known
NEAREST_SPACE = 100  # characters before a depth in which a space is looked for, so that no word is cut


@dataclass(frozen=True)
class Needle:
    """A key and its value, hidden in the haystack."""

    key: str
    value: str
    depth: float  # the share of the haystack's characters before it, in [0, 1]

    @property
    def question(self) -> str:
        """The sentence up to its value."""
        return QUESTION.format(key=self.key)

    @property
    def sentence(self) -> str:
        """The text that is hidden in the haystack."""
        return f"{self.question} {self.value}."


@dataclass(frozen=True)
class Probe:
    """Needles in the order of their depths, one of which is asked for at the end."""

    needles: tuple[Needle, ...]
    asked: Needle

    def places(self, haystack: str) -> list[int]:
        """Return where the needles go, in characters of the haystack; at white space if any is near."""
        return [_space_before(haystack, round(needle.depth * len(haystack))) for needle in self.needles]

    def context(self, haystack: str, places: Sequence[int] | None = None) -> str:
        """Return the text before the value: the haystack with its needles, and the question.

        Every needle and the question is on a line of its own. White space next to a needle is removed, but not
        at the end of the haystack, where it would change how many tokens the next character adds.

        Args:
            places: where the needles go, by default `places` of this haystack; a needle at depth 1 stays at its end.
        """
        parts, start = [], 0
        for needle, wanted in zip(self.needles, places or self.places(haystack), strict=True):
            place = len(haystack) if needle.depth == 1 else min(max(start, wanted), len(haystack))
            parts += [haystack[start:place].strip() if place < len(haystack) else haystack[start:], needle.sentence]
            start = place
        parts += [haystack[start:].lstrip() if start else haystack, self.asked.question]
        return "\n".join(part for part in parts if part)

    @property
    def continuation(self) -> str:
        """The text that is scored."""
        return f" {self.asked.value}"


def depth_shares(num_depths: int) -> list[float]:
    """Return evenly spread depths: 0 is the start of the haystack, 1 its end; a single one is its middle."""
    if num_depths == 1:
        return [0.5]
    return [round(index / (num_depths - 1), 4) for index in range(num_depths)]


def draw_probe(seed: int, document: int, depth: int, *, num_depths: int, num_needles: int, text: str) -> Probe | None:
    """Draw the needles of one probe: the one that is asked for at its depth, each other one in a part of its own.

    Args:
        document: index of the document that is the haystack.
        depth: index into `depth_shares` of the needle that is asked for.
        num_needles: K; the K - 1 others are drawn uniformly, one in each of K - 1 equal parts of the haystack.
        text: of the document; keys for which it already has the question are not used.

    Returns:
        The probe, or None if fewer than K keys remain.
    """
    generator = random.Random(f"{seed} {document} {depth}")
    keys = [key for key in KEYS if QUESTION.format(key=key) not in text] if QUESTION.partition("{")[0] in text else KEYS
    if len(keys) < num_needles:
        return None
    chosen = generator.sample(keys, num_needles)
    values = generator.sample(range(10 ** (DIGITS - 1), 10**DIGITS), num_needles)
    asked = Needle(chosen[0], str(values[0]), depth_shares(num_depths)[depth])
    num_others = num_needles - 1
    others = [
        Needle(key, str(value), (part + generator.random()) / num_others)
        for part, (key, value) in enumerate(zip(chosen[1:], values[1:], strict=True))
    ]
    return Probe(tuple(sorted([asked, *others], key=lambda needle: needle.depth)), asked)


@dataclass(frozen=True)
class Prompt:
    """A probe at one length."""

    context: str
    continuation: str
    tokens: Tensor  # of context and continuation, with the special tokens before them, [N]
    num_targets: int  # tokens of the value, which are the last ones


JOINED = Gap("unsupported", "the tokenizer joins the question and the value, or adds special tokens after a text")


def fit_prompt(
    probe: Probe, text: str, length: int, encode: Callable[[str], list[int]], ends: Sequence[int]
) -> Prompt | Gap:
    """Return a probe with as much of a text as haystack as `length` tokens hold, or why there is none.

    The tokens are those of the whole text of the probe, also where a needle begins or ends, and count towards the
    length: special tokens, haystack, needles, question and value. The targets are what the value adds to the tokens of
    the context, as lm-eval's ``loglikelihood`` splits them.

    Args:
        text: the document that is cut to the haystack.
        encode: returns the token ids of a text with the special tokens that are put before it.
        ends: characters of the text after which it may be cut, as in `longest_fit`.
    """
    encoded: dict[str, list[int]] = {}
    places: list[int] | None = None

    def context(characters: int) -> str:
        return probe.context(text[:characters], places)

    def count(characters: int) -> int:
        whole = context(characters) + probe.continuation
        encoded[whole] = encoded.get(whole) or encode(whole)
        return len(encoded[whole])

    fewest = count(0)
    if fewest >= length:
        needles = f"{len(probe.needles)} needles" if len(probe.needles) > 1 else "the needle"
        return Gap("setting", f"{needles} and the question leave no room for a haystack; lower needles")
    characters = longest_fit(count, length, ends, length - fewest)
    if characters is not None and count(characters) < length:
        # Each end moves the needles a little, and with them what their borders take: only the end moves from here on.
        places = probe.places(text[:characters])
        characters = longest_fit(count, length, ends, bisect_left(ends, characters))
    if characters is None:
        return TOO_SHORT
    tokens, before = encoded[context(characters) + probe.continuation], encode(context(characters))
    if len(before) >= len(tokens) or tokens[: len(before)] != before:
        return JOINED
    return Prompt(context(characters), probe.continuation, torch.tensor(tokens), len(tokens) - len(before))


def longest_fit(count: Callable[[int], int], length: int, ends: Sequence[int], guess: int) -> int | None:
    """Find the longest haystack with which a probe has at most `length` tokens.

    Args:
        count: returns the probe's number of tokens for a haystack of the first n characters of the text; nearly
            monotonic in n.
        length: in tokens.
        ends: characters after which the haystack may end, ascending, from 0 on; about one for each token, or for each
            character. ``count(0)`` is below `length`.
        guess: index into `ends` that is tried first.

    Returns:
        The number of characters, or None if the whole text does not suffice. Usually the probe then has exactly
        `length` tokens; it has one or two fewer where a single character takes several.
    """
    fewest = count(0)
    low, high = 0, len(ends)  # index of an end that fits, and of one that does not
    for steps_left in range(GUESSES + len(ends).bit_length(), 0, -1):
        if high - low <= 1:
            break
        bisects = steps_left <= len(ends).bit_length() or not low < guess < high
        index = (low + high) // 2 if bisects else guess
        found = count(ends[index])
        if found == length:
            return ends[index]
        low, high = (index, high) if found < length else (low, index)
        guess = index + round((length - found) * max(1.0, index / max(1, found - fewest)))
    return None if high == len(ends) else ends[low]


def _space_before(text: str, place: int) -> int:
    """Return the place behind the nearest white space before a place, or this place if there is none near."""
    if place < len(text):  # the end of the text is not moved: nothing follows that could be cut
        for start in range(place, max(0, place - NEAREST_SPACE), -1):
            if text[start - 1].isspace():
                return start
    return place
