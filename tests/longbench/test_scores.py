import re
import string
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longshort.longbench import scores
from longshort.longbench.scores import (
    BUCKETS,
    CATEGORIES,
    DATASETS,
    bucket,
    check_row,
    classification,
    code_similarity,
    count,
    qa_f1,
    retrieval,
    score_row,
)
from tests.longbench.rows import texts

CLASSES = ["Number of something", "Other number", "Date", "City"]
ANSWERS = {"trec": "Date", "passage_count": "7", "passage_retrieval_en": "Paragraph 7"}


def plain_f1(prediction, answer):
    def tokens(text):
        kept = "".join(" " if character.isspace() else character for character in text.lower())
        kept = "".join(character for character in kept if character not in string.punctuation)
        # A word ends where letters, digits and underscores end, so "a…" holds an article too.
        pieces = re.findall(r"\w+|[^\w\s]+|\s+", kept)
        return "".join(" " if piece in ("a", "an", "the") else piece for piece in pieces).split()

    predicted, right = tokens(prediction), tokens(answer)
    shared = 0
    left = list(right)
    for token in predicted:
        if token in left:
            left.remove(token)
            shared += 1
    return float(Fraction(2 * shared, len(predicted) + len(right))) if shared else 0.0


@given(texts, texts)
def test_qa_f1_is_twice_the_shared_words_over_all_words(prediction, answer):
    assert qa_f1(prediction, answer) == pytest.approx(plain_f1(prediction, answer), rel=1e-12)


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [
        ("The cat, a cat.", "cat", 2 / 3),
        ("cat cat", "Cat cat dog", 4 / 5),
        ("an", "an", 0.0),  # articles alone leave nothing
        ("co-op", "coop", 1.0),
        ("naïve Änderung", "naïve änderung", 1.0),
    ],
)
def test_qa_f1_of_small_texts(prediction, answer, score):
    assert qa_f1(prediction, answer) == pytest.approx(score)


def plain_classification(prediction, answer, classes):
    named = [name for name in classes if name in prediction]
    index = 0
    while index < len(named):  # the next one is skipped where one is struck
        if named[index] != answer and named[index] in answer:
            del named[named.index(named[index])]
        index += 1
    return 1 / len(named) if answer in named else 0.0


names = st.text(alphabet="ab", min_size=1, max_size=3)


@given(st.text(alphabet="ab ", max_size=12), names, st.lists(names, max_size=6))
def test_classification_shares_one_between_the_named_classes(prediction, answer, classes):
    expected = plain_classification(prediction, answer, [*classes, answer])
    assert classification(prediction, answer, [*classes, answer]) == expected


def test_classification_skips_the_class_after_a_struck_one():
    assert classification("abc", "abc", ["a", "b", "abc"]) == 1 / 2  # b stays: a was struck before it
    assert classification("abc", "abc", ["a", "x", "b", "abc"]) == 1 / 2  # x is not named, so b still follows a
    assert classification("abc", "abc", ["a", "abc", "b"]) == 1.0  # abc is skipped, b is struck
    assert classification("abc x", "abc", ["a", "x", "b", "abc"]) == 1 / 2  # x is skipped, b is struck


@pytest.mark.parametrize(
    ("prediction", "score"), [("Date", 1.0), ("Date or City", 0.5), ("date", 0.0), ("", 0.0), ("City", 0.0)]
)
def test_classification_of_small_texts(prediction, score):
    assert classification(prediction, "Date", CLASSES) == score


@given(st.lists(st.sampled_from(["7", "17", "07", "Paragraph 7", "x", "-7", "7.7", "٧"]), max_size=10).map(" ".join))
def test_count_and_retrieval_are_the_share_of_right_numbers(prediction):
    numbers = [run for run in re.split(r"\D+", prediction) if run]
    right = [number for number in numbers if number == "7"]
    expected = len(right) / len(numbers) if numbers else 0.0
    assert count(prediction, "7") == retrieval(prediction, "Paragraph 7") == expected


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [
        ("return x", "return x", 1.0),
        ("\n\nreturn x\nmore", "return x", 1.0),
        ("```python\n# note\n// note\nreturn x", "return x", 1.0),
        ("\nfirst\n\nreturn x", "return x", 0.31),  # only leading newlines are dropped
        ("  return x", "return x", 0.89),  # 16 of 18 characters, no white space dropped
        ("babba", "bbcba", 0.4),
        ("# only a comment", "return x", 0.0),
        ("# only a comment", "", 1.0),
        ("", "x", 0.0),
        ("a" * 300, "a" * 300, 1.0),
        (" " + "a" * 300, "a" * 300, 0.0),  # difflib passes over what is frequent in 200 characters or more
    ],
)
def test_code_similarity_of_small_texts(prediction, answer, score):
    assert code_similarity(prediction, answer) == score


def plain_matches(first, second):
    """Characters in difflib's matching blocks: the longest common run, then the same on either side of it."""
    best = (0, 0, 0)
    for i in range(len(first)):
        for j in range(len(second)):
            size = 0
            while i + size < len(first) and j + size < len(second) and first[i + size] == second[j + size]:
                size += 1
            if size > best[0]:
                best = (size, i, j)
    size, i, j = best
    if size == 0:
        return 0
    return plain_matches(first[:i], second[:j]) + size + plain_matches(first[i + size :], second[j + size :])


@given(st.text(alphabet="abé(", max_size=15), st.text(alphabet="abé(", max_size=15))
def test_code_similarity_is_twice_the_matching_characters_in_whole_percents(prediction, answer):
    total = len(prediction) + len(answer)
    percent = round(100 * Fraction(2 * plain_matches(prediction, answer), total)) if total else 100
    assert code_similarity(prediction, answer) == percent / 100


# What `fuzz.ratio` of fuzzywuzzy 0.18 returned, without python-Levenshtein and with version 0.27.5 of it.
@pytest.mark.parametrize(
    ("prediction", "answer", "difflib", "levenshtein"),
    [
        ("ababab", "aaaaab", 33, 67),
        ("babba", "bbcba", 40, 80),
        ("a" + "b" * 39, "a" + "c" * 39, 2, 3),  # 2.5 percent, but not in floating point
        ("aaa" + "b" * 37, "aaa" + "c" * 37, 8, 7),
        ("a" * 17 + "b" * 23, "a" * 17 + "c" * 23, 42, 43),
        (" " + "a" * 300, "a" * 300, 0, 100),  # 99.83
        ("for i in range(n):", "for j in range(m):", 89, 89),
        ("naïve = 1", "naive = 2", 78, 78),
        ("def f(x): return x", "return f(x)", 55, 55),
        ("return x", "return x", 100, 100),
        ("", "x", 0, 0),
    ],
)
def test_the_code_ratios_are_those_of_fuzzywuzzy(prediction, answer, difflib, levenshtein):
    assert code_similarity(prediction, answer) == difflib / 100
    assert score_row("lcc", prediction, [answer], None) == difflib / 100
    assert score_row("repobench-p", prediction, [answer], None, "levenshtein") == levenshtein / 100


def test_the_code_ratio_concerns_the_code_datasets_alone():
    for dataset in set(DATASETS) - {"lcc", "repobench-p"}:
        answer = answer_of(dataset)
        for prediction in (answer, "the cat", "7 of 8"):
            plain = score_row(dataset, prediction, [answer], CLASSES)
            assert score_row(dataset, prediction, [answer], CLASSES, "levenshtein") == plain


def answer_of(dataset):
    return ANSWERS.get(dataset, "the cat sat")


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("prediction", ["", "\n", "\n\n\n"])
def test_nothing_scores_nothing(dataset, prediction):
    assert score_row(dataset, prediction, [answer_of(dataset)], CLASSES) == 0.0


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("prediction", ["的" * 5000, "word " * 20_000, "7 Date. " * 5000, "\ud800\x00�é👩‍👩‍👧"])
def test_any_prediction_scores_between_zero_and_one(dataset, prediction):
    assert 0 <= score_row(dataset, prediction, [answer_of(dataset)], CLASSES) <= 1


@pytest.mark.parametrize("dataset", DATASETS)
@given(prediction=texts | st.text())
@settings(max_examples=20)
def test_the_best_answer_counts_and_answers_may_repeat_and_move(dataset, prediction):
    answers = {
        "passage_retrieval_en": ["Paragraph 1", "Paragraph 2"],
        "passage_count": ["1", "2"],
        "trec": ["Date", "City"],
    }.get(dataset, ["cat sat", "the mat"])
    single = [score_row(dataset, prediction, [answer], CLASSES) for answer in answers]
    assert score_row(dataset, prediction, answers, CLASSES) == max(single)
    assert score_row(dataset, prediction, [*answers, *reversed(answers)], CLASSES) == max(single)


@pytest.mark.parametrize("dataset", DATASETS)
def test_only_few_shot_predictions_are_cut_to_their_first_line(dataset):
    answer = answer_of(dataset)
    cut = score_row(dataset, f"\n\nzebra\n{answer}", [answer], CLASSES) == 0.0
    code = DATASETS[dataset].category == "code"  # its own first line
    if not code:
        assert cut == (dataset in ("trec", "triviaqa", "samsum"))
    assert score_row(dataset, f"\n\n{answer}\nzebra", [answer], CLASSES) > 0.5


def test_the_table_is_the_official_one():
    assert len(DATASETS) == 13
    assert sum(dataset.num_rows for dataset in DATASETS.values()) == 3668
    assert [sum(entry.category == category for entry in DATASETS.values()) for category in CATEGORIES] == [
        *(2, 2, 2, 3, 2, 2)
    ]
    assert {name for name, entry in DATASETS.items() if not entry.chat} == {
        *("trec", "triviaqa", "samsum", "lcc", "repobench-p")
    }


@pytest.mark.parametrize(
    ("length", "name"), [(0, "0-4k"), (3999, "0-4k"), (4000, "4-8k"), (7999.5, "4-8k"), (8000, "8k+"), (10**6, "8k+")]
)
def test_buckets(length, name):
    assert bucket(length) == name
    assert name in BUCKETS


def row(**changes):
    fields = {"answers": ["Paragraph 7"], "all_classes": None, "length": 10, **changes}
    return {name: value for name, value in fields.items() if value is not Ellipsis}


def test_a_good_row_passes():
    for dataset in DATASETS:
        check_row(dataset, row(all_classes=["City"]))
    check_row("qasper", row(all_classes=...))


@pytest.mark.parametrize(
    ("dataset", "changes", "cause"),
    [
        ("qasper", {"answers": ...}, "`answers`"),
        ("qasper", {"answers": []}, "`answers`"),
        ("qasper", {"answers": "text"}, "`answers`"),
        ("qasper", {"answers": ["text", 3]}, "`answers`"),
        ("qasper", {"length": ...}, "`length`"),
        ("qasper", {"length": True}, "`length`"),
        ("qasper", {"length": "10"}, "`length`"),
        ("qasper", {"length": float("nan")}, "`length`"),
        ("trec", {}, "`all_classes`"),
        ("trec", {"all_classes": ["Date", 1]}, "`all_classes`"),
        ("passage_retrieval_en", {"answers": ["7"]}, "`Paragraph N`"),
    ],
)
def test_a_bad_row_is_told_by_its_field(dataset, changes, cause):
    with pytest.raises(ValueError, match=cause):
        check_row(dataset, row(**changes))


def test_the_scorer_starts_without_the_heavy_packages():
    code = (
        "import sys, longshort.longbench.official; "
        "print(*{'torch', 'transformers', 'lm_eval', 'datasets', 'pandas', 'rouge'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
    assert scores.__doc__
