"""The page of a token file in a real browser: colours, keyboard, touch, every width, and that it asks for nothing."""

import re
from itertools import pairwise

import numpy as np
import pytest

from longshort.show_tokens.page import write_page
from longshort.show_tokens.values import VALUES
from tests.browser import contrast
from tests.show_tokens.test_page import EVIL, EVIL_NAME
from tests.token_files import rows_of_document, write_token_file

LENGTHS = (32, 64, 128)
TEXTS = [*EVIL, "a" * 80, *("\n" if index % 12 == 11 else f" word{index}" for index in range(128 - len(EVIL) - 1))]
ROWS = [
    row
    for index, name in enumerate((EVIL_NAME, "y" * 90))
    for row in rows_of_document(index, TEXTS, LENGTHS, name=name)
]
KEYS = {"nll": "s", "gain": "d", "entropy": "s", "jeffreys": "s"}  # of the colours' classes
LABELS = {"nll": "NLL", "gain": "gain", "entropy": "entropy", "jeffreys": "Jeffreys"}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_token_file(tmp_path_factory.mktemp("tokens") / "tokens.parquet", ROWS)


@pytest.fixture(scope="module")
def address(file):
    write_page(file, file.with_suffix(".html"), documents=["0", "1"])
    return file.with_suffix(".html").as_uri()


def values_of(document, value, length):
    """By position, computed from the rows one by one."""
    rows = [row for row in ROWS if row["document"] == document]
    found = {}
    for row in rows:
        if row["length"] != length:
            continue
        number = row.get(value)
        if value == "gain":
            shorter = [other for other in rows if other["position"] == row["position"] and other["length"] < length]
            shortest = min(shorter, key=lambda other: other["length"], default=None)
            number = shortest["nll"] - row["nll"] if shortest else None
        if number is not None:
            found[row["position"]] = number
    return found


def sentence(page):
    return page.locator("#sentence").inner_text()


def position(page):
    return int(re.search(r"position (\d+)", sentence(page))[1])


def table(page):
    """The rows of numbers by length, as shown."""
    heads = page.locator("#numbers thead th").all_inner_texts()
    rows = [row.locator("th, td").all_inner_texts() for row in page.locator("#numbers tbody tr").all()]
    return {int(row[0].replace(",", "")): dict(zip(heads, row, strict=True)) for row in rows}


def number(text):
    return float(text.replace("−", "-"))


@pytest.mark.parametrize("value", list(VALUES))
@pytest.mark.parametrize("length", LENGTHS)
def test_every_token_has_the_colour_of_its_value(open_page, value, length):
    page = open_page()
    page.select_option("#value", value)
    page.select_option("#length", str(length))
    page.select_option("#document", "1")  # the chosen value and length stay
    classes = page.locator("#text [role=option]").evaluate_all("(all) => all.map((one) => one.className.split(' ')[0])")
    expected = values_of(1, value, length)
    assert len(classes) == 128
    bounds = VALUES[value].bounds
    for place, name in enumerate(classes, 1):
        if place not in expected:
            assert name == "missing"
        else:
            # Half precision can put a value on a bound on either side of it.
            bins = {sum(expected[place] * (1 + e) >= bound for bound in bounds) for e in (-1e-3, 0, 1e-3)}
            assert name in {f"{KEYS[value]}{index}" for index in bins}
    words = page.locator("#summary").inner_text()
    if not expected:
        assert "not available for any of 128 tokens" in words
        return
    mean = np.mean(list(expected.values()))
    assert f"over {len(expected)} of 128 tokens" in words
    assert number(re.search(r"mean \+?([−\d.]+) nats", words)[1]) == pytest.approx(mean, abs=0.006, rel=0.02)


@pytest.mark.parametrize("value", list(VALUES))
def test_the_legend_has_numbers(open_page, value):
    page = open_page()
    page.select_option("#value", value)
    entries = page.locator("#legend li").all_inner_texts()
    bounds = [f"{bound}".replace("-", "−") for bound in VALUES[value].bounds]
    assert entries[0] == f"below {bounds[0]}"
    assert entries[1:-2] == [f"{low} to {high}" for low, high in pairwise(bounds)]
    assert entries[-2:] == [f"{bounds[-1]} or more", "not available"]
    assert page.locator("#definition").inner_text() == VALUES[value].definition


def test_the_table_has_the_numbers_of_every_length(open_page):
    page = open_page()
    page.locator("#text [role=option]").nth(99).click()
    assert position(page) == 100
    shown = table(page)
    assert list(shown) == sorted(LENGTHS, reverse=True)
    for length, row in shown.items():
        for value, label in LABELS.items():
            expected = values_of(0, value, length).get(100)
            if expected is None:
                assert row[label] == "–"
            else:
                assert number(row[label]) == pytest.approx(expected, abs=0.006, rel=0.02)
        own = next((one for one in ROWS if (one["document"], one["length"], one["position"]) == (0, length, 100)), None)
        assert row["context"] == ("–" if own is None else str(100 - own["window_start"]))
        assert row["top-1"] == ("–" if own is None else "yes" if own["is_top"] else "no")
    assert page.locator("#numbers tr[aria-current]").count() == 1


def test_missing_values_are_told_apart_from_zero(open_page):
    page = open_page()
    page.select_option("#value", "jeffreys")
    page.select_option("#length", "32")
    page.locator("#text [role=option]").nth(20).click()
    assert "Not scored in the window of 32 tokens" in sentence(page)
    last_outside = max(
        row["position"] for row in ROWS if row["length"] == 32 and row["document"] == 0 and row["jeffreys"] is None
    )
    page.locator("#text [role=option]").nth(last_outside - 1).click()
    assert "not available in the window of 32 tokens" in sentence(page)
    assert table(page)[32]["Jeffreys"] == "–"
    hatched = "(one) => getComputedStyle(one).backgroundImage.startsWith('repeating-linear-gradient')"
    assert page.locator("#text .missing").first.evaluate(hatched)
    assert not page.locator("#text .s0, #text .s1").first.evaluate(hatched)


def test_hover_shows_the_numbers_and_leaves_the_choice(open_page):
    page = open_page()
    tokens = page.locator("#text [role=option]")
    tokens.nth(59).click()
    tokens.nth(61).hover()
    assert position(page) == 62
    page.locator("h1").hover()
    assert position(page) == 60


def test_tokens_by_keyboard(open_page):
    page = open_page()
    page.locator("#place").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "option"
    assert position(page) == 1
    for key, expected in (
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("ArrowLeft", 1),
        ("End", 128),
        ("ArrowRight", 128),
        ("Home", 1),
    ):
        page.keyboard.press(key)
        assert position(page) == expected
        assert page.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
        assert page.locator("#text [aria-selected=true]").count() == 1
    page.locator("#text [role=option]").nth(60).click()
    top = page.evaluate("document.activeElement.getClientRects()[0].top")
    page.keyboard.press("ArrowDown")
    below = position(page)
    assert below > 61
    assert page.evaluate("document.activeElement.getClientRects()[0].top") > top
    page.keyboard.press("ArrowUp")
    assert abs(position(page) - 61) <= 1
    assert page.locator("#text [tabindex]").count() == 1  # one stop for the whole text
    page.keyboard.press("Tab")
    assert not page.evaluate("document.getElementById('text').contains(document.activeElement)")


def test_the_focused_token_is_announced_and_in_view(open_page):
    page = open_page(width=360)
    assert page.locator("#sentence").get_attribute("role") == "status"
    page.locator("#text [role=option]").first.focus()
    page.keyboard.press("End")
    page.wait_for_timeout(150)
    token, panel = (page.locator(name).bounding_box() for name in ("#text .current", "#details"))
    assert token["y"] >= 0
    assert token["y"] + token["height"] <= panel["y"] + 1
    assert sentence(page).startswith("Token ")


def test_a_tap_shows_the_numbers(open_page):
    page = open_page(width=360, has_touch=True, is_mobile=True)
    page.locator("#text [role=option]").nth(70).tap()
    assert position(page) == 71
    assert page.locator("#details").is_visible()
    box = page.locator("#sentence").bounding_box()
    assert 0 <= box["y"] <= 800


def test_tokens_that_stand_out_lead_to_the_text(open_page):
    page = open_page()
    page.select_option("#value", "gain")
    gains = values_of(0, "gain", 128)
    order = sorted(gains, key=gains.__getitem__)
    buttons = page.locator("#lists button")
    for index, expected in ((0, order[0]), (1, order[1]), (5, order[-1]), (6, order[-2])):
        buttons.nth(index).click()
        assert position(page) == expected
        assert number(buttons.nth(index).locator("b").inner_text()) == pytest.approx(gains[expected], abs=0.006)
        assert page.evaluate("document.activeElement.classList.contains('current')")
    page.select_option("#value", "entropy")
    entropies = values_of(0, "entropy", 128)
    buttons.first.click()
    assert entropies[position(page)] == max(entropies.values())


def test_the_slider_goes_through_the_document(open_page):
    page = open_page()
    page.locator("#place").focus()
    page.keyboard.press("End")
    assert position(page) == 128
    page.keyboard.press("ArrowLeft")
    assert position(page) == 127
    assert page.locator("#place").get_attribute("aria-valuetext") == "token 127"


def test_text_and_names_are_text(open_page):
    page = open_page()
    tokens = page.locator("#text [role=option]")
    shown = tokens.evaluate_all("(all) => all.map((one) => one.textContent)")[: len(EVIL)]
    names = {"\u2028": "‹U+2028›", "\u202e": "‹U+202E›", "\x00": "‹U+0000›", "": "▫", "\n": "↵\n"}
    assert shown == [names.get(text, text) for text in EVIL]
    option = page.locator("#document option").first.text_content()
    assert option == "0: " + EVIL_NAME.replace("\u2028", "‹U+2028›").replace("\n", "↵\n")
    tokens.nth(0).click()
    assert page.locator("#sentence b").inner_text() == EVIL[0]
    assert page.locator("script").count() == 2
    tokens.nth(len(EVIL) + 11).hover()
    assert page.locator("#sentence b").inner_text() == "↵" if TEXTS[len(EVIL) + 11] == "\n" else True


def test_the_policy_forbids_what_is_not_the_page_s_own(browser, address):
    page = browser.new_page()
    page.goto(address)
    assert page.evaluate("fetch('https://example.org').then(() => 'done', () => 'refused')") == "refused"
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.evil = 1\">')")
    page.wait_for_timeout(200)
    assert page.evaluate("window.evil") is None
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_no_sideways_scroll_and_enough_contrast(open_page, width, scheme):
    page = open_page(width=width, color_scheme=scheme)
    page.locator("#text [role=option]").nth(127).click()
    for value in ("nll", "gain"):
        page.select_option("#value", value)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        panel = page.locator("#details").evaluate("(one) => [one.scrollWidth, one.clientWidth]")
        assert panel[0] <= panel[1]
        for index in range(len(VALUES[value].bounds) + 1):
            assert contrast(page, f"#legend .{KEYS[value]}{index}") >= 4.5, index
        for selector in ("body", "#legend .missing", "#definition", "#sentence b", "thead th", "select", "#lists mark"):
            assert contrast(page, selector) >= 4.5, selector


# Machado, Oliveira & Fernandes 2009, complete dichromacy, of linear RGB.
VISION = {
    "usual": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "none": [[0.2126, 0.7152, 0.0722]] * 3,
}


def lab(colour, vision):
    """CIE L*a*b* (D65) of an sRGB colour, as somebody sees it."""
    parts = np.array([int(part) / 255 for part in re.findall(r"\d+", colour)[:3]])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(VISION[vision]) @ linear, 0, 1)
    matrix = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    x, y, z = (
        t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in np.array(matrix) @ seen / [0.95047, 1, 1.08883]
    )
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_differ_for_any_colour_vision(open_page, scheme):
    page = open_page(color_scheme=scheme)
    colours = {}
    for value in ("nll", "gain"):
        page.select_option("#value", value)
        entries = page.locator("#legend li:not(.missing)")
        colours[value] = entries.evaluate_all("(all) => all.map((one) => getComputedStyle(one).backgroundColor)")
    for vision in VISION:
        seen = {value: [lab(colour, vision) for colour in own] for value, own in colours.items()}
        lightness = [colour[0] for colour in seen["nll"]]
        assert lightness == sorted(lightness, reverse=scheme == "light")
        for own in seen.values():
            assert min(np.linalg.norm(one - other) for one, other in pairwise(own)) > 5, vision
        if vision != "none":  # without any colour the underline has the sign
            gains = seen["gain"]
            assert min(np.linalg.norm(one - other) for one in gains[:4] for other in gains[5:]) > 8, vision
    marks = page.locator("#legend li:not(.missing)").evaluate_all(
        "(all) => all.map((one) => getComputedStyle(one).textDecorationLine)"
    )
    assert marks == ["underline"] * 4 + ["none"] * 5


def test_forced_colours_keep_the_colours_of_the_values(open_page):
    page = open_page(forced_colors="active")
    colours = page.locator("#legend li:not(.missing)").evaluate_all(
        "(all) => all.map((one) => getComputedStyle(one).backgroundColor)"
    )
    assert len(set(colours)) == 7


def test_reduced_motion_and_names_for_assistive_technology(open_page):
    page = open_page(reduced_motion="reduce")
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    moving = """(all) => all.map((one) => getComputedStyle(one)).filter(
        (style) => style.animationName !== "none" || parseFloat(style.transitionDuration)).length"""
    assert page.locator("*").evaluate_all(moving) == 0
    assert page.get_by_role("heading", level=1).count() == 1
    assert page.evaluate("document.documentElement.lang") == "en"
    for name, role in (("Document", "combobox"), ("Value", "combobox"), ("Length of the window (tokens)", "combobox")):
        assert page.get_by_role(role, name=name, exact=True).count() == 1
    unnamed = "(all) => all.filter((one) => !(one.textContent || one.ariaLabel || one.labels?.length)).length"
    assert page.locator("button, input, select, a").evaluate_all(unnamed) == 0
    repeated = "(all) => all.length - new Set(all.map((element) => element.id)).size"
    assert page.locator("[id]").evaluate_all(repeated) == 0
    assert page.get_by_role("listbox").count() == 1
    assert page.locator("[title]").count() == 0  # nothing that only a mouse shows


def test_print_has_the_coloured_text_without_controls(open_page):
    page = open_page(color_scheme="dark")
    page.select_option("#value", "gain")
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 700, "height": 1000})
    for selector in ("#document", "#place", "#details", "#extremes"):
        assert not page.locator(selector).is_visible()
    assert "NLL gain" in page.locator("#chosen").inner_text()
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("#text span").first.evaluate("(one) => getComputedStyle(one).printColorAdjust") == "exact"
    for index in range(9):
        assert contrast(page, f"#legend .d{index}") >= 4.5
    assert page.evaluate("document.documentElement.scrollWidth") <= 700


def test_a_long_document_is_quick_and_a_jump_lands_on_its_token(open_page, tmp_path):
    texts = ["\n" if index % 15 == 14 else f" w{index}" for index in range(8192)]
    file = write_token_file(tmp_path / "long.parquet", rows_of_document(0, texts, (4096, 8192)))
    write_page(file, tmp_path / "long.html")
    page = open_page((tmp_path / "long.html").as_uri())
    for index in (0, 3):
        page.locator("#lists button").nth(index).click()
        page.wait_for_timeout(150)
        box = page.locator("#text .current").bounding_box()
        assert 0 <= box["y"] <= 780
