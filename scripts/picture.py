"""A picture of a report's plot, as README.md leads with it; needs Chromium and `pip install 'longshort[dev]'`.

    python scripts/picture.py results/study/analysis -o docs/report.png

Without --predictor and --outcome the plot shows what the report itself opens with.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

SECTIONS = ("findings", "plot", "figures", "correlations", "comparisons")
MARGIN = 12  # in CSS pixels
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    """Open the report and save one of its sections as a browser shows it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what longshort correlate has written, with report.html in it")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/report.png"))
    parser.add_argument("--section", default="plot", choices=SECTIONS, help="of the report")
    parser.add_argument("--predictor", help="to choose in the plot; a column of checkpoints.csv")
    parser.add_argument("--outcome", help="likewise")
    parser.add_argument("--width", type=int, default=1200, help="of the window, in CSS pixels")
    options = parser.parse_args()
    report = options.folder / "report.html"
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not report.is_file():
        sys.exit(f"{report} does not exist. Run 'longshort correlate' first.")
    if browser is None:
        sys.exit(f"none of {', '.join(BROWSERS)} is installed. Install Chromium.")
    with sync_playwright() as playwright:
        # GitHub's and most containers' kernels refuse the sandbox; the page is ours.
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(
            viewport={"width": options.width, "height": 900}, color_scheme="light", device_scale_factor=1.5
        )
        page.goto(report.resolve().as_uri())
        for name in ("predictor", "outcome"):
            if chosen := getattr(options, name):
                known = page.locator(f"#{name} option").evaluate_all("(options) => options.map((one) => one.value)")
                if chosen not in known:
                    sys.exit(f"--{name}: '{chosen}' is none of {', '.join(known)}.")
                page.select_option(f"#{name}", chosen)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        box = page.locator(f"section#{options.section}").bounding_box()
        end = page.locator("#shown").bounding_box() if options.section == "plot" else box  # without the families
        height = end["y"] + end["height"] - box["y"] + MARGIN
        clip = {"x": 0, "y": box["y"], "width": options.width, "height": height}
        page.screenshot(path=options.output, full_page=True, clip=clip)
        chromium.close()
    print(options.output)


if __name__ == "__main__":
    main()
