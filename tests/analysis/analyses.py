"""Made-up analyses for the figures and the report: every number of the tables is drawn, none computed."""

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pandas as pd

from longshort.analysis import outcomes, predictors, wide_table
from longshort.analysis.analysis import Analysis
from longshort.analysis.leaderboard import leaderboard
from longshort.results import COLUMNS
from tests.analysis.conftest import LENGTHS, RISE, rows_of

EVIL = "<img src=x onerror=alert(1)>"
COEFFICIENTS = ("pearson", "spearman", "kendall", "partial")


def matrix_rows(rows, generator):
    """Misalignment between all lengths of one checkpoint, as further metrics of the perplexity task."""
    about = rows[0] | {"task": "longshort_perplexity", "length": None, "stderr": 0.02}
    level = 4 + generator.normal(0, 0.2)
    for i, one in enumerate(LENGTHS):
        for j, other in enumerate(LENGTHS[i:], i):
            jeffreys = 0.3 * (j - i) * (1 + generator.uniform(0, 0.2))
            yield about | {"metric": f"sce_between@{one}-{other}", "value": level + jeffreys}
            if one < other:
                yield about | {"metric": f"jeffreys_between@{one}-{other}", "value": jeffreys}


def tidy_table(names_and_families, seed=0):
    generator = np.random.default_rng(seed)
    rows = []
    for name, family in names_and_families:
        own = rows_of(name, family, RISE.get(family, 0.5) * generator.uniform(0.5, 1.5), generator)
        rows += [*own, *matrix_rows(own, generator)]
    return pd.DataFrame(rows)[list(COLUMNS)].astype(COLUMNS)


def correlation_table(wide, naive=False, seed=0):
    generator = np.random.default_rng(seed)
    rows = []
    for predictor, outcome in product(predictors(wide), outcomes(wide)):
        row = {
            "predictor": predictor,
            "outcome": outcome,
            "n": len(wide),
            "n_families": wide["family"].nunique(),
        }
        for name in COEFFICIENTS:
            value, low, high = generator.uniform(-0.7, 0.7), *generator.uniform(0.1, 0.29, 2)
            row |= {name: value, f"{name}_lo": value - low, f"{name}_hi": value + high}
            row |= {f"{name}_p": generator.uniform(), f"{name}_loo_lo": value - 0.05, f"{name}_loo_hi": value + 0.05}
        row |= {"controls": "nll" if predictor != "nll" else "", "p_adjusted": generator.uniform()}
        row |= {"reliability_predictor": 0.95, "reliability_outcome": 0.9, "pearson_corrected": row["pearson"] / 0.925}
        rows.append(row | {"interval": "naive" if naive else "jackknife", "note": ""})
    table = pd.DataFrame(rows)
    table.loc[table["predictor"] == "nll", [c for c in table if c.startswith("partial")]] = np.nan
    return table


def comparison_table(table, seed=1):
    """Every pair of predictors, for each outcome; the differences of SCE from NLL and entropy in |ρ| hold up."""
    generator = np.random.default_rng(seed)
    rows = []
    names = list(dict.fromkeys(table["predictor"]))
    for outcome, (predictor, other) in product(table["outcome"].unique(), combinations(names, 2)):
        row = {"predictor": predictor, "other": other, "outcome": outcome}
        row |= {name: table[name].iloc[0] for name in ("n", "n_families")}
        for prefix, name in (("", "pearson"), ("spearman_", "spearman")):
            one, two, low, high = generator.uniform(0.1, 0.9, 4)
            difference = 0.3 if other in ("nll", "entropy") and predictor == "sce" else one - two
            row |= {f"abs_{name}": one, f"abs_{name}_other": two, f"{prefix}difference": difference}
            row[f"{prefix}difference_jackknife_lo"] = difference - 2 * low
            row[f"{prefix}difference_jackknife_hi"] = difference + 2 * high
            row[f"{prefix}difference_p"] = generator.uniform()
            row[f"{prefix}difference_p_adjusted"] = 0.01 if difference == 0.3 else generator.uniform(0.2, 1)
        rows.append(row | {"interval": "families", "note": ""})
    return pd.DataFrame(rows)


def analysis(names_and_families, naive=False, seed=0):
    tidy = tidy_table(names_and_families, seed)
    wide = wide_table(tidy)
    table = correlation_table(wide, naive, seed)
    settings = {
        "predictors": predictors(wide),
        "controls": ["nll"],
        "adjust": "holm",
        "group_by": "family",
        "results": {"results/a.json": "ab" * 32},
        "versions": {"longshort": "0.1.0"},
    }
    notes = ["results/bad.json is damaged or incomplete JSON. Left out.", f"{EVIL} was measured twice"]
    compared = comparison_table(table)
    return Analysis(tidy, wide, table, compared, settings, notes, leaderboard(table, compared))


def usual(naive=False):
    """Twelve checkpoints of four families, one of them with a name that is markup."""
    names = [(f"checkpoints/{family}-alpha{alpha}", family) for family in RISE for alpha in (0, 0.1, 0.5)]
    return analysis([*names, (EVIL, "<b>bold</b>"), ("models/a$b$c", "<b>bold</b>"), ("x" * 70, "<b>bold</b>")], naive)


def many(count, families=40):
    return analysis([(f"org/model-{index}", f"family-{index % families}") for index in range(count)])


def copies(made, times):
    """The same checkpoints many times over, under other names: quicker than as many of their own."""
    renamed = [made.wide.assign(checkpoint=made.wide["checkpoint"] + f"-{index}") for index in range(times)]
    return replace(made, wide=pd.concat(renamed, ignore_index=True))
