"""A folder of results as a sweep leaves it: JSON files of lm-eval, one per checkpoint and revision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

LENGTHS = (64, 128, 256)
TRAIN_LENGTH = 64
ABOUT = {"corpus": "builtin", "train_length": TRAIN_LENGTH, "lengths": list(LENGTHS)}
SHA256 = {"longshort_perplexity": "a" * 64, "longshort_misalignment": "b" * 64}


def results_of(pretrained: str, metrics: dict[str, dict[str, float]], **about: Any) -> dict[str, Any]:
    """One results file; `metrics` is task to metric to value, each with a standard error of 0.01."""
    revision, date = about.pop("revision", "main"), about.pop("date", 100.0)
    scored = {
        task: {"source": "Python", "revision": "3.11", "split": "test", "sha256": SHA256[task]} for task in SHA256
    }
    configs = {
        task: {"metadata": ABOUT | about | {"scored": scored[task]} if task in SHA256 else {"version": 1.0}}
        for task in metrics
    }
    return {
        "results": {
            task: {"alias": task}
            | {f"{name},none": value for name, value in values.items()}
            | {f"{name}_stderr,none": 0.01 for name in values}
            for task, values in metrics.items()
        },
        "configs": configs,
        "versions": dict.fromkeys(metrics, 1.0),
        "n-samples": {task: {"original": 8, "effective": 8} for task in metrics},
        "config": {"model_args": {"pretrained": pretrained}, "model_revision": revision, "model_num_parameters": 1000},
        "date": date,
        "model_name": pretrained,
        "lm_eval_version": "0.4.13",
        "transformers_version": "5.0",
    }


def measured(generator: np.random.Generator, level: float) -> dict[str, dict[str, float]]:
    """Metrics of one checkpoint: misalignment and the rise of perplexity follow `level`."""
    perplexity, misalignment = {}, {}
    for index, length in enumerate(LENGTHS):
        entropy, jeffreys = 4 + generator.normal(0, 0.2), 0.5 + 0.5 * level + generator.normal(0, 0.1)
        perplexity[f"ppl@{length}"] = float(np.exp(3 + index * level + generator.normal(0, 0.1)))
        perplexity[f"ppl_tail@{length}"] = perplexity[f"ppl@{length}"] * 0.9
        parts = {"sce": entropy + jeffreys, "entropy": entropy, "jeffreys": jeffreys, "js": jeffreys / 5}
        misalignment |= {f"{name}@{length}": value for name, value in parts.items()}
        for other in LENGTHS[index:]:
            perplexity[f"sce_between@{length}-{other}"] = 8.0 + (other > length)
            if other > length:
                perplexity[f"jeffreys_between@{length}-{other}"] = 1.0
    return {"longshort_perplexity": perplexity, "longshort_misalignment": misalignment}


def save(folder: Path, name: str, data: dict[str, Any] | str) -> Path:
    """Write one results file."""
    file = folder / name / "results_2025-01-01T00-00-00.000000.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(data if isinstance(data, str) else json.dumps(data), "utf-8")
    return file


def save_folder(folder: Path, families: int = 5, members: int = 3, revisions: int = 1, seed: int = 0) -> Path:
    """families × members checkpoints, each at some revisions, with LongBench-E, RULER and BABILong."""
    generator = np.random.default_rng(seed)
    for family in range(families):
        for member in range(members):
            for revision in range(revisions):
                level = generator.uniform(0.2, 1) + 0.3 * family
                metrics = measured(generator, level) | {
                    "longshort_longbench_e": {
                        "score": 40 - 5 * level + generator.normal(),
                        "score@8k+": 30 - 5 * level,
                    },
                    "babilong_qa1": {"acc": 0.9 - 0.2 * level + generator.normal(0, 0.05)},
                    "niah_single_1": {"4096": 1 - 0.1 * level, "8192": -1},
                }
                pretrained = f"org/model-{family}-{member}"
                about = {"family": f"family{family}", "params": 1000 * (1 + member), "revision": f"step{revision}"}
                save(folder, f"{family}-{member}-{revision}", results_of(pretrained, metrics, **about))
    return folder
