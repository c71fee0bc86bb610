"""From a folder of results to everything that is found in it."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from longshort.analysis import tables
from longshort.analysis.analysis import Analysis
from longshort.analysis.comparison import compare
from longshort.analysis.correlation import Adjust, correlations
from longshort.analysis.floors import notes_on_floors
from longshort.analysis.leaderboard import leaderboard
from longshort.analysis.other_tasks import (
    PREFIX,
    effective_length_columns,
    notes_on_effective_lengths,
    with_short_names,
)
from longshort.analysis.positions import nll_by_position
from longshort.analysis.precisions import one_point_each, precision_table, summary
from longshort.analysis.retrieval import cells, of_checkpoints
from longshort.analysis.selection import check_columns, check_group, keep_where
from longshort.errors import UserError, listed
from longshort.results import Reading, read
from longshort.results.table import TokenSource

MAX_RATIO_OF_BYTES = 1.05  # of bytes per token between checkpoints; one tokenizer varies less with the model
LIBRARIES = ("longshort", "numpy", "scipy", "pandas", "matplotlib")


def analyze(
    folder: str | Path | Iterable[str | Path],
    *,
    predictors: Sequence[str] | None = None,
    outcomes: Sequence[str] | None = None,
    controls: Sequence[str] = (),
    where: str | None = None,
    group_by: str = "family",
    adjust: Adjust = "holm",
    corpus: str | None = None,
    effective_threshold: float | None = None,
    strict: bool = False,
) -> Analysis:
    """Read results, correlate every predictor with every outcome, compare the predictors.

    The names of predictors, outcomes and controls are columns of `longshort.analysis.wide_table`, or short names of
    other tasks' metrics, such as ``ruler@8192``: see `longshort.analysis.other_tasks.with_short_names`.

    Args:
        folder: of lm-eval's results, searched at any depth; or results files.
        predictors: by default all that were measured of `longshort.analysis.tables.PREDICTORS`.
        outcomes: by default LongBench-E overall and 8k+, retrieval and log-perplexity beyond the training context
            length, its rise, and the effective length; not those of fixed targets (``…_tail…``) and of other lm-eval
            tasks.
        controls: of the partial correlation, in addition to ``nll`` and, where it varies, ``log_params``.
        where: a condition on the wide table, as ``"params < 8e9"``: see `longshort.analysis.selection.keep_where`.
        group_by: the column that says which checkpoints belong together.
        adjust: of p-values for their number, ``holm`` or ``bh``.
        corpus: whose results to use; needed where a task has several, see `longshort.analysis.tables.of_corpus`.
        effective_threshold: score that a length needs to count in a task's effective length, in the units of its
            metric; by default 85 % of the score at the shortest length.
        strict: raise for a file that cannot be read instead of skipping it with a note.

    Returns:
        Analysis; equal for equal results and arguments.

    Raises:
        UserError: nothing to read, several corpora, or with `strict` a damaged file.
        UserError: one of the arguments names what is not there.
    """
    reading = read(folder, strict=strict, every_task=True)
    if effective_threshold is not None and not (effective_threshold > 0 and math.isfinite(effective_threshold)):
        raise UserError(
            f"effective_threshold: {effective_threshold} is not a score above 0, such as 0.856.",
            "usage",
            "effective_threshold",
        )
    directions = reading.lower_is_better
    everything = tables.wide_table(reading.table, corpus, threshold=effective_threshold, lower_is_better=directions)
    kept = keep_where(everything, where) if where else everything
    # Half precision alone has floors, which do not make it the better measured one.
    counted = [name for name in [*tables.predictors(kept), *tables.outcomes(kept)] if "_excess" not in name]
    wide, left_out = one_point_each(kept, reading.variants, counted)
    check_group(group_by, wide)
    for what, names in (("predictor", predictors), ("outcome", outcomes), ("control", controls)):
        wide = with_short_names(wide, names or (), what)
        check_columns(what, names or (), wide)
    chosen = list(dict.fromkeys(predictors or tables.predictors(wide)))
    aims = list(dict.fromkeys(outcomes or [name for name in tables.outcomes(wide) if "_tail" not in name]))
    fixed = list(dict.fromkeys([*_default_controls(wide), *controls]))
    tidy = _of_checkpoints(reading.table, kept, corpus)
    precisions = precision_table(reading.precisions, tidy)
    positions, unread = nll_by_position(_with_tokens(reading, tidy), strict=strict)
    correlated = correlations(wide, chosen, aims, fixed, group=group_by, adjust=adjust)
    compared = compare(wide, _pairs(wide, chosen), aims, group=group_by)
    return Analysis(
        tidy=tidy,
        wide=wide,
        correlations=correlated,
        comparisons=compared,
        leaderboard=leaderboard(correlated, compared),
        settings={
            "folder": str(folder) if isinstance(folder, (str, Path)) else f"{len(reading.files)} files",
            "checkpoints": len(wide),
            "predictors": chosen,
            "outcomes": aims,
            "controls": fixed,
            "where": where,
            "group_by": group_by,
            "adjust": adjust,
            "corpus": corpus,
            "effective_threshold": effective_threshold,
            "corpora": reading.corpora,
            "versions of tasks and tools": reading.versions,
            "versions of the analysis": {"python": platform.python_version()}
            | {name: version(name) for name in LIBRARIES},
            "results files, SHA-256": reading.files,
        },
        notes=[
            *reading.notes,
            *unread,
            *left_out,
            *([f"{summary(precisions)} precisions.csv lists them."] if len(precisions) else []),
            *notes_on_floors(wide, tidy, chosen),
            *notes_on_effective_lengths(
                tidy,
                effective_length_columns(tidy, directions),
                [*chosen, *aims, *fixed],
                effective_threshold,
            ),
            *_doubts(reading, tidy, wide, everything, chosen, aims),
        ],
        precisions=precisions,
        positions=positions,
        retrieval=of_checkpoints(cells(reading), tidy),
    )


def _default_controls(wide: pd.DataFrame) -> list[str]:
    varies = wide["log_params"].max() > wide["log_params"].min()
    return [name for name in ("nll", *(("log_params",) if varies else ())) if wide[name].notna().any()]


def _pairs(wide: pd.DataFrame, predictors: Sequence[str]) -> list[tuple[str, str]]:
    """Every two predictors; NLL is the baseline of each, chosen or not."""
    baseline = ["nll"] if "nll" not in predictors and wide["nll"].notna().any() else []
    return list(combinations([*predictors, *baseline], 2))


def _of_checkpoints(tidy: pd.DataFrame, wide: pd.DataFrame, corpus: str | None) -> pd.DataFrame:
    """What was measured of the checkpoints in `wide`, on the one corpus of each task."""
    about = ["task", "corpus"]
    chosen = tables.of_corpus(tidy, corpus)[about].drop_duplicates()
    ours = tidy["task"].isin(tables.BY_LENGTH)
    on_corpus = pd.MultiIndex.from_frame(tidy[about]).isin(pd.MultiIndex.from_frame(chosen))
    kept: pd.DataFrame = tidy[~ours | on_corpus].merge(wide[tables.IDENTITY], on=tables.IDENTITY)
    return kept


def _with_tokens(reading: Reading, tidy: pd.DataFrame) -> list[TokenSource]:
    """The token files of the checkpoints and the corpus that were chosen."""
    names = [*tables.IDENTITY, "task", "corpus"]
    chosen = set(tidy[names].dropna(subset="corpus").itertuples(index=False, name=None))
    return [source for source in reading.tokens if tuple(source.row.columns[name] for name in names) in chosen]


def _doubts(
    reading: Reading,
    tidy: pd.DataFrame,
    wide: pd.DataFrame,
    everything: pd.DataFrame,
    predictors: Sequence[str],
    outcomes: Sequence[str],
) -> list[str]:
    """What speaks against comparing these checkpoints, or left some of them out."""
    notes = []
    known = set(everything["checkpoint"])
    others = sorted(set(reading.table["checkpoint"]) - known)
    if others:
        notes.append(
            f"{listed(others)}: no perplexity, misalignment, LongPPL or retrieval by longshort's tasks on this corpus. "
            "Skipped."
        )
    untold = sorted(wide.loc[wide["train_length"].isna(), "checkpoint"])
    if untold:
        notes.append(
            f"{listed(untold)}: no train_length in the results, so no predictor. Evaluate with --train-length."
        )
    notes += [*_doubts_on_documents(reading, wide, predictors), *_doubts_on_probes(reading, [*predictors, *outcomes])]
    low, high = _bytes_per_token(tidy)
    if high > MAX_RATIO_OF_BYTES * low:
        notes.append(
            f"a token of these checkpoints covers {low:.2f} to {high:.2f} bytes: their tokenizers differ, and what is "
            "counted per token (log-perplexity, NLL, SCE, entropy) differs with them. Choose those of one tokenizer "
            "with --where, or compare bits per byte (bpb in measurements.csv)."
        )
    if not outcomes:
        notes.append("no outcome: nothing was measured beyond the training context lengths.")
    if not predictors:
        notes.append("no predictor: nothing that predicts was measured at the training context length.")
    return notes


def _doubts_on_documents(reading: Reading, wide: pd.DataFrame, predictors: Sequence[str]) -> list[str]:
    """Where checkpoints were not measured on the same documents, targets or key tokens."""
    notes = []
    for name, origins in reading.corpora.items():
        sets = max(Counter(task for task, _ in {(origin["task"], origin["sha256"]) for origin in origins}).values())
        if sets > 1:
            notes.append(
                f"corpus '{name}' stands for {sets} different sets of documents (by SHA-256): values of checkpoints "
                "measured on different documents do not compare well."
            )
        perplexities = [
            origin for origin in origins if origin["task"] == tables.PERPLEXITY and "fixed_targets" in origin
        ]
        targets = sorted({origin["fixed_targets"] for origin in perplexities})
        if len(targets) > 1 and wide.filter(regex="_tail|context_gain").notna().any(axis=None):
            notes.append(
                f"the fixed targets (…_tail…, context_gain) on corpus '{name}' are not one set of tokens but "
                f"{' or '.join(targets)}: values of checkpoints evaluated up to different lengths do not compare well."
            )
    spans = sorted(
        {origin["key_spans"] for origins in reading.corpora.values() for origin in origins if "key_spans" in origin}
    )
    if len(spans) > 1 and "longppl" in predictors:
        notes.append(
            f"longppl: the key tokens come from {len(spans)} files of key spans, by the evaluators "
            f"{' and '.join(spans)}: values of checkpoints evaluated with different key tokens do not compare well."
        )
    return notes


def _doubts_on_probes(reading: Reading, names: Sequence[str]) -> list[str]:
    """Where recall was measured with different numbers of needles, depths or seeds, and is used."""
    origins = [origin for of_corpus in reading.corpora.values() for origin in of_corpus]
    probes = sorted({origin["probes"] for origin in origins if "probes" in origin})
    used = [name for name in names if name.startswith(("recall@", "recall_nll@", f"{PREFIX}{tables.RETRIEVAL}"))]
    if len(probes) < 2 or not used:
        return []
    return [
        f"{listed(used)}: the probes of {tables.RETRIEVAL} differ between checkpoints or results "
        f"({' or '.join(probes)}): values measured with different probes do not compare."
    ]


def _bytes_per_token(tidy: pd.DataFrame) -> tuple[float, float]:
    """The least and the greatest over checkpoints: log ppl / (ln 2 · bpb), at the length that most were measured at."""
    of = [tidy[tidy["metric"] == metric][[*tables.IDENTITY, "length", "value"]] for metric in ("ppl", "bpb")]
    both = of[0].merge(of[1], on=[*tables.IDENTITY, "length"], suffixes=("_ppl", "_bpb"))
    if both.empty:
        return 1.0, 1.0
    both = both[both["length"] == both["length"].mode().min()]
    ratios = np.log(both["value_ppl"]) / (np.log(2) * both["value_bpb"])
    return float(ratios.min()), float(ratios.max())
