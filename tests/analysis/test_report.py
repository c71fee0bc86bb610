"""What the report says: its numbers are those of the tables, its words those of the numbers."""

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from longshort.analysis import write_report
from longshort.analysis.report import METHODS_TABLE
from longshort.analysis.report.findings import caution, coefficient, findings, headline_outcomes
from longshort.errors import UserError
from tests.analysis.analyses import EVIL, analysis, usual

OUTCOME = "log_ppl@16384"


class Page(HTMLParser):
    """Elements with their attributes, text by section, and the embedded data."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.section, self.texts, self.scripts = [], "", {}, []
        self.feed(text)
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag == "section":
            self.section = attributes["id"]
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, text):
        if self.elements and self.elements[-1][0] == "script" and self.scripts[-1] == "":
            self.scripts[-1] = text
        self.texts[self.section] = f"{self.texts.get(self.section, '')} {text}"


@pytest.fixture(scope="module")
def made():
    return usual()


@pytest.fixture(scope="module")
def file(made, tmp_path_factory):
    return write_report(made, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def page(file):
    return Page(file.read_text("utf-8"))


@pytest.fixture
def without_figures(monkeypatch):
    monkeypatch.setattr("longshort.analysis.report._figures", lambda *_: ([], []))


def words(text):
    return " ".join(text.split())


@pytest.mark.parametrize("name", ["correlations", "comparisons", "wide"])
def test_every_number_of_the_tables_is_embedded(made, page, name):
    values = page.data["tables"]["checkpoints" if name == "wide" else name]["values"]
    pd.testing.assert_frame_equal(pd.DataFrame(values).astype(getattr(made, name).dtypes), getattr(made, name))


def test_every_value_has_its_place_in_a_column(made, page):
    for name, frame in (("correlations", made.correlations), ("comparisons", made.comparisons)):
        columns = page.data["tables"][name]["columns"]
        shown = {column["key"] for column in columns if column["kind"] != "range"}
        companions = {f"{key}_{end}" for key in (column["key"] for column in columns) for end in ("lo", "hi")}
        assert shown | companions >= set(frame)
        assert not shown & companions
        assert len({column["label"] for column in columns}) == len(columns)
    columns = page.data["tables"]["checkpoints"]["columns"]
    assert {column["key"] for column in columns} == {name for name in made.wide if not name.endswith("_stderr")}
    kinds = {column["key"]: column["kind"] for column in page.data["tables"]["correlations"]["columns"]}
    assert kinds["n"] == "value"
    assert kinds["pearson"] == "coefficient"
    assert kinds["pearson_p"] == kinds["p_adjusted"] == "p"
    assert kinds["pearson_loo"] == "range"
    assert kinds["controls"] == "text"


def test_headline_has_the_numbers_of_the_table(made, page):
    text = words(page.texts["findings"])
    row = made.correlations.set_index(["predictor", "outcome"]).loc["sce", OUTCOME]
    numbers = [f"{row[name]:.2f}".replace("-", "−") for name in ("pearson", "pearson_lo", "pearson_hi")]
    assert "SCE at the train length: r = {} [{}, {}], n = 12, F = 4 families.".format(*numbers) in text
    numbers = [f"{row[name]:.2f}".replace("-", "−") for name in ("partial", "partial_lo", "partial_hi")]
    assert "Holding NLL at the train length fixed: partial r = {} [{}, {}]".format(*numbers) in text
    row = made.comparisons.set_index(["other", "outcome"]).loc["nll", OUTCOME]
    names = ("abs_pearson", "abs_pearson_other", "difference", "difference_jackknife_lo", "difference_jackknife_hi")
    numbers = [f"{row[name]:.2f}".replace("-", "−") for name in names]
    sentence = "SCE at the train length against NLL at the train length: |r| = {} and {}, difference {} [{}, {}]"
    assert sentence.format(*numbers) in text
    assert f"{len(made.correlations)} pairs were looked at" in text
    assert "n = 12 checkpoints of F = 4 families" in words(page.texts[""])


def sentences(made, **changed):
    """About SCE alone, with some numbers of its row changed."""
    table = made.correlations[made.correlations["outcome"] == OUTCOME].copy()
    for name, value in changed.items():
        table[name] = value
    table = table[table["predictor"] == "sce"]
    (finding,) = findings(replace(made, correlations=table, comparisons=pd.DataFrame()))
    (sentence,) = finding.sentences
    return sentence


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pearson": 0.6, "pearson_lo": 0.2, "pearson_hi": 0.8}, "the higher the log-perplexity at 16384 tokens. "),
        ({"pearson": -0.6, "pearson_lo": -0.8, "pearson_hi": -0.2}, "the lower the log-perplexity at 16384 tokens. "),
        ({"pearson": 0.6, "pearson_lo": -0.1, "pearson_hi": 0.8}, "The interval holds 0: no correlation"),
        ({"pearson": 0.6, "pearson_lo": 0.0, "pearson_hi": 0.8}, "The interval holds 0: no correlation"),
        ({"pearson": 1.0, "pearson_lo": np.nan, "pearson_hi": np.nan}, "No interval could be computed"),
        ({"pearson": np.nan, "note": "sce does not vary"}, "no coefficient (n = 12, F = 4 families): sce does not"),
        ({"pearson_lo": 0.1, "pearson_hi": 0.2, "interval": "naive"}, "naive interval. The higher it is, the higher "),
        ({"pearson_lo": 0.1, "pearson_hi": 0.2, "interval": "naive"}, "if checkpoints of a family may count as indep"),
        ({"partial": 0.5, "partial_lo": 0.1, "partial_hi": 0.7}, "says something that NLL at the train length does"),
        ({"partial": 0.5, "partial_lo": -0.1, "partial_hi": 0.7}, "beyond that, nothing is shown"),
        ({"partial": 0.5, "partial_lo": np.nan}, "partial r = 0.50."),
        ({"controls": "nll, log_params"}, "Holding NLL at the train length and logarithm of the number of parameters"),
        ({"n_families": 1}, "F = 1 family."),
    ],
)
def test_sentences_follow_the_interval(made, changed, said):
    assert said in sentences(made, **({"pearson": 0.15} | changed))


def test_no_partial_coefficient_no_word_of_it(made):
    assert "Holding" not in sentences(made, partial=np.nan)


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ((-0.1, 0.5), "neither is shown to predict better"),
        ((0.1, 0.5), "SCE at the train length predicts better"),
        ((-0.5, -0.1), "NLL at the train length predicts better"),
        ((np.nan, np.nan), "cannot be said"),
    ],
)
def test_comparisons_follow_the_interval(made, ends, said):
    table = made.comparisons[(made.comparisons["other"] == "nll") & (made.comparisons["outcome"] == OUTCOME)].copy()
    table["difference"] = np.mean(ends)
    table["difference_jackknife_lo"], table["difference_jackknife_hi"] = ends
    (finding,) = findings(replace(made, comparisons=table))
    assert said in finding.sentences[-1]
    (finding,) = findings(replace(made, comparisons=table.assign(interval="naive")))
    assert "F = 4, naive interval. " in finding.sentences[-1]


def test_longbench_comes_first_then_the_furthest_perplexity(made):
    table = made.correlations[made.correlations["predictor"].isin(["sce", "nll"])]
    longbench = table[table["outcome"] == OUTCOME].assign(outcome="longshort_longbench_e:score")
    both = replace(made, correlations=pd.concat([table, longbench]))
    assert headline_outcomes(made) == [OUTCOME]
    assert headline_outcomes(both) == ["longshort_longbench_e:score", OUTCOME]
    other = replace(made, correlations=longbench.assign(outcome="babilong_qa1:acc"))
    assert headline_outcomes(other) == ["babilong_qa1:acc"]


@pytest.mark.parametrize(
    ("n", "families", "said"),
    [(4, 4, "Fewer than 5"), (12, 1, "Only 1 family:"), (12, 3, "too narrow"), (12, 9, "lean on few"), (50, 10, "")],
)
def test_caution_at_few_points_and_families(made, n, families, said):
    found = caution(replace(made, correlations=made.correlations.assign(n=n, n_families=families)))
    assert (said in found) if said else found == ""


def test_coefficient():
    assert coefficient(-0.456, -0.7, 0.1) == "−0.46 [−0.70, 0.10]"
    assert coefficient(0.5) == coefficient(0.5, np.nan, 0.6) == "0.50"
    assert coefficient(np.nan, 0.1, 0.2) == coefficient(pd.NA) == "–"


def test_reported_values_are_marked_and_apart(made, page):
    text = words(page.texts["paper"])
    marked = "reported by Du et al., ICML 2025, not measured here"
    assert text.count(marked) == 2
    assert re.search(r"misalignment \(L_misalign\)\s+0\.85\s", text)
    assert re.search(r"training loss\s+0\.62\s", text)
    for training, alpha, longbench, perplexity in METHODS_TABLE:
        assert f"{training} {alpha} {longbench} {perplexity:.2f}" in text
    for row in made.wide.itertuples():
        assert f"{np.exp(row.nll):.2f}" in text.partition("Measured here")[2]
    row = made.correlations.set_index(["predictor", "outcome"]).loc["nll", OUTCOME]
    assert f"{row['pearson']:.2f} [".replace("-", "−") in text
    numbers = {item for training in METHODS_TABLE for item in training[2:]}
    embedded = json.dumps(page.data)
    assert not any(f":{number}," in embedded or f", {number}," in embedded for number in numbers)


def test_settings_notes_and_figures_are_told(made, page):
    assert "ab" * 32 in page.texts["settings"]
    assert "longshort" in page.texts["settings"]
    for note in made.notes:
        assert note in page.texts["notes"]
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(images) == 5
    assert all(image["src"].startswith("data:image/svg+xml;base64,") and image["alt"] for image in images)


def test_figures_that_are_drawn_already_are_shown_as_they_are(made, tmp_path):
    names = ["perplexity_by_length", "misalignment_curve_sce", "misalignment_curve_jeffreys", "misalignment_matrix_sce"]
    drawn = [tmp_path / f"{name}.{kind}" for name in ["forest", *names] for kind in ("png", "svg")]
    for file in drawn:
        file.write_text(f"<svg>{file.name}</svg>")
    page = Page(write_report(made, tmp_path / "r.html", drawn).read_text("utf-8"))
    sources = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    shown = [base64.b64decode(source.partition("base64,")[2]).decode() for source in sources]
    assert shown[1:] == [f"<svg>{name}.svg</svg>" for name in names]
    assert "<svg>forest" not in shown[0]  # it has all pairs, the report's those of the main outcomes
    assert shown[0].count("</text>") > 10


def test_nothing_is_fetched_and_no_name_is_markup(file, page):
    text = file.read_text("utf-8")
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"b", "link", "iframe", "object", "embed", "base", "form"}
    assert EVIL not in text
    assert EVIL in page.data["tables"]["checkpoints"]["values"]["checkpoint"]
    policy = next(attributes["content"] for _, attributes in page.elements if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|innerHTML", text)


def test_a_name_cannot_end_the_data(tmp_path, without_figures):
    name = '</script><script>alert("1")</script>'
    written = write_report(analysis([(name, "a"), ("b", "<!--")]), tmp_path / "r.html").read_text("utf-8")
    page = Page(written)
    assert written.count("<script") == 2
    assert page.data["tables"]["checkpoints"]["values"]["checkpoint"] == sorted([name, "b"])


def test_what_is_missing_or_infinite_is_null(made, tmp_path, without_figures):
    wide = made.wide.copy()
    wide.loc[0, ["sce", "nll"]] = [np.inf, np.nan]
    wide.loc[0, "params"] = pd.NA
    page = Page(write_report(replace(made, wide=wide), tmp_path / "r.html").read_text("utf-8"))
    values = page.data["tables"]["checkpoints"]["values"]
    assert [values[name][0] for name in ("sce", "nll", "params")] == [None] * 3


def test_an_analysis_without_pairs_or_figures(made, tmp_path):
    empty = replace(
        made,
        tidy=made.tidy[made.tidy["metric"] == "entropy"],
        correlations=made.correlations.iloc[:0],
        comparisons=pd.DataFrame(),
    )
    page = Page(write_report(empty, tmp_path / "r.html").read_text("utf-8"))
    assert "Fewer than 5 checkpoints" in page.texts["findings"]
    assert "No pair of predictor and outcome was measured" in page.texts["findings"]
    assert "None could be drawn" in page.texts["figures"]
    assert "no ppl@L" in page.texts["notes"]
    assert "not measured" in page.texts["paper"]


def test_columns_that_an_older_table_lacks(made, tmp_path, without_figures):
    old = made.correlations[["predictor", "outcome", "n", "n_families", "pearson", "spearman"]]
    page = Page(write_report(replace(made, correlations=old), tmp_path / "r.html").read_text("utf-8"))
    assert set(page.data["tables"]["correlations"]["values"]) == set(old)


def test_another_grouping(made, tmp_path, without_figures):
    wide = made.wide.assign(run=["one", "two"] * 6)
    grouped = replace(made, wide=wide, settings=made.settings | {"group_by": "run"})
    page = Page(write_report(grouped, tmp_path / "r.html").read_text("utf-8"))
    assert page.data["group"] == "run"
    assert "F = 2 families" in words(page.texts[""])


def test_equal_analyses_give_equal_files(tmp_path):
    one, other = (write_report(analysis([("a", "a"), ("b", "b")]), tmp_path / name) for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


def test_a_place_that_cannot_be_written(made, tmp_path, without_figures):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/report\.html") as raised:
        write_report(made, tmp_path / "file" / "report.html")
    assert raised.value.kind == "unwritable"
