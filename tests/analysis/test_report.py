"""What the report says: its numbers are those of the tables, its words those of the numbers."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest

from longshort.analysis import write_report
from longshort.analysis.leaderboard import answer
from longshort.analysis.report import METHODS_TABLE
from longshort.analysis.report.findings import caution, coefficient, findings
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


def words(text):
    return " ".join(text.split())


@pytest.mark.parametrize("name", ["leaderboard", "correlations", "comparisons", "wide"])
def test_every_number_of_the_tables_is_embedded(made, page, name):
    values = page.data["tables"]["checkpoints" if name == "wide" else name]["values"]
    embedded = pd.DataFrame(values).astype(getattr(made, name).dtypes)
    pd.testing.assert_frame_equal(embedded, getattr(made, name), rtol=5e-6, atol=0)


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
    kinds = {column["key"]: column["kind"] for column in page.data["tables"]["comparisons"]["columns"]}
    assert kinds["spearman_difference_p"] == kinds["spearman_difference_p_adjusted"] == "p"
    kinds = {column["key"]: column["kind"] for column in page.data["tables"]["correlations"]["columns"]}
    assert kinds["pearson_loo"] == "range"
    assert kinds["controls"] == "text"


def signed(number):
    return f"{number:.2f}".replace("-0.00", "0.00").replace("-", "−")


def test_the_first_screen_asks_and_answers(made, page):
    assert "Which measurement predicts long-context performance?" in words(page.texts[""])
    first = words(page.texts["first"])
    assert answer(made, OUTCOME) in first
    ranked = made.leaderboard[made.leaderboard["outcome"] == OUTCOME]
    assert page.data["start"] == [ranked["predictor"].iloc[0], OUTCOME]
    assert page.data["answers"] == {outcome: answer(made, outcome) for outcome in made.leaderboard["outcome"].unique()}
    assert page.data["better"][OUTCOME]["sce"] == better_ranks(ranked, {"nll", "entropy"})


def better_ranks(ranked, names):
    ranks = sorted(ranked.loc[ranked["predictor"].isin(names), "rank"])
    return "{}–{}".format(*ranks) if ranks[1] == ranks[0] + 1 else "{}, {}".format(*ranks)


def test_findings_are_one_table_of_every_pair(made, page):
    text = words(page.texts["findings"])
    buttons = [attributes for tag, attributes in page.elements if tag == "button" and "data-outcome" in attributes]
    table = made.correlations
    assert {(button["data-predictor"], button["data-outcome"]) for button in buttons} == set(
        zip(table["predictor"], table["outcome"], strict=True)
    )
    for row in table.itertuples():
        interval = f"[{signed(row.spearman_lo)}, {signed(row.spearman_hi)}]"
        assert f"{signed(row.spearman)} {interval}" in text
    assert f"{len(table)} pairs were examined" in text


@pytest.mark.parametrize(
    ("changed", "value", "interval", "shade"),
    [
        ((0.65, 0.2, 0.8), "0.65", "[0.20, 0.80]", "positive s3 certain"),
        ((-0.65, -0.8, -0.2), "−0.65", "[−0.80, −0.20]", "negative s3 certain"),
        ((0.15, -0.1, 0.8), "0.15", "[−0.10, 0.80]", "positive s0"),
        ((0.65, 0.0, 0.8), "0.65", "[0.00, 0.80]", "positive s3"),
        ((1.0, np.nan, np.nan), "1.00", "", "positive s4"),
        ((np.nan, np.nan, np.nan), "", "", ""),
    ],
)
def test_a_finding_follows_its_interval(made, changed, value, interval, shade):
    table = made.leaderboard.copy()
    place = (table["outcome"] == OUTCOME) & (table["predictor"] == "js")
    table.loc[place, ["spearman", "spearman_lo", "spearman_hi"]] = changed
    table.loc[place, "note"] = "js does not vary"
    rows = findings(replace(made, leaderboard=table), [OUTCOME])
    (cell,) = next(row.cells for row in rows if row.predictor == "js")
    assert (cell.value, cell.interval, cell.shade) == (value, interval, shade)
    assert cell.note == ("" if value else "js does not vary")


def test_naive_intervals_and_values_below_their_floor_are_marked(made):
    table = made.leaderboard.assign(interval="naive")
    flagged = made.correlations.assign(n_below_floor=(made.correlations["predictor"] == "jeffreys").astype(int))
    rows = findings(replace(made, leaderboard=table, correlations=flagged), [OUTCOME])
    assert all(row.cells[0].value.endswith("†") for row in rows)
    assert [row.predictor for row in rows if row.label.endswith("‡")] == ["jeffreys"]


@pytest.mark.parametrize(
    ("n", "families", "said"),
    [(4, 4, "Fewer than 5"), (12, 1, "Only 1 family:"), (12, 3, "too narrow"), (12, 9, "are wide"), (50, 10, "")],
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
    assert text.count(marked) == 4
    assert re.search(r"misalignment \(L_misalign\)\s+0\.85\s", text)
    assert re.search(r"training loss\s+0\.62\s", text)
    for training, alpha, longbench, perplexity in METHODS_TABLE:
        assert f"{training} {alpha} {longbench} {perplexity:.2f}" in text
    row = made.correlations.set_index(["predictor", "outcome"]).loc["nll", OUTCOME]
    assert f"{row['pearson']:.2f} [".replace("-", "−") in text
    numbers = {item for training in METHODS_TABLE for item in training[2:]}
    embedded = json.dumps(page.data)
    assert not any(f":{number}," in embedded or f", {number}," in embedded for number in numbers)


def test_settings_notes_and_figures_are_told(made, page):
    assert "ab" * 32 in page.texts["settings"]
    assert "longshort" in page.texts["settings"]
    for note in made.notes:
        assert note in page.texts["settings"]
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(images) == 4
    assert all(image["src"].startswith("data:image/svg+xml,") and image["alt"] for image in images)


def test_figures_are_embedded_as_they_were_written(made, tmp_path, monkeypatch):
    monkeypatch.setattr("longshort.analysis.report.draw_figures", None)  # none is drawn again
    shown = ["perplexity_by_length", "misalignment_curve_sce", "misalignment_curve_jeffreys"]
    drawn = [tmp_path / f"{name}.svg" for name in ["leaderboard", "scatter", *shown]]
    for file in drawn:
        file.write_text(f'<svg id="#1">{file.name} 100 % → “ä”</svg>', "utf-8")
    page = Page(write_report(made, tmp_path / "r.html", drawn).read_text("utf-8"))
    sources = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    assert [unquote(source.partition(",")[2]) for source in sources] == [
        f'<svg id="#1">{name}.svg 100 % → “ä”</svg>' for name in shown
    ]
    assert not any(letter in source for source in sources for letter in '#<>"')


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


def test_a_name_cannot_end_the_data(tmp_path):
    name = '</script><script>alert("1")</script>'
    written = write_report(analysis([(name, "a"), ("b", "<!--")]), tmp_path / "r.html", ()).read_text("utf-8")
    page = Page(written)
    assert written.count("<script") == 2
    assert page.data["tables"]["checkpoints"]["values"]["checkpoint"] == sorted([name, "b"])


def test_what_is_missing_or_infinite_is_null(made, tmp_path):
    wide = made.wide.copy()
    wide.loc[0, ["sce", "nll"]] = [np.inf, np.nan]
    wide.loc[0, "params"] = pd.NA
    page = Page(write_report(replace(made, wide=wide), tmp_path / "r.html", ()).read_text("utf-8"))
    values = page.data["tables"]["checkpoints"]["values"]
    assert [values[name][0] for name in ("sce", "nll", "params")] == [None] * 3


def test_an_analysis_without_pairs_or_figures(made, tmp_path):
    empty = replace(
        made,
        tidy=made.tidy[made.tidy["metric"] == "entropy"],
        correlations=made.correlations.iloc[:0],
        comparisons=pd.DataFrame(),
        leaderboard=pd.DataFrame(),
    )
    page = Page(write_report(empty, tmp_path / "r.html").read_text("utf-8"))
    assert "Fewer than 5 checkpoints" in page.texts["first"]
    assert "No pair of predictor and outcome was measured" in page.texts["first"]
    assert "figures" not in page.texts
    assert "not measured" in page.texts["paper"]


def test_columns_that_an_older_table_lacks(made, tmp_path):
    old = made.correlations[["predictor", "outcome", "n", "n_families", "pearson", "spearman"]]
    page = Page(write_report(replace(made, correlations=old), tmp_path / "r.html", ()).read_text("utf-8"))
    assert set(page.data["tables"]["correlations"]["values"]) == set(old)


def test_another_grouping(made, tmp_path):
    wide = made.wide.assign(run=["one", "two"] * 6)
    grouped = replace(made, wide=wide, settings=made.settings | {"group_by": "run"})
    page = Page(write_report(grouped, tmp_path / "r.html", ()).read_text("utf-8"))
    assert page.data["group"] == "run"


def test_equal_analyses_give_equal_files(tmp_path):
    one, other = (write_report(analysis([("a", "a"), ("b", "b")]), tmp_path / name) for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


def test_a_place_that_cannot_be_written(made, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/report\.html") as raised:
        write_report(made, tmp_path / "file" / "report.html", ())
    assert raised.value.kind == "unwritable"
