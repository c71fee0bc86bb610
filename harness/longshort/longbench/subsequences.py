"""Scores from longest common subsequences: ROUGE-L over words, and the ratio of python-Levenshtein over characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# The `rouge` package walks back through its table by recursion; the official scorer returns 0 if that fails.
# Under Python's recursion limit of 1000, called as the official scorer calls it, the longest walk that succeeds:
LONGEST_WALK = 990


def rouge_l(prediction: str, answer: str, all_classes: Sequence[str] = ()) -> float:
    """ROUGE-L F as the package `rouge` 1.0.1 computes it over whole texts, many times faster.

    The package cuts at full stops, and its F compares sets of distinct words: the words of a longest common
    subsequence of any two sentences, one of each text, against the words of either text. 0 where the package raises:
    a text of nothing but full stops, or a walk longer than its recursion allows.
    """
    predicted, reference = _sentences(prediction), _sentences(answer)
    if not predicted or not reference:
        return 0.0
    places = [_places(sentence) for sentence in predicted]
    common: set[str] = set()
    for sentence in reference:
        words = set(sentence)
        for other, places_in_other in zip(predicted, places, strict=True):
            # What can add no word need not be walked, unless the package would fail on the way.
            short = len(sentence) + len(other) <= LONGEST_WALK
            if short and common.issuperset(words & places_in_other.keys()):
                continue
            subsequence, walk = _common_subsequence(sentence, places_in_other, len(other))
            if walk > LONGEST_WALK:
                return 0.0
            common |= subsequence
    recall = len(common) / len(set().union(*reference))
    precision = len(common) / len(set().union(*places))
    return 2.0 * (precision * recall / (precision + recall + 1e-8))


def _sentences(text: str) -> list[list[str]]:
    """Split at full stops; a sentence of white space alone counts as one empty word."""
    return [sentence.split() or [""] for sentence in text.split(".") if sentence]


def _places(sentence: Sequence[str]) -> dict[str, int]:
    """The positions of each word (or character), as bits."""
    places: dict[str, int] = {}
    for index, word in enumerate(sentence):
        places[word] = places.get(word, 0) | 1 << index
    return places


def _next_row(row: int, places: int, full: int) -> int:
    """The next row of the table in `_common_subsequence`, for a word at these places."""
    equal = row & places
    return ((row + equal) | (row - equal)) & full


def _common_subsequence(sentence: list[str], places: Mapping[str, int], length: int) -> tuple[set[str], int]:
    """The words of that longest common subsequence which the package finds, and the steps of its walk to it.

    The table of lengths is kept as one row of bits per word of `sentence` (Hyyrö, 2004): a bit is 0 where the length
    grows by one. From the table's end the package steps diagonally where the two words are equal, else up where the
    length grows here, else left: so in a row it goes left to the next equal or growing place.

    Args:
        places: of each word in the second sentence, as bits.
        length: words in the second sentence.
    """
    row = full = (1 << length) - 1
    rows = []
    for word in sentence:
        row = _next_row(row, places.get(word, 0), full)
        rows.append(row)
    words: set[str] = set()
    column, walk = length, 0
    for word, row in zip(reversed(sentence), reversed(rows), strict=True):
        equal = places.get(word, 0)
        stop = ((equal | ~row) & ((1 << column) - 1)).bit_length()
        walk += column - stop
        column = stop
        if column == 0:
            break
        walk += 1
        if equal >> (column - 1) & 1:
            words.add(word)
            column -= 1
            if column == 0:
                break
    return words, walk


def levenshtein_ratio(first: str, second: str) -> float:
    """`Levenshtein.ratio`: 1 minus the insertions and deletions from one text to the other over their characters."""
    total = len(first) + len(second)
    if total == 0:
        return 1.0
    full = (1 << len(second)) - 1
    places = _places(second)
    row = full
    for character in first:  # the table of common subsequences, as in `_common_subsequence`
        row = _next_row(row, places.get(character, 0), full)
    common = len(second) - row.bit_count()
    return 1 - (total - 2 * common) / total  # rounded in this order, as there: 2 * common / total may differ
