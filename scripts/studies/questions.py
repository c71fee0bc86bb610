"""What the study asks, and the answers: correlations over all checkpoints, between and within families; effects of α.

The questions were written down before anything was measured. Predictors are taken at the train length (in range)
and at the next length beyond; the outcomes are log-perplexity at 8 times the train length, its rise from the train
length, and the rise over one and the same target bytes.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from longshort.analysis import compare, correlations, wide_table
from longshort.analysis.adjustment import holm
from longshort.analysis.figures.style import style
from longshort.analysis.labels import axis_label
from longshort.plotting import COLOURS, new_figure, save_figure
from longshort.results import read_results, write_atomically

PREDICTORS = ("sce", "entropy", "jeffreys", "js", "agreement", "sce_last", "sce_beyond", "jeffreys_beyond", "nll")
PAIRS = (
    ("sce", "nll"),
    ("jeffreys", "nll"),
    ("sce", "entropy"),
    ("jeffreys", "sce"),
    ("sce_beyond", "sce"),
    ("jeffreys_beyond", "jeffreys"),
)
MEASURES = ("nll", "log_ppl@{far}", "log_ppl_tail_increase@{far}", "sce", "entropy", "jeffreys", "jeffreys_beyond")
NAME = re.compile(r"(?P<run>.+?)(-step(?P<step>\d+))?")


def write_answers(folder: Path) -> None:
    """Read the sweep in `folder`; write correlations.csv, comparisons.csv, effects.csv, answers.md, figures.

    Raises:
        UserError: there are no results, or the folder cannot be written.
    """
    wide = with_runs(wide_table(read_results(folder / "sweep")))
    far = max(int(name.removeprefix("log_ppl@")) for name in wide if re.fullmatch(r"log_ppl@\d+", name))
    outcomes = [f"log_ppl@{far}", f"log_ppl_increase@{far}", f"log_ppl_tail_increase@{far}"]
    scopes = scopes_of(wide, [*PREDICTORS, *outcomes])
    found, compared = [], []
    for scope, (rows, group) in scopes.items():
        table = correlations(rows, PREDICTORS, outcomes, ("nll",), group=group)
        found.append(table.assign(scope=scope))
        compared.append(compare(rows, PAIRS, outcomes, group=group).assign(scope=scope))
    effects = effects_of(wide, [name.format(far=far) for name in MEASURES])
    tables = {"correlations": pd.concat(found), "comparisons": pd.concat(compared), "effects": effects}
    for name, table in tables.items():
        columns = ["scope", *(column for column in table if column != "scope")] if "scope" in table else list(table)
        write_atomically(folder / f"{name}.csv", table[columns].to_csv(index=False))
    write_atomically(folder / "answers.md", markdown(tables, outcomes))
    draw_effects(effects, folder / "figures" / "effects")
    draw_scopes(scopes, "sce", outcomes[0], folder / "figures" / "scopes_sce")
    draw_scopes(scopes, "jeffreys_beyond", outcomes[1], folder / "figures" / "scopes_jeffreys_beyond")


def with_runs(wide: pd.DataFrame) -> pd.DataFrame:
    """Add which run of its family a checkpoint is, at which step (NaN: the last), and how positions are told."""
    of_family = zip(wide["checkpoint"], wide["family"], strict=True)
    names = [Path(path).name.removeprefix(f"{family}-") for path, family in of_family]
    parts = [NAME.fullmatch(name) for name in names]
    return wide.assign(
        run=[part["run"] if part else name for part, name in zip(parts, names, strict=True)],
        step=[float(part["step"] or "nan") if part else np.nan for part in parts],
        positions=wide["family"].str.replace(r"-(seed\d+|wide|deep)$", "", regex=True),
    )


def scopes_of(wide: pd.DataFrame, columns: list[str]) -> dict[str, tuple[pd.DataFrame, str]]:
    """The checkpoints of each way of asking, with the column that groups them.

    ``between``: one plain run per family. ``within``: less the mean of the family, so that only what its runs
    differ in is left. ``by positions``: families that tell positions alike count as one.
    """
    plain = wide[(wide["run"] == "plain") & wide["step"].isna()]
    extended = wide["run"].str.match("linear|yarn|clex|eabf")
    return {
        "all": (wide, "family"),
        "all, by positions": (wide, "positions"),
        "unextended": (wide[~extended], "family"),
        "between": (plain, "family"),
        "within": (centred(wide, columns), "family"),
        "within, unextended": (centred(wide[~extended], columns), "family"),
    }


def centred(wide: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The table with the mean of each family taken off these columns."""
    return wide.assign(**{name: wide[name] - wide.groupby("family")[name].transform("mean") for name in columns})


def effects_of(wide: pd.DataFrame, measures: list[str]) -> pd.DataFrame:
    """What each run differs in from the plain run of its family at the same step: equal tokens, equal order.

    An extended run is compared with the extended one of α = 0. Mean over families with a 95 % interval and p of
    Student's t, a family counting once; ``p_adjusted`` is Holm's over all rows.
    """
    values = wide.set_index(["run", "step", "family"])[measures]
    rows = []
    for run, step in wide[["run", "step"]].drop_duplicates().itertuples(index=False):
        baseline = re.sub(r"-a[\d.]+$", "-a0", run) if "-a" in run else "plain"
        if run in ("base", baseline):
            continue
        ours, plain = (_at(values, name, step) for name in (run, baseline))
        for measure in measures:
            difference = (ours[measure] - plain[measure]).dropna()
            rows.append({"run": run, "step": step, "measure": measure, **_mean(difference.to_numpy(float))})
    table = pd.DataFrame(rows).sort_values(["step", "run"], na_position="first", kind="stable")
    return table.assign(p_adjusted=holm(table["p"].to_numpy(float)))


def _at(values: pd.DataFrame, run: str, step: float) -> pd.DataFrame:
    chosen = values.loc[[run]]
    steps = chosen.index.get_level_values("step")
    return chosen[steps.isna() if np.isnan(step) else steps == step].droplevel(["run", "step"])


def _mean(differences: np.ndarray) -> dict[str, float]:
    n = len(differences)
    mean = float(differences.mean()) if n else np.nan
    if n < 3:
        return {"n_families": n, "mean": mean, "lo": np.nan, "hi": np.nan, "p": np.nan, "lower_in": np.nan}
    test = stats.ttest_1samp(differences, 0)
    low, high = test.confidence_interval()
    lower = int((differences < 0).sum())
    return {"n_families": n, "mean": mean, "lo": low, "hi": high, "p": float(test.pvalue), "lower_in": lower}


def markdown(tables: dict[str, pd.DataFrame], outcomes: list[str]) -> str:
    """All answers as tables, 95 % intervals in brackets."""
    found, compared, effects = tables["correlations"], tables["comparisons"], tables["effects"]
    lines = ["Written by `scripts/study.py --only questions`. Intervals are 95 %, over families.", ""]
    for outcome in outcomes:
        lines += [f"## Spearman's correlation with {outcome}", ""]
        lines += ["| predictor | " + " | ".join(found["scope"].unique()) + " |"]
        lines += ["|---" * (found["scope"].nunique() + 1) + "|"]
        for predictor in PREDICTORS:
            rows = found[(found["outcome"] == outcome) & (found["predictor"] == predictor)]
            cells = [interval(row.spearman, row.spearman_lo, row.spearman_hi) for row in rows.itertuples()]
            lines.append(f"| {predictor} | " + " | ".join(cells) + " |")
        counts = found[found["outcome"] == outcome].groupby("scope", sort=False)[["n", "n_families"]].max()
        lines.append("| n (groups) | " + " | ".join(f"{n} ({groups})" for n, groups in counts.to_numpy()) + " |")
        lines.append("")
        if "_tail" not in outcome and "_increase" in outcome:
            continue  # at equal NLL the rise is log-perplexity itself, but for a constant
        lines += [f"## At equal NLL: partial correlation (Pearson's) with {outcome}", ""]
        lines += ["| predictor | " + " | ".join(found["scope"].unique()) + " |"]
        lines += ["|---" * (found["scope"].nunique() + 1) + "|"]
        for predictor in PREDICTORS[:-1]:
            rows = found[(found["outcome"] == outcome) & (found["predictor"] == predictor)]
            cells = [interval(row.partial, row.partial_lo, row.partial_hi) for row in rows.itertuples()]
            lines.append(f"| {predictor} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["## Does one predict better than another? |Spearman's| of the first less that of the second", ""]
    for outcome in outcomes:
        lines += [f"### {outcome}", "", "| first, second | " + " | ".join(compared["scope"].unique()) + " |"]
        lines += ["|---" * (compared["scope"].nunique() + 1) + "|"]
        for predictor, other in PAIRS:
            of_pair = (compared["predictor"] == predictor) & (compared["other"] == other)
            rows = compared[of_pair & (compared["outcome"] == outcome)]
            cells = [
                interval(
                    row.spearman_difference,
                    row.spearman_difference_jackknife_lo,
                    row.spearman_difference_jackknife_hi,
                )
                for row in rows.itertuples()
            ]
            lines.append(f"| {predictor}, {other} | " + " | ".join(cells) + " |")
        lines.append("")
    measures = list(effects["measure"].unique())
    lines += ["## Difference from the run with α = 0 of the same family, step and text", ""]
    lines += ["| run | step | families | " + " | ".join(measures) + " |", "|---" * (len(measures) + 3) + "|"]
    for (run, step), rows in effects.groupby(["run", "step"], sort=False, dropna=False):
        cells = [interval(row.mean, row.lo, row.hi) for row in rows.itertuples(index=False)]
        at = "last" if np.isnan(step) else f"{step:.0f}"
        lines.append(f"| {run} | {at} | {rows['n_families'].max()} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def interval(value: float, low: float, high: float) -> str:
    """A value with its interval, or – where there is none."""
    if np.isnan(value):
        return "–"
    return f"{value:.2f}" if np.isnan(low) else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def draw_effects(effects: pd.DataFrame, path: Path) -> None:
    """A panel per measure, a row per run at the last step: the mean difference and its interval."""
    last = effects[effects["step"].isna()]
    runs, measures = list(dict.fromkeys(last["run"])), list(dict.fromkeys(last["measure"]))
    with style():
        figure = new_figure(2.1 * len(measures), 0.32 * len(runs) + 1.2)
        for axes, measure in zip(np.ravel(figure.subplots(1, len(measures), sharey=True)), measures, strict=True):
            rows = last[last["measure"] == measure].set_index("run").loc[runs]
            errors = np.abs(rows[["lo", "hi"]].sub(rows["mean"], axis=0).to_numpy().T)
            axes.errorbar(rows["mean"], range(len(runs)), xerr=errors, fmt="o", ms=4, lw=1.2, color=COLOURS[0])
            axes.axvline(0, color="#888888", lw=0.8)
            axes.set_yticks(range(len(runs)), runs)
            axes.set_title(measure, fontsize=9)
        figure.axes[0].invert_yaxis()
        figure.supxlabel("difference from α = 0 (nats), 95 % interval over families", fontsize=9)
        save_figure(figure, path)


def draw_scopes(scopes: dict[str, tuple[pd.DataFrame, str]], predictor: str, outcome: str, path: Path) -> None:
    """Three panels: all checkpoints, one plain run per family, and what is left within families."""
    families = sorted(scopes["all"][0]["family"].unique())
    with style():
        figure = new_figure(11, 4)
        panels = [("all", "all checkpoints"), ("between", "plain runs"), ("within", "less the family's mean")]
        for axes, (scope, title) in zip(figure.subplots(1, 3), panels, strict=True):
            rows = scopes[scope][0]
            for index, family in enumerate(families):
                chosen = rows[rows["family"] == family]
                marker = "os^Dv"[index // len(COLOURS)]
                colour = COLOURS[index % len(COLOURS)]
                axes.plot(chosen[predictor], chosen[outcome], marker, ms=4, color=colour, label=family, alpha=0.8)
            axes.set_title(title, fontsize=10)
        figure.supxlabel(axis_label(predictor), fontsize=10)
        figure.axes[0].set_ylabel(axis_label(outcome))
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
        save_figure(figure, path)
