"""Rows of the 13 datasets in the official format, made up, with contexts longer than a small window."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from longshort.longbench.scores import DATASETS

CLASSES = ["Abbreviation", "Entity", "Food", "Number of something"]


# Few words, so that texts share some; full stops, articles, punctuation and white space in every position.
words = st.sampled_from(["the", "a", "cat", "Cat", "sat", "mat,", "1", "é", "…", ".", "..", "\n", " ", "sat.on", "an"])
texts = st.lists(words, max_size=30).map(" ".join) | st.lists(words, max_size=30).map("".join)


# Rows of the official data by bucket of length, where they are not 100 each.
OFFICIAL_ROWS = {"qasper": (100, 100, 24), "multifieldqa_en": (67, 70, 13), "multi_news": (100, 100, 94)}


def official_lengths(dataset: str) -> list[int]:
    """As many lengths as the official data has rows, in its order of buckets, each once."""
    counts = zip((1000, 4000, 8000), OFFICIAL_ROWS.get(dataset, (100, 100, 100)), strict=True)
    return [length for start, n in counts for length in range(start, start + n)]


def make_row(dataset: str, index: int, words: int = 900) -> dict[str, Any]:
    answers = {
        "trec": [CLASSES[index % len(CLASSES)]],
        "passage_count": [str(index + 2)],
        "passage_retrieval_en": [f"Paragraph {index + 1}"],
    }.get(dataset, [f"the answer number {index}", "a second answer"])
    return {
        "input": f"question {index} é?\n" if dataset != "lcc" else "",
        "context": " ".join(f"word{word * (index + 3) % 89}" for word in range(words)) + f"\nend {index} 日本\n",
        "answers": answers,
        "length": (1000, 5000, 9000)[index % 3],
        "dataset": f"{dataset}_e",
        "language": "en",
        "all_classes": CLASSES if dataset == "trec" else None,
        "_id": f"{dataset}{index}",
    }


def write_rows(folder: Path, count: int = 3, words: int = 900) -> Path:
    """One official file per dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    for dataset in DATASETS:
        lines = (json.dumps(make_row(dataset, index, words), ensure_ascii=False) for index in range(count))
        (folder / f"{dataset}_e.jsonl").write_text("\n".join(lines) + "\n")
    return folder
