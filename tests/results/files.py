"""Results files as lm-eval writes them."""

import json


def results_json(
    pretrained="org/model-1b",
    date=100.0,
    ppl=7.5,
    task="longshort_perplexity",
    metrics=None,
    metadata=None,
    model_args=None,
    **config,
):
    """A results file as lm-eval 0.4.13 writes it, cut down to what is read and a little of what is not."""
    metrics = metrics or {
        "ppl@4096,none": ppl,
        "ppl@4096_stderr,none": 0.25,
        "ppl_tail@8192,none": 9.0,
        "ppl_tail@8192_stderr,none": "N/A",
    }
    return {
        "results": {
            task: {"name": task, "alias": task, "sample_len": 4, **metrics},
            "hellaswag": {"alias": "hellaswag", "acc,none": 0.5, "acc_stderr,none": 0.01},
        },
        "group_subtasks": {task: []},
        "configs": {
            task: {"task": task, "metadata": {"version": 1.0, "corpus": "pg19", **(metadata or {})}},
            "hellaswag": {"task": "hellaswag", "metadata": {"version": 1.0}},
        },
        "n-samples": {task: {"original": 5, "effective": 4}},
        "config": {
            "model": "hf",
            "model_args": model_args or {"pretrained": pretrained, "dtype": "float32"},
            "model_num_parameters": 1_000_000,
            "model_revision": "main",
            "model_sha": "",
            **config,
        },
        "date": date,
        "model_name": pretrained,
    }


def save(folder, data, name="results_2025-01-01T00-00-00.000000.json"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(data if isinstance(data, str) else json.dumps(data))
    return folder / name
