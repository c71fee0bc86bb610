"""What the columns of the wide table measure, in words."""

from __future__ import annotations

import re

from longshort.analysis.other_tasks import label_of
from longshort.analysis.tables import EXCESS, LONGBENCH_OUTCOMES, MISALIGNMENT_METRICS, PERFORMANCE, RECALL


def axis_label(name: str) -> str:
    """What a column of the wide table measures, with its unit; the name itself where it is not known."""
    if name in PERFORMANCE:
        what, unit = PERFORMANCE[name]
        return f"{what} at the training context length ({unit})"
    if name in ("effective_length", "effective_length_tail"):
        return f"effective length{', fixed targets' if name.endswith('_tail') else ''} (tokens)"
    if match := re.fullmatch(r"log_ppl(_tail)?(_increase)?@(\d+)", name):
        tail, increase, length = match.groups()
        targets = ", fixed targets" if tail else ""
        if increase:
            return f"log-perplexity{targets}:\nrise from the training context length to {length} (nats per token)"
        return f"log-perplexity at {length} tokens{targets} (nats per token)"
    if match := re.fullmatch(rf"({'|'.join(RECALL)})@(\d+)", name):
        what, unit = RECALL[match[1]]
        return f"{what} at {match[2]} tokens ({unit})"
    if name in LONGBENCH_OUTCOMES:
        return f"LongBench-E score{', 8k words and more' if name.endswith('@8k+') else ''} (percent)"
    if name == "log_params":
        return "logarithm of the number of parameters"
    metric = name.removesuffix("_beyond")
    where = "at the next length beyond training" if name != metric else "at the training context length"
    if metric in EXCESS:
        return f"{MISALIGNMENT_METRICS[EXCESS[metric]]} minus its numerical floor {where} (nats)"
    if metric in MISALIGNMENT_METRICS:
        return f"{MISALIGNMENT_METRICS[metric]} {where} ({'share' if metric == 'agreement' else 'nats'})"
    return label_of(name)


def plain_name(name: str) -> str:
    """What a column measures, without its unit, as a part of a sentence."""
    return re.sub(r"\s*\([^()]*\)$", "", " ".join(axis_label(name).split()))
