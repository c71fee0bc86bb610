"""The report in a real browser: its controls, its keyboard, its look at any width, and that it asks for nothing."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from longshort.analysis import write_report
from longshort.analysis.leaderboard import answer
from tests.analysis.analyses import EVIL, copies, many, usual
from tests.browser import contrast

LONG = "x" * 70
OUTCOME = "log_ppl@16384"


@pytest.fixture(scope="module")
def made():
    return usual()


@pytest.fixture(scope="module")
def address(made, tmp_path_factory):
    return write_report(made, tmp_path_factory.mktemp("report") / "report.html").as_uri()


def signed(number):
    return f"{number:.2f}".replace("-0.00", "0.00").replace("-", "−")


def row_of(page, predictor):
    return page.locator(f"#leaderboard tr[data-predictor='{predictor}']")


def plotted(page):
    return page.locator("#scatter svg").get_attribute("aria-label")


def tip(page):
    found = page.locator(".tip")
    return found.inner_text() if found.count() else None


def test_it_opens_without_a_request_beyond_its_file(open_page):
    page = open_page()
    requested = page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith("data:") for name in requested)
    assert page.locator("img").evaluate_all("(images) => images.every((image) => image.naturalWidth > 0)")
    assert page.locator(".point").count() == 12


def test_the_policy_forbids_what_is_not_the_report_s_own(browser, address):
    page = browser.new_page()
    page.goto(address)
    fetched = page.evaluate("fetch('https://example.org').then(() => 'done', () => 'refused')")
    assert fetched == "refused"
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.evil = 1\">')")
    page.wait_for_timeout(200)
    assert page.evaluate("window.evil") is None
    page.close()


def test_the_leaderboard_has_its_rows_in_order_with_their_numbers(open_page, made):
    page = open_page()
    assert page.locator("#answer").inner_text() == answer(made, OUTCOME)
    ranked = made.leaderboard[made.leaderboard["outcome"] == OUTCOME]
    rows = page.locator("#leaderboard tbody tr")
    assert rows.evaluate_all("(rows) => rows.map((row) => row.dataset.predictor)") == ranked["predictor"].tolist()
    drawn = rows.evaluate_all(
        """(rows) => rows.map((row) => ({
            rank: row.querySelector(".rank").textContent,
            spearman: row.querySelector(".spearman").textContent,
            partial: row.querySelector("td.partial").textContent,
            places: [["line", "x1"], ["circle", "cx"], ["line", "x2"]].map(([name, end]) =>
                Number.parseFloat(row.querySelector(`.rho ${name}`).getAttribute(end))),
            certain: row.querySelector(".rho").classList.contains("certain"),
        }))"""
    )
    for row, expected in zip(drawn, ranked.itertuples(), strict=True):
        assert row["rank"] == str(expected.rank)
        for name in ("spearman", "partial"):
            value, low, high = (getattr(expected, f"{name}{end}") for end in ("", "_lo", "_hi"))
            shown = "–" if np.isnan(value) else f"{signed(value)}[{signed(low)}, {signed(high)}]"
            assert row[name] == shown
        # From −1 at 3 % of the width to 1 at 97 %.
        places = [3 + 47 * (getattr(expected, f"spearman{end}") + 1) for end in ("_lo", "", "_hi")]
        assert row["places"] == pytest.approx(places, abs=1e-3)
        assert row["certain"] == (expected.spearman_lo > 0 or expected.spearman_hi < 0)
    better = row_of(page, "sce").locator(".better").text_content()
    ranks = sorted(ranked.loc[ranked["predictor"].isin(["nll", "entropy"]), "rank"])
    assert [int(rank) for rank in re.findall(r"\d+", better)] == ranks


def test_a_row_chooses_the_pair(open_page, made):
    page = open_page()
    assert plotted(page).endswith(page.evaluate("report.labels[report.start[0]]"))
    table = made.correlations.set_index(["predictor", "outcome"])
    for predictor, place in (("jeffreys", ".forest"), ("nll", "th"), ("js_beyond", ".spearman")):
        row_of(page, predictor).locator(place).click()
        label = page.evaluate(f"report.labels['{predictor}']")
        assert plotted(page).endswith(f"against {label}")
        assert label in page.locator("#predictor-label").inner_text()
        assert page.locator("#leaderboard input:checked").evaluate_all("(all) => all.map((one) => one.value)") == [
            predictor
        ]
        assert page.locator("#leaderboard tr.chosen").count() == 1
        pair, row = page.locator("#pair").inner_text(), table.loc[predictor, OUTCOME]
        assert f"{signed(row['pearson'])} [{signed(row['pearson_lo'])}, {signed(row['pearson_hi'])}]" in pair
        assert f"{row['p_adjusted']:.3f}" in pair
    row_of(page, "sce").click()
    assert "Better than" in page.locator("#pair").inner_text()
    assert "NLL" in page.locator("#pair").inner_text()


def test_the_outcome_is_chosen_and_a_finding_chooses_both(open_page, made):
    page = open_page()
    row_of(page, "jeffreys").click()
    page.select_option("#outcome", "effective_length")
    assert page.locator("#answer").inner_text() == answer(made, "effective_length")
    ranked = made.leaderboard[made.leaderboard["outcome"] == "effective_length"]
    rows = page.locator("#leaderboard tbody tr")
    assert rows.evaluate_all("(rows) => rows.map((row) => row.dataset.predictor)") == ranked["predictor"].tolist()
    assert page.locator("#leaderboard input:checked").get_attribute("value") == "jeffreys"
    assert plotted(page).startswith("effective length")
    page.locator("#findings button[data-predictor='nll'][data-outcome='log_ppl@8192']").click()
    assert page.locator("#outcome").input_value() == "log_ppl@8192"
    assert "8192" in page.locator("#outcome-label").inner_text()
    assert page.locator("#leaderboard input:checked").get_attribute("value") == "nll"
    pressed = page.locator("#findings [aria-pressed=true]")
    assert [button.get_attribute("data-predictor") for button in pressed.all()] == ["nll"]


def test_the_leaderboard_by_keyboard(open_page, made):
    page = open_page()
    ranked = made.leaderboard.loc[made.leaderboard["outcome"] == OUTCOME, "predictor"].tolist()
    page.focus("#outcome")
    page.keyboard.press("Tab")  # one stop for all rows
    assert page.evaluate("document.activeElement.value") == ranked[0]
    for key, place in (("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1)):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.value") == ranked[place]
        assert plotted(page).endswith(f"against {page.evaluate(f'report.labels[{ranked[place]!r}]')}")


def test_many_predictors_are_shown_on_demand(open_page, made, tmp_path):
    names = [f"task_{index}:acc" for index in range(20)]
    block = made.leaderboard[made.leaderboard["outcome"] == OUTCOME].iloc[:1]
    rows = pd.concat([block] * 21, ignore_index=True).assign(predictor=[*names, "nll"], rank=range(1, 22))
    wide = made.wide.assign(**dict.fromkeys(names, made.wide["sce"]))
    few = replace(
        made, leaderboard=rows, wide=wide, correlations=made.correlations[made.correlations["outcome"] == OUTCOME]
    )
    page = open_page(write_report(few, tmp_path / "report.html", ()).as_uri())
    visible = page.locator("#leaderboard tbody tr:visible")
    assert visible.count() == 13  # the first 12, and NLL
    assert visible.last.get_attribute("data-predictor") == "nll"
    page.get_by_role("button", name="Show all 21 predictors").click()
    assert visible.count() == 21
    page.locator("#leaderboard tr[data-predictor='task_15:acc']").click()
    page.get_by_role("button", name="Show the first 12").click()
    assert visible.count() == 14  # and the chosen one


def test_an_outcome_without_coefficients_says_why(open_page, made, tmp_path):
    table = made.leaderboard.copy()
    numbers = [name for name in table if name.startswith(("spearman", "partial"))]
    table.loc[table["outcome"] == OUTCOME, numbers] = np.nan
    table.loc[table["outcome"] == OUTCOME, "rank"] = pd.NA
    table.loc[table["outcome"] == OUTCOME, "note"] = "log_ppl@16384 does not vary"
    page = open_page(write_report(replace(made, leaderboard=table), tmp_path / "report.html", ()).as_uri())
    page.select_option("#outcome", OUTCOME)
    assert row_of(page, "sce").locator(".forest").inner_text() == "log_ppl@16384 does not vary"
    assert page.locator("#leaderboard .rho circle").count() == 0


@pytest.mark.parametrize("width", [390, 1440])
def test_leaderboard_and_plot_are_side_by_side_or_stacked(open_page, width):
    page = open_page(width=width)
    left, right = page.locator("#leaderboard").bounding_box(), page.locator("#scatter").bounding_box()
    if width == 1440:
        assert right["x"] >= left["x"] + left["width"]
        assert right["y"] < left["y"] + left["height"]
        assert right["y"] + right["height"] < 800  # on the first screen
    else:
        assert right["y"] >= left["y"] + left["height"]
        assert left["y"] < 450
        assert max(left["width"], right["width"]) <= width


def test_points_lie_where_the_values_are(open_page, made):
    page = open_page()
    row_of(page, "sce").click()
    places = page.locator(".point .mark").evaluate_all(
        "(marks) => marks.map((mark) => mark.getAttribute('transform').match(/-?[\\d.]+/g).map(Number))"
    )
    wide = made.wide.sort_values("sce")
    for axis, name in enumerate(("sce", "log_ppl@16384")):
        shown = [place[axis] for place in places]
        values = wide[name].tolist()
        # The axes are linear: one slope for all points, upwards on a screen that counts downwards.
        first, last = min(range(12), key=values.__getitem__), max(range(12), key=values.__getitem__)
        slope = (shown[last] - shown[first]) / (values[last] - values[first])
        assert slope > 0 if axis == 0 else slope < 0
        for place, value in zip(shown, values, strict=True):
            assert place == pytest.approx(shown[first] + slope * (value - values[first]), abs=0.01)
        ends_of = (
            "(lines) => lines.map((line) => ['x1', 'x2', 'y1', 'y2'].map((end) => Number(line.getAttribute(end))))"
        )
        bars = page.locator(".point").nth(0).locator("line").evaluate_all(ends_of)
        ends = bars[axis][2 * axis : 2 * axis + 2]
        stderr = wide[f"{name}_stderr"].iloc[0]
        assert sorted(ends) == pytest.approx(sorted(shown[0] + sign * slope * stderr for sign in (-1, 1)), abs=0.01)


def test_values_below_three_floors_are_hollow(open_page, made, tmp_path):
    """Of 12 checkpoints the first two have floors of 0.4 and 0.3 times their values: one is below three, one is not."""
    factors = np.array([0.4, 0.3, *[np.nan] * 10])
    wide = made.wide.assign(jeffreys_floor=made.wide["jeffreys"] * factors, jeffreys_below_floor=factors > 1 / 3)
    page = open_page(write_report(replace(made, wide=wide), tmp_path / "report.html", ()).as_uri())
    row_of(page, "sce").click()
    assert page.locator(".hollow").count() == 0
    row_of(page, "jeffreys").click()
    (flagged,) = page.locator(".point:has(.hollow)").all()
    assert wide["checkpoint"][0] in flagged.get_attribute("aria-label")
    assert "‡" in flagged.get_attribute("aria-label")
    white = page.evaluate("getComputedStyle(document.querySelector('.hollow')).fill")
    assert white != page.evaluate("getComputedStyle(document.querySelector('.mark:not(.hollow)')).fill")
    cells = page.locator("#checkpoints td").all_text_contents()
    assert sum("‡" in cell for cell in cells) == 1
    assert sum("floor" in cell for cell in cells) == 2


def test_families_are_filtered_and_it_is_told(open_page):
    page = open_page()
    assert page.locator("#shown").inner_text() == "12 of 12 checkpoints shown."
    page.get_by_label("linear", exact=True).uncheck()
    assert page.locator(".point").count() == 9
    assert not page.locator(".point[aria-label*='linear']").count()
    assert (
        page.locator("#shown").inner_text().startswith("9 of 12 checkpoints shown. The coefficients are those of all")
    )
    page.get_by_role("button", name="None", exact=True).click()
    assert page.locator(".point").count() == 0
    assert "no checkpoint to show" in page.locator("#scatter").text_content()
    page.get_by_label("yarn", exact=True).check()
    assert page.locator(".point").count() == 3
    row_of(page, "js").click()
    assert page.locator(".point").count() == 3
    page.get_by_role("button", name="All", exact=True).click()
    assert page.locator(".point").count() == 12
    assert page.locator("#families input:checked").count() == 4


def test_hover_names_the_checkpoint_with_its_values(open_page, made):
    page = open_page()
    row_of(page, "sce").click()
    page.locator("#scatter").scroll_into_view_if_needed()
    wide = made.wide.sort_values("sce")
    for index in (0, 11):
        box = page.locator(".point .mark").nth(index).bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2 + 4, box["y"] + box["height"] / 2)
        row = wide.iloc[index]
        lines = tip(page).split("\n")
        assert lines[:2] == [row["checkpoint"], f"family: {row['family']}"]
        assert lines[2] == f"sce = {row['sce']:#.4g} ± 0.020"
        assert lines[3].startswith(f"log_ppl@16384 = {row['log_ppl@16384']:#.4g} ± ")
    page.mouse.move(5, 5)
    assert tip(page) is None


def test_points_by_keyboard(open_page, made):
    page = open_page()
    row_of(page, "sce").click()
    names = made.wide.sort_values("sce")["checkpoint"].tolist()
    page.focus("#more")
    page.keyboard.press("Tab")
    assert tip(page).startswith(names[0])
    page.keyboard.press("ArrowRight")
    assert tip(page).startswith(names[1])
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    assert tip(page).startswith(names[-1])
    page.keyboard.press("ArrowLeft")
    assert tip(page).startswith(names[-2])
    page.keyboard.press("Home")
    assert tip(page).startswith(names[0])
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(names[0])
    page.keyboard.press("Escape")
    assert tip(page) is None
    page.keyboard.press("Tab")  # one stop for the whole plot
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"


def test_a_tap_names_the_checkpoint(open_page):
    page = open_page(width=360, has_touch=True, is_mobile=True)
    row_of(page, "sce").tap()
    page.locator(".point .mark").nth(3).tap()
    assert "sce = " in tip(page)


def column(page, table, index):
    return page.locator(f"[data-table={table}] tbody tr :nth-child({index})").all_text_contents()


def test_tables_sort_by_keyboard(open_page, made):
    page = open_page()
    table = made.correlations
    heads = page.locator("[data-table=correlations] thead th")
    index = heads.all_text_contents().index("Pearson’s r")
    button = heads.nth(index).get_by_role("button")
    button.focus()
    for key, state, ascending in (("Enter", "ascending", True), ("Space", "descending", False)):
        page.keyboard.press(key)
        assert heads.nth(index).get_attribute("aria-sort") == state
        rows = table.sort_values("pearson", ascending=ascending)
        shown = column(page, "correlations", index + 1)
        expected = [
            f"{signed(row.pearson)} [{signed(row.pearson_lo)}, {signed(row.pearson_hi)}]" for row in rows.itertuples()
        ]
        assert shown == expected
        assert column(page, "correlations", 1) == rows["predictor"].tolist()
    heads.nth(0).get_by_role("button").click()
    assert [heads.nth(i).get_attribute("aria-sort") for i in (0, index)] == ["ascending", "none"]
    assert column(page, "correlations", 1) == sorted(table["predictor"], key=str)


@pytest.mark.parametrize("presses", [1, 2])
def test_missing_values_sort_last(open_page, presses):
    page = open_page()
    heads = page.locator("[data-table=correlations] thead th")
    index = heads.all_text_contents().index("partial r")
    for _ in range(presses):
        heads.nth(index).get_by_role("button").click()
    shown = column(page, "correlations", index + 1)
    missing = shown.count("–")
    assert missing == 10
    assert shown[-missing:] == ["–"] * missing


def test_all_cells_show_their_table_s_numbers(open_page, made):
    page = open_page()
    heads = page.locator("[data-table=checkpoints] thead th").all_text_contents()
    for name in ("sce", "nll", "agreement_beyond"):
        shown = column(page, "checkpoints", heads.index(name) + 1)
        for text, value, stderr in zip(shown, made.wide[name], made.wide[f"{name}_stderr"], strict=True):
            assert text.split(" ± ")[0] == f"{value:#.4g}"
            assert float(text.split(" ± ")[1]) == pytest.approx(stderr, rel=0.06)
    assert column(page, "checkpoints", heads.index("params") + 1) == ["1\u202f000\u202f000"] * 12
    assert column(page, "checkpoints", heads.index("train_tokens") + 1) == ["–"] * 12
    heads = page.locator("[data-table=comparisons] thead th").all_text_contents()
    shown = column(page, "comparisons", heads.index("difference of |r|, jackknife") + 1)
    ends = zip(made.comparisons["difference_jackknife_lo"], made.comparisons["difference_jackknife_hi"], strict=True)
    assert shown == [f"{signed(low)} to {signed(high)}" for low, high in ends]


def test_an_evil_name_is_text(open_page):
    page = open_page()
    assert EVIL in column(page, "checkpoints", 1)
    assert page.get_by_label("<b>bold</b>", exact=True).count() == 1
    page.locator(f".point[aria-label^='{EVIL}']").focus()
    assert tip(page).startswith(EVIL)
    page.wait_for_timeout(100)
    assert page.locator("img").count() == 4  # the figures
    assert page.locator("b").count() == 0


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (390, "dark"), (768, "light"), (1280, "dark")])
def test_no_sideways_scroll_and_enough_contrast(open_page, width, scheme):
    page = open_page(width=width, color_scheme=scheme)
    page.locator(f".point[aria-label^='{LONG}']").focus()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.locator(".tip").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    selectors = ["body", ".small", "a", ".caution", "thead th", ".reported", ".tip", "#pair dt", "figcaption", "select"]
    selectors += [
        "#leaderboard .chosen strong",
        "#leaderboard .chosen td span",
        ".matrix .s0 button",
        ".matrix .s2 button",
        ".matrix .s3 button",
    ]
    for selector in selectors:
        assert contrast(page, selector) >= 4.5, selector
    for index in range(4):
        assert contrast(page, f"#families .c{index}", "fill") >= 3


def test_print_has_no_controls_and_whole_tables(open_page):
    page = open_page(color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 700, "height": 1000})  # about A4 less its margins
    for selector in ("nav", "#outcome", "#all", "#families input >> nth=0"):
        assert not page.locator(selector).is_visible()
    assert page.locator("#scatter svg").is_visible()
    assert page.locator("#leaderboard tbody tr:visible").count() == page.locator("#leaderboard tbody tr").count()
    head = page.locator("[data-table=correlations] thead button").first
    assert head.evaluate("(button) => getComputedStyle(button).display") == "contents"  # repeated on each page
    for region in page.locator(".scroll").all():
        width, room = region.evaluate("(box) => [box.scrollWidth, box.clientWidth]")
        assert width <= room
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    heads = page.locator("[data-table=correlations] thead th")
    shown = [head.inner_text() for head in heads.all() if head.is_visible()]
    assert {"Pearson’s r", "partial r", "adjusted p"} <= set(shown)


def test_names_and_roles_for_assistive_technology(open_page):
    page = open_page(reduced_motion="reduce")
    assert page.get_by_role("combobox").count() == page.get_by_label("Outcome", exact=True).count() == 1
    assert page.get_by_role("radio", name="NLL").count() == 1
    assert page.get_by_role("heading", level=1).count() == 1
    assert page.evaluate("document.documentElement.lang") == "en"
    unnamed = "(all) => all.filter((one) => !(one.textContent || one.ariaLabel || one.labels?.length)).length"
    assert page.locator("button, input, select, a").evaluate_all(unnamed) == 0
    repeated = "(all) => all.length - new Set(all.map((element) => element.id)).size"
    assert page.locator("[id]").evaluate_all(repeated) == 0
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the answer"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_a_thousand_checkpoints_stay_usable(open_page, tmp_path):
    written = write_report(copies(many(50), 20), tmp_path / "many.html", ())
    assert written.stat().st_size < 2e6
    page = open_page(written.as_uri())
    assert page.locator(".point").count() == 1000
    assert page.locator("[data-table=checkpoints] tbody tr").count() == 1000
    page.select_option("#outcome", index=3)
    assert page.locator(".point").count() == 1000
    heads = page.locator("[data-table=checkpoints] thead th")
    heads.nth(8).get_by_role("button").click()
    assert heads.nth(8).get_attribute("aria-sort") == "ascending"
    values = [float(text.partition(" ")[0]) for text in column(page, "checkpoints", 9)]
    assert values == sorted(values)


def test_a_checkpoint_without_a_value_is_no_point(open_page, made, tmp_path):
    wide = made.wide.copy()
    wide.loc[0, "sce"], wide.loc[1, "log_ppl@16384"] = np.nan, np.inf
    page = open_page(write_report(replace(made, wide=wide), tmp_path / "gaps.html", ()).as_uri())
    row_of(page, "sce").click()
    assert page.locator(".point").count() == 10
    assert page.locator("#shown").inner_text() == "10 of 10 checkpoints shown."
    row_of(page, "js").click()
    assert page.locator(".point").count() == 11


def test_an_analysis_without_pairs_opens(open_page, made, tmp_path):
    wide = made.wide[["checkpoint", "revision", "family", "params"]]
    nothing = {name: getattr(made, name).iloc[:0] for name in ("correlations", "comparisons", "leaderboard")}
    empty = replace(made, wide=wide, **nothing)
    page = open_page(write_report(empty, tmp_path / "empty.html", ()).as_uri())
    assert page.locator("[data-table=correlations]").inner_text() == "Nothing was computed."
    assert column(page, "checkpoints", 1) == wide["checkpoint"].tolist()
