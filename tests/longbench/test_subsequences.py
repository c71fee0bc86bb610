import os
import random
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge import Rouge

from longshort.longbench.subsequences import LONGEST_WALK, levenshtein_ratio, rouge_l
from tests.longbench.rows import texts


def rouge_package(prediction, answer):
    try:
        return Rouge().get_scores([prediction], [answer], avg=True)["rouge-l"]["f"]
    except ValueError:
        return 0.0


@settings(max_examples=500)
@given(texts, texts)
def test_rouge_l_equals_the_package(prediction, answer):
    assert rouge_l(prediction, answer) == rouge_package(prediction, answer)


@given(st.text(alphabet=". \n ab\u00a0", max_size=30), st.text(alphabet=". \n ab\u2003", max_size=30))
def test_rouge_l_equals_the_package_on_characters(prediction, answer):
    assert rouge_l(prediction, answer) == rouge_package(prediction, answer)


def sentences(draw, num_sentences, num_words):
    vocabulary = [f"w{rank}" for rank in range(1, 800)]
    weights = [1 / rank for rank in range(1, 800)]
    return ". ".join(" ".join(draw.choices(vocabulary, weights, k=num_words)) for _ in range(num_sentences)) + "."


@pytest.mark.parametrize("seed", range(3))
def test_rouge_l_equals_the_package_on_summaries(seed):
    draw = random.Random(seed)
    prediction, answer = sentences(draw, 10, 25), sentences(draw, 15, 30)
    assert rouge_l(prediction, answer) == rouge_package(prediction, answer) > 0.2
    one_line = prediction.replace(".", "")
    assert rouge_l(one_line, answer) == rouge_package(one_line, answer)


OFFICIAL_CALL = """
from rouge import Rouge
def metric(prediction, answer):
    try:
        return Rouge().get_scores([prediction], [answer], avg=True)["rouge-l"]["f"]
    except RecursionError:
        return 0.0
def scorer():
    for length in (990, 991):
        words = " ".join(["x"] + [f"w{i}" for i in range(length - 1)])
        print(metric("x", words), metric(words, "x"))
scorer()
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 counts calls otherwise: the package ends earlier")
def test_rouge_l_is_zero_where_the_package_recurses_too_deep():
    """In a process of its own: how deep the package can go depends on how deep it is called."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}  # it calls, too
    run = subprocess.run([sys.executable, "-c", OFFICIAL_CALL], capture_output=True, text=True, check=True, env=plain)
    ours = []
    for length in (LONGEST_WALK, LONGEST_WALK + 1):
        long = " ".join(["x"] + [f"w{i}" for i in range(length - 1)])
        ours += [rouge_l("x", long), rouge_l(long, "x")]
    assert [float(value) for value in run.stdout.split()] == ours
    assert ours[0] > 0
    assert ours[2:] == [0, 0]


def test_a_long_text_with_full_stops_or_an_early_match_is_scored():
    assert rouge_l("word and more. " * 5000, "word and more.") > 0.8
    assert rouge_l(" ".join(f"w{i}" for i in range(5000)) + " x", "x") > 0


@pytest.mark.parametrize("text", ["", ".", "..."])
def test_rouge_l_of_full_stops_alone_is_zero(text):
    assert rouge_l(text, "a cat") == rouge_l("a cat", text) == 0.0


def edit_distance(first, second):
    """Fewest insertions and deletions, by the table of all prefixes."""
    table = [list(range(len(second) + 1))]
    for i, one in enumerate(first, 1):
        row = [i]
        for j, other in enumerate(second, 1):
            row.append(table[-1][j - 1] if one == other else 1 + min(table[-1][j], row[j - 1]))
        table.append(row)
    return table[-1][-1]


@settings(max_examples=300)
@given(st.text(alphabet="abé(", max_size=40), st.text(alphabet="abé(", max_size=40))
def test_levenshtein_ratio_is_one_minus_the_share_of_edits(first, second):
    total = len(first) + len(second)
    expected = 1 - Fraction(edit_distance(first, second), total) if total else 1
    assert levenshtein_ratio(first, second) == pytest.approx(float(expected), abs=1e-15)
    assert levenshtein_ratio(second, first) == levenshtein_ratio(first, second)


def test_levenshtein_ratio_of_long_lines():
    draw = random.Random(0)
    first, second = ("".join(draw.choices("abcdef ()", k=length)) for length in (300, 400))
    assert levenshtein_ratio(first, second) == pytest.approx(1 - edit_distance(first, second) / 700, abs=1e-15)
