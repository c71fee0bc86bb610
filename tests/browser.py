"""A real browser for the pages that longshort writes; tests/conftest.py has the fixtures."""

import re
import shutil

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def contrast(page, selector, what="color"):
    """WCAG's contrast ratio between an element and its background."""
    front, back = page.locator(selector).first.evaluate(
        """(element, what) => {
            let under = element;
            while (getComputedStyle(under).backgroundColor === "rgba(0, 0, 0, 0)") under = under.parentElement;
            return [getComputedStyle(element)[what], getComputedStyle(under).backgroundColor];
        }""",
        what,
    )

    def luminance(colour):
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(front), luminance(back)), reverse=True)
    return (high + 0.05) / (low + 0.05)
