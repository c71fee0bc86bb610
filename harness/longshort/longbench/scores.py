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
from functools import partial
from math import isfinite
from typing import Any, Literal

from longshort.longbench.subsequences import levenshtein_ratio, rouge_l

BUCKETS = ("0-4k", "4-8k", "8k+")

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


CodeRatio = Literal["difflib", "levenshtein"]


def code_similarity(
    prediction: str, answer: str, all_classes: Sequence[str] = (), ratio: CodeRatio = "difflib"
) -> float:
    """Similarity of the answer and the prediction's first line without a comment or Markdown, in whole percents.

    The official scorer calls `fuzz.ratio` of fuzzywuzzy, which takes the ratio of python-Levenshtein where that is
    installed, else of difflib. Scores of both kinds have been published.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    similarity = SequenceMatcher(None, line, answer).ratio() if ratio == "difflib" else levenshtein_ratio(line, answer)
    return round(100 * similarity) / 100


LONGBENCH = "longshort_longbench_e"  # the group's name in lm-eval
# Of datasets and categories. Not longshort_…: that glob matches the group, and a task may match only once.
LONGBENCH_PREFIX = "longshort-longbench-e-"


@dataclass(frozen=True)
class Dataset:
    """One dataset of LongBench-E."""

    name: str
    category: str
    max_new_tokens: int
    metric: Callable[[str, str, Sequence[str]], float]
    template: str  # SHA-256 of the official prompt template, the first 16 digits
    row_bytes: int  # mean over the rows, see DATASETS
    rows: tuple[int, int, int] = (100, 100, 100)  # size of the official data, by bucket of length
    chat: bool = True  # False: the prompt goes to the model as it is, whatever chat template the run asks for
    first_line: bool = False  # True: only the prediction's first line is scored

    @property
    def num_rows(self) -> int:
        """Number of rows of the official data."""
        return sum(self.rows)

    @property
    def rows_by_bucket(self) -> dict[str, int]:
        """Number of rows of the official data in each bucket of length."""
        return dict(zip(BUCKETS, self.rows, strict=True))


# Bytes of a row: size over number of rows, from the dataset_info of hub copies in Parquet. 2wikimqa_e is of
# THUDM/LongBench (README.md at 1d17287), the others of a copy with the same rows.
DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset("qasper", "single-document QA", 128, qa_f1, "0fbdd123fe7f83d6", 31_300, rows=(100, 100, 24)),
        Dataset("multifieldqa_en", "single-document QA", 64, qa_f1, "20b4666a2de8a1f7", 29_700, rows=(67, 70, 13)),
        Dataset("hotpotqa", "multi-document QA", 32, qa_f1, "9ec4ae308865bd0c", 41_400),
        Dataset("2wikimqa", "multi-document QA", 32, qa_f1, "9ec4ae308865bd0c", 37_800),
        Dataset("gov_report", "summarization", 512, rouge_l, "91c25d585b189ced", 47_700),
        Dataset("multi_news", "summarization", 512, rouge_l, "2af3f28c40b902e6", 38_600, rows=(100, 100, 94)),
        Dataset("trec", "few-shot", 64, classification, "0eff8bebdba99d91", 37_400, chat=False, first_line=True),
        Dataset("triviaqa", "few-shot", 32, qa_f1, "00a802e6377e72fc", 41_700, chat=False, first_line=True),
        Dataset("samsum", "few-shot", 128, rouge_l, "a68d884234907eef", 34_500, chat=False, first_line=True),
        Dataset("passage_count", "synthetic", 32, count, "986550b6c61009c6", 37_600),
        Dataset("passage_retrieval_en", "synthetic", 32, retrieval, "39b96b7fa52bdd2a", 37_400),
        Dataset("lcc", "code", 64, code_similarity, "6a1f24cf0bb83cd9", 59_300, chat=False),
        Dataset("repobench-p", "code", 64, code_similarity, "ee9ec182ea5ffeb7", 68_000, chat=False),
    )
}
CATEGORIES = tuple(dict.fromkeys(dataset.category for dataset in DATASETS.values()))


def task_of(name: str) -> str:
    """Return the name in lm-eval of a dataset or category."""
    return LONGBENCH_PREFIX + name.lower().replace(" ", "-")


def bucket(length: float) -> str:
    """Return the bucket of a row by its `length`, in words."""
    return "0-4k" if length < 4000 else "4-8k" if length < 8000 else "8k+"


def score_row(
    dataset: str,
    prediction: str,
    answers: Sequence[str],
    all_classes: Sequence[str] | None,
    code_ratio: CodeRatio = "difflib",
) -> float:
    """Return the official score of one prediction, in [0, 1]: the best over the right answers.

    Args:
        prediction: text of the model, not stripped.
        answers: the right answers, at least one.
        all_classes: names of all classes; needed only for trec.
        code_ratio: ratio of lcc and repobench-p; see `code_similarity`.
    """
    entry = DATASETS[dataset]
    if entry.first_line:
        prediction = prediction.lstrip("\n").split("\n")[0]
    metric = partial(code_similarity, ratio=code_ratio) if entry.metric is code_similarity else entry.metric
    return max(metric(prediction, answer, all_classes or ()) for answer in answers)


class NoLength(ValueError):
    """A row without `length`, as in LongBench's first prediction files."""


def check_row(dataset: str, row: Mapping[str, Any]) -> None:
    """Raise a ValueError that says in a few words why a row cannot be scored.

    Args:
        row: fields `answers`, `all_classes` and `length`, as read from JSON.

    Raises:
        NoLength: the row has no `length`.
        ValueError: anything else.
    """
    answers, length = row.get("answers"), row.get("length")
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise ValueError("`answers` is missing, empty or not a list of texts")
    if length is None:
        raise NoLength("`length` is missing")
    if isinstance(length, bool) or not (isinstance(length, int) or (isinstance(length, float) and isfinite(length))):
        raise ValueError("`length` is not a number")
    metric = DATASETS[dataset].metric
    if metric is classification:
        classes = row.get("all_classes")
        if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
            raise ValueError("`all_classes` is missing, empty or not a list of texts")
    if metric is retrieval and not all(map(_PARAGRAPH.search, answers)):
        raise ValueError("`answers` names no `Paragraph N`")
