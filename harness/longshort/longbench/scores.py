"""The official LongBench metrics, and the table of the 13 datasets of LongBench-E.

Source: `THUDM/LongBench`, `LongBench/metrics.py` and `eval.py`. Every metric takes a prediction, one right answer and
the names of all classes (which only classification reads) and returns a score in [0, 1]. Their quirks are part of the
benchmark: published numbers contain them.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from math import isfinite
from typing import Any

BUCKETS = ("0-4k", "4-8k", "8k+")

# The `rouge` package walks back through its table by recursion; the official scorer returns 0 if that fails.
# Under Python's recursion limit of 1000, called as the official scorer calls it, the longest walk that succeeds:
LONGEST_WALK = 990

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_PARAGRAPH = re.compile(r"Paragraph (\d+)")


def qa_f1(prediction: str, answer: str, all_classes: Sequence[str] = ()) -> float:
    """F1 over the multisets of words, lower-cased, without punctuation and articles."""
    predicted, right = _words(prediction), _words(answer)
    shared = sum((Counter(predicted) & Counter(right)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(right)
    return 2 * precision * recall / (precision + recall)


def _words(text: str) -> list[str]:
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_NO_PUNCTUATION)).split()


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


def _places(sentence: list[str]) -> dict[str, int]:
    """The positions of each word, as bits."""
    places: dict[str, int] = {}
    for index, word in enumerate(sentence):
        places[word] = places.get(word, 0) | 1 << index
    return places


def _common_subsequence(sentence: list[str], places: Mapping[str, int], length: int) -> tuple[set[str], int]:
    """The words of that longest common subsequence which the package finds, and the steps of its walk to it.

    The table of lengths is kept as one row of bits per word of `sentence` (Hyyrö, 2004): a bit is 0 where the length
    grows by one. From the table's end the package steps diagonally where the two words are equal, else up where the
    length grows here, else left: so in a row it goes left to the next equal or growing place.

    Args:
        sentence: words of the first sentence.
        places: of each word in the second sentence, as bits.
        length: words in the second sentence.
    """
    row = full = (1 << length) - 1
    rows = []
    for word in sentence:
        equal = row & places.get(word, 0)
        row = ((row + equal) | (row - equal)) & full
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


def classification(prediction: str, answer: str, all_classes: Sequence[str] = ()) -> float:
    """1 over the number of classes that the prediction names, if the answer is one of them.

    Classes that are part of the answer's own name are struck from the list while it is read, which skips the class
    after each struck one.
    """
    named = [name for name in all_classes if name in prediction]
    for name in named:
        if name in answer and name != answer:
            named.remove(name)
    return 1 / len(named) if answer in named else 0.0


def retrieval(prediction: str, answer: str, all_classes: Sequence[str] = ()) -> float:
    """Share of the numbers in the prediction that are the number of the answer's paragraph (``Paragraph 7``)."""
    return count(prediction, _PARAGRAPH.findall(answer)[0])


def count(prediction: str, answer: str, all_classes: Sequence[str] = ()) -> float:
    """Share of the numbers in the prediction that are the answer."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(answer) / len(numbers) if numbers else 0.0


def code_similarity(prediction: str, answer: str, all_classes: Sequence[str] = ()) -> float:
    """Similarity of the answer and the prediction's first line without a comment or Markdown, in whole percents."""
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return round(100 * SequenceMatcher(None, line, answer).ratio()) / 100


LONGBENCH = "longshort_longbench_e"  # the group's name in lm-eval
# Of datasets and categories. Not longshort_…: that glob matches the group, and a task may match only once.
LONGBENCH_PREFIX = "longshort-longbench-e-"


@dataclass(frozen=True)
class Dataset:
    """One dataset of LongBench-E.

    `num_rows` is the size of the official data; with `first_line`, only the prediction's first line is scored;
    without `chat`, the prompt goes to the model as it is, whatever chat template the run asks for.
    """

    name: str
    category: str
    max_new_tokens: int
    metric: Callable[[str, str, Sequence[str]], float]
    num_rows: int = 300
    chat: bool = True
    first_line: bool = False


DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset("qasper", "single-document QA", 128, qa_f1, num_rows=224),
        Dataset("multifieldqa_en", "single-document QA", 64, qa_f1, num_rows=150),
        Dataset("hotpotqa", "multi-document QA", 32, qa_f1),
        Dataset("2wikimqa", "multi-document QA", 32, qa_f1),
        Dataset("gov_report", "summarization", 512, rouge_l),
        Dataset("multi_news", "summarization", 512, rouge_l, num_rows=294),
        Dataset("trec", "few-shot", 64, classification, chat=False, first_line=True),
        Dataset("triviaqa", "few-shot", 32, qa_f1, chat=False, first_line=True),
        Dataset("samsum", "few-shot", 128, rouge_l, chat=False, first_line=True),
        Dataset("passage_count", "synthetic", 32, count),
        Dataset("passage_retrieval_en", "synthetic", 32, retrieval),
        Dataset("lcc", "code", 64, code_similarity, chat=False),
        Dataset("repobench-p", "code", 64, code_similarity, chat=False),
    )
}
CATEGORIES = tuple(dict.fromkeys(dataset.category for dataset in DATASETS.values()))


def bucket(length: float) -> str:
    """Return the bucket of a row by its `length`, in words."""
    return "0-4k" if length < 4000 else "4-8k" if length < 8000 else "8k+"


def score_row(dataset: str, prediction: str, answers: Sequence[str], all_classes: Sequence[str] | None) -> float:
    """Return the official score of one prediction: the best over the right answers.

    Args:
        dataset: a name in `DATASETS`.
        prediction: text of the model, not stripped.
        answers: the right answers, at least one.
        all_classes: names of all classes; needed only for trec.

    Returns:
        A score in [0, 1].
    """
    entry = DATASETS[dataset]
    if entry.first_line:
        prediction = prediction.lstrip("\n").split("\n")[0]
    return max(entry.metric(prediction, answer, all_classes or ()) for answer in answers)


def check_row(dataset: str, row: Mapping[str, Any]) -> None:
    """Raise a ValueError that says in a few words why a row cannot be scored.

    Args:
        dataset: a name in `DATASETS`.
        row: fields `answers`, `all_classes` and `length`, as read from JSON.
    """
    answers, length = row.get("answers"), row.get("length")
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise ValueError("`answers` is missing, empty or not a list of texts")
    if isinstance(length, bool) or not (isinstance(length, int) or (isinstance(length, float) and isfinite(length))):
        raise ValueError("`length` is missing or not a number")
    metric = DATASETS[dataset].metric
    if metric is classification:
        classes = row.get("all_classes")
        if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
            raise ValueError("`all_classes` is missing, empty or not a list of texts")
    if metric is retrieval and not all(map(_PARAGRAPH.search, answers)):
        raise ValueError("`answers` names no `Paragraph N`")
